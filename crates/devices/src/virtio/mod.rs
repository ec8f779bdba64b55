//! Virtio devices, independent of how the guest reaches them (virtio 1.2).
//!
//! A device implements [`VirtioDevice`] and serves its queues in turns on the I/O thread; a
//! transport ([`mmio`]) owns it, does the negotiation and calls it. A turn is bounded: see
//! [`Turn`].

pub mod balloon;
pub mod block;
pub mod console;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod rng;
mod state;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod turn;
pub mod vsock;

use std::io;

use thiserror::Error;

use crate::{Notifier, Watch};
use queue::QueueError;

pub use state::{DeviceMetrics, DeviceState, RestoreError};
pub use turn::{QueueSlot, Turn};

/// Device types (virtio 1.2, 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum DeviceKind {
    /// A network interface.
    Net = 1,
    /// A disk.
    Block = 2,
    /// A console.
    Console = 3,
    /// An entropy source.
    Rng = 4,
    /// A traditional memory balloon.
    Balloon = 5,
    /// Sockets between guest and host.
    Vsock = 19,
}

/// The guest misused a device in a way that no request status can express. The device stops and
/// asks to be reset (virtio 1.2, 2.1.2).
#[derive(Debug, Error, PartialEq, Eq)]
pub enum GuestError {
    /// A rule of virtqueues was broken.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// A rule of the device was broken.
    #[error("{kind:?}: {rule}")]
    Device {
        /// The device.
        kind: DeviceKind,
        /// What the guest did.
        rule: &'static str,
    },
}

/// A virtio device behind some transport.
///
/// The transport calls one method at a time. [`serve_queue`](Self::serve_queue) and
/// [`serve_wake`](Self::serve_wake) run on the I/O thread, the others on vCPU threads too.
///
/// Life: [`activate`](Self::activate) once the driver is ready, then any number of turns, then
/// [`reset`](Self::reset); and again. No turn happens before `activate` or after an error.
pub trait VirtioDevice: Send {
    /// What it is.
    fn kind(&self) -> DeviceKind;

    /// Device-specific feature bits on offer (bits 0 to 23); the transport adds its own.
    fn features(&self) -> u64;

    /// Largest size of each queue: a power of two.
    fn queue_sizes(&self) -> &'static [u16];

    /// Reads the configuration space. Bytes beyond its end read as zero.
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// Writes the configuration space. What is read-only ignores it.
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver is ready. `features` are the ones both sides have, `ready` tells which queues
    /// the driver has set up.
    fn activate(&mut self, features: u64, ready: &[bool]) {
        let _ = (features, ready);
    }

    /// Serves what the guest put into queue `index`.
    ///
    /// # Errors
    /// The guest misused the device, which stops until it is reset.
    fn serve_queue(&mut self, index: usize, turn: &mut Turn<'_>) -> Result<(), GuestError>;

    /// Who wakes the device for work that does not come from the guest, if anybody does.
    fn wake(&self) -> Option<Notifier> {
        None
    }

    /// Descriptors of the host whose changes are work for the device, if it has any.
    fn watch(&self) -> Option<Watch> {
        None
    }

    /// Does what it was woken for, by its notifier or by a change in what it watches. A change
    /// that comes before `activate` is not told: look at the watch then.
    ///
    /// # Errors
    /// As for [`serve_queue`](Self::serve_queue).
    fn serve_wake(&mut self, turn: &mut Turn<'_>) -> Result<(), GuestError> {
        let _ = turn;
        Ok(())
    }

    /// Makes everything the guest wrote durable. To be called when the machine stops, whatever the
    /// guest did about it.
    ///
    /// # Errors
    /// The host could not write.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Forgets everything the driver did.
    fn reset(&mut self);

    /// What must survive a save, beside the transport's own state. Queues are idle.
    fn state(&self) -> DeviceState;

    /// Takes up a saved state, after `activate`.
    ///
    /// # Errors
    /// The state is another device's or damaged; the device is as it was.
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError>;

    /// Counters since the device was made.
    fn metrics(&self) -> DeviceMetrics;
}

/// Reads `data` at `offset` of a configuration space that is `space`, zero beyond.
fn read_space(space: &[u8], offset: usize, data: &mut [u8]) {
    data.fill(0);
    let space = space.get(offset..).unwrap_or(&[]);
    let len = space.len().min(data.len());
    data[..len].copy_from_slice(&space[..len]);
}
