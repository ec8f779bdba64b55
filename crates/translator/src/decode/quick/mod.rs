//! The common encodings of 64-bit code straight from their bytes: most of what is decoded, and much cheaper than by
//! way of an iced instruction. Whatever else there is, is declined.

mod rows;
#[cfg(test)]
mod tests;

use rows::{Behind, Constant, Part, Row, Rows};

use crate::cpu::{HIGH_BYTE, REG_NONE, REG_RIP, RSP, SEG_NONE};
use crate::decode::MAX_LEN;
use crate::insn::{Insn, InsnFlags};
use crate::machine::Machine;

const RBP: u8 = 5;

/// Bytes that are looked at: whatever an instruction ends with is read by eights.
const WINDOW: usize = MAX_LEN + 8;

/// What was decoded.
#[derive(Clone, Copy)]
pub(crate) struct Decoded {
    /// Bytes of it.
    pub(crate) len: usize,
    /// A block ends with it.
    pub(crate) ends: bool,
}

/// Adds the instruction at the start of `bytes` to `insns`. `None`: it is not decoded here, or reaches beyond them.
#[inline(always)]
pub(crate) fn decode<M: Machine>(bytes: &[u8], insns: &mut Vec<Insn<M>>) -> Option<Decoded> {
    match bytes.first_chunk() {
        Some(window) => within(window, insns),
        None => at_end(bytes, insns),
    }
}

#[cold]
fn at_end<M: Machine>(bytes: &[u8], insns: &mut Vec<Insn<M>>) -> Option<Decoded> {
    let mut window = [0; WINDOW];
    window[..bytes.len()].copy_from_slice(bytes);
    let decoded = within(&window, insns)?;
    if decoded.len > bytes.len() {
        insns.pop();
        return None;
    }
    Some(decoded)
}

/// There is a branch for what differs much from one instruction to the next only where it saves work: which way it goes
/// cannot be predicted. The instruction is put together where it is to be: a copy would wait for each of its bytes.
#[inline(always)]
fn within<M: Machine>(bytes: &[u8; WINDOW], insns: &mut Vec<Insn<M>>) -> Option<Decoded> {
    let (prefixes, at) = Prefixes::of(bytes);
    let rows = Rows::<M>::ALL;
    // XCHG with R8.
    if bytes[at] == 0x90 && prefixes.rex & 1 != 0 {
        return None;
    }
    let (mut row, mut at) = match bytes[at] {
        0x0f => (&rows.two[bytes[at + 1] as usize], at + 2),
        opcode => (&rows.one[opcode as usize], at + 1),
    };
    let (modrm, low) = (bytes[at], bytes[at - 1] & 7);
    if let Behind::Group(number) = row.shape.behind {
        row = &rows.groups[number as usize][(modrm >> 3 & 7) as usize];
    }
    let Row { handlers, shape } = row;
    let register = modrm >= 0xc0;
    let unknown = shape.behind == Behind::Unknown || shape.behind == Behind::Memory && register;
    if unknown || shape.one_size && prefixes.small {
        return None;
    }
    let (mut rm, mut memory, mut handler) = (REG_NONE, NOWHERE, handlers[prefixes.size()][0]);
    if shape.behind == Behind::Nothing || register {
        at += usize::from(shape.behind != Behind::Nothing);
        memory.flags = if shape.stack { InsnFlags::STACK } else { 0 };
        rm = prefixes.register(modrm & 7, prefixes.rex & 1, shape.bytes[1]);
    } else {
        handler = handlers[prefixes.size()][1];
        (memory, at) = prefixes.memory(bytes, at);
    }
    let reg = prefixes.register(modrm >> 3 & 7, prefixes.rex >> 2 & 1, shape.bytes[0]);
    let low = prefixes.register(low, prefixes.rex & 1, shape.bytes[1]);
    // In the order of `Part`.
    let slots = u64::from_le_bytes([REG_NONE, reg, rm, low, 0, 1, REG_NONE, REG_NONE]);
    let slot = |part: Part| (slots >> (8 * (part as u32 & 7))) as u8;
    let (len, signed) = shape.imm.encoding(prefixes.size());
    let imm = number(bytes, at, len, signed) | u64::from(shape.imm == Constant::One);
    let len = at + len;
    let Memory { disp, base, index, scale, seg, flags } = memory;
    let (dst, src) = (slot(shape.dst), slot(shape.src));
    let (aux, short) = (0, len as u8);
    insns.push(Insn {
        handler,
        imm,
        disp,
        aux,
        dst,
        src,
        base,
        index,
        scale,
        seg,
        len: short,
        flags,
    });
    Some(Decoded { len, ends: shape.ends })
}

