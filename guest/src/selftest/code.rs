//! Code that changes: what runs is what was written last, by whatever name it was written.

use super::{Test, Verdict};
use crate::sys::{Mapping, PAGE};
use libc::{PROT_EXEC, PROT_READ, PROT_WRITE};
use std::arch::asm;

pub(super) const TESTS: &[Test] = &[
    ("code-rewritten", rewritten),
    ("code-alias", alias),
    ("code-straddling", straddling),
    ("code-ahead", ahead),
    ("code-protection", protection),
    ("code-remapped", remapped),
    ("code-other-thread", other_thread),
    ("code-fork", fork),
];

const ROUNDS: u32 = 300;
/// `mov eax, VALUE; ret`.
const LENGTH: usize = 6;

/// # Safety
/// `at` must be writable for [`LENGTH`] bytes.
unsafe fn write(at: *mut u8, value: u32) {
    let mut code = [0xb8, 0, 0, 0, 0, 0xc3];
    code[1..5].copy_from_slice(&value.to_le_bytes());
    // SAFETY: the caller's promise. Not inlined away: the memory is foreign to the compiler.
    unsafe { at.copy_from_nonoverlapping(code.as_ptr(), LENGTH) };
}

/// # Safety
/// `at` must hold what [`write()`] wrote, in a page that may be executed.
unsafe fn call(at: *const u8) -> u32 {
    let value;
    // SAFETY: the caller's promise.
    unsafe { asm!("call {}", in(reg) at, out("eax") value) };
    value
}

fn rwx(length: usize) -> Option<Mapping> {
    Mapping::new(length, PROT_READ | PROT_WRITE | PROT_EXEC).ok()
}

const NO_MEMORY: &str = "no memory that may be written and executed";

fn all_rounds(mut round: impl FnMut(u32) -> u32) -> Verdict {
    let stale = (0..ROUNDS).find(|&n| round(n) != n);
    Verdict::of(stale.is_none(), &format!("stale code in round {stale:?}"))
}

fn rewritten() -> Verdict {
    let Some(page) = rwx(PAGE) else { return Verdict::Skipped(NO_MEMORY) };
    all_rounds(|n| {
        // SAFETY: a page that may be both; the call serialises enough on x86 (SDM 8.1.3 asks for
        // a jump, and a call is one).
        unsafe {
            write(page.pointer().add(100), n);
            call(page.pointer().add(100))
        }
    })
}

/// Written through one mapping of a file, run through another.
fn alias() -> Verdict {
    // SAFETY: a name and flags.
    let fd = unsafe { libc::memfd_create(c"code".as_ptr(), 0) };
    // SAFETY: our own descriptor.
    unsafe { libc::ftruncate(fd, PAGE as i64) };
    let (Ok(writable), Ok(runnable)) = (
        Mapping::shared(PAGE, PROT_READ | PROT_WRITE, fd),
        Mapping::shared(PAGE, PROT_READ | PROT_EXEC, fd),
    ) else {
        return Verdict::Skipped(NO_MEMORY);
    };
    all_rounds(|n| {
        // SAFETY: the same page by two names.
        unsafe {
            write(writable.pointer(), n);
            // Different linear addresses: SDM 8.1.3 asks for a serialising instruction.
            std::arch::x86_64::__cpuid(0);
            call(runnable.pointer())
        }
    })
}

/// An instruction that lies on two pages, its second half rewritten.
fn straddling() -> Verdict {
    let Some(pages) = rwx(2 * PAGE) else { return Verdict::Skipped(NO_MEMORY) };
    all_rounds(|n| {
        // SAFETY: inside the two pages: opcode and one byte before the border.
        unsafe {
            let at = pages.pointer().add(PAGE - 2);
            if n == 0 {
                write(at, 0);
            }
            at.add(1).cast::<u32>().write_unaligned(n);
            call(at)
        }
    })
}

