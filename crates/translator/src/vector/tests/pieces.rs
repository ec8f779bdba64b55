//! What a comparison with the host does not show.

use iced_x86::{Decoder, DecoderOptions, Encoder};

use super::generate::{self, Case};
use super::machine::Flat;
use super::native::Native;
use super::random::Random;
use crate::block::Mode;
use crate::cpu::{Cpu, Width};
use crate::decode::decode_crossing;
use crate::insn::Insn;
use crate::interp::Core;
use crate::machine::{Stop, VectorKind};
use crate::vector::arena;
use crate::vector::encoding::Encoding;

fn decode(bytes: &[u8], width: Width) -> Insn<Flat> {
    decode_crossing(bytes, Mode { width }).expect("a whole instruction")
}

fn core(native: &Native) -> Core<Flat> {
    let mut cpu = Cpu::new();
    cpu.xcr0 = 7;
    Core { cpu, machine: Flat::new(native.window()) }
}

fn run(core: &mut Core<Flat>, bytes: &[u8]) -> Result<(), Stop> {
    let insn = decode(bytes, core.cpu.width);
    (insn.handler)(core, &insn)
}

/// Each instruction asks its gate, and does nothing if it is closed.
#[test]
fn gates_close() {
    let native = Native::new();
    let kinds: [(VectorKind, &[u8]); 14] = [
        (VectorKind::X87, &[0xd8, 0xc1]),
        (VectorKind::X87, &[0x0f, 0xae, 0x07]),
        (VectorKind::X87, &[0x0f, 0xae, 0x0f]),
        (VectorKind::X87, &[0xdb, 0xe3]),
        (VectorKind::Wait, &[0x9b]),
        (VectorKind::Mmx, &[0x0f, 0xfe, 0xca]),
        (VectorKind::Mmx, &[0x0f, 0x77]),
        (VectorKind::Sse, &[0x66, 0x0f, 0xfe, 0xca]),
        (VectorKind::Sse, &[0x0f, 0x2a, 0xca]),
        (VectorKind::Sse, &[0x0f, 0xae, 0x17]),
        (VectorKind::Avx, &[0xc5, 0xed, 0xfe, 0xcb]),
        (VectorKind::Avx, &[0xc5, 0xf8, 0x77]),
        (VectorKind::Xsave, &[0x0f, 0xae, 0x27]),
        (VectorKind::Xsave, &[0x0f, 0xae, 0x2f]),
    ];
    for (kind, bytes) in kinds {
        let mut core = core(&native);
        core.cpu.regs[7] = native.window().start;
        core.machine.closed = Some(kind);
        let before = core.cpu.fpu.image;
        assert_eq!(run(&mut core, bytes), Err(Stop::Fault), "{bytes:02x?} ignores {kind:?}");
        assert_eq!(core.cpu.fpu.image, before);
        core.machine.closed = None;
        assert_eq!(run(&mut core, bytes), Ok(()), "{bytes:02x?}");
    }
}

/// A full arena changes nothing but the speed.
#[test]
fn scratch_slot_acts_like_a_place() {
    let native = Native::new();
    let mut random = Random::new(5);
    for code in generate::accepted() {
        let case = Case::new(&mut random, code, native.window(), native.slot());
        let Some(case) = case else { continue };
        let bytes = case.encode(native.slot()).expect("it was encoded before");
        let mut insn = decode(&bytes, Width::Bits64);
        let place = Encoding::of(&case.instr).and_then(arena::find);
        if place.is_none_or(|(_, place)| place.0 != insn.aux) || insn.imm < 1 << 8 {
            continue;
        }
        let mut images = [0, 1].map(|_| None);
        for image in &mut images {
            let mut core = core(&native);
            core.cpu.fpu.image[32..416].copy_from_slice(&[0x3c; 384]);
            core.cpu.regs[..16].fill(native.window().start);
            let _ = (insn.handler)(&mut core, &insn);
            *image = Some((core.cpu.fpu.image, core.cpu.regs, core.cpu.rflags));
            insn.aux = 0;
        }
        assert!(images[0] == images[1], "{code:?}");
    }
}

