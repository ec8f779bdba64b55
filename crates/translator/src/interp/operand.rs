//! Where an instruction's operands are: each shape is a type, so that every handler is compiled for its
//! shapes and a decoded instruction goes straight to its code.

use x86::Gpr;

use super::Core;
use crate::cpu::Width;
use crate::insn::{Insn, InsnFlags};
use crate::machine::{Machine, Stop, Word};

/// An operand that can be read.
pub(crate) trait Source {
    fn get<M: Machine, T: Word>(core: &mut Core<M>, insn: &Insn<M>) -> Result<T, Stop>;
}

/// An operand that can be written without having been read.
pub(crate) trait Sink {
    fn set<M: Machine, T: Word>(core: &mut Core<M>, insn: &Insn<M>, value: T) -> Result<(), Stop>;
}

/// An operand that can be changed.
pub(crate) trait Target {
    /// Replaces the operand and RFLAGS by what `change` makes of them. Neither has changed on an error.
    fn modify<M: Machine, T: Word>(
        core: &mut Core<M>,
        insn: &Insn<M>,
        change: impl Fn(T, u64) -> (T, u64),
    ) -> Result<(), Stop>;
}

/// The register in `dst`.
pub(crate) struct Reg;
/// The register in `src`.
pub(crate) struct Src;
/// The immediate.
pub(crate) struct Imm;
/// The memory operand.
pub(crate) struct Mem;
/// The memory operand, with LOCK.
pub(crate) struct Locked;
/// Memory at a 64-bit constant address in `imm`.
pub(crate) struct Moffs;

impl Source for Reg {
    #[inline(always)]
    fn get<M: Machine, T: Word>(core: &mut Core<M>, insn: &Insn<M>) -> Result<T, Stop> {
        Ok(T::read(&core.cpu.regs, insn.dst))
    }
}

impl Source for Src {
    #[inline(always)]
    fn get<M: Machine, T: Word>(core: &mut Core<M>, insn: &Insn<M>) -> Result<T, Stop> {
        Ok(T::read(&core.cpu.regs, insn.src))
    }
}

impl Source for Imm {
    #[inline(always)]
    fn get<M: Machine, T: Word>(_core: &mut Core<M>, insn: &Insn<M>) -> Result<T, Stop> {
        Ok(T::cut(insn.imm))
    }
}

impl Source for Mem {
    #[inline(always)]
    fn get<M: Machine, T: Word>(core: &mut Core<M>, insn: &Insn<M>) -> Result<T, Stop> {
        let va = core.address(insn);
        core.machine.load(va)
    }
}

impl Source for Moffs {
    #[inline(always)]
    fn get<M: Machine, T: Word>(core: &mut Core<M>, insn: &Insn<M>) -> Result<T, Stop> {
        let va = core.moffs_address(insn);
        core.machine.load(va)
    }
}

impl Sink for Reg {
    #[inline(always)]
    fn set<M: Machine, T: Word>(core: &mut Core<M>, insn: &Insn<M>, value: T) -> Result<(), Stop> {
        value.write(&mut core.cpu.regs, insn.dst);
        Ok(())
    }
}

impl Target for Reg {
    #[inline(always)]
    fn modify<M: Machine, T: Word>(
        core: &mut Core<M>,
        insn: &Insn<M>,
        change: impl Fn(T, u64) -> (T, u64),
    ) -> Result<(), Stop> {
        let (value, rflags) = change(T::read(&core.cpu.regs, insn.dst), core.cpu.rflags);
        value.write(&mut core.cpu.regs, insn.dst);
        core.cpu.rflags = rflags;
        Ok(())
    }
}

impl Sink for Mem {
    #[inline(always)]
    fn set<M: Machine, T: Word>(core: &mut Core<M>, insn: &Insn<M>, value: T) -> Result<(), Stop> {
        let va = core.address(insn);
        core.machine.store(va, value)
    }
}

impl Target for Mem {
    #[inline(always)]
    fn modify<M: Machine, T: Word>(
        core: &mut Core<M>,
        insn: &Insn<M>,
        change: impl Fn(T, u64) -> (T, u64),
    ) -> Result<(), Stop> {
        let va = core.address(insn);
        let old = core.machine.load_for_store(va)?;
        let (value, rflags) = change(old, core.cpu.rflags);
        core.machine.store(va, value)?;
        core.cpu.rflags = rflags;
        Ok(())
    }
}

