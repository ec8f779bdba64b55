//! From bytes to [`Insn`]s: iced-x86 decodes, selectors choose handlers and lay out operands.
//!
//! Decoding depends on the bytes and the [`Mode`] alone: branch displacements and RIP-relative operands
//! are relative to the next instruction, so that a block may be mapped anywhere.

mod integer;
pub(crate) mod operands;
pub(crate) mod quick;
pub mod system;

use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction};

use self::quick::Decoded;
use crate::block::Mode;
use crate::cpu::Width;
use crate::insn::Insn;
use crate::machine::Machine;

/// Longest run of instructions decoded into one block.
pub const BLOCK_LIMIT: usize = 64;

/// Longest x86 instruction, in bytes (SDM volume 2, 2.3.11).
pub const MAX_LEN: usize = 15;

/// What [`decode_block`] found.
#[derive(Debug)]
pub struct DecodedBlock<M: Machine> {
    /// Empty only where `crosses`.
    pub insns: Vec<Insn<M>>,
    /// Bytes covered by `insns`.
    pub len: u32,
    /// The first instruction reaches beyond the bytes given: gather [`MAX_LEN`] bytes from both pages and
    /// call [`decode_crossing`].
    pub crosses: bool,
}

/// Decodes at most `limit` instructions from `bytes`, which reach from the first instruction to the end
/// of its page. The block ends with the first instruction that may branch, or that may change the mode,
/// the translations or whether interrupts are taken; or before one that reaches beyond `bytes`.
#[must_use]
pub fn decode_block<M: Machine>(bytes: &[u8], mode: Mode, limit: usize) -> DecodedBlock<M> {
    let mut insns = Vec::with_capacity(8);
    decode_into(&mut insns, bytes, mode, limit);
    let len = insns.iter().map(|insn| u32::from(insn.len)).sum();
    DecodedBlock { crosses: insns.is_empty(), insns, len }
}

/// The same, in place of what is in `insns`. Returns false where one more byte might have made the block longer.
pub fn decode_into<M: Machine>(
    insns: &mut Vec<Insn<M>>,
    bytes: &[u8],
    mode: Mode,
    limit: usize,
) -> bool {
    let mut others = Others::new(bytes, mode);
    let (mut at, long) = (0, mode.width == Width::Bits64);
    insns.clear();
    while insns.len() < limit {
        let rest = &bytes[at..];
        let quick = if long { quick::decode(rest, insns) } else { None };
        let Some(Decoded { len, ends }) = quick.or_else(|| others.decode(at, insns)) else {
            return false;
        };
        at += len;
        if ends {
            return true;
        }
        if at == bytes.len() {
            return false;
        }
    }
    true
}

/// Decodes what [`quick`] does not.
struct Others<'a> {
    bytes: &'a [u8],
    mode: Mode,
    decoder: Option<Decoder<'a>>,
    instr: Instruction,
}

impl<'a> Others<'a> {
    fn new(bytes: &'a [u8], mode: Mode) -> Self {
        Self { bytes, mode, decoder: None, instr: Instruction::default() }
    }

    /// Adds the instruction at `at`. `None`: there are not enough bytes.
    #[inline(never)]
    fn decode<M: Machine>(&mut self, at: usize, insns: &mut Vec<Insn<M>>) -> Option<Decoded> {
        let new = || Decoder::new(self.mode.width as u32, self.bytes, OPTIONS);
        let decoder = self.decoder.get_or_insert_with(new);
        decoder.set_position(at).ok()?;
        decoder.decode_out(&mut self.instr);
        if decoder.last_error() == DecoderError::NoMoreBytes {
            return None;
        }
        let (insn, ends) = select(&self.instr);
        let len = usize::from(insn.len);
        insns.push(insn);
        Some(Decoded { len, ends })
    }
}

/// Decodes the one instruction at the start of `bytes`, which are up to [`MAX_LEN`] bytes from two pages.
/// `None` where even these do not suffice.
#[must_use]
pub fn decode_crossing<M: Machine>(bytes: &[u8], mode: Mode) -> Option<Insn<M>> {
    let mut decoder = Decoder::new(mode.width as u32, bytes, OPTIONS);
    let instr = decoder.decode();
    (decoder.last_error() != DecoderError::NoMoreBytes).then(|| select(&instr).0)
}

/// Hint opcodes (ENDBR, RDSSP, BNDxx, PREFETCHxx, CLDEMOTE) do nothing on a processor that has neither CET
/// nor MPX, and prefetches need no work here: all of them are decoded as NOP.
const OPTIONS: u32 = DecoderOptions::FORCE_RESERVED_NOP;

/// Whether a block ends with the instruction.
pub(crate) fn ends_block(instr: &Instruction) -> bool {
    instr.flow_control() != FlowControl::Next || system::ends_block_with(instr)
}

/// The instruction in executable form, and whether a block must end with it.
pub(crate) fn select<M: Machine>(instr: &Instruction) -> (Insn<M>, bool) {
    if let Some(selected) = system::select(instr) {
        return selected;
    }
    if instr.is_invalid() && instr.len() >= MAX_LEN {
        return (integer::too_long(instr), true);
    }
    let branches = instr.flow_control() != FlowControl::Next;
    if let Some(insn) = integer::select(instr) {
        return (insn, branches);
    }
    if let Some(insn) = crate::vector::select(instr) {
        return (insn, branches);
    }
    (system::undefined(instr), true)
}
