//! The running transport.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::metrics::TransportMetrics;
use super::registers::*;
use super::state::TransportState;
use super::status::{
    DRIVER_OK, EVENT_INDEX, FEATURES_OK, NEEDS_RESET, StatusWrite, TRANSPORT_FEATURES, VERSION_1,
    is_live, status_write,
};
use crate::bus::BusDevice;
use crate::sync::lock;
use crate::virtio::queue::{QueueState, VirtQueue};
use crate::virtio::{
    DeviceKind, DeviceMetrics, GuestError, QueueSlot, RestoreError, Turn, VirtioDevice,
};
use crate::{DeviceView, IrqLine, Notifier, Watch};

/// A virtio device on the MMIO bus.
///
/// Registers are read and written by vCPU threads; queues are served on the I/O thread, as an
/// [`event_manager::EventSubscriber`]. The registers a running driver uses (notify, interrupt
/// status, acknowledge) take no lock, so a vCPU does not wait for a disk.
pub struct MmioTransport {
    kind: DeviceKind,
    pub(super) memory: DeviceView,
    pub(super) notifiers: Box<[Notifier]>,
    pub(super) wake: Option<Notifier>,
    pub(super) watch: Option<Watch>,
    interrupt: Interrupt,
    bad_accesses: AtomicU64,
    pub(super) inner: Mutex<Inner>,
}

pub(super) struct Inner {
    device: Box<dyn VirtioDevice>,
    status: u8,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    /// The driver accepted a feature beyond the 64 there are.
    impossible_features: bool,
    queue_select: u32,
    config_generation: u32,
    slots: Vec<QueueSlot>,
    guest_errors: u64,
    resets: u64,
}

struct Interrupt {
    status: AtomicU32,
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
        let slots = device.queue_sizes().iter().map(|&max| {
            Ok(QueueSlot { max, setup: empty(max), queue: None, notifier: Notifier::new()? })
        });
        let slots = slots.collect::<io::Result<Vec<_>>>()?;
        let notifiers = slots.iter().map(|slot| slot.notifier.clone()).collect();
        let (kind, wake, watch) = (device.kind(), device.wake(), device.watch());
        let interrupt = Interrupt { status: 0.into(), raised: 0.into(), line };
        let inner = Mutex::new(Inner::new(device, slots));
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
        TransportState {
            status: inner.status,
            device_features_select: inner.device_features_select,
            driver_features_select: inner.driver_features_select,
            driver_features: inner.driver_features,
            queue_select: inner.queue_select,
            interrupt_status: self.interrupt.status.load(Ordering::SeqCst),
            config_generation: inner.config_generation,
            queues: inner.slots.iter().map(saved).collect(),
            device: inner.device.state(),
        }
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
    fn stop(&self, inner: &mut Inner, error: &GuestError) {
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

    fn kick_all(&self) {
        self.notifiers.iter().chain(&self.wake).for_each(Notifier::signal);
    }

    fn bad_access(&self) {
        self.bad_accesses.fetch_add(1, Ordering::Relaxed);
    }

    fn read_register(&self, register: u64) -> u32 {
        match register {
            MAGIC => MAGIC_VALUE,
            VERSION => VERSION_VALUE,
            DEVICE_ID => self.kind as u32,
            VENDOR_ID => VENDOR_VALUE,
            INTERRUPT_STATUS => self.interrupt.status.load(Ordering::SeqCst),
            // No shared memory regions: length and base read as -1 (4.2.2).
            SHM_LEN_LOW..=SHM_BASE_HIGH => u32::MAX,
            _ => lock(&self.inner).read_register(register).unwrap_or_else(|| {
                self.bad_access();
                0
            }),
        }
    }

    fn write_register(&self, register: u64, value: u32) {
        match register {
            QUEUE_NOTIFY => match self.notifiers.get(value as usize) {
                Some(notifier) => notifier.signal(),
                None => self.bad_access(),
            },
            INTERRUPT_ACK => {
                self.interrupt.status.fetch_and(!value, Ordering::SeqCst);
            }
            STATUS => self.write_status(value),
            QUEUE_READY => self.write_queue_ready(value),
            _ => {
                if !lock(&self.inner).write_register(register, value) {
                    self.bad_access();
                }
            }
        }
    }

    fn write_status(&self, value: u32) {
        let mut inner = lock(&self.inner);
        match status_write(inner.status, value) {
            StatusWrite::Bad => self.bad_access(),
            StatusWrite::Reset => {
                inner.reset();
                inner.resets += 1;
                self.interrupt.status.store(0, Ordering::SeqCst);
            }
            StatusWrite::Add(bits) => {
                inner.add_status(bits);
                if bits & DRIVER_OK != 0 && inner.status & DRIVER_OK != 0 {
                    inner.activate();
                    if inner.status & NEEDS_RESET != 0 {
                        self.interrupt.raise(CAUSE_CONFIG);
                    }
                    // What was notified too early is served now.
                    self.kick_all();
                }
            }
        }
    }

    fn write_queue_ready(&self, value: u32) {
        let mut inner = lock(&self.inner);
        let set_up = match (inner.selected(), value) {
            (Some(slot), 0) => {
                (slot.queue, slot.setup.ready) = (None, false);
                Ok(())
            }
            (Some(slot), 1) if !slot.setup.ready => slot.start(&self.memory),
            _ => {
                self.bad_access();
                Ok(())
            }
        };
        if let Err(error) = set_up {
            return self.stop(&mut inner, &error);
        }
        inner.set_event_index();
    }
}

impl QueueSlot {
    fn start(&mut self, memory: &DeviceView) -> Result<(), GuestError> {
        let queue = VirtQueue::new(&self.setup, self.max, memory)?;
        (self.queue, self.setup.ready) = (Some(queue), true);
        Ok(())
    }
}

impl Inner {
    fn new(device: Box<dyn VirtioDevice>, slots: Vec<QueueSlot>) -> Self {
        Self {
            device,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            impossible_features: false,
            queue_select: 0,
            config_generation: 0,
            slots,
            guest_errors: 0,
            resets: 0,
        }
    }

