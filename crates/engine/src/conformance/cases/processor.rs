//! CPUID that holds together, and the time-stamp counter.

use super::prelude::*;

cases!(
    "processor": features_have_prerequisites, xsave_sizes, leaves, xsave_enabled_bit, hidden_features,
    tsc_monotonic, tsc_across_processors, tsc_write, rdtscp, rdpid, random,
);

/// A feature bit: leaf, register (EAX 0 to EDX 3), bit.
#[derive(Clone, Copy)]
struct Bit(u32, usize, u32);

const FXSR: Bit = Bit(1, 3, 24);
const SSE: Bit = Bit(1, 3, 25);
const SSE2: Bit = Bit(1, 3, 26);
const APIC: Bit = Bit(1, 3, 9);
const PAE: Bit = Bit(1, 3, 6);
const CX8: Bit = Bit(1, 3, 8);
const TSC: Bit = Bit(1, 3, 4);
const MSR: Bit = Bit(1, 3, 5);
const SSE3: Bit = Bit(1, 2, 0);
const PCLMUL: Bit = Bit(1, 2, 1);
const SSSE3: Bit = Bit(1, 2, 9);
const FMA: Bit = Bit(1, 2, 12);
const CX16: Bit = Bit(1, 2, 13);
const SSE41: Bit = Bit(1, 2, 19);
const SSE42: Bit = Bit(1, 2, 20);
const X2APIC: Bit = Bit(1, 2, 21);
const DEADLINE: Bit = Bit(1, 2, 24);
const AES: Bit = Bit(1, 2, 25);
const XSAVE: Bit = Bit(1, 2, 26);
const AVX: Bit = Bit(1, 2, 28);
const F16C: Bit = Bit(1, 2, 29);
const AVX2: Bit = Bit(7, 1, 5);
const AVX512F: Bit = Bit(7, 1, 16);
const SHA: Bit = Bit(7, 1, 29);
const VAES: Bit = Bit(7, 2, 9);
const VPCLMUL: Bit = Bit(7, 2, 10);
const XSAVEOPT: Bit = Bit(0x1_000d, 0, 0);
const XSAVEC: Bit = Bit(0x1_000d, 0, 1);
const LONG_MODE: Bit = Bit(0x8000_0001, 3, 29);
const NX: Bit = Bit(0x8000_0001, 3, 20);
const SYSCALL: Bit = Bit(0x8000_0001, 3, 11);
const RDTSCP: Bit = Bit(0x8000_0001, 3, 27);

/// Feature, and what it cannot be without (SDM volume 1, chapters 10 to 14).
const PREREQUISITES: [(Bit, &[Bit]); 23] = [
    (SSE, &[FXSR]),
    (SSE2, &[SSE]),
    (SSE3, &[SSE2]),
    (SSSE3, &[SSE3]),
    (SSE41, &[SSSE3]),
    (SSE42, &[SSE41]),
    (PCLMUL, &[SSE2]),
    (AES, &[SSE2]),
    (SHA, &[SSSE3]),
    (AVX, &[XSAVE, SSE42]),
    (FMA, &[AVX]),
    (F16C, &[AVX]),
    (AVX2, &[AVX]),
    (VAES, &[AVX, AES]),
    (VPCLMUL, &[AVX, PCLMUL]),
    (AVX512F, &[AVX2, FMA]),
    (XSAVEOPT, &[XSAVE]),
    (XSAVEC, &[XSAVE]),
    (X2APIC, &[APIC, MSR]),
    (DEADLINE, &[APIC, TSC, X2APIC]),
    (CX16, &[CX8]),
    (LONG_MODE, &[PAE, SSE2, SYSCALL, NX]),
    (RDTSCP, &[TSC]),
];

fn has(engine: &dyn Engine, bit: Bit) -> bool {
    let Bit(leaf, register, number) = bit;
    let (leaf, subleaf) = if leaf >> 16 == 1 { (leaf & 0xffff, 1) } else { (leaf, 0) };
    cpuid(engine, leaf, subleaf)[register] >> number & 1 != 0
}

