//! A memory file mapped twice, once to write and once to execute, so that no page is ever both.

use std::ffi::{CStr, c_void};
use std::ptr;

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use crate::vector::ArenaError;

/// Both mappings. They are unmapped by whoever wants that.
#[derive(Debug)]
pub(crate) struct Mappings {
    pub(crate) write: *mut u8,
    pub(crate) execute: *mut u8,
}

/// Maps `size` bytes of a new file, which take memory as they are touched.
pub(crate) fn map(name: &CStr, size: usize) -> Result<Mappings, ArenaError> {
    let file = memory_file(name).map_err(ArenaError::Create)?;
    rustix::fs::ftruncate(&file, size as u64).map_err(ArenaError::Create)?;
    let map = |protection| {
        // SAFETY: a new mapping at an address of the kernel's choice.
        unsafe { rustix::mm::mmap(ptr::null_mut(), size, protection, MapFlags::SHARED, &file, 0) }
            .map(<*mut c_void>::cast::<u8>)
            .map_err(ArenaError::Map)
    };
    let write = map(ProtFlags::READ | ProtFlags::WRITE)?;
    let execute = map(ProtFlags::READ | ProtFlags::EXEC)?;
    Ok(Mappings { write, execute })
}

/// Since Linux 6.3 a memory file says whether it may be executed; before, the flag is unknown.
fn memory_file(name: &CStr) -> Result<rustix::fd::OwnedFd, Errno> {
    let create = |flags| rustix::fs::memfd_create(name, flags | MemfdFlags::CLOEXEC);
    create(MemfdFlags::EXEC).or_else(|_| create(MemfdFlags::empty()))
}
