//! The running clock.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::RtcState;
use super::config::CENTURY_REGISTER;
use crate::bus::BusDevice;

/// Bit 7 of the index port masks NMI and is not part of the index.
const INDEX_MASK: u8 = 0x7f;

/// Register A: divider on, no update in progress. Reads are snapshots, so there never is one.
const REGISTER_A: u8 = 0x26;
/// Register B: 24-hour, BCD, no interrupts.
const REGISTER_B: u8 = 0x02;
/// Register D: time and RAM are valid.
const REGISTER_D: u8 = 0x80;

const SECONDS_A_DAY: u64 = 86_400;

/// Tells the time.
pub type Clock = Box<dyn Fn() -> SystemTime + Send + Sync>;

/// The clock's two ports.
pub struct Rtc {
    clock: Clock,
    index: AtomicU8,
}

impl Rtc {
    /// A clock that shows the host's time, in UTC.
    pub fn new() -> Self {
        Self::with_clock(Box::new(SystemTime::now))
    }

    /// A clock that shows the time that `clock` tells.
    pub fn with_clock(clock: Clock) -> Self {
        Self { clock, index: AtomicU8::new(0) }
    }

    /// The clock as it is now.
    pub fn state(&self) -> RtcState {
        RtcState { index: self.index.load(Ordering::Relaxed) }
    }

    /// Takes up a saved clock.
    pub fn restore(&self, state: RtcState) {
        self.index.store(state.index & INDEX_MASK, Ordering::Relaxed);
    }

    fn read_register(&self, index: u8) -> u8 {
        match index {
            0x0a => REGISTER_A,
            0x0b => REGISTER_B,
            0x0d => REGISTER_D,
            0x00 | 0x02 | 0x04 | 0x06..=0x09 | CENTURY_REGISTER => {
                let since = (self.clock)().duration_since(UNIX_EPOCH).unwrap_or_default();
                Moment::at(since.as_secs()).register(index)
            }
            _ => 0,
        }
    }
}

impl Default for Rtc {
    fn default() -> Self {
        Self::new()
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (port, byte) in (offset..).zip(data) {
            *byte = match port {
                1 => self.read_register(self.index.load(Ordering::Relaxed)),
                // The index port is write-only on a PC.
                _ => 0xff,
            };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Some(&index)) = (offset, data.first()) {
            self.index.store(index & INDEX_MASK, Ordering::Relaxed);
        }
    }
}

/// A moment in the proleptic Gregorian calendar, UTC.
struct Moment {
    year: u64,
    /// 1 ..= 12
    month: u64,
    /// 1 ..= 31
    day: u64,
    /// 1 = Sunday ..= 7
    weekday: u64,
    /// 0 .. 86 400
    second_of_day: u64,
}

impl Moment {
    fn at(unix_seconds: u64) -> Self {
        let days = unix_seconds / SECONDS_A_DAY;
        let (year, month, day) = date(days);
        // 1970-01-01 was a Thursday, day 5 of the clock's week.
        let weekday = (days + 4) % 7 + 1;
        Self { year, month, day, weekday, second_of_day: unix_seconds % SECONDS_A_DAY }
    }

    fn register(&self, index: u8) -> u8 {
        bcd(match index {
            0x00 => self.second_of_day % 60,
            0x02 => self.second_of_day / 60 % 60,
            0x04 => self.second_of_day / 3600,
            0x06 => self.weekday,
            0x07 => self.day,
            0x08 => self.month,
            0x09 => self.year % 100,
            _ => self.year / 100 % 100,
        })
    }
}

/// Year, month and day of a day counted from 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_IN_400_YEARS: u64 = 146_097;
    let (mut year, mut left) = (1970 + 400 * (days / DAYS_IN_400_YEARS), days % DAYS_IN_400_YEARS);
    while left >= days_in_year(year) {
        left -= days_in_year(year);
        year += 1;
    }
    let mut month = 1;
    while left >= days_in_month(year, month) {
        left -= days_in_month(year, month);
        month += 1;
    }
    (year, month, left + 1)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_in_month(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Two decimal digits; `value` < 100.
fn bcd(value: u64) -> u8 {
    (value / 10 * 16 + value % 10) as u8
}

impl fmt::Debug for Rtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rtc").field("state", &self.state()).finish_non_exhaustive()
    }
}
