//! What plain loads and stores do in one piece: within eight aligned bytes anything, and sixteen
//! aligned ones where there is AVX (SDM vol. 3, 9.1.1, and AMD's APM vol. 2, 7.3.2).

use super::{Test, on_two};
use std::arch::asm;
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(super) const TESTS: &[Test] = &[
    ("whole-8", |rounds| whole(rounds, 0, 8)),
    ("whole-4-at-2", |rounds| whole(rounds, 2, 4)),
    ("whole-2-at-3", |rounds| whole(rounds, 3, 2)),
    ("whole-16", |rounds| {
        if std::is_x86_feature_detected!("avx") {
            whole(rounds, 0, 16)
        } else {
            Ok("skipped: no AVX".to_owned())
        }
    }),
];

#[repr(align(64))]
struct Line(UnsafeCell<[u8; 64]>);

// SAFETY: while it is shared it is read and written by assembly only.
unsafe impl Sync for Line {}

/// One thread stores all ones and all zeros by turns, another never loads anything else.
fn whole(rounds: u64, offset: usize, length: usize) -> Result<String, String> {
    let line = &Line(UnsafeCell::new([0; 64]));
    let (done, torn, changes) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    on_two(|id| {
        // SAFETY: inside the line.
        let at = unsafe { line.0.get().cast::<u8>().add(offset) };
        if id == 0 {
            for round in 0..rounds * 50 {
                let byte = if round % 2 == 0 { 0xff } else { 0 };
                // SAFETY: as long as was said, inside the line.
                unsafe { store(at, length, [byte; 16]) };
            }
            done.store(true, Ordering::Relaxed);
            return;
        }
        let mut before = 0;
        while !done.load(Ordering::Relaxed) {
            // SAFETY: as above.
            let bytes = unsafe { load(at, length) };
            let seen = &bytes[..length];
            if seen.iter().any(|&byte| byte != seen[0]) {
                torn.fetch_add(1, Ordering::Relaxed);
            }
            changes.fetch_add(u64::from(seen[0] != before), Ordering::Relaxed);
            before = seen[0];
        }
    });
    match torn.into_inner() {
        0 => Ok(format!("{} changes", changes.into_inner())),
        torn => Err(format!("{torn} loads saw a part of a store")),
    }
}

/// # Safety
/// `at` must be writable for `length` bytes: 2, 4, 8, or 16 that are aligned.
unsafe fn store(at: *mut u8, length: usize, bytes: [u8; 16]) {
    let value = u128::from_le_bytes(bytes) as u64;
    // SAFETY: the caller's promise.
    unsafe {
        match length {
            2 => asm!("mov [{}], {:x}", in(reg) at, in(reg) value),
            4 => asm!("mov [{}], {:e}", in(reg) at, in(reg) value),
            8 => asm!("mov [{}], {}", in(reg) at, in(reg) value),
            _ => {
                asm!("movdqu {1}, [{2}]", "movdqa [{0}], {1}", in(reg) at, out(xmm_reg) _, in(reg) bytes.as_ptr());
            }
        }
    }
}

/// # Safety
/// As [`store`], readable.
unsafe fn load(at: *const u8, length: usize) -> [u8; 16] {
    let (mut value, mut bytes) = (0_u64, [0; 16]);
    // SAFETY: the caller's promise.
    unsafe {
        match length {
            2 => asm!("mov {1:x}, [{0}]", in(reg) at, inout(reg) value),
            4 => asm!("mov {1:e}, [{0}]", in(reg) at, inout(reg) value),
            8 => asm!("mov {1}, [{0}]", in(reg) at, inout(reg) value),
            _ => {
                let into = bytes.as_mut_ptr();
                asm!("movdqa {1}, [{0}]", "movdqu [{2}], {1}", in(reg) at, out(xmm_reg) _, in(reg) into);
                return bytes;
            }
        }
    }
    bytes[..8].copy_from_slice(&value.to_le_bytes());
    bytes
}
