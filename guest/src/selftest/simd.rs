//! Vector and x87 state: kept over signals and switches, whole.

use super::signal::set_handler;
use super::{Test, Verdict};
use crate::sys::pin_to_cpu;
use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _xgetbv};

pub(super) const TESTS: &[Test] = &[
    ("xsave-features", xsave_features),
    ("vector-signal", vector_signal),
    ("vector-switch", vector_switch),
    ("x87-state", x87_state),
    ("mxcsr-switch", mxcsr_switch),
    ("xsave-restore", xsave_restore),
];

/// XCR0 and CPUID leaf 0Dh must agree (SDM vol. 1, 13.2-13.3).
fn xsave_features() -> Verdict {
    if !is_x86_feature_detected!("avx") {
        return Verdict::Skipped("no AVX");
    }
    let enabled = xcr0();
    let leaf = __cpuid_count(0xd, 0);
    let offered = u64::from(leaf.eax) | u64::from(leaf.edx) << 32;
    let avx = __cpuid_count(0xd, 2);
    Verdict::all([
        Verdict::of(enabled & 7 == 7, "x87, SSE and AVX are not all enabled"),
        Verdict::of(enabled & !offered == 0, "more enabled than offered"),
        Verdict::of(leaf.ebx <= leaf.ecx && leaf.ebx >= avx.ebx + avx.eax, "size of the area"),
        Verdict::values(&[("AVX size", avx.eax.into(), 256), ("AVX place", avx.ebx.into(), 576)]),
    ])
}

fn xcr0() -> u64 {
    // SAFETY: callers have checked for AVX as the operating system offers it.
    unsafe { xgetbv() }
}

#[target_feature(enable = "xsave")]
fn xgetbv() -> u64 {
    // SAFETY: XCR0 exists where XGETBV does.
    unsafe { _xgetbv(0) }
}

type Vectors = [[u64; 4]; 16];

fn pattern(seed: u64) -> Vectors {
    std::array::from_fn(|register| {
        std::array::from_fn(|lane| {
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (register * 4 + lane) as u64
        })
    })
}

/// Load all sixteen, make a system call, and give what is there afterwards.
fn through_call(vectors: &Vectors, call: i64, first: u64, second: u64) -> Vectors {
    let mut seen: Vectors = [[0; 4]; 16];
    // SAFETY: both areas hold 16 x 32 bytes; all vector registers are declared as changed.
    unsafe {
        asm!(
            "vmovdqu ymm0, [{from}]", "vmovdqu ymm1, [{from} + 32]",
            "vmovdqu ymm2, [{from} + 64]", "vmovdqu ymm3, [{from} + 96]",
            "vmovdqu ymm4, [{from} + 128]", "vmovdqu ymm5, [{from} + 160]",
            "vmovdqu ymm6, [{from} + 192]", "vmovdqu ymm7, [{from} + 224]",
            "vmovdqu ymm8, [{from} + 256]", "vmovdqu ymm9, [{from} + 288]",
            "vmovdqu ymm10, [{from} + 320]", "vmovdqu ymm11, [{from} + 352]",
            "vmovdqu ymm12, [{from} + 384]", "vmovdqu ymm13, [{from} + 416]",
            "vmovdqu ymm14, [{from} + 448]", "vmovdqu ymm15, [{from} + 480]",
            "syscall",
            "vmovdqu [{to}], ymm0", "vmovdqu [{to} + 32], ymm1",
            "vmovdqu [{to} + 64], ymm2", "vmovdqu [{to} + 96], ymm3",
            "vmovdqu [{to} + 128], ymm4", "vmovdqu [{to} + 160], ymm5",
            "vmovdqu [{to} + 192], ymm6", "vmovdqu [{to} + 224], ymm7",
            "vmovdqu [{to} + 256], ymm8", "vmovdqu [{to} + 288], ymm9",
            "vmovdqu [{to} + 320], ymm10", "vmovdqu [{to} + 352], ymm11",
            "vmovdqu [{to} + 384], ymm12", "vmovdqu [{to} + 416], ymm13",
            "vmovdqu [{to} + 448], ymm14", "vmovdqu [{to} + 480], ymm15",
            "vzeroupper",
            from = in(reg) vectors.as_ptr(),
            to = in(reg) seen.as_mut_ptr(),
            inout("rax") call => _,
            in("rdi") first,
            in("rsi") second,
            out("rcx") _, out("r11") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _,
            out("xmm5") _, out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _,
            out("xmm10") _, out("xmm11") _, out("xmm12") _, out("xmm13") _, out("xmm14") _,
            out("xmm15") _,
        );
    }
    seen
}

extern "C" fn clobber(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::ucontext_t) {
    // The handler's own vectors, which must not reach the program it interrupts.
    through_call(&pattern(99), libc::SYS_getppid, 0, 0);
}

fn vector_signal() -> Verdict {
    if !is_x86_feature_detected!("avx") {
        return Verdict::Skipped("no AVX");
    }
    set_handler(libc::SIGUSR1, clobber);
    let vectors = pattern(7);
    let pid = u64::from(std::process::id());
    let seen = through_call(&vectors, libc::SYS_kill, pid, libc::SIGUSR1 as u64);
    Verdict::of(seen == vectors, "a vector register changed over a signal")
}

