//! The guest's own bytes with other registers and another memory operand: what the encoder makes of most instructions,
//! for much less.
//!
//! ```text
//!   prefixes  REX  opcode  ModRM  SIB  displacement  immediate      as the guest has them
//!      |       |     |        \____________|             |
//!   without  new  as it is    register, or elsewhere     as it is
//!   segments
//! ```

use iced_x86::{Instruction, OpKind, Register};

use super::asm::{Address, Bytes};
use super::fields::register;
use super::groups::Known;
use super::operands::Spilled;

const GS: u8 = 0x65;

/// REX without a bit set; each is the top bit of a field.
const REX: u8 = 0x40;
const REX_W: u8 = 8;

/// The instruction of which `bytes` are decoded into `instr`, with its memory operand, if it has one, at `memory`,
/// and the registers of `spilled`. `None`: that is left to the encoder.
pub(super) fn recode(
    bytes: &[u8],
    instr: &Instruction,
    memory: Option<Known>,
    spilled: &Spilled,
) -> Option<Bytes> {
    // Idle ones are not part of what runs here.
    if instr.has_rep_prefix() || instr.has_repne_prefix() {
        return None;
    }
    let Some(Known { base, delta }) = memory else {
        return if spilled.moves {
            with_registers(bytes, instr, spilled)
        } else {
            Bytes::copy(bytes)
        };
    };
    let at = Address::at(base, delta);
    match bytes.first()? {
        0xc4 | 0xc5 if spilled.moves => None,
        0xc4 | 0xc5 => vex_with_memory(bytes, at),
        _ => with_memory(bytes, at, spilled),
    }
}

/// What stands before the operands.
struct Head {
    /// Without segments.
    prefixes: Bytes,
    /// 0 if there is none.
    rex: u8,
    /// All of it, and how many bytes that are.
    opcode: [u8; 3],
    len: usize,
    /// Bytes of all that.
    end: usize,
}

impl Head {
    fn of(bytes: &[u8]) -> Option<Self> {
        let (mut prefixes, mut seen, mut at) = (Bytes::default(), [false; 3], 0);
        let byte = |at: usize| bytes.get(at).copied();
        loop {
            let kind = match byte(at)? {
                0x66 => 0,
                0xf2 | 0xf3 => 1,
                0xf0 => 2,
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => {
                    at += 1;
                    continue;
                }
                _ => break,
            };
            if std::mem::replace(&mut seen[kind], true) {
                return None;
            }
            prefixes.push(byte(at)?);
            at += 1;
        }
        let rex = Some(byte(at)?).filter(|byte| byte & 0xf0 == REX).unwrap_or(0);
        at += usize::from(rex != 0);
        let opcode = [byte(at)?, byte(at + 1).unwrap_or(0), byte(at + 2).unwrap_or(0)];
        let len = match opcode {
            [0x0f, 0x38 | 0x3a, _] => 3,
            [0x0f, ..] => 2,
            // A prefix, behind which REX has no effect; or another encoding.
            [0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x62 | 0x64..=0x67, ..] => return None,
            [0x8f | 0xc4 | 0xc5 | 0xf0 | 0xf2 | 0xf3, ..] => return None,
            _ => 1,
        };
        Some(Self { prefixes, rex, opcode, len, end: at + len })
    }

    /// The same with this REX.
    fn with(&self, rex: u8, opcode: [u8; 3]) -> Bytes {
        let mut bytes = self.prefixes;
        bytes.push_if(rex != 0, rex);
        bytes.add(Bytes::of(&opcode[..self.len]));
        bytes
    }
}

fn with_memory(bytes: &[u8], at: Address, spilled: &Spilled) -> Option<Bytes> {
    let head = Head::of(bytes)?;
    let modrm = *bytes.get(head.end)?;
    let field = modrm >> 3 & 7 | (head.rex & 4) << 1;
    // What else may be a register beside memory has a low number.
    let reg = if spilled.moves { spilled.number(field) } else { field };
    let rex = head.rex & REX_W | reg >> 3 << 2 | at.base? >> 3;
    // It may stand for a byte register.
    let rex = if rex != 0 || head.rex != 0 { REX | rex } else { 0 };
    let mut code = head.with(rex, head.opcode);
    code.modrm(reg, at);
    code.add(Bytes::copy(behind_memory(bytes, head.end)?)?);
    Some(code)
}

