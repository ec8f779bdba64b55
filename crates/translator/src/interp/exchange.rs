//! XCHG, XADD, CMPXCHG and its 8- and 16-byte forms.

use x86::rflags::ZF;
use x86::{Exception, Gpr};

use super::operand::{Locked, Mem};
use super::{Core, flags};
use crate::insn::Insn;
use crate::machine::{Machine, Stop, Word};

const RAX: u8 = Gpr::Rax as u8;
const RCX: usize = Gpr::Rcx as usize;
const RDX: u8 = Gpr::Rdx as u8;
const RBX: usize = Gpr::Rbx as usize;

/// A memory operand that is replaced and whose old value is wanted.
pub(crate) trait Replace {
    fn replace<M: Machine, T: Word>(
        core: &mut Core<M>,
        va: u64,
        new: impl Fn(T) -> T,
    ) -> Result<T, Stop>;
}

impl Replace for Mem {
    #[inline(always)]
    fn replace<M: Machine, T: Word>(
        core: &mut Core<M>,
        va: u64,
        new: impl Fn(T) -> T,
    ) -> Result<T, Stop> {
        let old = core.machine.load_for_store(va)?;
        core.machine.store(va, new(old))?;
        Ok(old)
    }
}

impl Replace for Locked {
    #[inline(always)]
    fn replace<M: Machine, T: Word>(
        core: &mut Core<M>,
        va: u64,
        new: impl Fn(T) -> T,
    ) -> Result<T, Stop> {
        core.machine.update(va, new)
    }
}

/// XCHG of two registers.
pub(crate) fn xchg_registers<M: Machine, T: Word>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let regs = &mut core.cpu.regs;
    let (a, b) = (T::read(regs, insn.dst), T::read(regs, insn.src));
    b.write(regs, insn.dst);
    a.write(regs, insn.src);
    Ok(())
}

/// XCHG with memory, which is locked with or without the prefix (SDM volume 3, 9.1.2.1).
pub(crate) fn xchg_memory<M: Machine, T: Word>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let new = T::read(&core.cpu.regs, insn.src);
    let va = core.address(insn);
    let old = core.machine.update(va, |_| new)?;
    old.write(&mut core.cpu.regs, insn.src);
    Ok(())
}

/// XADD of two registers; where they are the same the sum remains.
pub(crate) fn xadd_registers<M: Machine, T: Word>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let regs = &mut core.cpu.regs;
    let (a, b) = (T::read(regs, insn.dst), T::read(regs, insn.src));
    let (sum, rflags) = flags::add(a, b, 0, core.cpu.rflags);
    a.write(regs, insn.src);
    sum.write(regs, insn.dst);
    core.cpu.rflags = rflags;
    Ok(())
}

/// XADD with memory.
pub(crate) fn xadd_memory<M: Machine, T: Word, P: Replace>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let b = T::read(&core.cpu.regs, insn.src);
    let va = core.address(insn);
    let a = P::replace(core, va, |a: T| flags::add(a, b, 0, 0).0)?;
    core.cpu.rflags = flags::add(a, b, 0, core.cpu.rflags).1;
    a.write(&mut core.cpu.regs, insn.src);
    Ok(())
}

/// CMPXCHG with a register destination.
pub(crate) fn cmpxchg_registers<M: Machine, T: Word>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let regs = &mut core.cpu.regs;
    let (accumulator, old) = (T::read(regs, RAX), T::read(regs, insn.dst));
    core.cpu.rflags = flags::sub(accumulator, old, 0, core.cpu.rflags).1;
    if accumulator == old {
        T::read(regs, insn.src).write(regs, insn.dst);
    } else {
        old.write(regs, RAX);
    }
    Ok(())
}

/// CMPXCHG with memory, which is written in either case.
pub(crate) fn cmpxchg_memory<M: Machine, T: Word, P: Replace>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let accumulator = T::read(&core.cpu.regs, RAX);
    let new = T::read(&core.cpu.regs, insn.src);
    let va = core.address(insn);
    let old = P::replace(core, va, |old: T| if old == accumulator { new } else { old })?;
    core.cpu.rflags = flags::sub(accumulator, old, 0, core.cpu.rflags).1;
    if old != accumulator {
        old.write(&mut core.cpu.regs, RAX);
    }
    Ok(())
}

/// CMPXCHG8B: EDX:EAX against memory, ECX:EBX into it.
pub(crate) fn cmpxchg8b<M: Machine, P: Replace>(
    core: &mut Core<M>,
    insn: &Insn<M>,
) -> Result<(), Stop> {
    let regs = &core.cpu.regs;
    let pair = |high: usize, low: usize| regs[high] << 32 | regs[low] & 0xffff_ffff;
    let expected = pair(RDX.into(), RAX.into());
    let new = pair(RCX, RBX);
    let va = core.address(insn);
    let old = P::replace(core, va, |old: u64| if old == expected { new } else { old })?;
    if old != expected {
        (old as u32).write(&mut core.cpu.regs, RAX);
        ((old >> 32) as u32).write(&mut core.cpu.regs, RDX);
    }
    core.cpu.set_flags(ZF, if old == expected { ZF } else { 0 });
    Ok(())
}

/// CMPXCHG16B: RDX:RAX against memory, RCX:RBX into it; an unaligned operand is #GP.
pub(crate) fn cmpxchg16b<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    let regs = &core.cpu.regs;
    let pair = |high: usize, low: usize| u128::from(regs[high]) << 64 | u128::from(regs[low]);
    let expected = pair(RDX.into(), RAX.into());
    let new = pair(RCX, RBX);
    let va = core.address(insn);
    if va & 15 != 0 {
        return Err(core.machine.raise(Exception::GP0));
    }
    let old = core.machine.compare_exchange_16(va, expected, new)?;
    if old != expected {
        core.cpu.regs[RAX as usize] = old as u64;
        core.cpu.regs[RDX as usize] = (old >> 64) as u64;
    }
    core.cpu.set_flags(ZF, if old == expected { ZF } else { 0 });
    Ok(())
}
