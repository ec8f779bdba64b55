//! The running registers. They hold no state: nothing to save.

use std::fmt;

use super::config::{
    RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT, SLEEP_TYPE_S5,
};
use crate::bus::BusDevice;
use crate::power::{PowerEvent, PowerSink};

/// Sleep control register: SLP_TYPx in bits 2-4, SLP_EN in bit 5 (ACPI 6.5, 4.8.3.7).
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;
const SLEEP_ENABLE: u8 = 1 << 5;

/// The keyboard controller pulses the processor's reset line.
const PULSE_RESET: u8 = 0xfe;

/// ACPI's sleep control, sleep status and reset registers.
pub struct Reset {
    events: PowerSink,
}

impl Reset {
    /// Registers that report to `events`.
    pub fn new(events: PowerSink) -> Self {
        Self { events }
    }

    fn write_byte(&self, port: u16, value: u8) {
        match port {
            SLEEP_CONTROL_PORT => self.sleep(value),
            RESET_PORT if value == RESET_VALUE => (self.events)(PowerEvent::Reboot),
            _ => {}
        }
    }

    fn sleep(&self, value: u8) {
        if value & SLEEP_ENABLE == 0 {
            return;
        }
        match (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK {
            SLEEP_TYPE_S5 => (self.events)(PowerEvent::Poweroff),
            other => tracing::debug!("guest asked for sleep type {other}, which is not offered"),
        }
    }
}

impl BusDevice for Reset {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            // Both sleep registers read as zero: never asleep, no wake event (ACPI 6.5, 4.8.3.7).
            let port = u64::from(SLEEP_CONTROL_PORT) + offset + i as u64;
            *byte = if port <= u64::from(SLEEP_STATUS_PORT) { 0 } else { 0xff };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (port, &value) in (SLEEP_CONTROL_PORT.wrapping_add(offset as u16)..).zip(data) {
            self.write_byte(port, value);
        }
    }
}

impl fmt::Debug for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reset").finish_non_exhaustive()
    }
}

/// The one thing a guest without a keyboard wants of a keyboard controller: a reset.
pub struct I8042 {
    events: PowerSink,
}

impl I8042 {
    /// A controller that reports to `events`.
    pub fn new(events: PowerSink) -> Self {
        Self { events }
    }
}

impl BusDevice for I8042 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Status: both buffers empty. All ones would read as "busy" and make the guest wait.
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data.first() == Some(&PULSE_RESET) {
            (self.events)(PowerEvent::Reboot);
        }
    }
}

impl fmt::Debug for I8042 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("I8042").finish_non_exhaustive()
    }
}