/// The fields of an instruction that a memory operand is in.
#[derive(Clone, Copy)]
struct Memory {
    disp: i32,
    base: u8,
    index: u8,
    scale: u8,
    seg: u8,
    flags: u8,
}

const NOWHERE: Memory =
    Memory { disp: 0, base: REG_NONE, index: REG_NONE, scale: 0, seg: SEG_NONE, flags: 0 };

/// The `len` bytes at `at`: none, 1, 2, 4 or 8.
#[inline(always)]
fn number(bytes: &[u8; WINDOW], at: usize, len: usize, signed: bool) -> u64 {
    const MASKS: [u64; 9] = [0, 0xff, 0xffff, 0, 0xffff_ffff, 0, 0, 0, u64::MAX];
    const SIGNS: [u64; 9] = [0, 1 << 7, 1 << 15, 0, 1 << 31, 0, 0, 0, 0];
    let at = at.min(WINDOW - 8);
    let eight = bytes[at..at + 8].first_chunk().copied().unwrap_or_default();
    let value = u64::from_le_bytes(eight) & MASKS[len];
    let sign = if signed { SIGNS[len] } else { 0 };
    (value ^ sign).wrapping_sub(sign)
}

/// What stands before the opcode.
#[derive(Clone, Copy)]
struct Prefixes {
    /// 0, or all of it.
    rex: u8,
    /// Operand size 16, unless REX.W says 64.
    small: bool,
    seg: u8,
}

impl Prefixes {
    /// Those that are usual, once each and in the usual order; of others the row of their byte knows nothing.
    #[inline(always)]
    fn of(bytes: &[u8; WINDOW]) -> (Self, usize) {
        let mut prefixes = Self { rex: 0, small: false, seg: SEG_NONE };
        let mut at = 0;
        if bytes[at] & 0xfe == 0x64 {
            prefixes.seg = bytes[at] & 1 | 4;
            at += 1;
        }
        if bytes[at] == 0x66 {
            prefixes.small = true;
            at += 1;
        }
        let rex = bytes[at] & 0xf0 == 0x40;
        prefixes.rex = if rex { bytes[at] } else { 0 };
        (prefixes, at + usize::from(rex))
    }

    /// Index of the operand size.
    #[inline(always)]
    fn size(self) -> usize {
        let narrow = usize::from(!self.small);
        if self.rex & 8 != 0 { 2 } else { narrow }
    }

    /// The slot of a register with the low bits and the high bit of its number.
    #[inline(always)]
    fn register(self, low: u8, high: u8, byte: bool) -> u8 {
        let old_high = byte & (self.rex == 0) & (low >= 4);
        if old_high { HIGH_BYTE | low & 3 } else { low | high << 3 }
    }

    /// The memory operand of the ModRM at `at`, and where it ends.
    #[inline(always)]
    fn memory(self, bytes: &[u8; WINDOW], at: usize) -> (Memory, usize) {
        const LENGTHS: [u8; 4] = [0, 1, 4, 0];
        let (modrm, sib) = (bytes[at], bytes[at + 1]);
        let (mode, has_sib) = (modrm >> 6, modrm & 7 == 4);
        let at = at + 1 + usize::from(has_sib);
        let low = if has_sib { sib & 7 } else { modrm & 7 };
        let index = sib >> 3 & 7 | (self.rex & 2) << 2;
        let indexed = has_sib & (index != RSP);
        let no_base = (mode == 0) & (low == RBP);
        let absolute = if has_sib { REG_NONE } else { REG_RIP };
        let base = if no_base { absolute } else { low | (self.rex & 1) << 3 };
        let on_stack = (self.seg == SEG_NONE) & (base & !1 == RSP);
        let len = if no_base { 4 } else { LENGTHS[mode as usize & 3].into() };
        let memory = Memory {
            disp: number(bytes, at, len, true) as i32,
            base,
            index: if indexed { index } else { REG_NONE },
            scale: if indexed { sib >> 6 } else { 0 },
            seg: self.seg,
            flags: if on_stack { InsnFlags::STACK } else { 0 },
        };
        (memory, at + len)
    }
}
