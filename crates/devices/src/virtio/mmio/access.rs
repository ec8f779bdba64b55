//! Registers, as vCPU threads read and write them.

use std::sync::atomic::Ordering;

use super::MmioTransport;
use super::registers::*;
use super::status::{DRIVER_OK, NEEDS_RESET, StatusWrite, status_write};
use crate::bus::BusDevice;
use crate::sync::lock;

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

impl MmioTransport {
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
