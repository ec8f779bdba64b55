//! The dirty ring (Documentation/virt/kvm/api.rst, 8.29): each vCPU lists the pages it writes.

use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use engine::EngineError;
use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn, kvm_enable_cap};
use kvm_ioctls::{VcpuFd, VmFd};
use memory::{FRAME_SIZE, Frame};

use super::frame_of;
use crate::error::refused;
use crate::run_page::{map_vcpu, unmap};
use crate::vm::Slot;

/// Entries of each vCPU's ring: a full one costs an exit, an unused one 16 bytes.
const ENTRIES: u32 = 4096;
const ENTRY_BYTES: u32 = size_of::<kvm_dirty_gfn>() as u32;

/// Flags of an entry: written by KVM, and taken by us.
const DIRTY: u32 = 1 << 0;
const RESET: u32 = 1 << 1;

/// KVM_RESET_DIRTY_RINGS: _IO(KVMIO, 0xc7).
const RESET_DIRTY_RINGS: libc::c_ulong = 0xaec7;

/// The rings of all vCPUs.
pub(crate) struct DirtyRing {
    bytes: u32,
    rings: Mutex<Vec<Ring>>,
}

struct Ring {
    pages: RingPages,
    /// Index of the next entry to take; counts on beyond the length.
    next: u32,
}

/// The mapping of one vCPU's ring.
struct RingPages {
    start: NonNull<u8>,
    bytes: u32,
}

// SAFETY: the mapping belongs to no thread; its flags are accessed atomically.
unsafe impl Send for RingPages {}

impl DirtyRing {
    /// Chooses the ring for a VM that has no vCPU yet. `None`: KVM refuses, the log is what there is.
    pub(crate) fn enable(vm: &VmFd, capability: u32, largest: u32) -> Option<Self> {
        let bytes = (ENTRIES * ENTRY_BYTES).min(largest);
        let cap =
            kvm_enable_cap { cap: capability, args: [bytes.into(), 0, 0, 0], ..Default::default() };
        vm.enable_cap(&cap).ok()?;
        Some(Self { bytes, rings: Mutex::default() })
    }

    /// Maps a new vCPU's ring.
    pub(crate) fn add(&self, vcpu: &VcpuFd) -> Result<(), EngineError> {
        let offset = u64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * FRAME_SIZE as u64;
        let start = map_vcpu(vcpu, self.bytes as usize, offset)?;
        let pages = RingPages { start, bytes: self.bytes };
        self.rings.lock().unwrap_or_else(PoisonError::into_inner).push(Ring { pages, next: 0 });
        Ok(())
    }

    /// Tells of every frame listed since the last call, and has KVM watch them again.
    pub(crate) fn harvest(
        &self,
        vm: &VmFd,
        slots: &[Slot],
        mut tell: impl FnMut(Frame),
    ) -> Result<(), EngineError> {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let mut any = false;
        for ring in &mut *rings {
            while let Some((slot, offset)) = ring.take() {
                any = true;
                // The upper half of the slot is the address space: 0 without SMM.
                frame_of(slots, slot & 0xffff, offset).into_iter().for_each(&mut tell);
            }
        }
        if any {
            // SAFETY: this request takes no memory of ours.
            let result = unsafe { libc::ioctl(vm.as_raw_fd(), RESET_DIRTY_RINGS, 0) };
            if result < 0 {
                return Err(refused("reset the dirty rings")(vmm_sys_util::errno::Error::last()));
            }
        }
        Ok(())
    }
}

impl Ring {
    /// The next written page as slot and offset.
    fn take(&mut self) -> Option<(u32, u64)> {
        let entry = self.pages.entry(self.next);
        // Acquire and release as api.rst asks for: the entry is read after its flag says that it is
        // complete, and given back after it was read.
        if entry.flags().load(Ordering::Acquire) & DIRTY == 0 {
            return None;
        }
        let found = entry.slot_and_offset();
        entry.flags().store(RESET, Ordering::Release);
        self.next = self.next.wrapping_add(1);
        Some(found)
    }
}

impl RingPages {
    fn entry(&self, index: u32) -> Entry<'_> {
        let entries = self.bytes / ENTRY_BYTES;
        // SAFETY: the index is inside the mapping by the remainder.
        let at = unsafe { self.start.add((index % entries * ENTRY_BYTES) as usize) };
        Entry { at: at.cast(), _ring: self }
    }
}

struct Entry<'a> {
    at: NonNull<kvm_dirty_gfn>,
    _ring: &'a RingPages,
}

impl Entry<'_> {
    fn flags(&self) -> &AtomicU32 {
        // SAFETY: inside the mapping and aligned; KVM and we access it atomically only.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.at.as_ptr()).flags) }
    }

    fn slot_and_offset(&self) -> (u32, u64) {
        let at = self.at.as_ptr();
        // SAFETY: inside the mapping; KVM does not change an entry that it has marked until it is reset.
        unsafe {
            ((&raw const (*at).slot).read_volatile(), (&raw const (*at).offset).read_volatile())
        }
    }
}

impl Drop for RingPages {
    fn drop(&mut self) {
        // SAFETY: `add` made exactly this mapping.
        unsafe { unmap(self.start, self.bytes as usize) };
    }
}
