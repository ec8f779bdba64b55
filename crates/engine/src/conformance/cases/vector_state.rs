//! x87, SSE and AVX state: saved and restored, and kept across exits.

use super::prelude::*;
use x86::cr4;

cases!(
    "vector_state": kept_across_exits, fxsave, xsave, xsave_components, xrstor_initial, xrstor_faults,
    xsaveopt, upper_halves, task_switch,
);

fn require_avx(engine: &dyn Engine) {
    if cpuid(engine, 1, 0)[2] & 1 << 28 == 0 {
        skip("no AVX");
    }
}

/// Switches on XSAVE with x87, SSE and AVX.
fn enable_avx(a: &mut CodeAssembler) -> Asm {
    a.set_cr4(cr4::OSXSAVE)?;
    a.mov(eax, 7)?;
    a.xor(edx, edx)?;
    a.xor(ecx, ecx)?;
    a.xsetbv()
}

/// Sets EDX:EAX to a mask of components.
fn components(a: &mut CodeAssembler, mask: u32) -> Asm {
    a.mov(eax, mask)?;
    a.xor(edx, edx)
}

const PATTERN: u64 = DATA + 0x3000;

/// 32 bytes that are all different, at [`PATTERN`] and 32 others after them.
fn write_pattern(rig: &Rig) -> Vec<u8> {
    let bytes: Vec<u8> = (1..=64).collect();
    rig.write(PATTERN, &bytes);
    bytes
}

fn kept_across_exits(engine: &dyn Engine) {
    require_avx(engine);
    let mut rig = Rig::with(engine, |a| {
        enable_avx(a)?;
        a.vmovups(ymm1, ymmword_ptr(PATTERN))?;
        a.vmovups(ymm14, ymmword_ptr(PATTERN + 32))?;
        a.fld1()?;
        a.fldpi()?;
        for _ in 0..10 {
            a.log(1)?;
            a.mov(eax, dword_ptr(MMIO))?;
        }
        a.vmovups(ymmword_ptr(DATA), ymm1)?;
        a.vmovups(ymmword_ptr(DATA + 32), ymm14)?;
        a.fstp(qword_ptr(DATA + 64))?;
        a.fstp(qword_ptr(DATA + 72))
    });
    let bytes = write_pattern(&rig);
    rig.run();
    assert_eq!(rig.bytes(DATA, 64), bytes);
    assert_eq!(f64::from_bits(rig.word(DATA + 64)), std::f64::consts::PI);
    assert_eq!(f64::from_bits(rig.word(DATA + 72)), 1.0);
}

/// Saved, destroyed, restored.
fn fxsave(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.fninit()?;
        a.fld1()?;
        a.fldpi()?;
        a.movups(xmm7, xmmword_ptr(PATTERN))?;
        a.mov(dword_ptr(DATA + 0x800), 0x1fa0)?;
        a.ldmxcsr(dword_ptr(DATA + 0x800))?;
        a.fxsave64(ptr(DATA))?;
        a.fninit()?;
        a.fldz()?;
        a.xorps(xmm7, xmm7)?;
        a.mov(dword_ptr(DATA + 0x800), 0x1f80)?;
        a.ldmxcsr(dword_ptr(DATA + 0x800))?;
        a.fxrstor64(ptr(DATA))?;
        a.movups(xmmword_ptr(DATA + 0x800), xmm7)?;
        a.stmxcsr(dword_ptr(DATA + 0x810))?;
        a.fstp(qword_ptr(DATA + 0x818))?;
        a.fstp(qword_ptr(DATA + 0x820))?;
        a.fnstsw(ax)?;
        a.movzx(eax, ax)?;
        a.and(eax, 0x3800)?;
        a.log_eax()
    });
    let bytes = write_pattern(&rig);
    let record = rig.run();
    assert_eq!(rig.bytes(DATA + 0x800, 16), bytes[..16]);
    assert_eq!(rig.word(DATA + 0x810) as u32, 0x1fa0);
    assert_eq!(f64::from_bits(rig.word(DATA + 0x818)), std::f64::consts::PI);
    assert_eq!(f64::from_bits(rig.word(DATA + 0x820)), 1.0);
    // The stack is empty again.
    assert_eq!(record.log, [0]);
    // In the image: control word, top of stack at 6, two registers full (the abridged tag), MXCSR, XMM7.
    assert_eq!(rig.bytes(DATA, 5), [0x7f, 3, 0, 0x30, 0xc0]);
    assert_eq!(rig.word(DATA + 24) as u32, 0x1fa0);
    assert_eq!(rig.bytes(DATA + 160 + 7 * 16, 16), bytes[..16]);
}

