//! The host's TSC and its rate.

use std::arch::x86_64::{__cpuid, _mm_lfence, _rdtsc};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The host's TSC.
#[inline]
pub(crate) fn host_tsc() -> u64 {
    // SAFETY: RDTSC is on every x86-64; Linux leaves CR4.TSD clear.
    unsafe { _rdtsc() }
}

/// The host's TSC after everything that this thread has executed. The processor may run RDTSC ahead of
/// earlier loads, and to the guest's LFENCE before its RDTSC there is nothing that corresponds here: Linux
/// would see one vCPU's TSC behind another's and give it up as a clock.
pub(crate) fn host_tsc_ordered() -> u64 {
    // SAFETY: LFENCE is of SSE2, which every x86-64 has.
    unsafe { _mm_lfence() };
    host_tsc()
}

/// Ticks per second of the host's TSC.
pub(crate) fn tsc_hz() -> u64 {
    static HZ: OnceLock<u64> = OnceLock::new();
    *HZ.get_or_init(|| reported_hz().unwrap_or_else(measured_hz))
}

/// The frequency as CPUID tells it: leaf 0x15 on processors, 0x40000010 under hypervisors.
fn reported_hz() -> Option<u64> {
    let leaf = __cpuid(0);
    if leaf.eax >= 0x15 {
        let ratio = __cpuid(0x15);
        if ratio.eax != 0 && ratio.ebx != 0 && ratio.ecx != 0 {
            return Some(u64::from(ratio.ecx) * u64::from(ratio.ebx) / u64::from(ratio.eax));
        }
    }
    None
}

/// As long as the TSC is held against the clock at least. A reading is exact to some ten nanoseconds, so this is to a few
/// millionths: less than two clocks of two hosts differ.
const MEASURED: Duration = Duration::from_millis(8);

/// The first reading, which the measurement begins with.
static BEGUN: OnceLock<(u64, u64)> = OnceLock::new();

/// Begins to measure the rate of the TSC, which processors of AMD do not tell. Call it as early as possible: a VM that is
/// wanted later than that need not wait for the rest of the measurement, 8 ms.
pub fn begin_to_measure() {
    BEGUN.get_or_init(reading);
}

fn measured_hz() -> u64 {
    let (tsc, time) = *BEGUN.get_or_init(reading);
    let enough = time + MEASURED.as_nanos() as u64;
    let (mut later_tsc, mut later_time) = reading();
    while later_time < enough {
        std::thread::sleep(Duration::from_nanos(enough - later_time));
        (later_tsc, later_time) = reading();
    }
    let ticks = u128::from(later_tsc - tsc) * 1_000_000_000;
    (ticks / u128::from((later_time - time).max(1))) as u64
}

/// TSC and nanoseconds as close together as a few tries get them.
fn reading() -> (u64, u64) {
    let attempt = || {
        let before = host_tsc();
        let now = clock_gettime(ClockId::MonotonicRaw);
        let after = host_tsc();
        let ns = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        (after - before, before + (after - before) / 2, ns)
    };
    let best = (0..8).map(|_| attempt()).min_by_key(|reading| reading.0);
    best.map_or((0, 0), |(_, tsc, ns)| (tsc, ns))
}

/// TSC ticks as time, rounded up: whoever waits for a tick does not wake before it.
pub(crate) fn ticks_to_duration(ticks: u64) -> Duration {
    let ns = (u128::from(ticks) * 1_000_000_000).div_ceil(u128::from(tsc_hz()));
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
}

/// Time as TSC ticks.
pub(crate) fn duration_to_ticks(time: Duration) -> u64 {
    u64::try_from(time.as_nanos() * u128::from(tsc_hz()) / 1_000_000_000).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_frequency_is_plausible() {
        assert!((100_000_000..20_000_000_000).contains(&tsc_hz()), "{}", tsc_hz());
    }

    #[test]
    fn times_and_ticks_go_over_into_each_other() {
        assert_eq!(duration_to_ticks(Duration::from_secs(3)), 3 * tsc_hz());
        // Rounded up to a nanosecond, which is some ticks.
        let (ticks, nanosecond) = (12_345_678, tsc_hz() / 1_000_000_000 + 1);
        let there_and_back = duration_to_ticks(ticks_to_duration(ticks));
        assert!((ticks..=ticks + nanosecond).contains(&there_and_back), "{there_and_back}");
        assert_eq!(duration_to_ticks(Duration::MAX), u64::MAX);
    }

    #[test]
    fn a_wait_covers_all_its_ticks_and_little_more() {
        assert_eq!(ticks_to_duration(0), Duration::ZERO);
        assert_eq!(ticks_to_duration(tsc_hz()), Duration::from_secs(1));
        assert_eq!(ticks_to_duration(tsc_hz() + 1).as_secs(), 1);
        assert!(ticks_to_duration(tsc_hz() + 1) > Duration::from_secs(1));
        assert!(ticks_to_duration(1) > Duration::ZERO);
        // Centuries, and not a wrap to something short.
        assert!(ticks_to_duration(u64::MAX) > Duration::from_secs(1 << 29));
    }
}