fn features_have_prerequisites(engine: &dyn Engine) {
    for (feature, needed) in PREREQUISITES {
        let Bit(leaf, register, number) = feature;
        let lacking = needed.iter().any(|&bit| !has(engine, bit));
        let wrong = lacking && has(engine, feature);
        assert!(!wrong, "leaf {leaf:#x}, register {register}, bit {number}");
    }
    // What this engine interface promises.
    assert!(has(engine, LONG_MODE) && has(engine, X2APIC));
}

/// Leaf 0xd: the size follows XCR0, and each component lies where it must.
fn xsave_sizes(engine: &dyn Engine) {
    if !has(engine, XSAVE) {
        skip("no XSAVE");
    }
    let [supported, _, largest, _] = cpuid(engine, 0xd, 0);
    assert_eq!(supported & 3, 3);
    let mut end = 576;
    for component in 2..32 {
        if supported >> component & 1 != 0 {
            let [size, offset, ..] = cpuid(engine, 0xd, component);
            assert!(size > 0 && offset >= 576, "component {component}: {size} bytes at {offset}");
            end = end.max(offset + size);
        }
    }
    assert_eq!(largest, end);
    if supported & 4 != 0 {
        assert_eq!(cpuid(engine, 0xd, 2)[..2], [256, 576]);
    }
    let mut rig = Rig::with(engine, |a| {
        a.set_cr4(x86::cr4::OSXSAVE)?;
        for value in [1, 3, supported] {
            a.mov(eax, value)?;
            a.xor(edx, edx)?;
            a.xor(ecx, ecx)?;
            a.xsetbv()?;
            a.mov(eax, 0xd)?;
            a.xor(ecx, ecx)?;
            a.cpuid()?;
            a.mov(eax, ebx)?;
            a.log_eax()?;
        }
        Ok(())
    });
    assert_eq!(rig.run().log, [576, 576, largest]);
}

/// The highest leaves reach as far as the features need.
fn leaves(engine: &dyn Engine) {
    let [basic, vendor, ..] = cpuid(engine, 0, 0);
    assert!(basic >= 0xd, "{basic:#x}");
    assert_ne!(vendor, 0);
    assert!(cpuid(engine, 0x8000_0000, 0)[0] >= 0x8000_0008);
    let [sizes, ..] = cpuid(engine, 0x8000_0008, 0);
    let (physical, linear) = (sizes & 0xff, sizes >> 8 & 0xff);
    assert!((36..=52).contains(&physical), "{physical} physical address bits");
    assert!(linear == 48 || linear == 57, "{linear} linear address bits");
    // The hypervisor bit.
    assert_ne!(cpuid(engine, 1, 0)[2] & 1 << 31, 0);
}

/// OSXSAVE shows CR4.
fn xsave_enabled_bit(engine: &dyn Engine) {
    if !has(engine, XSAVE) {
        skip("no XSAVE");
    }
    let mut rig = Rig::with(engine, |a| {
        for _ in 0..2 {
            a.mov(eax, 1)?;
            a.cpuid()?;
            a.mov(eax, ecx)?;
            a.shr(eax, 27)?;
            a.and(eax, 1)?;
            a.log_eax()?;
            a.set_cr4(x86::cr4::OSXSAVE)?;
        }
        Ok(())
    });
    assert_eq!(rig.run().log, [0, 1]);
}

/// A control bit of a feature that CPUID does not show cannot be set.
fn hidden_features(engine: &dyn Engine) {
    let controls = [
        (Bit(1, 2, 17), x86::cr4::PCIDE),
        (Bit(7, 1, 0), x86::cr4::FSGSBASE),
        (XSAVE, x86::cr4::OSXSAVE),
        (Bit(7, 1, 7), x86::cr4::SMEP),
        (Bit(7, 1, 20), x86::cr4::SMAP),
        (Bit(7, 2, 2), x86::cr4::UMIP),
        // LA57 and protection keys.
        (Bit(7, 2, 16), 1 << 12),
        (Bit(7, 2, 3), 1 << 22),
    ];
    let hidden = controls.into_iter().filter(|&(bit, _)| !has(engine, bit));
    let hidden: Vec<_> = hidden.map(|(_, control)| control).collect();
    let mut rig = Rig::with(engine, |a| {
        for &control in &hidden {
            a.mov(rax, cr4)?;
            a.or(rax, control as i32)?;
            a.fault(|a| a.mov(cr4, rax))?;
        }
        Ok(())
    });
    assert_eq!(rig.run().faults(), vec![Fault::new(Vector::GP); hidden.len()]);
}

