//! String instructions, a page at a time where they repeat.
//!
//! After each step (RE)CX, (RE)SI and (RE)DI show exactly what has been done, so a fault or an interruption
//! between two steps restarts where it left off.

use x86::Gpr;
use x86::rflags::{DF, TF, ZF};

use super::{Core, flags};
use crate::insn::{Insn, InsnFlags};
use crate::machine::{Machine, Stop, Word};

const RAX: u8 = Gpr::Rax as u8;
const PAGE: u64 = x86::paging::PAGE_SIZE;

/// What one step did.
struct Step {
    /// Elements, at least 1.
    done: u64,
    /// Whether a conditional repetition goes on.
    more: bool,
}

impl Step {
    const fn of(done: u64) -> Self {
        Self { done, more: true }
    }
}

/// Runs `step` once, or, with a repeat prefix, until the counter is zero or a step wants no more. `step`
/// gets the number of elements it may do at most.
#[inline(always)]
fn repeat<M: Machine>(
    core: &mut Core<M>,
    insn: &Insn<M>,
    step: impl Fn(&mut Core<M>, &Insn<M>, u64) -> Result<Step, Stop>,
) -> Result<(), Stop> {
    if insn.flags & (InsnFlags::REP | InsnFlags::REPNE) == 0 {
        return step(core, insn, 1).map(|_| ());
    }
    // With single stepping, each repetition is a step (SDM volume 3, 17.3.2).
    let stepping = core.cpu.flag(TF) || core.machine.steps();
    let mut count = core.sized(insn, Gpr::Rcx);
    while count != 0 {
        let limit = if stepping { 1 } else { count };
        // A fault shows the flags of the last comparison; the manual restores those from before, but AMD's
        // processors do not, and the restarted instruction sets them anew.
        let Step { done, more } = step(core, insn, limit)?;
        count -= done;
        core.set_sized(insn, Gpr::Rcx, count);
        if !more {
            break;
        }
        if count != 0 && (stepping || core.machine.attention() || core.machine.must_end()) {
            return Err(Stop::Retry);
        }
    }
    Ok(())
}

/// MOVS.
pub(crate) fn movs<M: Machine, T: Word>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    repeat(core, insn, |core, insn, limit| {
        let (from, to) = (source(core, insn), destination(core, insn));
        let len = copyable::<M, T>(core, insn, from, to, limit);
        if len > 0 {
            let done = core.machine.copy(to, from, len)? / T::SIZE as u64;
            if done > 0 {
                advance::<M, T>(core, insn, Gpr::Rsi, done);
                advance::<M, T>(core, insn, Gpr::Rdi, done);
                return Ok(Step::of(done));
            }
        }
        let value: T = core.machine.load(from)?;
        core.machine.store(to, value)?;
        advance::<M, T>(core, insn, Gpr::Rsi, 1);
        advance::<M, T>(core, insn, Gpr::Rdi, 1);
        Ok(Step::of(1))
    })
}

/// STOS.
pub(crate) fn stos<M: Machine, T: Word>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    let value = T::read(&core.cpu.regs, RAX);
    repeat(core, insn, |core, insn, limit| {
        let to = destination(core, insn);
        let count = whole::<M, T>(core, insn, Gpr::Rdi, to, limit);
        if count > 0 {
            let done = core.machine.fill(to, value.zext(), T::SIZE, count)?;
            if done > 0 {
                advance::<M, T>(core, insn, Gpr::Rdi, done);
                return Ok(Step::of(done));
            }
        }
        core.machine.store(to, value)?;
        advance::<M, T>(core, insn, Gpr::Rdi, 1);
        Ok(Step::of(1))
    })
}

/// LODS.
pub(crate) fn lods<M: Machine, T: Word>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    repeat(core, insn, |core, insn, _| {
        let va = source(core, insn);
        let value: T = core.machine.load(va)?;
        value.write(&mut core.cpu.regs, RAX);
        advance::<M, T>(core, insn, Gpr::Rsi, 1);
        Ok(Step::of(1))
    })
}

