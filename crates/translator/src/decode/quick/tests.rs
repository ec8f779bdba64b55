use iced_x86::{Decoder, DecoderError};

use super::*;
use crate::block::tests::Idle;
use crate::decode::{OPTIONS, select};

/// Everything that an instruction is made of.
fn parts(insn: &Insn<Idle>) -> [u64; 12] {
    let Insn { handler, imm, disp, aux, dst, src, base, index, scale, seg, len, flags } = *insn;
    let small = [dst, src, base, index, scale, seg, len, flags].map(u64::from);
    let mut parts = [handler as usize as u64, imm, disp as u64, aux.into(), 0, 0, 0, 0, 0, 0, 0, 0];
    parts[4..].copy_from_slice(&small);
    parts
}

/// Whether `bytes` are decoded here. If so, into the same as by iced and the selectors.
fn is_same(bytes: &[u8]) -> bool {
    let mut insns = Vec::new();
    let Some(Decoded { len, ends }) = decode::<Idle>(bytes, &mut insns) else { return false };
    let insn = insns.pop().expect("what was decoded");
    assert_eq!(len, usize::from(insn.len));
    let mut decoder = Decoder::new(64, bytes, OPTIONS);
    let instr = decoder.decode();
    assert_ne!(decoder.last_error(), DecoderError::NoMoreBytes);
    let (expected, end) = select::<Idle>(&instr);
    assert_eq!((parts(&insn), ends), (parts(&expected), end), "{bytes:02x?} {instr}");
    true
}

/// All prefixes that are decoded here, and some that are not.
fn prefixes() -> Vec<Vec<u8>> {
    let rex = (0x40..0x50).map(|rex| vec![rex]).chain([vec![]]);
    let before: [&[u8]; 15] = [
        &[],
        &[0x64],
        &[0x65],
        &[0x66],
        &[0x64, 0x66],
        &[0x65, 0x66],
        &[0x66, 0x65],
        &[0x64, 0x65],
        &[0x66, 0x66],
        &[0x67],
        &[0xf0],
        &[0xf2],
        &[0xf3],
        &[0x2e],
        &[0x40],
    ];
    rex.flat_map(|rex| before.map(|before| [before, &rex].concat())).collect()
}

/// What is behind the opcode, but for its first two bytes.
const REST: [u8; 11] = [0x81, 0x92, 0xa3, 0xf4, 0x15, 0x86, 0x97, 0xd8, 0xe9, 0x7a, 0xcb];

fn code(prefix: &[u8], opcode: &[u8], modrm: u8, sib: u8) -> Vec<u8> {
    let mut code = [prefix, opcode, &[modrm, sib], &REST].concat();
    code.resize(MAX_LEN.max(code.len()), 0x11);
    code
}

/// With every opcode and every ModRM.
#[test]
fn what_is_decoded_is_what_iced_decodes() {
    let opcodes = || (0..=255).map(|byte| vec![byte]).chain((0..=255).map(|byte| vec![0x0f, byte]));
    for prefix in prefixes() {
        let mut here = 0;
        for opcode in opcodes() {
            for modrm in 0..=255 {
                here += u32::from(is_same(&code(&prefix, &opcode, modrm, modrm.rotate_left(3))));
            }
        }
        let usual = prefix.is_empty() || prefix == [0x48] || prefix == [0x65, 0x66];
        assert!(!usual || here > 30_000, "{here} of {prefix:02x?}");
    }
}

/// With every SIB and displacements and immediates of either sign.
#[test]
fn operands_are_what_iced_decodes() {
    let opcodes: [&[u8]; 8] =
        [&[0x8b], &[0x00], &[0x8d], &[0x83], &[0xc7], &[0x0f, 0xb6], &[0xff], &[0xf6]];
    for prefix in prefixes() {
        for (opcode, mode) in opcodes.iter().flat_map(|opcode| [4, 0x4c, 0xb4].map(|m| (opcode, m)))
        {
            for sib in 0..=255 {
                let mut code = code(&prefix, opcode, mode, sib);
                is_same(&code);
                code.iter_mut()
                    .skip(prefix.len() + opcode.len() + 2)
                    .for_each(|byte| *byte ^= 0x80);
                is_same(&code);
            }
        }
    }
}

#[test]
fn what_reaches_beyond_the_bytes_is_declined() {
    // mov rax, imm64, and lea rax, [rip + disp32]
    for bytes in [[0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8].as_slice(), &[0x48, 0x8d, 5, 1, 2, 3, 4]] {
        for len in 0..bytes.len() {
            let mut insns = Vec::new();
            assert!(decode::<Idle>(&bytes[..len], &mut insns).is_none() && insns.is_empty());
        }
        assert!(is_same(bytes));
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_what_iced_decodes(bytes in proptest::collection::vec(0..=255_u8, 15..40)) {
        is_same(&bytes);
    }
}
