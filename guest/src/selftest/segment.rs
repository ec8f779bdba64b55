//! Segment registers as 64-bit programs still use them: bases of fs and gs, far returns, 32-bit
//! code segments.

use super::signal::{caught, fault};
use super::{Test, Verdict};
use crate::sys::{Mapping, PAGE, pin_to_cpu};
use libc::{PROT_EXEC, PROT_READ, PROT_WRITE};
use std::arch::asm;

pub(super) const TESTS: &[Test] = &[
    ("gs-base", gs_base),
    ("fsgsbase", fsgsbase),
    ("fsgsbase-switch", fsgsbase_switch),
    ("selectors", selectors),
    ("iretq", iretq),
    ("compatibility-mode", compatibility_mode),
];

const ARCH_SET_GS: i32 = 0x1001;
const ARCH_GET_GS: i32 = 0x1004;
/// `AT_HWCAP2` bit: user code may read and write segment bases.
const HWCAP2_FSGSBASE: u64 = 2;

fn load_through_gs() -> u64 {
    let value;
    // SAFETY: only called while the base of gs points to a word of ours.
    unsafe { asm!("mov {}, gs:[0]", out(reg) value, options(nostack, readonly)) };
    value
}

fn gs_base() -> Verdict {
    let word = 0x1234_5678_9abc_def0_u64;
    let mut told = 0_u64;
    // SAFETY: the base points to a live word; the second call fills a word of ours.
    unsafe {
        libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, &raw const word);
        libc::syscall(libc::SYS_arch_prctl, ARCH_GET_GS, &raw mut told);
    }
    let address = &raw const word as u64;
    Verdict::values(&[("loaded", load_through_gs(), word), ("base", told, address)])
}

fn has_fsgsbase() -> bool {
    // SAFETY: takes a number and returns one.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & HWCAP2_FSGSBASE != 0 }
}

fn write_gs(base: u64) {
    // SAFETY: nothing of ours uses gs but these tests; the caller has asked `has_fsgsbase`.
    unsafe { asm!("wrgsbase {}", in(reg) base, options(nostack, nomem)) };
}

fn read_gs() -> u64 {
    let base;
    // SAFETY: reads a register.
    unsafe { asm!("rdgsbase {}", out(reg) base, options(nostack, nomem)) };
    base
}

fn fsgsbase() -> Verdict {
    if !has_fsgsbase() {
        return Verdict::Skipped("the kernel does not offer FSGSBASE");
    }
    let word = 77_u64;
    write_gs(&raw const word as u64);
    let (loaded, before) = (load_through_gs(), read_gs());
    std::thread::yield_now();
    let (after, fs): (u64, u64) = (read_gs(), read_fs());
    let self_pointer: u64;
    // SAFETY: the first word of a thread's block is its own address in the x86-64 ABI.
    unsafe { asm!("mov {}, fs:[0]", out(reg) self_pointer, options(nostack, readonly)) };
    let bad = caught(|| fault!("wrgsbase rcx", in("rcx") 0x8000_0000_0000_u64));
    Verdict::values(&[
        ("loaded", loaded, 77),
        ("base", before, &raw const word as u64),
        ("base after a call", after, before),
        ("fs", fs, self_pointer),
        ("signal for a bad base", bad.map_or(0, |seen| seen.signal), libc::SIGSEGV as u64),
    ])
}

fn read_fs() -> u64 {
    let base;
    // SAFETY: reads a register.
    unsafe { asm!("rdfsbase {}", out(reg) base, options(nostack, nomem)) };
    base
}

/// Each thread keeps its own, through switches on one processor.
fn fsgsbase_switch() -> Verdict {
    if !has_fsgsbase() {
        return Verdict::Skipped("the kernel does not offer FSGSBASE");
    }
    let keeps = |base: u64| {
        pin_to_cpu(0);
        write_gs(base);
        (0..500).all(|_| {
            std::thread::yield_now();
            read_gs() == base
        })
    };
    let ok = std::thread::scope(|scope| {
        let bases = [0x1000, 0x7fff_ffff_0000, 0xffff_8000_0000_0000_u64];
        let threads = bases.map(|base| scope.spawn(move || keeps(base)));
        threads.into_iter().all(|thread| thread.join().unwrap_or(false))
    });
    Verdict::of(ok, "a thread found another's base")
}

