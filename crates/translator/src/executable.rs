//! Memory mapped twice, once to write and once to execute, so that no page is ever both.
//!
//! It is anonymous, and not a memory file: perf looks up names of code (`/tmp/perf-PID.map`) only where a mapping has
//! no file of its own, which it takes shared anonymous memory for.

use std::ffi::c_void;
use std::ptr;

use rustix::mm::{MapFlags, MprotectFlags, MremapFlags, ProtFlags};

use crate::vector::ArenaError;

/// Both mappings. They are unmapped by whoever wants that.
#[derive(Debug)]
pub(crate) struct Mappings {
    pub(crate) write: *mut u8,
    pub(crate) execute: *mut u8,
}

/// Maps `size` bytes, which take memory as they are touched.
pub(crate) fn map(size: usize) -> Result<Mappings, ArenaError> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::SHARED | MapFlags::NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let write = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), size, protection, flags) }
        .map_err(ArenaError::Create)?;
    let mappings = again(write, size);
    if mappings.is_err() {
        // SAFETY: our own mapping, which nobody knows.
        let _ = unsafe { rustix::mm::munmap(write, size) };
    }
    mappings
}

/// Bytes of one of the host's large pages.
pub(crate) const LARGE: usize = 2 << 20;

/// Asks for a large page for the `LARGE` bytes of code from `execute` on, a multiple of that. Returns whether there is
/// one: not before Linux 6.1, and not where memory is short.
pub(crate) fn make_large(execute: *mut u8) -> bool {
    // SAFETY: what is mapped there stays as it is (madvise(2)), but for what has not been touched yet, which is now.
    unsafe { libc::madvise(execute.cast(), LARGE, libc::MADV_COLLAPSE) == 0 }
}

/// Maps the pages at `write` once more, to be executed, at a multiple of [`LARGE`].
fn again(write: *mut c_void, size: usize) -> Result<Mappings, ArenaError> {
    let room = size + LARGE;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice, which nobody may touch.
    let start =
        unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), room, ProtFlags::empty(), flags) }
            .map_err(ArenaError::Map)?;
    let before = start.align_offset(LARGE);
    let place = start.wrapping_byte_add(before);
    let flags = MremapFlags::MAYMOVE;
    // SAFETY: with an old size of 0 a shared mapping stays as it is, and is mapped at another address too (mremap(2)),
    // here in the room that was made.
    let mapped = unsafe { rustix::mm::mremap_fixed(write, 0, size, flags, place) };
    let behind = place.wrapping_byte_add(size);
    let rest = match mapped {
        Ok(_) => [(start, before), (behind, room - size - before)],
        Err(_) => [(start, room), (start, 0)],
    };
    for (start, len) in rest.into_iter().filter(|&(_, len)| len > 0) {
        // SAFETY: our own mapping, which nobody uses.
        let _ = unsafe { rustix::mm::munmap(start, len) };
    }
    let execute = mapped.map_err(ArenaError::Map)?;
    let protection = MprotectFlags::READ | MprotectFlags::EXEC;
    // SAFETY: mapped just now, and nobody's yet.
    if let Err(error) = unsafe { rustix::mm::mprotect(execute, size, protection) } {
        // SAFETY: as above.
        let _ = unsafe { rustix::mm::munmap(execute, size) };
        return Err(ArenaError::Map(error));
    }
    Ok(Mappings { write: write.cast(), execute: execute.cast() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_executed_and_has_no_file() {
        let Mappings { write, execute } = map(1 << 16).expect("memory");
        // mov eax, 7; ret
        let code = [0xb8, 7, 0, 0, 0, 0xc3];
        // SAFETY: our own mappings; the code obeys the convention.
        let seven = unsafe {
            ptr::copy_nonoverlapping(code.as_ptr(), write, code.len());
            std::mem::transmute::<*mut u8, extern "sysv64" fn() -> u32>(execute)()
        };
        assert_eq!(seven, 7);
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let start = format!("{:x}-", execute as usize);
        let line = maps.lines().find(|line| line.starts_with(&start)).expect("mapped");
        assert!(line.contains(" r-xs ") && line.contains("/dev/zero"), "{line}");
        for mapping in [write, execute] {
            // SAFETY: as above, and done with.
            unsafe { rustix::mm::munmap(mapping.cast(), 1 << 16) }.expect("mapped");
        }
    }
}
