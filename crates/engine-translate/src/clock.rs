//! Guest time: the TSC, and kvmclock, which tells Linux its frequency (Linux
//! `Documentation/virt/kvm/x86/msr.rst`).

use std::arch::x86_64::{__cpuid, _mm_lfence, _rdtsc};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use memory::{Access, FRAME_SIZE, Gpa, GuestMemory};
use rustix::time::{ClockId, clock_gettime};

use crate::host;

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

fn measured_hz() -> u64 {
    let (tsc, time) = reading();
    std::thread::sleep(Duration::from_millis(20));
    let (later_tsc, later_time) = reading();
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

/// TSC ticks as time.
pub(crate) fn ticks_to_duration(ticks: u64) -> Duration {
    Duration::from_nanos(
        (u128::from(ticks) * 1_000_000_000 / u128::from(tsc_hz())).min(u64::MAX.into()) as u64,
    )
}

/// `struct pvclock_vcpu_time_info`, 32 bytes.
const TIME_INFO_SIZE: usize = 32;
const TSC_STABLE: u8 = 1;

/// Writes the system-time record for a guest whose TSC counts from its start; false if `gpa` is not RAM.
pub(crate) fn write_system_time(memory: &GuestMemory, gpa: u64, version: u32) -> bool {
    let (multiplier, shift) = nanoseconds_scale(tsc_hz());
    let mut record = [0; TIME_INFO_SIZE];
    record[0..4].copy_from_slice(&version.to_le_bytes());
    // tsc_timestamp (8..16) and system_time (16..24) are both zero: time is the TSC, scaled.
    record[24..28].copy_from_slice(&multiplier.to_le_bytes());
    record[28] = shift as u8;
    record[29] = TSC_STABLE;
    write(memory, gpa, &record)
}

/// Writes `struct pvclock_wall_clock`: the time of day when the guest's TSC was zero.
pub(crate) fn write_wall_clock(memory: &GuestMemory, gpa: u64, guest_tsc: u64) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let start = now.saturating_sub(ticks_to_duration(guest_tsc));
    let mut record = [0; 12];
    record[0..4].copy_from_slice(&2u32.to_le_bytes());
    record[4..8].copy_from_slice(&(start.as_secs() as u32).to_le_bytes());
    record[8..12].copy_from_slice(&start.subsec_nanos().to_le_bytes());
    write(memory, gpa, &record)
}

/// Multiplier and shift such that `ns = (ticks << shift) * multiplier >> 32`, a negative shift being to
/// the right. The shift brings the frequency between 1 and 2 GHz, where the multiplier has most bits.
fn nanoseconds_scale(hz: u64) -> (u32, i8) {
    let (mut left, mut right) = (0, 0);
    while hz >> right > 2_000_000_000 {
        right += 1;
    }
    while hz << left <= 1_000_000_000 {
        left += 1;
    }
    let multiplier = (1_000_000_000u128 << 32 << right) / (u128::from(hz) << left);
    (multiplier as u32, left - right)
}

/// Writes within one page; false outside RAM.
fn write(memory: &GuestMemory, gpa: u64, bytes: &[u8]) -> bool {
    if (gpa as usize % FRAME_SIZE) + bytes.len() > FRAME_SIZE {
        return false;
    }
    let Some(frame) = memory.frame_of(Gpa(gpa)) else { return false };
    let Ok(page) = memory.resolve(frame, Access::Write) else { return false };
    let at = page.as_ptr() as usize + gpa as usize % FRAME_SIZE;
    for (offset, &byte) in bytes.iter().enumerate() {
        // SAFETY: inside a page resolved for writing, used at once on the vCPU's thread.
        unsafe { host::store(at + offset, byte) };
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a guest computes.
    fn nanoseconds(ticks: u64, (multiplier, shift): (u32, i8)) -> u64 {
        let ticks = if shift < 0 { ticks >> -shift } else { ticks << shift };
        ((u128::from(ticks) * u128::from(multiplier)) >> 32) as u64
    }

    #[test]
    fn the_scale_is_right_for_any_frequency() {
        for hz in [100_000_000, 999_999_999, 1_000_000_000, 2_596_122_000, 5_000_000_001u64] {
            let ns = nanoseconds(hz * 10, nanoseconds_scale(hz));
            assert!(ns.abs_diff(10_000_000_000) < 100, "{hz} Hz: {ns}");
        }
    }

    #[test]
    fn the_host_frequency_is_plausible() {
        assert!((100_000_000..20_000_000_000).contains(&tsc_hz()), "{}", tsc_hz());
    }
}
