//! The VM as the API server sees it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use api::{
    BalloonTarget, CloneReport, CloneRequest, ControlError, KernelInfo, KernelSymbol, KernelType,
    MemoryUse, Picture, ReclaimRequest, RunState, SaveReport, SaveRequest, ShareReport,
    ShareRequest, VmControl, VmStatus, WorkingSet,
};
use vmm::saved::{CloneFiles, SaveLanes, SaveOptions};
use vmm::{RequestError, VmHandle};

use super::{kernel, report};

pub(super) struct HandleControl {
    vm: VmHandle,
    /// Where the host connects to it.
    vsock: Option<PathBuf>,
    /// What the last question found, for the CPU time since.
    asked: Mutex<Asked>,
}

#[derive(Clone, Copy, Default)]
struct Asked {
    uptime_seconds: f64,
    guest_cpu_seconds: f64,
}

impl HandleControl {
    pub(super) fn new(vm: VmHandle, vsock: Option<PathBuf>) -> Self {
        Self { vm, vsock, asked: Mutex::default() }
    }

    fn cpu_percent(&self, now: Asked) -> f64 {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        now.percent_since(std::mem::replace(&mut *asked, now))
    }
}

impl Asked {
    /// After a reboot the vCPUs start at 0 again: never negative.
    fn percent_since(self, before: Self) -> f64 {
        let wall = self.uptime_seconds - before.uptime_seconds;
        let cpu = self.guest_cpu_seconds - before.guest_cpu_seconds;
        if wall > 0.0 { (100.0 * cpu / wall).max(0.0) } else { 0.0 }
    }
}

impl VmControl for HandleControl {
    fn status(&self) -> Result<VmStatus, ControlError> {
        let status = self.vm.status();
        let guest_cpu_percent = self.cpu_percent(Asked {
            uptime_seconds: status.uptime_seconds,
            guest_cpu_seconds: status.guest_cpu_seconds,
        });
        Ok(VmStatus { vsock: self.vsock.clone(), ..wire(status, guest_cpu_percent) })
    }

    fn memory(&self) -> Result<Picture, ControlError> {
        Ok(self.vm.picture().as_ref().clone())
    }

    fn kernel(&self) -> Result<KernelInfo, ControlError> {
        self.vm.kernel().map(|kernel| kernel::info(&kernel)).map_err(|error| refusal(&error))
    }

    fn kernel_symbol(&self, wanted: &str) -> Result<KernelSymbol, ControlError> {
        kernel::symbol(&self.vm.kernel().map_err(|error| refusal(&error))?, wanted)
    }

    fn kernel_type(&self, wanted: &str) -> Result<KernelType, ControlError> {
        kernel::type_of(&self.vm.kernel().map_err(|error| refusal(&error))?, wanted)
    }

    fn classes(&self) -> Result<serde_json::Value, ControlError> {
        let not_asked = || ControlError::State("no classes: run it with --classes".to_owned());
        let classes = self.vm.classes().map_err(|error| refusal(&error))?.ok_or_else(not_asked)?;
        serde_json::to_value(classes).map_err(|error| ControlError::Failed(error.to_string()))
    }

    fn watch(&self) -> Result<(), ControlError> {
        self.vm.watch();
        Ok(())
    }

    fn pause(&self) -> Result<(), ControlError> {
        self.vm.pause().map_err(|error| refusal(&error))
    }

    fn resume(&self) -> Result<(), ControlError> {
        self.vm.resume().map_err(|error| refusal(&error))
    }

    fn stop(&self) -> Result<(), ControlError> {
        self.vm.stop();
        Ok(())
    }

    fn save(&self, lanes: Vec<OwnedFd>, request: SaveRequest) -> Result<SaveReport, ControlError> {
        let options = SaveOptions {
            stop: request.stop,
            all: request.all,
            together: request.together,
            live: request.live,
            watch: Duration::from_millis(request.watch_milliseconds.into()),
            trace: Duration::from_millis(request.trace_milliseconds.into()),
        };
        let lanes = SaveLanes::new(lanes).map_err(ControlError::Invalid)?;
        let report = self.vm.save(&lanes, options).map_err(|error| refusal(&error))?;
        let bytes = |frames: u32| u64::from(frames) * memory::FRAME_SIZE as u64;
        Ok(SaveReport {
            pause_seconds: report.pause.as_secs_f64(),
            memory_bytes: bytes(report.frames),
            sent_bytes: bytes(report.frames_sent),
            working_set: api::WorkingSetSources {
                traced_frames: report.working_set.traced,
                scanned_frames: report.working_set.scanned,
                dense_frames: report.working_set.dense,
            },
        })
    }

