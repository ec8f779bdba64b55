//! Memory for generated code.
//!
//! A process that confines itself maps it before ([`prepare`]), and a VM that ends leaves it to the next one.

use std::arch::asm;
use std::ops::{Deref, Range};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::executable::{self, LARGE, Mappings};
use crate::vector::ArenaError;

/// Bytes of each; what is not used takes no memory.
pub(super) const SIZE: usize = 64 << 20;

/// How many are mapped in advance: a machine that reboots may need its next one before it has let go of the last.
const IN_ADVANCE: usize = 2;

/// Mapped, and in nobody's use.
static FREE: Mutex<Vec<CodeMemory>> = Mutex::new(Vec::new());

/// Maps memory for the code of one VM at a time. Must have happened before a seccomp filter forbids executable
/// mappings; what was done once is not done again.
///
/// # Errors
/// The host refuses.
pub fn prepare() -> Result<(), ArenaError> {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    while !*done && free().len() < IN_ADVANCE {
        let memory = CodeMemory::map()?;
        free().push(memory);
    }
    *done = true;
    Ok(())
}

fn free() -> MutexGuard<'static, Vec<CodeMemory>> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory in use.
#[derive(Debug)]
pub(super) struct Lease(Option<CodeMemory>);

impl Lease {
    /// Memory that was left, or new.
    pub(super) fn new() -> Result<Self, ArenaError> {
        let left = free().pop();
        Ok(Self(Some(match left {
            Some(memory) => memory,
            None => CodeMemory::map()?,
        })))
    }
}

impl Deref for Lease {
    type Target = CodeMemory;

    fn deref(&self) -> &CodeMemory {
        self.0.as_ref().expect("not yet dropped")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut free = free();
        if free.len() < IN_ADVANCE {
            free.extend(self.0.take());
        }
    }
}

/// See the module. Places in it are offsets from its start.
#[derive(Debug)]
pub(super) struct CodeMemory(Mappings);

// SAFETY: both mappings live as long as the value; who writes where is up to the callers of its methods.
unsafe impl Send for CodeMemory {}
// SAFETY: as above.
unsafe impl Sync for CodeMemory {}

impl CodeMemory {
    fn map() -> Result<Self, ArenaError> {
        executable::map(SIZE).map(Self)
    }

    /// Where the code at `place` is executed.
    pub(super) fn address(&self, place: u32) -> usize {
        self.0.execute as usize + place as usize
    }

    /// Writes code that nobody executes yet.
    pub(super) fn write(&self, place: u32, code: &[u8]) {
        assert!(place as usize + code.len() <= SIZE);
        // SAFETY: inside the mapping; the caller owns the place, and nothing leads there yet.
        unsafe {
            ptr::copy_nonoverlapping(code.as_ptr(), self.0.write.add(place as usize), code.len());
        };
    }

    /// Asks for a large page for the code from `place` on, a multiple of [`LARGE`]: code lies far apart, and there are
    /// few entries for instructions in the processor's TLB.
    pub(super) fn make_large(&self, place: u32) -> bool {
        assert!((place as usize).is_multiple_of(LARGE) && place as usize + LARGE <= SIZE);
        executable::make_large(self.0.execute.wrapping_add(place as usize))
    }

    /// Code as it is now.
    pub(super) fn read(&self, places: Range<u32>) -> Vec<u8> {
        assert!(places.start <= places.end && places.end as usize <= SIZE);
        let start = self.0.execute.cast_const().wrapping_add(places.start as usize);
        // Branches in it may be made to lead elsewhere meanwhile.
        let byte = |at| {
            // SAFETY: inside the mapping.
            unsafe { start.add(at).read_volatile() }
        };
        (0..places.len()).map(byte).collect()
    }

    /// Replaces the displacement at `at`, which lies in one cache line, while others may execute it: they
    /// go to the old or to the new target.
    pub(super) fn redirect(&self, at: u32, target: u32) {
        let relative = target.wrapping_sub(at + 4);
        assert!(at as usize + 4 <= SIZE && at % 64 <= 60);
        let place = self.0.write.wrapping_add(at as usize);
        // SAFETY: inside the mapping. One instruction: x86 writes four bytes within a cache line at once, aligned or
        // not (SDM volume 3, 9.1.1).
        unsafe {
            asm!("mov [{}], {:e}", in(reg) place, in(reg) relative, options(nostack, preserves_flags));
        };
    }

    /// Makes the five bytes at `at`, which lie in one aligned word of eight, a jump to `target`.
    pub(super) fn make_jump(&self, at: u32, target: u32) {
        let word = at & !7;
        assert!(at % 8 <= 3 && word as usize + 8 <= SIZE);
        // SAFETY: inside the mapping and aligned.
        let cell = unsafe { &*self.0.write.add(word as usize).cast::<AtomicU64>() };
        let from = (at % 8) as usize;
        let jump = |word: u64| {
            let mut bytes = word.to_le_bytes();
            bytes[from] = 0xe9;
            bytes[from + 1..from + 5].copy_from_slice(&target.wrapping_sub(at + 5).to_le_bytes());
            Some(u64::from_le_bytes(bytes))
        };
        // A branch that begins in the same word may be redirected at this moment.
        let _ = cell.fetch_update(Ordering::Release, Ordering::Relaxed, jump);
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        for mapping in [self.0.write, self.0.execute] {
            // SAFETY: our mapping, of this size, which nobody can use any more.
            let _ = unsafe { rustix::mm::munmap(mapping.cast(), SIZE) };
        }
    }
}