/// With a prefix of three bytes: one of two cannot name T0.
fn vex_with_memory(bytes: &[u8], at: Address) -> Option<Bytes> {
    const NO_INDEX: u8 = 0x40;
    let low_base = u8::from(at.base? < 8) << 5;
    let (first, second, opcode, end) = match *bytes {
        [0xc5, second, opcode, ..] => (second & 0x80 | 1, second & 0x7f, opcode, 3),
        [0xc4, first, second, opcode, ..] => (first & 0x9f, second, opcode, 4),
        _ => return None,
    };
    let mut code = Bytes::of(&[0xc4, first | NO_INDEX | low_base, second, opcode]);
    code.modrm(bytes.get(end)? >> 3, at);
    code.add(Bytes::copy(behind_memory(bytes, end)?)?);
    Some(code)
}

/// What is behind the memory operand whose ModRM is at `at`.
fn behind_memory(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let modrm = bytes[at];
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let has_sib = rm == 4;
    let base = if has_sib { *bytes.get(at + 1)? & 7 } else { rm };
    let disp = match mode {
        0 if base == 5 => 4,
        0 => 0,
        1 => 1,
        2 => 4,
        _ => return None,
    };
    bytes.get(at + 1 + usize::from(has_sib) + disp..)
}

/// Where an opcode has its registers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fields {
    /// In both fields of a ModRM.
    Both,
    /// In the ModRM's rm field: the other belongs to the opcode.
    Rm,
    /// In the opcode's low bits.
    Low,
}

/// Of integer instructions.
fn fields(opcode: [u8; 3]) -> Option<Fields> {
    Some(match opcode {
        [one @ 0..=0x3f, ..] if one & 7 < 4 => Fields::Both,
        [0x63 | 0x69 | 0x6b | 0x84..=0x8b, ..] => Fields::Both,
        [0x80 | 0x81 | 0x83 | 0xc0 | 0xc1 | 0xc6 | 0xc7 | 0xd0..=0xd3, ..] => Fields::Rm,
        [0xf6 | 0xf7 | 0xfe | 0xff, ..] => Fields::Rm,
        [0xb0..=0xbf, ..] => Fields::Low,
        [0x0f, 0x40..=0x4f | 0xa3..=0xa5 | 0xab..=0xad | 0xaf..=0xb1, _] => Fields::Both,
        [0x0f, 0xb3 | 0xb6..=0xb8 | 0xbb..=0xc1, _] => Fields::Both,
        [0x0f, 0x90..=0x9f, _] => Fields::Rm,
        [0x0f, 0xc8..=0xcf, _] => Fields::Low,
        _ => return None,
    })
}

fn with_registers(bytes: &[u8], instr: &Instruction, spilled: &Spilled) -> Option<Bytes> {
    let head = Head::of(bytes)?;
    let group_8 = head.opcode[..2] == [0x0f, 0xba];
    let fields = if group_8 { Fields::Rm } else { fields(head.opcode)? };
    if fields == Fields::Low {
        return in_opcode(bytes, &head, spilled);
    }
    let modrm = *bytes.get(head.end)?;
    let (low_reg, rm) = (modrm >> 3 & 7, modrm & 7 | (head.rex & 1) << 3);
    let reg = low_reg | (head.rex & 4) << 1;
    let mut opcode = head.opcode;
    let (reg, rm) = match spilled.in_memory {
        None => (reg, Ok(spilled.number(rm))),
        Some((_, code)) if code == instr.code() => (reg, Err(rm)),
        Some(_) => {
            opcode[0] ^= 2;
            (rm, Err(reg))
        }
    };
    let reg = if fields == Fields::Both { spilled.number(reg) } else { low_reg };
    let rex = head.rex & REX_W | reg >> 3 << 2 | rm.unwrap_or(0) >> 3;
    let rex = if rex != 0 || rm.is_err() && names_low_byte(instr) { REX | rex } else { 0 };
    let mut code = Bytes::default();
    code.push_if(rm.is_err(), GS);
    code.add(head.with(rex, opcode));
    match rm {
        Ok(rm) => code.push(0xc0 | (reg & 7) << 3 | rm & 7),
        Err(slot) => code.modrm(reg, Address { base: None, index: None, disp: register(slot) }),
    }
    code.add(Bytes::copy(&bytes[head.end + 1..])?);
    Some(code)
}