fn xsave(engine: &dyn Engine) {
    require_avx(engine);
    let mut rig = Rig::with(engine, |a| {
        enable_avx(a)?;
        a.vmovups(ymm3, ymmword_ptr(PATTERN))?;
        a.fninit()?;
        a.fldpi()?;
        components(a, 7)?;
        a.xsave64(ptr(DATA))?;
        a.vzeroall()?;
        a.fninit()?;
        components(a, 7)?;
        a.xrstor64(ptr(DATA))?;
        a.vmovups(ymmword_ptr(DATA + 0x800), ymm3)?;
        a.fstp(qword_ptr(DATA + 0x820))
    });
    let bytes = write_pattern(&rig);
    rig.run();
    assert_eq!(rig.bytes(DATA + 0x800, 32), bytes[..32]);
    assert_eq!(f64::from_bits(rig.word(DATA + 0x820)), std::f64::consts::PI);
    // The header says what the image holds; the halves lie apart.
    assert_eq!(rig.word(DATA + 512), 7);
    assert_eq!(rig.bytes(DATA + 160 + 48, 16), bytes[..16]);
    assert_eq!(rig.bytes(DATA + 576 + 48, 16), bytes[16..32]);
}

/// Only what the mask asks for is saved and restored.
fn xsave_components(engine: &dyn Engine) {
    require_avx(engine);
    let mut rig = Rig::with(engine, |a| {
        enable_avx(a)?;
        a.vmovups(ymm3, ymmword_ptr(PATTERN))?;
        components(a, 4)?;
        a.xsave64(ptr(DATA))?;
        a.vmovups(ymm3, ymmword_ptr(PATTERN + 32))?;
        components(a, 4)?;
        a.xrstor64(ptr(DATA))?;
        a.vmovups(ymmword_ptr(DATA + 0x800), ymm3)
    });
    let bytes = write_pattern(&rig);
    rig.run();
    assert_eq!(rig.bytes(DATA + 0x800, 32), [&bytes[32..48], &bytes[16..32]].concat());
    assert_eq!(rig.word(DATA + 512), 4);
    assert_eq!(rig.bytes(DATA + 160 + 48, 16), [0; 16]);
}

/// A component that the image does not hold goes to its initial state.
fn xrstor_initial(engine: &dyn Engine) {
    require_avx(engine);
    let mut rig = Rig::with(engine, |a| {
        enable_avx(a)?;
        a.vmovups(ymm3, ymmword_ptr(PATTERN))?;
        a.fldpi()?;
        components(a, 7)?;
        a.xrstor64(ptr(DATA))?;
        a.vmovups(ymmword_ptr(DATA + 0x800), ymm3)?;
        a.fnstcw(word_ptr(DATA + 0x820))?;
        a.fnstsw(word_ptr(DATA + 0x822))
    });
    let bytes = write_pattern(&rig);
    // Only AVX, with the pattern's second half in YMM3; MXCSR must be valid.
    rig.set_word(DATA + 24, 0x1f80);
    rig.set_word(DATA + 512, 4);
    rig.write(DATA + 576 + 48, &bytes[32..48]);
    rig.run();
    assert_eq!(rig.bytes(DATA + 0x800, 32), [&[0; 16], &bytes[32..48]].concat());
    assert_eq!(rig.word(DATA + 0x820) & 0xffff_ffff, 0x37f);
}

