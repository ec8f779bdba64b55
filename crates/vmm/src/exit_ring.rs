//! The last exits of a vCPU, for whoever asks why it failed.

use std::fmt::{self, Display, Formatter};
use std::time::{Duration, Instant};

use engine::Exit;

/// Exits kept.
pub(crate) const CAPACITY: usize = 64;

/// The last [`CAPACITY`] exits; older ones are forgotten.
#[derive(Debug)]
pub(crate) struct ExitRing {
    /// `len <= CAPACITY`; when full, the oldest is at `seen % CAPACITY`.
    records: Vec<Record>,
    seen: u64,
    started: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    number: u64,
    at: Duration,
    exit: Exit,
    /// What a read was answered.
    answer: Option<u64>,
}

impl ExitRing {
    pub(crate) fn new() -> Self {
        Self { records: Vec::with_capacity(CAPACITY), seen: 0, started: Instant::now() }
    }

    pub(crate) fn push(&mut self, exit: Exit) {
        let record = Record { number: self.seen, at: self.started.elapsed(), exit, answer: None };
        match self.records.get_mut(self.seen as usize % CAPACITY) {
            Some(oldest) => *oldest = record,
            None => self.records.push(record),
        }
        self.seen += 1;
    }

    /// The last exit was a read, and this is what it was answered.
    pub(crate) fn answered(&mut self, value: u64) {
        let last = self.seen.wrapping_sub(1) as usize % CAPACITY;
        if let Some(record) = self.records.get_mut(last) {
            record.answer = Some(value);
        }
    }

    /// A line an exit, oldest first, with its time relative to `now`.
    pub(crate) fn lines(&self) -> impl Iterator<Item = String> {
        let now = self.started.elapsed();
        let oldest = if self.records.len() < CAPACITY { 0 } else { self.seen as usize % CAPACITY };
        let (newer, older) = self.records.split_at(oldest);
        older.iter().chain(newer).map(move |record| {
            let ago = now.saturating_sub(record.at).as_secs_f64() * 1e3;
            format!("-{ago:.3} ms: {record}")
        })
    }
}

impl Display for Record {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "exit {}: {}", self.number, self.exit.kind())?;
        match self.exit {
            Exit::PortRead { port, size } => write!(f, " port {port:#x} size {size}")?,
            Exit::PortWrite { port, size, value } => {
                write!(f, " port {port:#x} size {size} value {value:#x}")?;
            }
            Exit::MmioRead { gpa, size } => write!(f, " gpa {gpa:#x} size {size}")?,
            Exit::MmioWrite { gpa, size, value } => {
                write!(f, " gpa {gpa:#x} size {size} value {value:#x}")?;
            }
            Exit::Unavailable { frame } => write!(f, " frame {frame}")?,
            Exit::Debug(stop) => write!(f, " {stop:?}")?,
            _ => {}
        }
        self.answer.map_or(Ok(()), |value| write!(f, " answer {value:#x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(ring: &ExitRing) -> Vec<String> {
        ring.lines().map(|line| line.split_once(": ").expect("a time").1.to_owned()).collect()
    }

    #[test]
    fn an_exit_is_shown_with_what_it_asked_and_got() {
        let mut ring = ExitRing::new();
        ring.answered(7);
        assert!(shown(&ring).is_empty());
        ring.push(Exit::PortWrite { port: 0x3f8, size: 1, value: 0x41 });
        ring.push(Exit::MmioRead { gpa: 0xd000_0070, size: 4 });
        ring.answered(0xf);
        ring.push(Exit::Kicked);
        let expected = [
            "exit 0: port_write port 0x3f8 size 1 value 0x41",
            "exit 1: mmio_read gpa 0xd0000070 size 4 answer 0xf",
            "exit 2: kicked",
        ];
        assert_eq!(shown(&ring), expected);
    }

    #[test]
    fn the_last_exits_are_kept_in_order() {
        for count in [CAPACITY as u64 - 1, CAPACITY as u64, CAPACITY as u64 + 1, 200] {
            let mut ring = ExitRing::new();
            for number in 0..count {
                ring.push(Exit::PortRead { port: number as u16, size: 1 });
                ring.answered(number);
            }
            let first = count.saturating_sub(CAPACITY as u64);
            let expected: Vec<_> = (first..count)
                .map(|n| format!("exit {n}: port_read port {n:#x} size 1 answer {n:#x}"))
                .collect();
            assert_eq!(shown(&ring), expected);
        }
    }
}
