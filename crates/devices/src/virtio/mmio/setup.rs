//! What driver and device have agreed on: features, status, queues.

use std::io;

use memory::{Event, FRAME_SHIFT, Gpa};

use super::registers::*;
use super::state::TransportState;
use super::status::{DRIVER_OK, EVENT_INDEX, FEATURES_OK, TRANSPORT_FEATURES, VERSION_1};
use crate::virtio::queue::{QueueState, VirtQueue};
use crate::virtio::{GuestError, QueueSlot, RestoreError, VirtioDevice};
use crate::{DeviceView, Notifier};

/// A device with its driver's settings.
pub(super) struct Inner {
    pub(super) device: Box<dyn VirtioDevice>,
    pub(super) status: u8,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    /// The driver accepted a feature beyond the 64 there are.
    impossible_features: bool,
    queue_select: u32,
    pub(super) config_generation: u32,
    pub(super) slots: Vec<QueueSlot>,
    pub(super) guest_errors: u64,
    pub(super) resets: u64,
}

impl Inner {
    pub(super) fn new(device: Box<dyn VirtioDevice>) -> io::Result<Self> {
        let slots = device.queue_sizes().iter().map(|&max| {
            Ok(QueueSlot { max, setup: empty(max), queue: None, notifier: Notifier::new()? })
        });
        let slots = slots.collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
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
        })
    }

    fn offered(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    pub(super) fn selected(&mut self) -> Option<&mut QueueSlot> {
        self.slots.get_mut(self.queue_select as usize)
    }

    /// `None` for a register that does not exist or is write-only.
    pub(super) fn read_register(&mut self, register: u64) -> Option<u32> {
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
    pub(super) fn write_register(&mut self, register: u64, value: u32) -> bool {
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

    pub(super) fn add_status(&mut self, mut bits: u8) {
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

    pub(super) fn activate(&mut self) {
        self.set_event_index();
        let ready: Vec<bool> = self.slots.iter().map(|slot| slot.setup.ready).collect();
        self.device.activate(self.driver_features, &ready);
    }

    pub(super) fn set_event_index(&mut self) {
        let on = self.driver_features & EVENT_INDEX != 0;
        for queue in self.slots.iter_mut().filter_map(|slot| slot.queue.as_mut()) {
            queue.set_event_index(on);
        }
    }

    pub(super) fn reset(&mut self) {
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

    pub(super) fn state(&self, interrupt_status: u32) -> TransportState {
        TransportState {
            status: self.status,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            interrupt_status,
            config_generation: self.config_generation,
            queues: self.slots.iter().map(saved).collect(),
            device: self.device.state(),
        }
    }

    pub(super) fn restore(
        &mut self,
        state: &TransportState,
        memory: &DeviceView,
    ) -> Result<(), RestoreError> {
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
            if saved.ready {
                tell_rings(saved, memory);
            }
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

impl QueueSlot {
    pub(super) fn start(&mut self, memory: &DeviceView) -> Result<(), GuestError> {
        let queue = VirtQueue::new(&self.setup, self.max, memory)?;
        (self.queue, self.setup.ready) = (Some(queue), true);
        tell_rings(&self.setup, memory);
        Ok(())
    }
}

/// Tells which frames the rings are in (sizes: virtio 1.2, 2.7).
fn tell_rings(setup: &QueueState, memory: &DeviceView) {
    let Some(events) = memory.memory().events() else { return };
    let size = u64::from(setup.size);
    let rings =
        [(setup.desc, 16 * size), (setup.driver, 6 + 2 * size), (setup.device, 6 + 8 * size)];
    for (start, len) in rings {
        // They lie in memory: the queue has been checked.
        for page in start >> FRAME_SHIFT..=(start + len - 1) >> FRAME_SHIFT {
            if let Some(frame) = memory.memory().frame_of(Gpa(page << FRAME_SHIFT)) {
                events.tell(Event::Ring { frame });
            }
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
