//! The running device. It holds no state: nothing to save.

use std::fmt;

use crate::bus::BusDevice;
use crate::power::{PowerEvent, PowerSink};

/// The guest panicked and will do nothing more about it.
const PANICKED: u8 = 1 << 0;
/// The guest panicked and now starts its own crash kernel: it must be left running.
const CRASH_LOADED: u8 = 1 << 1;

/// One port: reading tells which events exist, writing reports them.
pub struct PvPanic {
    events: PowerSink,
}

impl PvPanic {
    /// A device that reports to `events`.
    pub fn new(events: PowerSink) -> Self {
        Self { events }
    }
}

impl BusDevice for PvPanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(PANICKED | CRASH_LOADED);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let reported = data.first().copied().unwrap_or(0);
        if reported & PANICKED != 0 {
            (self.events)(PowerEvent::Panic);
        } else if reported & CRASH_LOADED != 0 {
            tracing::info!("guest panicked and starts its crash kernel");
        }
    }
}

impl fmt::Debug for PvPanic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PvPanic").finish_non_exhaustive()
    }
}
