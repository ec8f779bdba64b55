//! kvmclock: nanoseconds since the VM was made, and with them the TSC's rate (Linux
//! `Documentation/virt/kvm/x86/msr.rst`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use memory::{Access, FRAME_SIZE, Gpa, GuestMemory};

use crate::clock::{host_tsc, tsc_hz};
use crate::host;

/// `struct pvclock_vcpu_time_info`, 32 bytes.
const TIME_INFO_SIZE: usize = 32;
const TSC_STABLE: u8 = 1;
/// The guest takes it back when it has seen it.
const GUEST_STOPPED: u8 = 2;

/// The clock of a VM. All records are of one line through one point, so that vCPUs never disagree, not even
/// by rounding.
#[derive(Debug)]
pub(crate) struct KvmClock {
    /// The host's TSC when the VM was made.
    start: u64,
    /// Nanoseconds at `start`; may be less than zero.
    base_ns: AtomicU64,
}

impl KvmClock {
    pub(crate) fn new() -> Self {
        Self { start: host_tsc(), base_ns: AtomicU64::new(0) }
    }

    /// What makes a guest TSC that is zero at the start from the host's.
    pub(crate) fn tsc_offset(&self) -> u64 {
        self.start.wrapping_neg()
    }

    pub(crate) fn now_ns(&self) -> u64 {
        let ticks = host_tsc().saturating_sub(self.start);
        self.base_ns.load(Ordering::SeqCst).wrapping_add(Scale::of(tsc_hz()).nanoseconds(ticks))
    }

    /// Records written from now on follow.
    pub(crate) fn set_ns(&self, ns: u64) {
        let ticks = host_tsc().saturating_sub(self.start);
        let base_ns = ns.wrapping_sub(Scale::of(tsc_hz()).nanoseconds(ticks));
        self.base_ns.store(base_ns, Ordering::SeqCst);
    }

    /// Writes the system-time record of a vCPU whose TSC is the host's with `tsc_offset`, and that the guest was
    /// `stopped`; false if `gpa` is not RAM. Odd versions tell readers that it is being written.
    pub(crate) fn write_system_time(
        &self,
        memory: &GuestMemory,
        gpa: u64,
        tsc_offset: u64,
        version: u32,
        stopped: bool,
    ) -> bool {
        let scale = Scale::of(tsc_hz());
        let mut record = [0; TIME_INFO_SIZE];
        record[8..16].copy_from_slice(&self.start.wrapping_add(tsc_offset).to_le_bytes());
        record[16..24].copy_from_slice(&self.base_ns.load(Ordering::SeqCst).to_le_bytes());
        record[24..28].copy_from_slice(&scale.multiplier.to_le_bytes());
        record[28] = scale.shift as u8;
        record[29] = TSC_STABLE | if stopped { GUEST_STOPPED } else { 0 };
        write(memory, gpa, &(version | 1).to_le_bytes())
            && write(memory, gpa + 4, &record[4..])
            && write(memory, gpa, &(version & !1).to_le_bytes())
    }

    /// Writes `struct pvclock_wall_clock`: the time of day when the clock was zero.
    pub(crate) fn write_wall_clock(&self, memory: &GuestMemory, gpa: u64) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let start = now.saturating_sub(Duration::from_nanos(self.now_ns()));
        let mut record = [0; 12];
        record[0..4].copy_from_slice(&2u32.to_le_bytes());
        record[4..8].copy_from_slice(&(start.as_secs() as u32).to_le_bytes());
        record[8..12].copy_from_slice(&start.subsec_nanos().to_le_bytes());
        write(memory, gpa, &record)
    }
}

/// Multiplier and shift such that `ns = (ticks << shift) * multiplier >> 32`, a negative shift being to
/// the right.
#[derive(Clone, Copy, Debug)]
struct Scale {
    multiplier: u32,
    shift: i8,
}

impl Scale {
    /// The shift brings the frequency between 1 and 2 GHz, where the multiplier has most bits.
    fn of(hz: u64) -> Self {
        let (mut left, mut right) = (0, 0);
        while hz >> right > 2_000_000_000 {
            right += 1;
        }
        while hz << left <= 1_000_000_000 {
            left += 1;
        }
        let multiplier = (1_000_000_000u128 << 32 << right) / (u128::from(hz) << left);
        Self { multiplier: multiplier as u32, shift: left - right }
    }

    /// What a guest computes.
    fn nanoseconds(self, ticks: u64) -> u64 {
        let ticks = if self.shift < 0 { ticks >> -self.shift } else { ticks << self.shift };
        ((u128::from(ticks) * u128::from(self.multiplier)) >> 32) as u64
    }
}

/// Writes within one page; false outside RAM.
fn write(memory: &GuestMemory, gpa: u64, bytes: &[u8]) -> bool {
    if (gpa as usize % FRAME_SIZE) + bytes.len() > FRAME_SIZE {
        return false;
    }
    let Some(frame) = memory.frame_of(Gpa(gpa)) else { return false };
    let Ok(page) = memory.resolve_patiently(frame, Access::Write) else { return false };
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

    #[test]
    fn the_scale_is_right_for_any_frequency() {
        for hz in [100_000_000, 999_999_999, 1_000_000_000, 2_596_122_000, 5_000_000_001u64] {
            let ns = Scale::of(hz).nanoseconds(hz * 10);
            assert!(ns.abs_diff(10_000_000_000) < 100, "{hz} Hz: {ns}");
        }
    }

    #[test]
    fn the_clock_goes_on_from_where_it_is_set() {
        let clock = KvmClock::new();
        let before = clock.now_ns();
        clock.set_ns(before + 1_000_000_000_000);
        assert!(clock.now_ns() >= before + 1_000_000_000_000);
        clock.set_ns(0);
        assert!(clock.now_ns() < 1_000_000_000_000);
    }

    /// A guest's reckoning from the record is the clock, whatever its TSC was set to.
    #[test]
    fn the_record_tells_the_clock() {
        let memory = GuestMemory::with_bytes(1 << 20).expect("reserve");
        let clock = KvmClock::new();
        clock.set_ns(5_000_000_000_000);
        for tsc_offset in [clock.tsc_offset(), 0, 1 << 60] {
            assert!(clock.write_system_time(&memory, 0x1000, tsc_offset, 6, false));
            let page = memory.resolve(memory.frame_of(Gpa(0x1000)).unwrap(), Access::Read).unwrap();
            let word = |at: usize| {
                // SAFETY: inside a page that is resident; nobody else has it.
                unsafe { host::load::<u64>(page.as_ptr() as usize + at) }
            };
            assert_eq!(word(0), 6);
            let before = clock.now_ns();
            let ticks = host_tsc().wrapping_add(tsc_offset).wrapping_sub(word(8));
            let scale = Scale { multiplier: word(24) as u32, shift: (word(24) >> 32) as i8 };
            let told = word(16).wrapping_add(scale.nanoseconds(ticks));
            assert!((before..=clock.now_ns()).contains(&told), "{told} after {before}");
        }
        assert!(!clock.write_system_time(&memory, 1 << 40, 0, 2, false));
    }
}
