//! One decoded instruction in the form that the interpreter executes.

use std::fmt;

use crate::interp::Core;
use crate::machine::{Machine, Stop};

/// Executes one instruction. RIP already points to the next one; on `Fault` and `Retry` the caller sets
/// it back.
pub type Handler<M> = fn(&mut Core<M>, &Insn<M>) -> Result<(), Stop>;

/// A decoded instruction: what to do and with which operands. 32 bytes, since a booted kernel holds half a
/// million of them. Which fields a handler reads is between it and its selector in [`crate::decode`].
pub struct Insn<M: Machine> {
    /// Does the work.
    pub handler: Handler<M>,
    /// Immediate (sign-extended to the operand size), branch displacement relative to the next
    /// instruction, or a thunk.
    pub imm: u64,
    /// Displacement of the memory operand. A 64-bit `moffs` is in `imm` instead.
    pub disp: i32,
    /// Whatever else the handler needs: a condition, a third register, a size.
    pub aux: u32,
    /// Register slot written.
    pub dst: u8,
    /// Register slot read.
    pub src: u8,
    /// Base slot of the memory operand, or `REG_NONE`, or `REG_RIP`.
    pub base: u8,
    /// Index slot of the memory operand, or `REG_NONE`.
    pub index: u8,
    /// log2 of the scale, 0..=3.
    pub scale: u8,
    /// Slot of the segment whose base is added, or `SEG_NONE`.
    pub seg: u8,
    /// Length of the encoding, 1..=15.
    pub len: u8,
    /// See [`InsnFlags`].
    pub flags: u8,
}

/// Bits of [`Insn::flags`].
#[allow(non_snake_case, reason = "a namespace of constants")]
pub mod InsnFlags {
    /// The address is cut to 32 bits before the segment base is added.
    pub const ADDR32: u8 = 1 << 0;
    /// The address is cut to 16 bits before the segment base is added.
    pub const ADDR16: u8 = 1 << 1;
    /// The memory operand is in the stack segment, or there is none and the instruction pushes or pops: a
    /// non-canonical address is #SS, not #GP.
    pub const STACK: u8 = 1 << 2;
    /// REP or REPE.
    pub const REP: u8 = 1 << 3;
    /// REPNE.
    pub const REPNE: u8 = 1 << 4;
    /// The operand in `src`/`dst` position is in memory, for handlers that serve both forms.
    pub const MEMORY: u8 = 1 << 5;
    /// Operand size 64 (system instructions that serve several).
    pub const WIDE: u8 = 1 << 6;
    /// Operand size 16.
    pub const SMALL: u8 = 1 << 7;
}

impl<M: Machine> fmt::Debug for Insn<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Insn")
            .field("imm", &self.imm)
            .field("disp", &self.disp)
            .field("aux", &self.aux)
            .field("dst", &self.dst)
            .field("src", &self.src)
            .field("base", &self.base)
            .field("index", &self.index)
            .field("seg", &self.seg)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