/// SCAS.
pub(crate) fn scas<M: Machine, T: Word>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    let wanted = T::read(&core.cpu.regs, RAX);
    repeat(core, insn, |core, insn, _| {
        let va = destination(core, insn);
        let value: T = core.machine.load(va)?;
        advance::<M, T>(core, insn, Gpr::Rdi, 1);
        Ok(compared(core, insn, wanted, value))
    })
}

/// CMPS.
pub(crate) fn cmps<M: Machine, T: Word>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    repeat(core, insn, |core, insn, _| {
        let (first, second) = (source(core, insn), destination(core, insn));
        let a: T = core.machine.load(first)?;
        let b: T = core.machine.load(second)?;
        advance::<M, T>(core, insn, Gpr::Rsi, 1);
        advance::<M, T>(core, insn, Gpr::Rdi, 1);
        Ok(compared(core, insn, a, b))
    })
}

/// Sets the flags of `a - b`. REPE goes on while equal, REPNE while not.
#[inline(always)]
fn compared<M: Machine, T: Word>(core: &mut Core<M>, insn: &Insn<M>, a: T, b: T) -> Step {
    core.cpu.rflags = flags::sub(a, b, 0, core.cpu.rflags).1;
    let equal = core.cpu.flag(ZF);
    Step { done: 1, more: equal == (insn.flags & InsnFlags::REP != 0) }
}

/// The linear address of the element at (R)SI.
#[inline(always)]
fn source<M: Machine>(core: &Core<M>, insn: &Insn<M>) -> u64 {
    let base = core.cpu.segs[(insn.seg & 7) as usize].base;
    core.linear(core.sized(insn, Gpr::Rsi), base)
}

/// The linear address of the element at (R)DI, in the segment whose slot is in `aux`: ES has no override.
#[inline(always)]
fn destination<M: Machine>(core: &Core<M>, insn: &Insn<M>) -> u64 {
    let base = core.cpu.segs[(insn.aux & 7) as usize].base;
    core.linear(core.sized(insn, Gpr::Rdi), base)
}

/// Moves a pointer over `count` elements, in the direction of DF.
#[inline(always)]
fn advance<M: Machine, T: Word>(core: &mut Core<M>, insn: &Insn<M>, pointer: Gpr, count: u64) {
    let distance = count.wrapping_mul(T::SIZE as u64);
    let old = core.sized(insn, pointer);
    let new =
        if core.cpu.flag(DF) { old.wrapping_sub(distance) } else { old.wrapping_add(distance) };
    core.set_sized(insn, pointer, new);
}

/// How many bytes MOVS may leave to [`Machine::copy`]: whole elements before the end of either page and
/// of the address size; 0 where it must go element by element.
#[inline(always)]
fn copyable<M: Machine, T: Word>(
    core: &Core<M>,
    insn: &Insn<M>,
    from: u64,
    to: u64,
    limit: u64,
) -> u64 {
    // Where the destination begins inside the element just read, bytes are not elements.
    let ahead = to.wrapping_sub(from);
    if (1..T::SIZE as u64).contains(&ahead) {
        return 0;
    }
    let from_source = whole::<M, T>(core, insn, Gpr::Rsi, from, limit);
    whole::<M, T>(core, insn, Gpr::Rdi, to, from_source) * T::SIZE as u64
}

/// How many of `limit` elements lie before the end of the page and of the address size; 0 for a single
/// element and for descending strings.
#[inline(always)]
fn whole<M: Machine, T: Word>(
    core: &Core<M>,
    insn: &Insn<M>,
    pointer: Gpr,
    va: u64,
    limit: u64,
) -> u64 {
    if limit < 2 || core.cpu.flag(DF) {
        return 0;
    }
    let in_page = PAGE - va % PAGE;
    let offset = core.sized(insn, pointer);
    let in_segment = match insn.flags & (InsnFlags::ADDR16 | InsnFlags::ADDR32) {
        0 => u64::MAX,
        InsnFlags::ADDR16 => (1 << 16) - offset,
        _ => (1 << 32) - offset,
    };
    limit.min(in_page.min(in_segment) / T::SIZE as u64)
}
