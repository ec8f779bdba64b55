//! One bounded turn of a device on the I/O thread.

use super::queue::{Chain, QueueError, QueueState, VirtQueue};
use crate::{DeviceView, Notifier};

/// Most bytes a device moves in one turn before others on the thread get theirs.
const BYTES_A_TURN: u64 = 64 << 20;

/// A queue of a device, set up or not.
#[derive(Debug)]
pub struct QueueSlot {
    /// Largest size: a power of two.
    pub max: u16,
    /// What the guest has set.
    pub setup: QueueState,
    /// The running queue; `Some` exactly while `setup.ready`.
    pub queue: Option<VirtQueue>,
    /// Signalled when the guest notifies the queue.
    pub notifier: Notifier,
}

/// What a device may touch while it serves its queues.
///
/// A guest can refill a queue as fast as it is emptied, and can ask for gigabytes in one chain.
/// So a turn has a budget of chains (the queue's size) and of bytes; when it is spent, the queue
/// reads as empty, and a fresh notification brings the device back after the others.
#[derive(Debug)]
pub struct Turn<'a> {
    memory: &'a DeviceView,
    slots: &'a mut [QueueSlot],
    chains: u32,
    bytes: u64,
    config_changed: bool,
}

impl<'a> Turn<'a> {
    /// A turn over `slots`.
    pub fn new(memory: &'a DeviceView, slots: &'a mut [QueueSlot]) -> Self {
        Self { memory, slots, chains: 0, bytes: 0, config_changed: false }
    }

    /// Guest memory.
    pub fn memory(&self) -> &'a DeviceView {
        self.memory
    }

    /// How many chains queue `index` can hold; 0 if it is not set up.
    pub fn size(&self, index: usize) -> usize {
        self.slots.get(index).and_then(|slot| slot.queue.as_ref()).map_or(0, VirtQueue::size)
    }

    /// The next chain of queue `index`; `None` if there is none, the queue is not set up or the
    /// budget is spent.
    ///
    /// # Errors
    /// The guest broke a rule of virtqueues.
    pub fn next(&mut self, index: usize) -> Result<Option<Chain>, QueueError> {
        let Some(slot) = self.slots.get_mut(index) else { return Ok(None) };
        let Some(queue) = &mut slot.queue else { return Ok(None) };
        if self.chains >= u32::from(slot.max) || self.bytes >= BYTES_A_TURN {
            slot.notifier.signal();
            return Ok(None);
        }
        self.chains += 1;
        queue.pop(self.memory)
    }

    /// Makes the `count` chains that [`next`](Self::next) gave last available again. None of them
    /// may have been completed.
    pub fn put_back(&mut self, index: usize, count: u16) {
        if let Some(queue) = self.queue(index) {
            queue.put_back(count);
        }
    }

    /// Gives chain `head` back to the guest, `written` bytes of its writable part filled.
    ///
    /// # Errors
    /// The used ring cannot be written.
    pub fn complete(&mut self, index: usize, head: u16, written: u64) -> Result<(), QueueError> {
        // A chain is no longer than 4 GiB - 1, so this never saturates.
        self.complete_all(index, &[(head, u32::try_from(written).unwrap_or(u32::MAX))])
    }

    /// Gives chains back, heads and bytes filled; the guest sees all of them or none.
    ///
    /// # Errors
    /// The used ring cannot be written.
    pub fn complete_all(&mut self, index: usize, chains: &[(u16, u32)]) -> Result<(), QueueError> {
        let memory = self.memory;
        self.queue(index).map_or(Ok(()), |queue| queue.push_all(memory, chains))
    }

    fn queue(&mut self, index: usize) -> Option<&mut VirtQueue> {
        self.slots.get_mut(index)?.queue.as_mut()
    }

    /// Counts `bytes` against the turn's budget.
    pub fn spend(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Tells the guest that the configuration space has changed.
    pub fn change_config(&mut self) {
        self.config_changed = true;
    }

    /// Ends the turn: whether the configuration changed, and whether a queue wants an interrupt.
    ///
    /// # Errors
    /// A ring cannot be read.
    pub fn finish(self) -> Result<(bool, bool), QueueError> {
        let mut interrupt = false;
        for queue in self.slots.iter_mut().filter_map(|slot| slot.queue.as_mut()) {
            interrupt |= queue.needs_interrupt(self.memory)?;
        }
        Ok((self.config_changed, interrupt))
    }
}