/// Alignment, bits in the header, bits in MXCSR.
fn xrstor_faults(engine: &dyn Engine) {
    require_avx(engine);
    let mut rig = Rig::with(engine, |a| {
        enable_avx(a)?;
        components(a, 7)?;
        a.fault(|a| a.xsave64(ptr(DATA + 8)))?;
        a.fault(|a| a.xrstor64(ptr(DATA + 16)))?;
        a.fault(|a| a.xrstor64(ptr(DATA + 0x400)))?;
        a.fault(|a| a.xrstor64(ptr(DATA + 0x800)))?;
        a.fault(|a| a.xrstor64(ptr(DATA + 0xc00)))
    });
    for image in [0x400, 0x800, 0xc00] {
        rig.set_word(DATA + image + 24, 0x1f80);
    }
    // A component that XCR0 does not have, a reserved word of the header, a reserved bit of MXCSR.
    rig.set_word(DATA + 0x400 + 512, 1 << 40);
    rig.set_word(DATA + 0x800 + 520, 1);
    rig.set_word(DATA + 0xc00 + 24, 1 << 31);
    rig.set_word(DATA + 0xc00 + 512, 2);
    assert_eq!(rig.run().faults(), [Fault::new(Vector::GP); 5]);
}

/// May leave out what is initial or unchanged; what it saves restores to the same.
fn xsaveopt(engine: &dyn Engine) {
    require_avx(engine);
    if cpuid(engine, 0xd, 1)[0] & 1 == 0 {
        skip("no XSAVEOPT");
    }
    let mut rig = Rig::with(engine, |a| {
        enable_avx(a)?;
        for offset in [0, 32] {
            a.vmovups(ymm3, ymmword_ptr(PATTERN + offset))?;
            components(a, 7)?;
            a.xsaveopt64(ptr(DATA))?;
            a.vzeroall()?;
            components(a, 7)?;
            a.xrstor64(ptr(DATA))?;
            a.vmovups(ymmword_ptr(DATA + 0x800 + offset), ymm3)?;
        }
        Ok(())
    });
    let bytes = write_pattern(&rig);
    rig.run();
    assert_eq!(rig.bytes(DATA + 0x800, 64), bytes);
}

/// VEX instructions on XMM clear the upper half, older ones keep it.
fn upper_halves(engine: &dyn Engine) {
    require_avx(engine);
    let mut rig = Rig::with(engine, |a| {
        enable_avx(a)?;
        a.vmovups(ymm0, ymmword_ptr(PATTERN))?;
        a.vmovaps(ymm1, ymm0)?;
        a.vmovaps(ymm2, ymm0)?;
        a.movups(xmm0, xmmword_ptr(PATTERN + 32))?;
        a.vmovups(ymmword_ptr(DATA + 64), ymm0)?;
        a.vmovups(xmm1, xmmword_ptr(PATTERN + 32))?;
        a.vmovups(ymmword_ptr(DATA), ymm1)?;
        a.vzeroupper()?;
        a.vmovups(ymmword_ptr(DATA + 32), ymm2)
    });
    let bytes = write_pattern(&rig);
    rig.run();
    assert_eq!(rig.bytes(DATA + 64, 32), [&bytes[32..48], &bytes[16..32]].concat());
    assert_eq!(rig.bytes(DATA, 32), [&bytes[32..48], &[0; 16]].concat());
    assert_eq!(rig.bytes(DATA + 32, 32), [&bytes[..16], &[0; 16]].concat());
}

/// Lazy switching as kernels did it: #NM on the first use, which then works.
fn task_switch(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.movups(xmm1, xmmword_ptr(PATTERN))?;
        a.fxsave64(ptr(DATA))?;
        a.set_cr0(x86::cr0::TS)?;
        a.movups(xmmword_ptr(DATA + 0x800), xmm1)?;
        a.log(1)
    });
    rig.load(HANDLER, |a| {
        a.clts()?;
        a.xorps(xmm1, xmm1)?;
        a.fxrstor64(ptr(DATA))?;
        a.inc(dword_ptr(DATA + 0x900))?;
        a.iretq()
    });
    rig.set_gate(7, Gate::to(HANDLER));
    let bytes = write_pattern(&rig);
    assert_eq!(rig.run().log, [1]);
    assert_eq!(rig.bytes(DATA + 0x800, 16), bytes[..16]);
    assert_eq!(rig.word(DATA + 0x900), 1);
}
