//! Who else uses the processors while something is measured.

use anyhow::{Context, Result};
use std::fs;
use std::time::Instant;

/// What the kernel counts processor time in, for programs to read (proc(5)).
const TICKS_PER_SECOND: f64 = 100.0;
/// For less time ticks are too coarse.
const SHORTEST_SECONDS: f64 = 0.5;

/// Processor time of all children that have ended: fields 16 and 17 of /proc/self/stat; the name
/// in field 2 may hold spaces.
pub(crate) fn children_cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat").context("read /proc/self/stat")?;
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks = fields.skip(13).take(2).filter_map(|field| field.parse::<u64>().ok());
    Ok(ticks.sum::<u64>() as f64 / TICKS_PER_SECOND)
}

/// Since when to look at others.
pub(crate) struct Others {
    started: Instant,
    all: f64,
    children: f64,
}

impl Others {
    pub(crate) fn from_now() -> Result<Self> {
        let (all, children) = (busy_seconds()?, children_cpu_seconds()?);
        Ok(Self { started: Instant::now(), all, children })
    }

    /// How many processors others kept busy, on average, or took from this host altogether. Our
    /// own children must have ended.
    pub(crate) fn processors(&self) -> Result<f64> {
        let elapsed = self.started.elapsed().as_secs_f64();
        if elapsed < SHORTEST_SECONDS {
            return Ok(0.0);
        }
        let children = children_cpu_seconds()? - self.children;
        Ok(((busy_seconds()? - self.all - children) / elapsed).max(0.0))
    }
}

fn busy_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    Ok(busy_ticks(&stat) as f64 / TICKS_PER_SECOND)
}

/// The first line counts, for all processors, user, nice, system, idle, waiting for I/O,
/// interrupts, soft interrupts and stolen.
fn busy_ticks(stat: &str) -> u64 {
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks = fields.map(|field| field.parse::<u64>().unwrap_or(0)).take(8).enumerate();
    ticks.filter(|(number, _)| ![3, 4].contains(number)).map(|(_, ticks)| ticks).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idleness_and_waiting_are_not_busy_and_guests_count_once() {
        let stat = "cpu  10 20 30 40000 50000 6 7 8 9999 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n";
        assert_eq!(busy_ticks(stat), 10 + 20 + 30 + 6 + 7 + 8);
        assert!(busy_seconds().unwrap() > 0.0);
    }
}