    fn make_clonable(
        &self,
        machine: File,
        memory: OwnedFd,
        _: CloneRequest,
    ) -> Result<(CloneReport, Vec<OwnedFd>), ControlError> {
        let files = CloneFiles { machine, memory };
        let report = self.vm.make_clonable(files).map_err(|error| refusal(&error))?;
        let bytes = |frames: u32| u64::from(frames) * memory::FRAME_SIZE as u64;
        let told = CloneReport {
            pause_seconds: report.pause.as_secs_f64(),
            memory_bytes: bytes(report.frames),
            copied_bytes: bytes(report.image.copied),
            stands: report.stands,
        };
        let image = report.image;
        Ok((told, [image.file].into_iter().chain(image.layer).collect()))
    }

    fn reclaim(&self, request: ReclaimRequest, store: Option<File>) -> Result<(), ControlError> {
        let ReclaimRequest { bytes, bytes_per_second, store_limit_bytes } = request;
        let request = vmm::ReclaimRequest { bytes, bytes_per_second, store_limit_bytes };
        self.vm.reclaim(request, store).map_err(|error| refusal(&error))
    }

    fn share(
        &self,
        request: ShareRequest,
        attach: Option<(OwnedFd, File)>,
    ) -> Result<ShareReport, ControlError> {
        let ShareRequest { scan, give, switch, merge } = request;
        let request = vmm::ShareRequest { attach, scan, give, switch, merge };
        self.vm.share(request).map(report::share).map_err(|error| refusal(&error))
    }

    fn set_balloon(&self, target: BalloonTarget) -> Result<(), ControlError> {
        self.vm.set_balloon(target.target_bytes).map_err(|error| refusal(&error))
    }
}

fn refusal(error: &RequestError) -> ControlError {
    match error {
        RequestError::Ended
        | RequestError::Kernel(_)
        | RequestError::Reclaim(_)
        | RequestError::Share(_) => ControlError::State(error.to_string()),
        RequestError::Save(_) | RequestError::Clone(_) => ControlError::Failed(error.to_string()),
        RequestError::BalloonTarget { .. } => ControlError::Invalid(error.to_string()),
    }
}

fn wire(status: vmm::VmStatus, guest_cpu_percent: f64) -> VmStatus {
    let windows = status.working_set;
    VmStatus {
        name: status.name,
        pid: status.pid,
        engine: status.engine.to_owned(),
        vcpus: status.vcpus,
        state: match status.state {
            vmm::RunState::Running => RunState::Running,
            vmm::RunState::Paused => RunState::Paused,
            vmm::RunState::Ended => RunState::Ended,
        },
        waits_for: status.waits_for,
        uptime_seconds: status.uptime_seconds,
        configured_bytes: status.configured_bytes,
        resident_bytes: status.resident_bytes,
        ballooned_bytes: status.ballooned_bytes,
        balloon_target_bytes: status.balloon_target_bytes,
        working_set: WorkingSet {
            window_1s_bytes: windows.map(|windows| windows.window_1s_bytes),
            window_10s_bytes: windows.map(|windows| windows.window_10s_bytes),
            window_60s_bytes: windows.map(|windows| windows.window_60s_bytes),
        },
        memory_use: MemoryUse::from(&*status.picture),
        guest_cpu_seconds: status.guest_cpu_seconds,
        guest_cpu_percent,
        exits: status.exits.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect(),
        host_cache: status.host_cache.map(report::host_cache),
        reclaim: status.reclaim.map(report::reclaim),
        shared_bytes: status.shared_bytes,
        vsock: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_since_the_last_question() {
        let at = |uptime_seconds, guest_cpu_seconds| Asked { uptime_seconds, guest_cpu_seconds };
        assert_eq!(at(10.0, 5.0).percent_since(Asked::default()), 50.0);
        assert_eq!(at(12.0, 9.0).percent_since(at(10.0, 5.0)), 200.0);
        assert_eq!(at(12.0, 1.0).percent_since(at(10.0, 5.0)), 0.0);
        assert_eq!(at(10.0, 5.0).percent_since(at(10.0, 5.0)), 0.0);
    }
}