/// Threads that share one processor keep their vectors.
fn vector_switch() -> Verdict {
    if !is_x86_feature_detected!("avx") {
        return Verdict::Skipped("no AVX");
    }
    let keeps = |seed: u64| {
        pin_to_cpu(0);
        let vectors = pattern(seed);
        (0..300).all(|_| through_call(&vectors, libc::SYS_sched_yield, 0, 0) == vectors)
    };
    Verdict::of(on_three_threads(keeps), "a vector register changed over a switch")
}

fn on_three_threads(keeps: impl Fn(u64) -> bool + Sync) -> bool {
    std::thread::scope(|scope| {
        let keeps = &keeps;
        let threads = [1, 2, 3].map(|seed| scope.spawn(move || keeps(seed)));
        threads.into_iter().all(|thread| thread.join().unwrap_or(false))
    })
}

/// Eighty-bit values over system calls, and FNSTENV's picture of the stack.
fn x87_state() -> Verdict {
    let keeps = |seed: u64| {
        pin_to_cpu(0);
        let (given, mut taken, mut environment) = ([seed as f64 * 0.1], [0_f64], [0_u32; 7]);
        (0..200).all(|_| {
            // SAFETY: three values pushed, three popped; areas are of the sizes stored.
            unsafe {
                asm!(
                    "fninit", "fldpi", "fld qword ptr [{given}]", "fld1",
                    "syscall",
                    "fnstenv [{environment}]", "fldenv [{environment}]",
                    "fstp st(0)", "fstp qword ptr [{taken}]", "fstp st(0)",
                    given = in(reg) given.as_ptr(),
                    taken = in(reg) taken.as_mut_ptr(),
                    environment = in(reg) environment.as_mut_ptr(),
                    inout("rax") libc::SYS_sched_yield => _,
                    out("rcx") _, out("r11") _,
                    out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                    out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                );
            }
            // Top of stack 5; registers 5, 6 and 7: 1.0, a value, pi; the others empty.
            let top = environment[1] >> 11 & 7;
            given == taken && top == 5 && environment[2] & 0x3ff == 0x3ff
        })
    };
    Verdict::of(on_three_threads(keeps), "x87 state changed over a switch")
}

fn mxcsr_switch() -> Verdict {
    let keeps = |seed: u64| {
        pin_to_cpu(0);
        let (given, mut taken) = ([0x1f80 | (seed as u32) << 13], [0_u32]);
        (0..300).all(|_| {
            // SAFETY: rounding mode only, put back at once; four bytes each.
            unsafe {
                asm!("ldmxcsr [{}]", "syscall", "stmxcsr [{}]", "ldmxcsr [{}]",
                    in(reg) given.as_ptr(), in(reg) taken.as_mut_ptr(), in(reg) [0x1f80_u32].as_ptr(),
                    inout("rax") libc::SYS_sched_yield => _, out("rcx") _, out("r11") _);
            }
            given == taken
        })
    };
    Verdict::of(on_three_threads(keeps), "MXCSR changed over a switch")
}

#[repr(align(64))]
struct Area([u8; 4096]);

/// XSAVE and XRSTOR in user mode: the header says what is there, and what is not asked for is
/// put into its initial state.
fn xsave_restore() -> Verdict {
    if !is_x86_feature_detected!("avx") {
        return Verdict::Skipped("no AVX");
    }
    if __cpuid_count(0xd, 0).ebx > 4096 {
        return Verdict::Skipped("state larger than 4 KiB");
    }
    let mut area = Area([0; 4096]);
    let (value, mut out) = ([1_u64, 2, 3, 4], [[0_u64; 4]; 2]);
    // SAFETY: the area is aligned and large enough; registers changed are declared.
    unsafe {
        asm!(
            "vmovdqu ymm3, [{value}]",
            "mov eax, 7",
            "xor edx, edx",
            "xsave64 [{area}]",
            "vpxor xmm3, xmm3, xmm3",
            "xrstor64 [{area}]",
            "vmovdqu [{out}], ymm3",
            // Without AVX in the header's bits its halves go to zero.
            "and qword ptr [{area} + 512], -5",
            "xrstor64 [{area}]",
            "vmovdqu [{out} + 32], ymm3",
            "vzeroupper",
            value = in(reg) value.as_ptr(),
            area = in(reg) area.0.as_mut_ptr(),
            out = in(reg) out.as_mut_ptr(),
            out("rax") _, out("rdx") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _,
            out("xmm5") _, out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _,
            out("xmm10") _, out("xmm11") _, out("xmm12") _, out("xmm13") _, out("xmm14") _,
            out("xmm15") _,
        );
    }
    Verdict::all([
        Verdict::of(out[0] == value, "XRSTOR did not bring back what XSAVE took"),
        Verdict::of(out[1] == [1, 2, 0, 0], "a component left out was not initialised"),
    ])
}
