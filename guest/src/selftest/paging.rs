//! Translations that change: what the kernel takes away is gone at once, on every processor.

use super::signal::{caught, fault};
use super::{Test, Verdict};
use crate::sys::{Mapping, PAGE, pin_to_cpu};
use libc::{PROT_READ, PROT_WRITE};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

pub(super) const TESTS: &[Test] = &[
    ("paging-discard", discard),
    ("paging-protect", protect),
    ("paging-copy-on-write", copy_on_write),
    ("paging-shootdown", shootdown),
    ("paging-huge", huge),
    ("paging-processes", processes),
];

fn writable(length: usize) -> Option<Mapping> {
    Mapping::new(length, PROT_READ | PROT_WRITE).ok()
}

const NO_MEMORY: &str = "no memory";

fn word(mapping: &Mapping, at: usize) -> &AtomicU64 {
    // SAFETY: inside the mapping, aligned, and never accessed but as an atomic.
    unsafe { &*mapping.pointer().add(at).cast::<AtomicU64>() }
}

/// Discarded pages read as zero, even if they were just used.
fn discard() -> Verdict {
    let Some(pages) = writable(16 * PAGE) else { return Verdict::Skipped(NO_MEMORY) };
    for round in 1..=50_u64 {
        for at in (0..16 * PAGE).step_by(PAGE) {
            word(&pages, at).store(round, SeqCst);
        }
        // SAFETY: our own mapping, holding numbers only.
        unsafe { libc::madvise(pages.pointer().cast(), 16 * PAGE, libc::MADV_DONTNEED) };
        let left = (0..16 * PAGE).step_by(PAGE).find(|at| word(&pages, *at).load(SeqCst) != 0);
        if let Some(at) = left {
            return Verdict::Wrong(format!("page {} still there in round {round}", at / PAGE));
        }
    }
    Verdict::Ok
}

/// Write access taken away and given back.
fn protect() -> Verdict {
    let Some(page) = writable(PAGE) else { return Verdict::Skipped(NO_MEMORY) };
    let address = page.pointer() as u64;
    for round in 0..50_u64 {
        word(&page, 0).store(round, SeqCst);
        // SAFETY: only the access under test meets the missing permission.
        let taken = unsafe { page.protect(0, PAGE, PROT_READ) };
        let seen = caught(|| fault!("mov [rcx], rcx", in("rcx") address));
        // SAFETY: gives it back.
        let given = unsafe { page.protect(0, PAGE, PROT_READ | PROT_WRITE) };
        if taken.and(given).is_err() || seen.is_none() || word(&page, 0).load(SeqCst) != round {
            return Verdict::Wrong(format!("round {round}: a store got through, or was lost"));
        }
    }
    Verdict::Ok
}

/// After a fork each has its own pages, whoever writes first.
fn copy_on_write() -> Verdict {
    const PAGES: usize = 64;
    let Some(pages) = writable(PAGES * PAGE) else { return Verdict::Skipped(NO_MEMORY) };
    pages.touch_every_page(7);
    // SAFETY: one thread; the child only writes its copy, looks and leaves.
    let child = unsafe { libc::fork() };
    let mine = if child == 0 { 8 } else { 9 };
    let all_old = (0..PAGES).all(|n| word(&pages, n * PAGE).load(SeqCst) == 7);
    pages.touch_every_page(mine);
    let all_mine = (0..PAGES).all(|n| word(&pages, n * PAGE).load(SeqCst) == mine);
    if child == 0 {
        // SAFETY: leaves at once.
        unsafe { libc::_exit(i32::from(!(all_old && all_mine))) };
    }
    let mut status = 0;
    // SAFETY: fills a word of ours.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    Verdict::all([
        Verdict::of(all_old && all_mine, "the parent saw the child's pages"),
        Verdict::of(status == 0, "the child saw the parent's pages"),
    ])
}

/// One thread discards pages that another has just used: the other must see zeros afterwards.
/// The kernel interrupts the other processor for that.
fn shootdown() -> Verdict {
    let Some(page) = writable(PAGE) else { return Verdict::Skipped(NO_MEMORY) };
    let (turn, stale, done) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let page = &page;
    let address = page.pointer() as usize;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin_to_cpu(1);
            while !done.load(SeqCst) {
                let now = turn.load(SeqCst);
                if now % 2 == 0 {
                    // SAFETY: the page is mapped all along.
                    let word = unsafe { &*(address as *const AtomicU64) };
                    if word.load(SeqCst) != 0 {
                        stale.fetch_add(1, SeqCst);
                    }
                    word.store(1, SeqCst);
                    turn.store(now + 1, SeqCst);
                }
                std::thread::yield_now();
            }
        });
        pin_to_cpu(0);
        for round in 0..200_u64 {
            while turn.load(SeqCst) != 2 * round + 1 {
                std::thread::yield_now();
            }
            // SAFETY: our own mapping, holding a number only.
            unsafe { libc::madvise(address as *mut libc::c_void, PAGE, libc::MADV_DONTNEED) };
            turn.store(2 * round + 2, SeqCst);
        }
        done.store(true, SeqCst);
    });
    Verdict::values(&[("stale reads", stale.into_inner(), 0)])
}

/// A huge page, if the kernel gives one, taken apart by a change to one of its small pages.
fn huge() -> Verdict {
    const HUGE: usize = 2 << 20;
    let Some(pages) = writable(2 * HUGE) else { return Verdict::Skipped(NO_MEMORY) };
    let start = pages.pointer().align_offset(HUGE);
    // SAFETY: advice about our own mapping.
    unsafe { libc::madvise(pages.pointer().add(start).cast(), HUGE, libc::MADV_HUGEPAGE) };
    for at in (0..HUGE).step_by(PAGE) {
        word(&pages, start + at).store(at as u64 + 1, SeqCst);
    }
    let hole = start + 100 * PAGE;
    // SAFETY: inside our own mapping, holding numbers only.
    unsafe { libc::madvise(pages.pointer().add(hole).cast(), PAGE, libc::MADV_DONTNEED) };
    let wrong = (0..HUGE).step_by(PAGE).find(|at| {
        let expected = if start + at == hole { 0 } else { *at as u64 + 1 };
        word(&pages, start + at).load(SeqCst) != expected
    });
    Verdict::of(wrong.is_none(), &format!("wrong value at {wrong:?}"))
}

/// Many address spaces, each with its own number at the same address, by turns on one processor.
fn processes() -> Verdict {
    let Some(page) = writable(PAGE) else { return Verdict::Skipped(NO_MEMORY) };
    let children: Vec<_> = (1..=8_u64)
        .map(|number| {
            // SAFETY: one thread; the child only counts, looks and leaves.
            let child = unsafe { libc::fork() };
            if child == 0 {
                pin_to_cpu(0);
                word(&page, 0).store(number, SeqCst);
                let kept = (0..200).all(|_| {
                    std::thread::yield_now();
                    word(&page, 0).load(SeqCst) == number
                });
                // SAFETY: leaves at once.
                unsafe { libc::_exit(i32::from(!kept)) };
            }
            child
        })
        .collect();
    let failed = children.into_iter().filter(|child| {
        let mut status = 0;
        // SAFETY: fills a word of ours.
        unsafe { libc::waitpid(*child, &raw mut status, 0) };
        status != 0
    });
    Verdict::values(&[("processes that saw another's page", failed.count() as u64, 0)])
}