/// What the kernel gives every program, and how null and bad selectors behave.
fn selectors() -> Verdict {
    let (cs, ss): (u64, u64);
    let (readable, limit): (u8, u64);
    // SAFETY: reads selectors and asks about them.
    unsafe {
        asm!("mov {}, cs", "mov {}, ss", out(reg) cs, out(reg) ss);
        asm!("verr {0:x}", "setz {1}", "lsl {2}, {0}", in(reg) ss, out(reg_byte) readable, out(reg) limit);
    }
    let null = caught(|| fault!("mov ds, ecx", in("ecx") 0));
    let bad = caught(|| fault!("mov gs, ecx", in("ecx") 0x1f3));
    Verdict::values(&[
        ("cs", cs, 0x33),
        ("ss", ss, 0x2b),
        ("verr", readable.into(), 1),
        ("limit", limit, 0xffff_ffff),
        ("null selector", null.map_or(0, |seen| seen.signal), 0),
        ("bad selector", bad.map_or(0, |seen| seen.signal), libc::SIGSEGV as u64),
        ("its error code", bad.map_or(0, |seen| seen.error()), 0x1f0),
    ])
}

/// IRETQ and RETFQ to the same privilege, loading flags and stack pointer.
fn iretq() -> Verdict {
    let (same_stack, carry, far): (u64, u8, u64);
    // SAFETY: both return to the next line with the stack pointer as it was.
    unsafe {
        asm!(
            "mov {saved}, rsp",
            "mov {t}, ss",
            "push {t}",
            "push {saved}",
            "pushfq",
            "or qword ptr [rsp], 1",
            "mov {t}, cs",
            "push {t}",
            "lea {t}, [rip + 2f]",
            "push {t}",
            "clc",
            "iretq",
            "2:",
            "setc {carry}",
            "sub {saved}, rsp",
            "mov {t}, cs",
            "push {t}",
            "lea {t}, [rip + 3f]",
            "push {t}",
            "retfq",
            "ud2",
            "3:",
            "mov {t}, 5",
            saved = out(reg) same_stack,
            carry = out(reg_byte) carry,
            t = out(reg) far,
        );
    }
    Verdict::values(&[("stack", same_stack, 0), ("carry", carry.into(), 1), ("far", far, 5)])
}

/// A far return into a 32-bit code segment and back: the upper halves of registers are out of
/// reach there, one-byte `inc` exists, addresses wrap at 4 GiB.
fn compatibility_mode() -> Verdict {
    const USER_CS_32: u64 = 0x23;
    let protection = PROT_READ | PROT_WRITE | PROT_EXEC;
    let Ok(low) = Mapping::below_4_gib(PAGE, protection) else {
        return Verdict::Wrong("no memory below 4 GiB".into());
    };
    // mov eax, 0xfffffffe; inc eax (0x40, a prefix in 64-bit code); push eax; pop ecx; retf
    let code = [0xb8, 0xfe, 0xff, 0xff, 0xff, 0x40, 0x50, 0x59, 0xcb];
    // SAFETY: our page; nothing runs it yet.
    unsafe { low.pointer().copy_from_nonoverlapping(code.as_ptr(), code.len()) };
    let stack_top = low.pointer() as u64 + PAGE as u64 - 64;
    let back = low.pointer() as u64 + 256;
    // Code for the way back: jmp [rip] to the address behind it, reached in 64-bit mode.
    let landing = [0xff, 0x25, 0, 0, 0, 0];
    // SAFETY: our page again.
    unsafe { low.pointer().add(256).copy_from_nonoverlapping(landing.as_ptr(), landing.len()) };
    let (eax, ecx, r12): (u64, u64, u64);
    // SAFETY: the low stack holds the far return's frame; the code there returns by it.
    unsafe {
        asm!(
            "mov r13, rsp",
            "lea {t}, [rip + 2f]",
            "mov [{back} + 6], {t}",
            "mov rsp, {top}",
            // For the 32-bit far return: offset and selector, four bytes each.
            "mov dword ptr [rsp], {back:e}",
            "mov dword ptr [rsp + 4], 0x33",
            "push {cs}",
            "push {low}",
            "retfq",
            "2:",
            "mov rsp, r13",
            t = out(reg) _,
            back = in(reg) back,
            top = in(reg) stack_top,
            cs = in(reg) USER_CS_32,
            low = in(reg) low.pointer(),
            out("rax") eax,
            inout("rcx") u64::MAX => ecx,
            inout("r12") u64::MAX => r12,
            out("r13") _,
        );
    }
    Verdict::values(&[
        ("eax", eax & 0xffff_ffff, 0xffff_ffff),
        ("ecx", ecx & 0xffff_ffff, 0xffff_ffff),
        ("r12", r12, u64::MAX),
    ])
}
