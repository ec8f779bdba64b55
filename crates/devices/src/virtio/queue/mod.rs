//! Split virtqueues, checked (virtio 1.2, 2.7).
//!
//! virtio-queue walks the rings; it ends a broken chain quietly, as if it were complete. Here a
//! chain is taken whole and checked whole before a device sees it: it ends, it is no longer than
//! the queue, it has device-readable parts before device-writable ones, and all of it lies in
//! guest memory. What fails a check is the guest's fault and stops the device.

use std::sync::atomic::{Ordering, fence};

use memory::Gpa;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error as RingError, Queue as Ring, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::DeviceView;

mod chain;
mod segments;
#[cfg(test)]
mod tests;

pub use chain::Chain;
pub use segments::{GuestBuffer, Segment, Segments};

/// Offsets and lengths in the rings (2.7.6, 2.7.8).
const AVAILABLE_ENTRIES: u64 = 4;
const USED_INDEX: u64 = 2;
const USED_ENTRIES: u64 = 4;
const USED_ENTRY_LEN: u64 = 8;

/// The guest broke a rule of virtqueues.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum QueueError {
    /// A size that is zero, no power of two or above the maximum.
    #[error("queue size {size} is not a power of two up to {max}")]
    Size {
        /// What the guest set.
        size: u32,
        /// What the device allows.
        max: u16,
    },
    /// A ring that is misaligned or outside memory.
    #[error("queue rings at {desc:#x}, {driver:#x}, {device:#x} are misaligned or outside memory")]
    Rings {
        /// Descriptor table.
        desc: u64,
        /// Available ring.
        driver: u64,
        /// Used ring.
        device: u64,
    },
    /// More chains made available than the queue holds.
    #[error("available index is more than the queue size ahead")]
    AvailableIndex,
    /// A ring became unreadable.
    #[error("ring access failed")]
    Ring,
    /// A chain that loops, has a bad index, is longer than the queue or than 4 GiB, or whose
    /// table is bad.
    #[error("descriptor chain {head} does not end within the queue size")]
    Chain {
        /// Its head.
        head: u16,
    },
    /// A device-readable descriptor after a device-writable one.
    #[error("descriptor chain {head} has a readable part after a writable one")]
    Order {
        /// The chain's head.
        head: u16,
    },
    /// A request's buffers are too short for what it is.
    #[error("request of {have} bytes where {want} are needed")]
    Short {
        /// Bytes needed.
        want: u64,
        /// Bytes there.
        have: u64,
    },
    /// A source of memory failed: not the guest's doing, but the request cannot be served.
    #[error("memory at {address:#x} cannot be brought back")]
    Absent {
        /// Guest-physical address.
        address: u64,
    },
    /// A buffer outside guest memory.
    #[error("buffer {address:#x}+{len:#x} is outside guest memory")]
    Buffer {
        /// Its guest-physical address.
        address: u64,
        /// Its length.
        len: u64,
    },
}

/// A queue as the guest set it up, and how far it has come: the saved form too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Size the guest chose.
    pub size: u32,
    /// The guest has finished setting it up.
    pub ready: bool,
    /// Descriptor table, guest-physical.
    pub desc: u64,
    /// Available ring, guest-physical.
    pub driver: u64,
    /// Used ring, guest-physical.
    pub device: u64,
    /// Next available entry to take.
    pub next_available: u16,
    /// Next used entry to fill.
    pub next_used: u16,
}

/// A virtqueue in use.
#[derive(Debug)]
pub struct VirtQueue {
    ring: Ring,
    /// Used entries added since the guest was last considered for an interrupt.
    added: u16,
}

impl VirtQueue {
    /// The queue that `state` describes.
    ///
    /// # Errors
    /// Its size or a ring is bad.
    pub fn new(state: &QueueState, max: u16, memory: &DeviceView) -> Result<Self, QueueError> {
        let bad_size = || QueueError::Size { size: state.size, max };
        let mut ring = Ring::new(max).map_err(|_| bad_size())?;
        let size = u16::try_from(state.size).map_err(|_| bad_size())?;
        ring.try_set_size(size).map_err(|_| bad_size())?;
        set_rings(&mut ring, state, memory).ok_or(QueueError::Rings {
            desc: state.desc,
            driver: state.driver,
            device: state.device,
        })?;
        ring.set_next_avail(state.next_available);
        ring.set_next_used(state.next_used);
        Ok(Self { ring, added: 0 })
    }

    /// Whether both sides negotiated `VIRTIO_F_EVENT_IDX`.
    pub fn set_event_index(&mut self, on: bool) {
        self.ring.set_event_idx(on);
    }

    /// How many chains it can hold.
    pub fn size(&self) -> usize {
        self.ring.size().into()
    }

    /// Next available entry to take, and next used entry to fill.
    pub fn positions(&self) -> (u16, u16) {
        (self.ring.next_avail(), self.ring.next_used())
    }