/// Whether it has SPL, BPL, SIL or DIL among its operands.
fn names_low_byte(instr: &Instruction) -> bool {
    let low = [Register::SPL, Register::BPL, Register::SIL, Register::DIL];
    let mut ops = 0..instr.op_count();
    ops.any(|op| instr.op_kind(op) == OpKind::Register && low.contains(&instr.op_register(op)))
}

fn in_opcode(bytes: &[u8], head: &Head, spilled: &Spilled) -> Option<Bytes> {
    let mut opcode = head.opcode;
    let last = &mut opcode[head.len - 1];
    let number = spilled.number(*last & 7 | (head.rex & 1) << 3);
    *last = *last & !7 | number & 7;
    let mut code = head.with(REX | head.rex & REX_W | number >> 3, opcode);
    code.add(Bytes::copy(&bytes[head.end..])?);
    Some(code)
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions, Encoder, InstructionInfoFactory};

    use super::super::Options;
    use super::super::fields::{T0, T1};
    use super::super::select::Kind;
    use super::super::translate::Step;
    use super::super::vector::in_place;
    use super::*;
    use crate::decode::operands::has_memory;

    fn decoded(bytes: &[u8]) -> Instruction {
        Decoder::new(64, bytes, DecoderOptions::FORCE_RESERVED_NOP).decode()
    }

    const PLACES: [Option<Known>; 6] = [
        Some(Known { base: T0, delta: 0 }),
        Some(Known { base: T0, delta: -8 }),
        Some(Known { base: T0, delta: 0x200 }),
        Some(Known { base: 3, delta: 0x40 }),
        Some(Known { base: 5, delta: 0 }),
        Some(Known { base: 12, delta: 0 }),
    ];

    struct Checker {
        factory: InstructionInfoFactory,
        encoder: Encoder,
    }

    impl Checker {
        fn new() -> Self {
            Self { factory: InstructionInfoFactory::new(), encoder: Encoder::new(64) }
        }

        /// How often the instruction at the start of `bytes` becomes host code here; each time the same as by the
        /// encoder, in no more bytes.
        fn check(&mut self, bytes: &[u8]) -> u32 {
            let instr = decoded(bytes);
            let bytes = &bytes[..instr.len()];
            let mut step = Step { instr, ..Step::default() };
            step.find_out(Options::default(), &mut self.factory);
            if !matches!(step.kind, Kind::Same | Kind::Vector(_) | Kind::BitString) {
                return 0;
            }
            let scratches: &[&[u8]] = &[&[T1], &[T0, T1]];
            let (places, scratches): (&[_], _) = match has_memory(&instr) {
                true => (&PLACES[..], &scratches[..1]),
                false => (&[None], scratches),
            };
            let mut here = 0;
            for (&memory, scratch) in
                places.iter().flat_map(|m| scratches.iter().map(move |s| (m, s)))
            {
                let Some(spilled) = Spilled::of(&instr, scratch, &mut self.factory) else {
                    continue;
                };
                here += u32::from(self.is_same(bytes, &instr, memory, &spilled));
            }
            here
        }

        fn is_same(
            &mut self,
            bytes: &[u8],
            instr: &Instruction,
            memory: Option<Known>,
            spilled: &Spilled,
        ) -> bool {
            let Some(code) = recode(bytes, instr, memory, spilled) else { return false };
            let expected = in_place(instr, memory, spilled);
            self.encoder.encode(&expected, 0).expect("an instruction that runs here");
            let (code, expected) = (code.to_vec(), self.encoder.take_buffer());
            // What means nothing may stay where it was.
            let plain = |bytes| {
                let mut instr = decoded(bytes);
                if !has_memory(&instr) {
                    instr.set_segment_prefix(Register::None);
                }
                instr
            };
            let text = || format!("{bytes:02x?} {instr}: {code:02x?}, {expected:02x?}");
            assert_eq!(plain(&code), plain(&expected), "{}", text());
            assert_eq!(plain(&code).len(), code.len(), "{}", text());
            let len = |code: &[u8]| {
                code.iter().skip_while(|byte| [0x66, 0xf0, 0xf2, 0xf3].contains(byte)).count()
            };
            assert!(
                memory.is_none_or(|at| at.base != T0) || len(&code) <= len(&expected),
                "{}",
                text()
            );
            true
        }
    }

    const REST: [u8; 11] = [0x81, 0x92, 0xa3, 0xf4, 0x15, 0x86, 0x97, 0xd8, 0xe9, 0x7a, 0xcb];

    fn opcodes() -> impl Iterator<Item = Vec<u8>> {
        let one = (0..=255).map(|byte| vec![byte]);
        let two = (0..=255).map(|byte| vec![0x0f, byte]);
        let three = [0x38, 0x3a]
            .into_iter()
            .flat_map(|map| (0..=255).map(move |byte| vec![0x0f, map, byte]));
        one.chain(two).chain(three)
    }

    fn check_all(prefixes: &[&[u8]]) -> u32 {
        let (mut checker, mut here) = (Checker::new(), 0);
        for (prefix, opcode) in prefixes.iter().flat_map(|&p| opcodes().map(move |o| (p, o))) {
            for modrm in (prefix.len() as u8..=255).step_by(3) {
                let sib = modrm.rotate_left(3) ^ 0x2d;
                let code = [prefix, &opcode, &[modrm, sib], &REST].concat();
                here += checker.check(&code);
            }
        }
        here
    }

    #[test]
    fn legacy_instructions_are_what_the_encoder_makes_of_them() {
        for rex in [None].into_iter().chain((0x40..0x50).map(Some)) {
            let rex: &[u8] = &Vec::from_iter(rex);
            let with = |before: &[u8]| [before, rex].concat();
            let prefixes = [
                with(&[]),
                with(&[0x64]),
                with(&[0x66]),
                with(&[0xf2]),
                with(&[0xf3]),
                with(&[0xf0]),
                with(&[0x65, 0x66]),
                with(&[0x66, 0xf2]),
                with(&[0x2e, 0x66]),
            ];
            let prefixes: Vec<_> = prefixes.iter().map(Vec::as_slice).collect();
            let here = check_all(&prefixes);
            assert!(here > 100_000, "{here} with {rex:02x?}");
        }
    }

    #[test]
    fn odd_prefixes_are_left_alone_or_right() {
        let odd: [&[u8]; 7] = [
            &[0x66, 0x66],
            &[0x67],
            &[0x48, 0x66],
            &[0x4c, 0x65],
            &[0xf2, 0xf3],
            &[0x65, 0x64, 0x41],
            &[0xf0, 0xf2],
        ];
        check_all(&odd);
    }

    #[test]
    fn vex_instructions_are_what_the_encoder_makes_of_them() {
        let (mut checker, mut here) = (Checker::new(), 0);
        for (map, second) in (1..=3).flat_map(|map| (0..=255_u8).map(move |second| (map, second))) {
            for opcode in 0..=255 {
                for modrm in [0x00_u8, 0x0d, 0x2c, 0x57, 0x94, 0xc4, 0xfd] {
                    let behind = [opcode, modrm, modrm.rotate_left(3)];
                    for high in [0x00, 0x60, 0xa0, 0xe0] {
                        let long = [&[0xc4, high | map, second], &behind[..], &REST].concat();
                        here += checker.check(&long);
                    }
                    if map == 1 {
                        let short = [&[0xc5, second], &behind[..], &REST].concat();
                        here += checker.check(&short);
                    }
                }
            }
        }
        assert!(here > 100_000, "{here}");
    }

    proptest::proptest! {
        #[test]
        fn any_instruction_is_what_the_encoder_makes_of_it(
            bytes in proptest::collection::vec(0..=255_u8, 16..20)
        ) {
            Checker::new().check(&bytes);
        }
    }
}
