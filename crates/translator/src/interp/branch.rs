//! Near jumps, calls and returns, loops.

use x86::paging::is_canonical;
use x86::rflags::ZF;
use x86::{Exception, Gpr};

use super::operand::Source;
use super::stack::{Legacy, Long, Stack};
use super::{Core, flags};
use crate::cpu::RSP;
use crate::insn::{Insn, InsnFlags};
use crate::machine::{Machine, Stop, Word};

/// The width of code: how RIP is written.
pub(crate) trait Code: Stack {
    /// Continues at `target`.
    fn jump<M: Machine>(core: &mut Core<M>, insn: &Insn<M>, target: u64);
    /// Whether RIP can hold a target that was loaded.
    fn reaches(target: u64) -> bool;
}

impl Code for Long {
    #[inline(always)]
    fn jump<M: Machine>(core: &mut Core<M>, _insn: &Insn<M>, target: u64) {
        core.cpu.regs[crate::cpu::REG_RIP as usize] = target;
    }

    #[inline(always)]
    fn reaches(target: u64) -> bool {
        is_canonical(target)
    }
}

impl Code for Legacy {
    #[inline(always)]
    fn jump<M: Machine>(core: &mut Core<M>, insn: &Insn<M>, target: u64) {
        let small = insn.flags & InsnFlags::SMALL != 0;
        core.cpu.set_rip(if small { target & 0xffff } else { target });
    }

    #[inline(always)]
    fn reaches(_target: u64) -> bool {
        true
    }
}

/// JMP relative. A target beyond the canonical range faults when it is fetched.
pub(crate) fn jmp<M: Machine, W: Code>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    let target = core.cpu.rip().wrapping_add(insn.imm);
    W::jump(core, insn, target);
    Ok(())
}

/// Jcc.
pub(crate) fn jcc<M: Machine, W: Code, const CC: u8>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let taken = flags::condition(CC, core.cpu.rflags);
    jump_if::<M, W>(core, insn, taken);
    Ok(())
}

#[inline(always)]
fn jump_if<M: Machine, W: Code>(core: &mut Core<M>, insn: &Insn<M>, taken: bool) {
    if taken {
        let target = core.cpu.rip().wrapping_add(insn.imm);
        W::jump(core, insn, target);
    }
}

/// JMP through a register or memory.
pub(crate) fn jmp_to<M: Machine, T: Word, W: Code, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let target = S::get::<M, T>(core, insn)?.zext();
    if !W::reaches(target) {
        return Err(core.machine.raise(Exception::GP0));
    }
    W::jump(core, insn, target);
    Ok(())
}

/// CALL relative.
pub(crate) fn call<M: Machine, T: Word, W: Code>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let next = core.cpu.rip();
    W::push(core, T::cut(next))?;
    W::jump(core, insn, next.wrapping_add(insn.imm));
    Ok(())
}

/// CALL through a register or memory.
pub(crate) fn call_to<M: Machine, T: Word, W: Code, S: Source>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let target = S::get::<M, T>(core, insn)?.zext();
    if !W::reaches(target) {
        // A fault of the push comes first.
        W::probe::<M, T>(core)?;
        return Err(core.machine.raise(Exception::GP0));
    }
    let next = core.cpu.rip();
    W::push(core, T::cut(next))?;
    W::jump(core, insn, target);
    Ok(())
}

/// RET, releasing `imm` bytes of arguments. RSP is unchanged where the target is not canonical.
pub(crate) fn ret<M: Machine, T: Word, W: Code>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let target = W::top::<M, T>(core)?.zext();
    if !W::reaches(target) {
        return Err(core.machine.raise(Exception::GP0));
    }
    let rsp = core.cpu.regs[RSP as usize].wrapping_add(T::SIZE as u64).wrapping_add(insn.imm);
    W::set_rsp(core, rsp);
    W::jump(core, insn, target);
    Ok(())
}

/// What a LOOP instruction asks besides the counter.
pub(crate) const LOOP: u8 = 0;
/// LOOPE: ZF set.
pub(crate) const LOOPE: u8 = 1;
/// LOOPNE: ZF clear.
pub(crate) const LOOPNE: u8 = 2;

/// LOOP, LOOPE, LOOPNE: the counter has the address size.
pub(crate) fn loop_while<M: Machine, W: Code, const KIND: u8>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let count = core.sized(insn, Gpr::Rcx).wrapping_sub(1);
    core.set_sized(insn, Gpr::Rcx, count);
    let zero = core.cpu.flag(ZF);
    let wanted = match KIND {
        LOOPE => zero,
        LOOPNE => !zero,
        _ => true,
    };
    jump_if::<M, W>(core, insn, wanted && count != 0);
    Ok(())
}

/// JCXZ, JECXZ, JRCXZ.
pub(crate) fn jcxz<M: Machine, W: Code>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    let zero = core.sized(insn, Gpr::Rcx) == 0;
    jump_if::<M, W>(core, insn, zero);
    Ok(())
}