/// Reads the TSC to RAX, in order.
fn tsc(a: &mut CodeAssembler) -> Asm {
    a.lfence()?;
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)
}

fn tsc_monotonic(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        let (mut again, mut fine) = (a.create_label(), a.create_label());
        a.mov(ecx, 100_000)?;
        a.xor(edi, edi)?;
        a.xor(ebx, ebx)?;
        a.set_label(&mut again)?;
        tsc(a)?;
        a.cmp(rax, rbx)?;
        a.jae(fine)?;
        a.inc(edi)?;
        a.set_label(&mut fine)?;
        a.mov(rbx, rax)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.mov(eax, edi)?;
        a.log_eax()
    });
    assert_eq!(rig.run().log, [0], "times it went back");
}

/// What one processor has published, no other undercuts afterwards.
fn tsc_across_processors(engine: &dyn Engine) {
    const LAST: u64 = DATA;
    const BACK: u64 = DATA + 0x40;
    const START: u64 = DATA + 0x80;
    let payload = |a: &mut CodeAssembler| {
        let (mut again, mut fine) = (a.create_label(), a.create_label());
        a.lock().inc(qword_ptr(START))?;
        a.wait_for(START, 2)?;
        a.mov(ecx, 50_000)?;
        a.set_label(&mut again)?;
        a.mov(rbx, qword_ptr(LAST))?;
        tsc(a)?;
        a.cmp(rax, rbx)?;
        a.jae(fine)?;
        a.lock().inc(qword_ptr(BACK))?;
        a.set_label(&mut fine)?;
        a.mov(rsi, rax)?;
        a.mov(rax, rbx)?;
        // Fails where the other was quicker, and that is well too.
        a.lock().cmpxchg(qword_ptr(LAST), rsi)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.lock().inc(qword_ptr(START))?;
        a.wait_for(START, 4)
    };
    let mut rig = Rig::with_two(engine, payload, payload);
    rig.run_all();
    assert_eq!(rig.word(BACK), 0, "times it went back");
}

/// A write sets it, and it runs on from there.
fn tsc_write(engine: &dyn Engine) {
    let value = 0x1234_0000_0000u64;
    let mut rig = Rig::with(engine, |a| {
        a.write_msr(x86::msr::TSC, value)?;
        tsc(a)?;
        a.log_rax()?;
        a.read_msr(x86::msr::TSC)?;
        a.log_rax()
    });
    let log = rig.run().log;
    assert_eq!([log[1], log[3]], [0x1234; 2]);
    assert!(log[2] >= log[0]);
}

fn rdtscp(engine: &dyn Engine) {
    if !has(engine, RDTSCP) {
        skip("no RDTSCP");
    }
    let mut rig = Rig::with(engine, |a| {
        a.write_msr(x86::msr::TSC_AUX, 0x8000_1234)?;
        tsc(a)?;
        a.mov(rbx, rax)?;
        a.mov(rcx, u64::MAX)?;
        a.rdtscp()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.cmp(rax, rbx)?;
        a.setae(bl)?;
        a.mov(rax, rcx)?;
        a.log_rax()?;
        a.movzx(eax, bl)?;
        a.log_eax()
    });
    assert_eq!(rig.run().log, [0x8000_1234, 0, 1]);
}

fn rdpid(engine: &dyn Engine) {
    if !has(engine, Bit(7, 2, 22)) {
        skip("no RDPID");
    }
    let mut rig = Rig::with(engine, |a| {
        a.write_msr(x86::msr::TSC_AUX, 0x77)?;
        a.mov(rax, u64::MAX)?;
        a.rdpid(rax)?;
        a.log_rax()
    });
    assert_eq!(rig.run().log, [0x77, 0]);
}

/// RDRAND sets CF where it gives a number, and does not give the same one for ever.
fn random(engine: &dyn Engine) {
    if !has(engine, Bit(1, 2, 30)) {
        skip("no RDRAND");
    }
    let mut rig = Rig::with(engine, |a| {
        for _ in 0..4 {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.rdrand(rax)?;
            a.jnc(again)?;
            a.log_eax()?;
        }
        Ok(())
    });
    let log = rig.run().log;
    assert!(log.iter().any(|&value| value != log[0]), "{log:x?}");
}
