//! The report of a run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use api::{HostCache, HostCacheDisk, Report, Restore, TimeToResponsiveness, WorkingSetSample};
use vmm::{
    HostCacheStatus, Outcome, PageCache, Responsiveness, RestoreFaults, RestoreReport, RunReport,
};

use super::restored;
use crate::failure::Failure;

pub(super) fn write(
    path: &Path,
    name: &str,
    figures: RunReport,
    outcome: &Result<Outcome, String>,
    picture: Option<&File>,
) -> Result<(), Failure> {
    let report = wire(figures, outcome);
    let mut json = serde_json::to_vec_pretty(&report).map_err(Failure::host)?;
    json.push(b'\n');
    let refused = |error| Failure::Host(format!("report {}: {error}", path.display()));
    fs::write(path, json).map_err(refused)?;
    if let Some(restore) = &report.restore {
        eprint!("{}", restored::table(restore));
        picture.map_or(Ok(()), |picture| restored::draw(picture, name, restore))?;
    }
    Ok(())
}

/// For people: what the translator did.
pub(super) fn translation(figures: &RunReport) -> String {
    let line =
        |(name, count): (&&str, &u64)| format!("  {:<26}{count:>14}\n", name.replace('_', " "));
    let lines: String = figures.translation.iter().map(line).collect();
    format!("fathom: translation\n{lines}")
}

fn wire(figures: RunReport, outcome: &Result<Outcome, String>) -> Report {
    let outcome = match outcome {
        Ok(Outcome::Poweroff) => "poweroff",
        Ok(Outcome::Panic) => "panic",
        Ok(Outcome::Stopped) => "stopped",
        Err(_) => "failed",
    };
    let owned = |(name, count): (&str, u64)| (name.to_owned(), count);
    Report {
        engine: figures.engine.to_owned(),
        outcome: outcome.to_owned(),
        wall_seconds: figures.wall_seconds,
        cpu_seconds: figures.cpu_seconds,
        guest_instructions: figures.guest_instructions,
        exits: figures.exits.into_iter().map(owned).collect(),
        frames: figures.frames.into_iter().map(owned).collect(),
        translation: figures.translation.into_iter().map(owned).collect(),
        cache: figures.cache.into_iter().map(owned).collect(),
        host_cache: figures.host_cache.map(host_cache),
        working_set: figures.working_set.into_iter().map(sample).collect(),
        restore: figures.restore.map(restore),
        memory: figures.picture.as_ref().clone(),
        host_resident_bytes: figures.host_resident_bytes,
        pauses: figures.pauses,
    }
}

fn restore(report: RestoreReport) -> Restore {
    let RestoreFaults { demand, neighbours, waited, device } = report.faults;
    let time = |time: Responsiveness| TimeToResponsiveness {
        window_seconds: time.window_seconds,
        utilization: time.utilization,
        mean_seconds: time.mean_seconds,
        worst_seconds: time.worst_seconds,
    };
    Restore {
        mode: report.mode.to_owned(),
        first_instruction_seconds: report.first_instruction_seconds,
        complete_seconds: report.complete_seconds,
        bytes_read: report.read_bytes,
        working_set_frames: report.working_set_frames,
        frames_prefetched: report.prefetched_frames,
        faults: api::RestoreFaults { demand, neighbours, waited, device },
        blocked_seconds: report.blocked_seconds,
        ttr: report.responsiveness.into_iter().map(time).collect(),
        curve: report.curve.into_iter().map(|(at, share)| [at, share]).collect(),
    }
}

/// What was taken of its memory.
pub(super) fn reclaim(status: vmm::ReclaimStatus) -> api::ReclaimStatus {
    api::ReclaimStatus {
        wanted_bytes: status.wanted_bytes,
        taken_bytes: status.taken_bytes,
        written_bytes: status.written_bytes,
        zero_bytes: status.zero_bytes,
        disk_bytes: status.disk_bytes,
        unchanged_bytes: status.unchanged_bytes,
        returned_bytes: status.returned_bytes,
        prefetched_bytes: status.prefetched_bytes,
        slots: status.slots,
        store_bytes: status.store_bytes,
        store_limit_bytes: status.store_limit_bytes,
        problem: status.problem,
    }
}

/// What became of frames that others may have, too.
pub(super) fn share(report: vmm::ShareReport) -> api::ShareReport {
    let switched = report.switched.into_iter().map(|switch| match switch {
        memory::Switch::Shared => api::Switch::Shared,
        memory::Switch::Differs => api::Switch::Differs,
        memory::Switch::Busy => api::Switch::Busy,
        memory::Switch::Full => api::Switch::Full,
    });
    api::ShareReport {
        attached: report.attached,
        busy: report.busy,
        candidates: report.candidates,
        given: report.given,
        switched: switched.collect(),
        released: report.released,
        shared_frames: report.shared_frames,
        marked_frames: report.marked_frames,
    }
}

/// Also for the API.
pub(super) fn host_cache(cache: vmm::HostCacheReport) -> HostCache {
    let HostCacheStatus { policy, size_bytes, cached_bytes, waiting, counts } = cache.status;
    let counts = [
        ("hits", counts.hits),
        ("misses", counts.misses),
        ("inserted_by_demand", counts.inserted_by_demand),
        ("inserted_by_eviction", counts.inserted_by_eviction),
        ("displaced", counts.displaced),
        ("dropped_by_writes", counts.dropped_by_writes),
        ("too_late", counts.too_late),
        ("crowded_out", counts.crowded_out),
        ("failed", counts.failed),
    ];
    let disk = |(path, page_cache): (PathBuf, PageCache)| HostCacheDisk {
        path: path.display().to_string(),
        page_cache: page_cache != PageCache::Bypassed,
        why: match page_cache {
            PageCache::Unavoidable(why) => Some(why),
            PageCache::Used | PageCache::Bypassed => None,
        },
    };
    HostCache {
        policy: policy.name().to_owned(),
        size_bytes,
        cached_bytes,
        waiting,
        counts: counts.map(|(name, count)| (name.to_owned(), count)).into(),
        disks: cache.page_caches.into_iter().map(disk).collect(),
    }
}

fn sample(point: vmm::WorkingSetPoint) -> WorkingSetSample {
    WorkingSetSample {
        t_seconds: point.t_seconds,
        resident_bytes: point.resident_bytes,
        window_1s_bytes: Some(point.window_1s_bytes),
        window_10s_bytes: Some(point.window_10s_bytes),
        window_60s_bytes: Some(point.window_60s_bytes),
    }
}