impl Target for Locked {
    #[inline(always)]
    fn modify<M: Machine, T: Word>(
        core: &mut Core<M>,
        insn: &Insn<M>,
        change: impl Fn(T, u64) -> (T, u64),
    ) -> Result<(), Stop> {
        let va = core.address(insn);
        let rflags = core.cpu.rflags;
        let old = core.machine.update(va, |old| change(old, rflags).0)?;
        core.cpu.rflags = change(old, rflags).1;
        Ok(())
    }
}

impl Sink for Moffs {
    #[inline(always)]
    fn set<M: Machine, T: Word>(core: &mut Core<M>, insn: &Insn<M>, value: T) -> Result<(), Stop> {
        let va = core.moffs_address(insn);
        core.machine.store(va, value)
    }
}

impl<M: Machine> Core<M> {
    /// The linear address of the memory operand.
    #[inline(always)]
    #[must_use]
    pub fn address(&self, insn: &Insn<M>) -> u64 {
        self.address_at(insn, 0)
    }

    /// The linear address `delta` bytes into the memory operand: added before the effective address is
    /// cut, as bit-string instructions and XLAT need it.
    #[inline(always)]
    #[must_use]
    pub fn address_at(&self, insn: &Insn<M>, delta: u64) -> u64 {
        let sum = self.sum(insn).wrapping_add(delta);
        let base = self.cpu.segs[(insn.seg & 7) as usize].base;
        if insn.flags & (InsnFlags::ADDR32 | InsnFlags::ADDR16) == 0 {
            return sum.wrapping_add(base);
        }
        self.linear(cut_address(insn.flags, sum), base)
    }

    /// The effective address (offset in its segment) of the memory operand, as LEA computes it.
    #[inline(always)]
    #[must_use]
    pub fn offset(&self, insn: &Insn<M>) -> u64 {
        cut_address(insn.flags, self.sum(insn))
    }

    #[inline(always)]
    fn sum(&self, insn: &Insn<M>) -> u64 {
        let regs = &self.cpu.regs;
        let base = regs[(insn.base & 31) as usize];
        let index = regs[(insn.index & 31) as usize] << (insn.scale & 3);
        base.wrapping_add(index).wrapping_add(insn.disp as i64 as u64)
    }

    #[inline(always)]
    fn moffs_address(&self, insn: &Insn<M>) -> u64 {
        insn.imm.wrapping_add(self.cpu.segs[(insn.seg & 7) as usize].base)
    }

    /// Base and offset added: linear addresses have 32 bits outside 64-bit mode (SDM volume 3, 3.3.1).
    #[inline(always)]
    pub(crate) fn linear(&self, offset: u64, base: u64) -> u64 {
        let linear = offset.wrapping_add(base);
        if self.cpu.width == Width::Bits64 { linear } else { linear & 0xffff_ffff }
    }

    /// A counter or pointer register, of which the instruction's address size counts.
    #[inline(always)]
    pub(crate) fn sized(&self, insn: &Insn<M>, register: Gpr) -> u64 {
        cut_address(insn.flags, self.cpu.regs[register as usize])
    }

    /// Writes such a register: 32 bits zero-extend, 16 keep the rest.
    #[inline(always)]
    pub(crate) fn set_sized(&mut self, insn: &Insn<M>, register: Gpr, value: u64) {
        let reg = &mut self.cpu.regs[register as usize];
        let kept = if insn.flags & InsnFlags::ADDR16 == 0 { 0 } else { *reg & !0xffff };
        *reg = kept | cut_address(insn.flags, value);
    }
}

/// `address` cut to the address size in `flags`.
#[inline(always)]
pub(crate) fn cut_address(flags: u8, address: u64) -> u64 {
    if flags & (InsnFlags::ADDR32 | InsnFlags::ADDR16) == 0 {
        return address;
    }
    if flags & InsnFlags::ADDR32 != 0 { address & 0xffff_ffff } else { address & 0xffff }
}