/// A store to the instruction just after it, in the same straight line.
fn ahead() -> Verdict {
    let Some(page) = rwx(PAGE) else { return Verdict::Skipped(NO_MEMORY) };
    // mov [rip + 1], edi (6 bytes; the target is the immediate of the next); mov eax, 0; ret
    let code = [0x89, 0x3d, 1, 0, 0, 0, 0xb8, 0, 0, 0, 0, 0xc3];
    // SAFETY: our page.
    unsafe { page.pointer().copy_from_nonoverlapping(code.as_ptr(), code.len()) };
    all_rounds(|n| {
        let value;
        // SAFETY: the code above; it changes eax only.
        unsafe { asm!("call {}", in(reg) page.pointer(), in("edi") n, out("eax") value) };
        value
    })
}

/// As compilers at run time do it: writable, then executable, and again.
fn protection() -> Verdict {
    let Ok(page) = Mapping::new(PAGE, PROT_READ | PROT_WRITE) else {
        return Verdict::Skipped(NO_MEMORY);
    };
    all_rounds(|n| {
        // SAFETY: written while writable, run while executable, by nobody else.
        unsafe {
            let writable = page.protect(0, PAGE, PROT_READ | PROT_WRITE);
            write(page.pointer(), n);
            let runnable = page.protect(0, PAGE, PROT_READ | PROT_EXEC);
            if writable.and(runnable).is_err() { u32::MAX } else { call(page.pointer()) }
        }
    })
}

/// Another page at the same address.
fn remapped() -> Verdict {
    let Some(place) = rwx(PAGE) else { return Verdict::Skipped(NO_MEMORY) };
    let pages: Vec<_> = (0..ROUNDS).map_while(|_| rwx(PAGE)).collect();
    if pages.len() != ROUNDS as usize {
        return Verdict::Skipped(NO_MEMORY);
    }
    let verdict = all_rounds(|n| {
        let page = &pages[n as usize];
        // SAFETY: the page is moved onto the place, which is ours; both mappings stay ours, and
        // the page's own address is never used again.
        unsafe {
            write(page.pointer(), n);
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            let (from, to) = (page.pointer().cast(), place.pointer());
            libc::mremap(from, PAGE, PAGE, flags, to);
            call(to)
        }
    });
    // Their addresses hold nothing now, or by chance something new: leave them be.
    std::mem::forget(pages);
    verdict
}

/// Written by one thread, run by another after it is told.
fn other_thread() -> Verdict {
    let Some(page) = rwx(PAGE) else { return Verdict::Skipped(NO_MEMORY) };
    let at = page.pointer() as usize;
    let (ask, asked) = std::sync::mpsc::channel::<u32>();
    let (answer, answered) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            crate::sys::pin_to_cpu(1);
            for _ in asked {
                std::arch::x86_64::__cpuid(0);
                // SAFETY: written before we were asked.
                let _ = answer.send(unsafe { call(at as *const u8) });
            }
        });
        let verdict = all_rounds(|n| {
            // SAFETY: the other thread waits to be asked.
            unsafe { write(at as *mut u8, n) };
            ask.send(n).ok().and_then(|()| answered.recv().ok()).unwrap_or(u32::MAX)
        });
        drop(ask);
        verdict
    })
}

/// A child's change is its own.
fn fork() -> Verdict {
    let Some(page) = rwx(PAGE) else { return Verdict::Skipped(NO_MEMORY) };
    // SAFETY: our page; the child only writes, runs and leaves.
    let (before, childs, after) = unsafe {
        write(page.pointer(), 1);
        let before = call(page.pointer());
        let child = libc::fork();
        if child == 0 {
            write(page.pointer(), 2);
            libc::_exit(call(page.pointer()) as i32);
        }
        let mut status = 0;
        libc::waitpid(child, &raw mut status, 0);
        (before, libc::WEXITSTATUS(status) as u32, call(page.pointer()))
    };
    Verdict::values(&[
        ("before", before.into(), 1),
        ("the child's", childs.into(), 2),
        ("after", after.into(), 1),
    ])
}