    /// The next chain. When there is none, the guest is asked to notify about the next one; when
    /// there is one, it is asked not to.
    ///
    /// # Errors
    /// The guest broke a rule; the queue must not be used further.
    pub fn pop(&mut self, memory: &DeviceView) -> Result<Option<Chain>, QueueError> {
        if let Some(chain) = self.take(memory)? {
            return Ok(Some(chain));
        }
        if !self.ring.enable_notification(memory).map_err(ring_error)? {
            return Ok(None);
        }
        // One came in between. Its notification may have been suppressed.
        self.take(memory)
    }

    fn take(&mut self, memory: &DeviceView) -> Result<Option<Chain>, QueueError> {
        let size = self.ring.size();
        let taken = self.ring.iter(memory).map_err(ring_error)?.next();
        let Some(descriptors) = taken else { return Ok(None) };
        self.ring.disable_notification(memory).map_err(ring_error)?;
        Chain::collect(descriptors, size, memory).map(Some)
    }

    /// Makes the `count` chains taken last available again, as if they had not been taken. None
    /// of them may have been pushed.
    pub fn put_back(&mut self, count: u16) {
        self.ring.set_next_avail(self.ring.next_avail().wrapping_sub(count));
    }

    /// Gives a chain back to the guest with `written` bytes in its writable part.
    ///
    /// # Errors
    /// The used ring cannot be written.
    pub fn push(&mut self, memory: &DeviceView, head: u16, written: u32) -> Result<(), QueueError> {
        self.push_all(memory, &[(head, written)])
    }

    /// Gives several chains back, of which the guest sees all or none: a packet that spans
    /// buffers must not be seen in part (5.1.6.4), and virtio-queue shows entries one by one.
    ///
    /// # Errors
    /// The used ring cannot be written.
    pub fn push_all(
        &mut self,
        memory: &DeviceView,
        chains: &[(u16, u32)],
    ) -> Result<(), QueueError> {
        let mut next = self.ring.next_used();
        for &(head, written) in chains {
            if head >= self.ring.size() {
                return Err(QueueError::Chain { head });
            }
            let at = USED_ENTRIES + USED_ENTRY_LEN * u64::from(next % self.ring.size());
            let entry = u64::from(written) << 32 | u64::from(head);
            memory.write(self.used(at)?, &entry.to_le_bytes()).map_err(|_| QueueError::Ring)?;
            next = next.wrapping_add(1);
        }
        let index = GuestAddress(self.used(USED_INDEX)?.0);
        memory.store(next.to_le(), index, Ordering::Release).map_err(|_| QueueError::Ring)?;
        self.ring.set_next_used(next);
        // Saturated it still wants an interrupt, and no turn adds as many.
        self.added = self.added.saturating_add(chains.len() as u16);
        Ok(())
    }

    /// `offset` bytes into the used ring.
    fn used(&self, offset: u64) -> Result<Gpa, QueueError> {
        Gpa(self.ring.used_ring()).checked_add(offset).ok_or(QueueError::Ring)
    }

    /// Whether what was pushed since the last call wants an interrupt.
    ///
    /// # Errors
    /// The available ring cannot be read.
    pub fn needs_interrupt(&mut self, memory: &DeviceView) -> Result<bool, QueueError> {
        let added = std::mem::take(&mut self.added);
        if added == 0 {
            return Ok(false);
        }
        // The used index is written before the guest's wish is read (2.7.7.2).
        fence(Ordering::SeqCst);
        if !self.ring.event_idx_enabled() {
            let flags = self.available(memory, 0)?;
            return Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let event = self.available(memory, AVAILABLE_ENTRIES + 2 * u64::from(self.ring.size()))?;
        // Whether the index passed the one the guest waits for (2.7.10).
        Ok(self.ring.next_used().wrapping_sub(event).wrapping_sub(1) < added)
    }

    /// The 16-bit field at `offset` in the available ring.
    fn available(&self, memory: &DeviceView, offset: u64) -> Result<u16, QueueError> {
        let at = self.ring.avail_ring().checked_add(offset).ok_or(QueueError::Ring)?;
        let field: u16 =
            memory.load(GuestAddress(at), Ordering::Relaxed).map_err(|_| QueueError::Ring)?;
        Ok(u16::from_le(field))
    }
}

fn set_rings(ring: &mut Ring, state: &QueueState, memory: &DeviceView) -> Option<()> {
    ring.try_set_desc_table_address(GuestAddress(state.desc)).ok()?;
    ring.try_set_avail_ring_address(GuestAddress(state.driver)).ok()?;
    ring.try_set_used_ring_address(GuestAddress(state.device)).ok()?;
    ring.set_ready(true);
    // virtio-queue takes an available ring at address 0 for one that was never set.
    (state.driver != 0 && ring.is_valid(memory)).then_some(())
}

fn ring_error(error: RingError) -> QueueError {
    match error {
        RingError::InvalidAvailRingIndex => QueueError::AvailableIndex,
        _ => QueueError::Ring,
    }
}
