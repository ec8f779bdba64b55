//! The common encodings of 64-bit code straight from their bytes: most of what is decoded, and much cheaper than by
//! way of an iced instruction. Whatever else there is, is declined.

mod rows;
#[cfg(test)]
mod tests;

use rows::{Behind, Constant, Part, Row, Rows, Shape};

use crate::cpu::{HIGH_BYTE, REG_NONE, REG_RIP, RSP, SEG_NONE};
use crate::decode::MAX_LEN;
use crate::insn::{Insn, InsnFlags};
use crate::machine::Machine;

const RBP: u8 = 5;

/// The instruction at the start of `bytes`, and whether a block ends with it. `None`: it is not decoded here, or there
/// are fewer than [`MAX_LEN`] bytes.
#[inline]
pub(super) fn decode<M: Machine>(bytes: &[u8]) -> Option<(Insn<M>, bool)> {
    let bytes: &[u8; MAX_LEN] = bytes.first_chunk()?;
    let (prefixes, at) = Prefixes::of(bytes);
    let rows = Rows::<M>::ALL;
    // XCHG with R8.
    if bytes[at] == 0x90 && prefixes.rex & 1 != 0 {
        return None;
    }
    let (mut row, at) = match bytes[at] {
        0x0f => (&rows.two[bytes[at + 1] as usize], at + 2),
        opcode => (&rows.one[opcode as usize], at + 1),
    };
    let (modrm, low) = (bytes[at], bytes[at - 1] & 7);
    if let Behind::Group(number) = row.shape.behind {
        row = &rows.groups[number as usize][(modrm >> 3 & 7) as usize];
    }
    let Row { handlers, shape } = row;
    if shape.behind == Behind::Unknown || shape.one_size && prefixes.small {
        return None;
    }
    let handlers = &handlers[prefixes.size()];
    let mut insn = Insn {
        handler: handlers[0],
        imm: 0,
        disp: 0,
        aux: 0,
        dst: REG_NONE,
        src: REG_NONE,
        base: REG_NONE,
        index: REG_NONE,
        scale: 0,
        seg: SEG_NONE,
        len: 0,
        flags: 0,
    };
    let mut at = at;
    let mut memory = false;
    if shape.behind != Behind::Nothing {
        memory = modrm < 0xc0;
        if memory {
            insn.handler = handlers[1];
            at = prefixes.memory(&mut insn, bytes, at);
        } else if shape.behind == Behind::Memory {
            return None;
        } else {
            at += 1;
        }
    }
    if shape.stack && !memory {
        insn.flags |= InsnFlags::STACK;
    }
    let fields = Fields { prefixes, shape, modrm, low, memory };
    insn.dst = fields.slot(shape.dst);
    insn.src = fields.slot(shape.src);
    at += constant(&mut insn, shape.imm, bytes, at, prefixes)?;
    insn.len = at as u8;
    Some((insn, shape.ends))
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
    fn of(bytes: &[u8; MAX_LEN]) -> (Self, usize) {
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
        if bytes[at] & 0xf0 == 0x40 {
            prefixes.rex = bytes[at];
            at += 1;
        }
        (prefixes, at)
    }

    fn wide(self) -> bool {
        self.rex & 8 != 0
    }

    /// Index of the operand size.
    fn size(self) -> usize {
        match () {
            () if self.wide() => 2,
            () if self.small => 0,
            () => 1,
        }
    }

    /// The memory operand of the ModRM at `at`. Returns where it ends.
    #[inline(always)]
    fn memory<M: Machine>(self, insn: &mut Insn<M>, bytes: &[u8; MAX_LEN], at: usize) -> usize {
        let (modrm, mut at) = (bytes[at], at + 1);
        insn.seg = self.seg;
        let mode = modrm >> 6;
        let mut base = modrm & 7;
        if base == 4 {
            let sib = bytes[at];
            at += 1;
            base = sib & 7;
            let index = sib >> 3 & 7 | (self.rex & 2) << 2;
            if index != RSP {
                (insn.index, insn.scale) = (index, sib >> 6);
            }
            if base == RBP && mode == 0 {
                insn.disp = dword(bytes, at);
                return at + 4;
            }
        } else if base == RBP && mode == 0 {
            (insn.base, insn.disp) = (REG_RIP, dword(bytes, at));
            return at + 4;
        }
        insn.base = base | (self.rex & 1) << 3;
        if self.seg == SEG_NONE && matches!(insn.base, RSP | RBP) {
            insn.flags |= InsnFlags::STACK;
        }
        match mode {
            0 => at,
            1 => {
                insn.disp = i32::from(bytes[at] as i8);
                at + 1
            }
            _ => {
                insn.disp = dword(bytes, at);
                at + 4
            }
        }
    }
}

/// Where operands are named.
struct Fields<'a> {
    prefixes: Prefixes,
    shape: &'a Shape,
    modrm: u8,
    low: u8,
    memory: bool,
}

impl Fields<'_> {
    #[inline(always)]
    fn slot(&self, part: Part) -> u8 {
        let rex = self.prefixes.rex;
        let [byte_reg, byte_rm] = self.shape.bytes;
        match part {
            Part::Reg => self.register(self.modrm >> 3 & 7, rex & 4, byte_reg),
            Part::Rm if !self.memory => self.register(self.modrm & 7, (rex & 1) << 2, byte_rm),
            Part::Low => self.register(self.low, (rex & 1) << 2, byte_rm),
            Part::Fixed(slot) => slot,
            Part::None | Part::Rm => REG_NONE,
        }
    }

    /// `high` is 4 where REX extends the number.
    #[inline(always)]
    fn register(&self, number: u8, high: u8, byte: bool) -> u8 {
        if byte && self.prefixes.rex == 0 && number >= 4 {
            return HIGH_BYTE | number & 3;
        }
        number | high << 1
    }
}

fn dword(bytes: &[u8; MAX_LEN], at: usize) -> i32 {
    let four = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    i32::from_le_bytes(four)
}

fn word(bytes: &[u8; MAX_LEN], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Fills in the immediate at `at`. Returns its length; `None` where it reaches beyond the longest instruction.
#[inline(always)]
fn constant<M: Machine>(
    insn: &mut Insn<M>,
    kind: Constant,
    bytes: &[u8; MAX_LEN],
    at: usize,
    prefixes: Prefixes,
) -> Option<usize> {
    let kind = match kind {
        Constant::Sized | Constant::Full if prefixes.size() == 0 => Constant::Word,
        Constant::Sized if prefixes.wide() => Constant::SignedDword,
        kind => kind,
    };
    let (imm, len) = match kind {
        Constant::None => return Some(0),
        Constant::One => (1, 0),
        Constant::Byte => (bytes.get(at).copied()?.into(), 1),
        Constant::SignedByte => (i64::from(bytes.get(at).copied()? as i8) as u64, 1),
        _ if at + 4 > MAX_LEN => return None,
        Constant::Word => (word(bytes, at).into(), 2),
        Constant::SignedDword => (i64::from(dword(bytes, at)) as u64, 4),
        Constant::Full if prefixes.wide() => {
            (u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?), 8)
        }
        Constant::Sized | Constant::Full => (u64::from(dword(bytes, at) as u32), 4),
    };
    insn.imm = imm;
    Some(len)
}
