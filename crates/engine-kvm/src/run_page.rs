//! A vCPU's `struct kvm_run`, mapped once more for us.
//!
//! kvm-ioctls hands out `&mut kvm_run` of its own mapping. Other threads set `immediate_exit`, and answers
//! to reads are written between runs: both go through this mapping, by raw address, so that no reference
//! to memory that somebody else changes is ever made.

use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use engine::EngineError;
use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use rustix::mm::{MapFlags, ProtFlags};

use crate::error::host;

/// The mapping; `size >= size_of::<kvm_run>()`.
pub(crate) struct RunPage {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: the mapping belongs to no thread; accesses are atomic, or made by the vCPU's thread alone.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    /// `size`: KVM_GET_VCPU_MMAP_SIZE.
    pub(crate) fn map(vcpu: &VcpuFd, size: usize) -> Result<Self, EngineError> {
        let start = map_vcpu(vcpu, size, 0)?;
        Ok(Self { start, size })
    }

    /// Makes the next KVM_RUN, or the one that is about to begin, return at once.
    pub(crate) fn set_immediate_exit(&self, value: bool) {
        self.immediate_exit().store(value.into(), Ordering::SeqCst);
    }

    /// One that KVM knows nothing of.
    #[cfg(test)]
    pub(crate) fn without_vcpu() -> Self {
        let (size, access) = (size_of::<kvm_run>(), ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new mapping at an address of the kernel's choice changes no existing one.
        let mapped = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), size, access, MapFlags::PRIVATE)
        };
        let start =
            NonNull::new(mapped.expect("memory").cast()).expect("mmap does not answer null");
        Self { start, size }
    }

    #[cfg(test)]
    pub(crate) fn is_immediate_exit(&self) -> bool {
        self.immediate_exit().load(Ordering::SeqCst) != 0
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        let offset = std::mem::offset_of!(kvm_run, immediate_exit);
        // SAFETY: inside the mapping, which lives as long as `self`; the kernel reads this byte only,
        // and everybody here accesses it atomically.
        unsafe { AtomicU8::from_ptr(self.start.as_ptr().add(offset)) }
    }

    /// A copy of the structure. Only between runs, on the vCPU's thread.
    pub(crate) fn read(&self) -> kvm_run {
        // SAFETY: the mapping is large enough and page-aligned; between runs the kernel does not write.
        unsafe { self.start.cast::<kvm_run>().as_ptr().read_volatile() }
    }

    /// Copies `bytes.len()` bytes at `offset` out. Only between runs, on the vCPU's thread.
    pub(crate) fn copy_out(&self, offset: usize, bytes: &mut [u8]) {
        assert!(offset + bytes.len() <= self.size, "KVM says its data lie outside of kvm_run");
        // SAFETY: inside the mapping by the line above, and `bytes` is ours.
        unsafe {
            self.start.as_ptr().add(offset).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len());
        };
    }

    /// Copies `bytes` to `offset`. Only between runs, on the vCPU's thread.
    pub(crate) fn copy_in(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.size, "KVM says its data lie outside of kvm_run");
        // SAFETY: as in `copy_out`.
        unsafe {
            self.start.as_ptr().add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        };
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: `map` made exactly this mapping.
        unsafe { unmap(self.start, self.size) };
    }
}

/// Maps `size` bytes of a vCPU's file from `offset`.
pub(crate) fn map_vcpu(
    vcpu: &VcpuFd,
    size: usize,
    offset: u64,
) -> Result<NonNull<u8>, EngineError> {
    // SAFETY: the descriptor is open as long as `vcpu` lives, which is longer than this call.
    let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice changes no existing one.
    let mapped = unsafe {
        rustix::mm::mmap(std::ptr::null_mut(), size, access, MapFlags::SHARED, fd, offset)
    };
    let start = mapped.map_err(host("map a vcpu's shared pages"))?;
    Ok(NonNull::new(start.cast()).expect("mmap does not answer null"))
}

/// Undoes [`map_vcpu`].
///
/// # Safety
/// The range was mapped by it with this size, and nobody uses it any more.
pub(crate) unsafe fn unmap(start: NonNull<u8>, size: usize) {
    // SAFETY: passed on to the caller.
    let done = unsafe { rustix::mm::munmap(start.as_ptr().cast::<c_void>(), size) };
    debug_assert!(done.is_ok(), "munmap of our own mapping: {done:?}");
}
