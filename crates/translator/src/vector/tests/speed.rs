//! What an instruction costs; prints, and asserts nothing.
//!
//! `cargo test --release -p translator speed -- --ignored --nocapture`

use std::hint::black_box;
use std::time::Instant;

use super::machine::Flat;
use super::native::Native;
use crate::block::{Block, Mode};
use crate::cpu::{Cpu, Width};
use crate::decode::decode_block;
use crate::interp::Core;

const ROUNDS: u32 = 200_000;

#[test]
#[ignore = "a measurement"]
fn speed() {
    let native = Native::new();
    let cases: [(&str, &[u8]); 16] = [
        ("nop", &[0x90]),
        ("paddd xmm1, xmm2", &[0x66, 0x0f, 0xfe, 0xca]),
        ("movdqa xmm1, xmm2", &[0x66, 0x0f, 0x6f, 0xca]),
        ("movups xmm1, [rdi]", &[0x0f, 0x10, 0x0f]),
        ("movups [rdi], xmm1", &[0x0f, 0x11, 0x0f]),
        ("pxor xmm1, [rdi]", &[0x66, 0x0f, 0xef, 0x0f]),
        ("movq xmm1, rax", &[0x66, 0x48, 0x0f, 0x6e, 0xc8]),
        ("pmovmskb eax, xmm1", &[0x66, 0x0f, 0xd7, 0xc1]),
        ("mulsd xmm1, xmm2", &[0xf2, 0x0f, 0x59, 0xca]),
        ("mulsd xmm1, [rdi]", &[0xf2, 0x0f, 0x59, 0x0f]),
        ("ucomisd xmm1, xmm2", &[0x66, 0x0f, 0x2e, 0xca]),
        ("vpaddd ymm1, ymm2, ymm3", &[0xc5, 0xed, 0xfe, 0xcb]),
        ("vmovdqu ymm1, [rdi]", &[0xc5, 0xfe, 0x6f, 0x0f]),
        ("vpcmpeqb xmm1, xmm2, [rdi]", &[0xc5, 0xe9, 0x74, 0x0f]),
        ("fadd st0, st1", &[0xd8, 0xc1]),
        ("fstp st1", &[0xdd, 0xd9]),
    ];
    for (name, bytes) in cases {
        let code = bytes.repeat(32);
        let decoded = decode_block::<Flat>(&code, Mode { width: Width::Bits64 }, 32);
        let block = Block::new(decoded.insns, 0, None);
        let mut core = Core { cpu: Cpu::new(), machine: Flat::new(native.window()) };
        core.cpu.regs[7] = native.window().start + 64;
        let start = Instant::now();
        for _ in 0..ROUNDS {
            black_box(core.run_block(&block.insns, false));
        }
        let each = start.elapsed().as_nanos() as f64 / f64::from(ROUNDS * 32);
        println!("{name:28} {each:6.2} ns");
    }
}