    fn offered(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    fn selected(&mut self) -> Option<&mut QueueSlot> {
        self.slots.get_mut(self.queue_select as usize)
    }

    /// `None` for a register that does not exist or is write-only.
    fn read_register(&mut self, register: u64) -> Option<u32> {
        Some(match register {
            DEVICE_FEATURES => half(self.offered(), self.device_features_select),
            QUEUE_SIZE_MAX => self.selected().map_or(0, |slot| u32::from(slot.max)),
            QUEUE_READY => self.selected().is_some_and(|slot| slot.setup.ready).into(),
            STATUS => u32::from(self.status),
            CONFIG_GENERATION => self.config_generation,
            _ => return None,
        })
    }

    /// False if the register does not exist, is read-only, or must not be written now.
    fn write_register(&mut self, register: u64, value: u32) -> bool {
        match register {
            DEVICE_FEATURES_SELECT => self.device_features_select = value,
            DRIVER_FEATURES_SELECT => self.driver_features_select = value,
            DRIVER_FEATURES => return self.accept_features(value),
            QUEUE_SELECT => self.queue_select = value,
            _ => return self.write_queue_register(register, value),
        }
        true
    }

    fn accept_features(&mut self, value: u32) -> bool {
        if self.status & FEATURES_OK != 0 {
            return false;
        }
        match self.driver_features_select {
            0 => set_low(&mut self.driver_features, value),
            1 => set_high(&mut self.driver_features, value),
            _ => self.impossible_features |= value != 0,
        }
        true
    }

    fn write_queue_register(&mut self, register: u64, value: u32) -> bool {
        let Some(slot) = self.selected() else { return false };
        // "MUST NOT access ... when QueueReady is not zero" (4.2.2.2).
        if slot.setup.ready {
            return false;
        }
        let setup = &mut slot.setup;
        match register {
            QUEUE_SIZE => setup.size = value,
            QUEUE_DESC_LOW => set_low(&mut setup.desc, value),
            QUEUE_DESC_HIGH => set_high(&mut setup.desc, value),
            QUEUE_DRIVER_LOW => set_low(&mut setup.driver, value),
            QUEUE_DRIVER_HIGH => set_high(&mut setup.driver, value),
            QUEUE_DEVICE_LOW => set_low(&mut setup.device, value),
            QUEUE_DEVICE_HIGH => set_high(&mut setup.device, value),
            _ => return false,
        }
        true
    }

    fn add_status(&mut self, mut bits: u8) {
        if bits & FEATURES_OK != 0 && !self.features_fit() {
            bits &= !FEATURES_OK;
        }
        if (self.status | bits) & FEATURES_OK == 0 {
            bits &= !DRIVER_OK;
        }
        self.status |= bits;
    }

    fn features_fit(&self) -> bool {
        let beyond = self.driver_features & !self.offered() != 0 || self.impossible_features;
        !beyond && self.driver_features & VERSION_1 != 0
    }

    fn activate(&mut self) {
        self.set_event_index();
        let ready: Vec<bool> = self.slots.iter().map(|slot| slot.setup.ready).collect();
        self.device.activate(self.driver_features, &ready);
    }

    fn set_event_index(&mut self) {
        let on = self.driver_features & EVENT_INDEX != 0;
        for queue in self.slots.iter_mut().filter_map(|slot| slot.queue.as_mut()) {
            queue.set_event_index(on);
        }
    }

    fn reset(&mut self) {
        self.device.reset();
        self.status = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.impossible_features = false;
        self.queue_select = 0;
        for slot in &mut self.slots {
            (slot.queue, slot.setup) = (None, empty(slot.max));
            slot.notifier.take();
        }
    }

    fn restore(&mut self, state: &TransportState, memory: &DeviceView) -> Result<(), RestoreError> {
        self.check(state)?;
        self.reset();
        self.status = state.status;
        self.device_features_select = state.device_features_select;
        self.driver_features_select = state.driver_features_select;
        self.driver_features = state.driver_features;
        self.queue_select = state.queue_select;
        self.config_generation = state.config_generation;
        for (slot, saved) in self.slots.iter_mut().zip(&state.queues) {
            slot.setup = *saved;
            slot.queue =
                saved.ready.then(|| VirtQueue::new(saved, slot.max, memory)).transpose()?;
        }
        if self.status & DRIVER_OK != 0 {
            self.activate();
        }
        self.device.restore(&state.device)
    }

    fn check(&self, state: &TransportState) -> Result<(), RestoreError> {
        let (saved, expected) = (state.queues.len(), self.slots.len());
        if saved != expected {
            return Err(RestoreError::Queues { saved, expected });
        }
        let missing = state.driver_features & !self.offered();
        if missing != 0 {
            let what = format!("features {missing:#x} are not on offer here");
            return Err(RestoreError::Differs { what });
        }
        Ok(())
    }
}

impl Interrupt {
    fn raise(&self, causes: u32) {
        if causes != 0 {
            self.status.fetch_or(causes, Ordering::SeqCst);
            self.raised.fetch_add(1, Ordering::Relaxed);
            self.line.trigger();
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset >= CONFIG {
            let inner = lock(&self.inner);
            return inner.device.read_config((offset - CONFIG) as usize, data);
        }
        data.fill(0);
        // Registers are 32 bits wide and aligned, nothing else (4.2.2.2).
        if data.len() == 4 && offset.is_multiple_of(4) {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        } else {
            self.bad_access();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= CONFIG {
            let mut inner = lock(&self.inner);
            return inner.device.write_config((offset - CONFIG) as usize, data);
        }
        match <[u8; 4]>::try_from(data) {
            Ok(value) if offset.is_multiple_of(4) => {
                self.write_register(offset, u32::from_le_bytes(value));
            }
            _ => self.bad_access(),
        }
    }
}

fn empty(max: u16) -> QueueState {
    QueueState { size: u32::from(max), ..QueueState::default() }
}

fn saved(slot: &QueueSlot) -> QueueState {
    let (next_available, next_used) = slot.queue.as_ref().map_or((0, 0), VirtQueue::positions);
    QueueState { next_available, next_used, ..slot.setup }
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_low(value: &mut u64, low: u32) {
    *value = *value & !0xffff_ffff | u64::from(low);
}

fn set_high(value: &mut u64, high: u32) {
    *value = *value & 0xffff_ffff | u64::from(high) << 32;
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport").field("kind", &self.kind).finish_non_exhaustive()
    }
}