/// The same instruction decoded from 32-bit code is the same thunk.
#[test]
fn width_of_code_does_not_matter() {
    let mut random = Random::new(6);
    let mut compared = 0;
    for code in generate::accepted() {
        if !code.op_code().mode32() {
            continue;
        }
        let Some(case) = Case::new(&mut random, code, 0x10_0000..0x10_2000, 0x10_4000) else {
            continue;
        };
        let mut encoder = Encoder::new(32);
        if encoder.encode(&case.instr, 0x10_4000).is_err() {
            continue;
        }
        let bytes = encoder.take_buffer();
        let mut decoder = Decoder::with_ip(32, &bytes, 0x10_4000, DecoderOptions::NONE);
        let narrow = decoder.decode();
        assert_eq!(Encoding::of(&narrow), Encoding::of(&case.instr), "{code:?}");
        compared += 1;
    }
    assert!(compared > 100, "only {compared}");
}

/// VPGATHERDD XMM1, [RDI + XMM2], XMM3 whose third element faults.
#[test]
fn gather_goes_on_where_it_stopped() {
    let native = Native::new();
    let mut core = core(&native);
    let (gather, window) = ([0xc4, 0xe2, 0x61, 0x90, 0x0c, 0x17], native.window());
    core.cpu.regs[7] = window.start;
    let beyond = (window.end - window.start) as u128;
    core.cpu.fpu.set_xmm(2, 4 << 32 | beyond << 64 | 12 << 96);
    core.cpu.fpu.set_xmm(3, u128::MAX);
    core.cpu.fpu.set_ymm_high(1, 7);
    for offset in [0, 4, 8, 12] {
        use crate::machine::Machine;
        core.machine.store(window.start + offset, 0x100 + offset as u32).expect("in the window");
    }
    assert_eq!(run(&mut core, &gather), Err(Stop::Fault));
    assert_eq!(core.cpu.fpu.xmm(1), 0x104 << 32 | 0x100);
    assert_eq!(core.cpu.fpu.xmm(3), u128::MAX << 64);
    core.cpu.fpu.set_xmm(2, 8 << 64 | 12 << 96);
    assert_eq!(run(&mut core, &gather), Ok(()));
    assert_eq!(core.cpu.fpu.xmm(1), 0x10c << 96 | 0x108 << 64 | 0x104 << 32 | 0x100);
    assert_eq!((core.cpu.fpu.xmm(3), core.cpu.fpu.ymm_high(1)), (0, 0));
}

/// Outside 64-bit mode registers 8 to 15 are neither saved nor loaded.
#[test]
fn narrow_code_saves_eight_registers() {
    let native = Native::new();
    let mut core = core(&native);
    core.cpu.width = Width::Bits32;
    core.cpu.regs[7] = native.window().start;
    core.cpu.regs[0] = 7;
    core.cpu.fpu.image[160..416].fill(0x11);
    core.cpu.fpu.image[576..832].fill(0x22);
    for (save, restore) in
        [([0x0f, 0xae, 0x07], [0x0f, 0xae, 0x0f]), ([0x0f, 0xae, 0x27], [0x0f, 0xae, 0x2f])]
    {
        let mut copy = core.cpu.clone();
        run(&mut core, &save).expect("saves");
        copy.fpu.image[160..416].fill(0x33);
        copy.fpu.image[576..832].fill(0x33);
        std::mem::swap(&mut core.cpu, &mut copy);
        run(&mut core, &restore).expect("restores");
        assert_eq!(core.cpu.fpu.image[287..289], [0x11, 0x33]);
        std::mem::swap(&mut core.cpu, &mut copy);
    }
    run(&mut core, &[0xc5, 0xfc, 0x77]).expect("VZEROALL");
    assert_eq!(core.cpu.fpu.image[287..289], [0, 0x11]);
    assert_eq!(core.cpu.fpu.image[703..705], [0, 0x22]);
}

/// What CPUID may show is consistent: no AVX2 without AVX, no AVX without XSAVE and its component.
#[test]
fn features_go_together() {
    let features = crate::vector::host_features();
    let avx = features.leaf1_ecx >> 28 & 1 != 0;
    assert_eq!(features.leaf1_edx, 1 | 1 << 23 | 1 << 24 | 1 << 25 | 1 << 26);
    assert_eq!(features.xcr0, if avx { 7 } else { 3 });
    assert!(avx || features.leaf7_ebx & 1 << 5 == 0 && features.leaf1_ecx & 1 << 12 == 0);
}
