//! What a restore came to.

use std::time::{Duration, Instant};

use memory::{Waiter, Waits};
use snapshot::responsiveness::{Stalls, UTILIZATIONS, WINDOWS, mean_and_worst};

use super::Restore;

/// What a restore came to; times in seconds since it was asked for.
#[derive(Clone, PartialEq, Debug)]
pub struct RestoreReport {
    /// Name of the mode.
    pub mode: &'static str,
    /// Until a vCPU ran.
    pub first_instruction_seconds: f64,
    /// Until all memory was there; `None` if it was not when the VM ended.
    pub complete_seconds: Option<f64>,
    /// Contents read, as many as they are uncompressed.
    pub read_bytes: u64,
    /// Frames of the working set that was known.
    pub working_set_frames: u64,
    /// Frames that came before anybody needed them.
    pub prefetched_frames: u64,
    /// Frames that came late.
    pub faults: RestoreFaults,
    /// Of each vCPU: how long it waited for memory, its start included.
    pub blocked_seconds: Vec<f64>,
    /// Time to responsiveness, for each window and utilization.
    pub responsiveness: Vec<Responsiveness>,
    /// Of vCPU 0: the least utilization in any second from a time on.
    pub curve: Vec<(f64, f64)>,
}

/// Frames that came late, by who waited.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RestoreFaults {
    /// Fetched since somebody needed them.
    pub demand: u64,
    /// Came along with these.
    pub neighbours: u64,
    /// Of all waits, those of vCPUs for a frame that was just coming.
    pub waited: u64,
    /// Waits of devices.
    pub device: u64,
}

/// The smallest T from which on every window of a vCPU has so much of its time.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Responsiveness {
    /// Length of a window.
    pub window_seconds: f64,
    /// What is asked of it, 0 to 1.
    pub utilization: f64,
    /// Mean of the vCPUs.
    pub mean_seconds: f64,
    /// The slowest vCPU's.
    pub worst_seconds: f64,
}

/// When vCPUs waited.
#[derive(Clone, Debug, Default)]
struct Stalled {
    /// Of each vCPU.
    vcpus: Vec<Vec<(Instant, Instant)>>,
    /// Waits of vCPUs for what another fetched.
    waited: u64,
    /// Waits of devices.
    device: u64,
}

impl Restore {
    fn stalled(&self) -> Stalled {
        let Waits { waits, lost } = self.memory.take_waits();
        if lost > 0 {
            tracing::warn!("{lost} waits for memory are not in the report: there were too many");
        }
        let mut stalled = Stalled::default();
        for wait in waits {
            let Waiter::Vcpu(id) = wait.waiter else {
                stalled.device += 1;
                continue;
            };
            let id = id as usize;
            if stalled.vcpus.len() <= id {
                stalled.vcpus.resize(id + 1, Vec::new());
            }
            stalled.vcpus[id].push((wait.begin, wait.end));
            stalled.waited += u64::from(!wait.fetched);
        }
        stalled
    }

    /// `begun`: when each vCPU ran first, if it did.
    pub(crate) fn report(&self, begun: &[Option<Instant>]) -> RestoreReport {
        let stalled = self.stalled();
        let since = |at: Instant| at.saturating_duration_since(self.asked);
        let stalls: Vec<Stalls> = begun
            .iter()
            .enumerate()
            .map(|(id, begun)| {
                let first = begun.map(|begun| (Duration::ZERO, since(begun)));
                let later = stalled.vcpus.get(id).into_iter().flatten();
                Stalls::new(first.into_iter().chain(later.map(|&(a, b)| (since(a), since(b)))))
            })
            .collect();
        let mut responsiveness = Vec::new();
        for window in WINDOWS {
            for utilization in UTILIZATIONS {
                let times: Vec<Duration> = stalls
                    .iter()
                    .map(|stalls| stalls.time_to_responsiveness(window, utilization))
                    .collect();
                let Some((mean, worst)) = mean_and_worst(&times) else { continue };
                responsiveness.push(Responsiveness {
                    window_seconds: window.as_secs_f64(),
                    utilization,
                    mean_seconds: mean.as_secs_f64(),
                    worst_seconds: worst.as_secs_f64(),
                });
            }
        }
        let curve = stalls.first().map_or(Vec::new(), |stalls| stalls.curve(WINDOWS[1]));
        let first = begun.iter().flatten().min();
        let frames = self.progress.read() + self.demand.read();
        RestoreReport {
            mode: self.mode.name(),
            first_instruction_seconds: first.map_or(0.0, |&at| since(at).as_secs_f64()),
            complete_seconds: self.progress.complete().map(|at| since(at).as_secs_f64()),
            read_bytes: frames * memory::FRAME_SIZE as u64,
            working_set_frames: self.progress.set_frames(),
            prefetched_frames: self.progress.supplied(),
            faults: RestoreFaults {
                demand: self.demand.fetched(),
                neighbours: self.demand.neighbours(),
                waited: stalled.waited,
                device: stalled.device,
            },
            blocked_seconds: stalls.iter().map(|stalls| stalls.total().as_secs_f64()).collect(),
            responsiveness,
            curve: curve.iter().map(|&(at, share)| (at.as_secs_f64(), share)).collect(),
        }
    }
}
