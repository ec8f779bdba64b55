//! The running transport.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::metrics::TransportMetrics;
use super::registers::{CAUSE_CONFIG, CAUSE_QUEUE};
use super::setup::Inner;
use super::state::TransportState;
use super::status::{DRIVER_OK, NEEDS_RESET, is_live};
use crate::sync::lock;
use crate::virtio::{DeviceKind, DeviceMetrics, GuestError, RestoreError, Turn, VirtioDevice};
use crate::{DeviceView, IrqLine, Notifier, Watch};

/// A virtio device on the MMIO bus.
///
/// Registers are read and written by vCPU threads; queues are served on the I/O thread, as an
/// [`event_manager::EventSubscriber`]. The registers a running driver uses (notify, interrupt
/// status, acknowledge) take no lock, so a vCPU does not wait for a disk.
pub struct MmioTransport {
    pub(super) kind: DeviceKind,
    pub(super) memory: DeviceView,
    pub(super) notifiers: Box<[Notifier]>,
    pub(super) wake: Option<Notifier>,
    pub(super) watch: Option<Watch>,
    pub(super) interrupt: Interrupt,
    pub(super) bad_accesses: AtomicU64,
    pub(super) inner: Mutex<Inner>,
}

pub(super) struct Interrupt {
    pub(super) status: AtomicU32,
    raised: AtomicU64,
    line: Arc<dyn IrqLine>,
}

impl MmioTransport {
    /// `device` behind a transport that raises `line` and works in `memory`.
    ///
    /// # Errors
    /// The host is out of file descriptors.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: DeviceView,
        line: Arc<dyn IrqLine>,
    ) -> io::Result<Self> {
        let (kind, wake, watch) = (device.kind(), device.wake(), device.watch());
        let interrupt = Interrupt { status: 0.into(), raised: 0.into(), line };
        let inner = Inner::new(device)?;
        let notifiers = inner.slots.iter().map(|slot| slot.notifier.clone()).collect();
        let inner = Mutex::new(inner);
        Ok(Self { kind, memory, notifiers, wake, watch, interrupt, bad_accesses: 0.into(), inner })
    }

    /// What kind of device it is.
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// One notifier a queue, in order: what KVM's ioeventfd signals.
    pub fn notifiers(&self) -> &[Notifier] {
        &self.notifiers
    }

    /// The device's counters.
    pub fn device_metrics(&self) -> DeviceMetrics {
        lock(&self.inner).device.metrics()
    }

    /// The transport's counters.
    pub fn metrics(&self) -> TransportMetrics {
        let inner = lock(&self.inner);
        TransportMetrics {
            interrupts: self.interrupt.raised.load(Ordering::Relaxed),
            bad_accesses: self.bad_accesses.load(Ordering::Relaxed),
            guest_errors: inner.guest_errors,
            resets: inner.resets,
        }
    }

    /// Makes everything the guest wrote to the device durable. To be called before the process
    /// ends.
    ///
    /// # Errors
    /// The host could not write.
    pub fn flush(&self) -> io::Result<()> {
        lock(&self.inner).device.flush()
    }

    /// The device as it is now, between two turns. vCPUs must be paused.
    pub fn state(&self) -> TransportState {
        let inner = lock(&self.inner);
        inner.state(self.interrupt.status.load(Ordering::SeqCst))
    }

    /// Takes up a saved device, before any vCPU runs. Memory must be restored already.
    ///
    /// # Errors
    /// The state does not fit this device; the device is then reset.
    pub fn restore(&self, state: &TransportState) -> Result<(), RestoreError> {
        let mut inner = lock(&self.inner);
        let restored = inner.restore(state, &self.memory);
        if restored.is_err() {
            inner.reset();
        }
        let causes = if restored.is_ok() { state.interrupt_status } else { 0 };
        self.interrupt.status.store(causes & (CAUSE_QUEUE | CAUSE_CONFIG), Ordering::SeqCst);
        self.kick_all();
        restored
    }

    /// Raises the interrupt again if the driver has not acknowledged all its causes.
    pub fn raise_again(&self) {
        if self.interrupt.status.load(Ordering::SeqCst) != 0 {
            self.interrupt.line.trigger();
        }
    }

    /// Serves queue `index` for one turn. The I/O thread's loop calls this through the
    /// subscription; call it directly only where there is no loop.
    pub fn serve_queue(&self, index: usize) {
        self.turn(|device, turn| device.serve_queue(index, turn));
    }

    /// Serves what the device was woken for.
    pub fn serve_wake(&self) {
        self.turn(|device, turn| device.serve_wake(turn));
    }

    fn turn(
        &self,
        work: impl FnOnce(&mut dyn VirtioDevice, &mut Turn<'_>) -> Result<(), GuestError>,
    ) {
        let mut inner = lock(&self.inner);
        if !is_live(inner.status) {
            return;
        }
        let Inner { device, slots, .. } = &mut *inner;
        let mut turn = Turn::new(&self.memory, slots);
        let worked = work(&mut **device, &mut turn);
        match worked.and_then(|()| Ok(turn.finish()?)) {
            Ok((config, queue)) => self.finish_turn(&mut inner, config, queue),
            Err(error) => self.stop(&mut inner, &error),
        }
    }

    fn finish_turn(&self, inner: &mut Inner, config: bool, queue: bool) {
        if config {
            inner.config_generation = inner.config_generation.wrapping_add(1);
        }
        let causes = if config { CAUSE_CONFIG } else { 0 } | if queue { CAUSE_QUEUE } else { 0 };
        self.interrupt.raise(causes);
    }

    /// The guest misused the device: stop until the driver resets it (virtio 1.2, 2.1.2).
    pub(super) fn stop(&self, inner: &mut Inner, error: &GuestError) {
        inner.guest_errors += 1;
        if inner.guest_errors == 1 {
            tracing::warn!("{:?} stopped until the guest resets it: {error}", self.kind);
        }
        inner.status |= NEEDS_RESET;
        if inner.status & DRIVER_OK != 0 {
            inner.config_generation = inner.config_generation.wrapping_add(1);
            self.interrupt.raise(CAUSE_CONFIG);
        }
    }

    pub(super) fn kick_all(&self) {
        self.notifiers.iter().chain(&self.wake).for_each(Notifier::signal);
    }
}

impl Interrupt {
    pub(super) fn raise(&self, causes: u32) {
        if causes != 0 {
            self.status.fetch_or(causes, Ordering::SeqCst);
            self.raised.fetch_add(1, Ordering::Relaxed);
            self.line.trigger();
        }
    }
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport").field("kind", &self.kind).finish_non_exhaustive()
    }
}
