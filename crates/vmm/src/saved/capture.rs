//! A machine that stands, written down.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use devices::rtc::Rtc;
use devices::serial::Serial;
use devices::virtio::mmio::MmioTransport;
use engine::Vm;
use memory::{Frame, FrameState, GuestMemory};
use x86::{VcpuState, msr};

use super::{
    BoardState, ClockState, DiskIdentity, FrameRun, FrozenMachine, Known, MachineState, SaveLanes,
    VERSION,
};
use crate::config::VmPlan;
use crate::error::VmError;
use crate::vcpu_thread::SharedVcpu;

/// The devices of a machine, which are somebody else's.
#[derive(Clone)]
pub(crate) struct Devices {
    pub(crate) serial: Weak<Serial>,
    pub(crate) rtc: Weak<Rtc>,
    pub(crate) virtio: Vec<Weak<MmioTransport>>,
}

/// What is written down.
pub(crate) struct Source<'a> {
    pub(crate) plan: &'a VmPlan,
    pub(crate) memory: &'a Arc<GuestMemory>,
    pub(crate) vm: &'a Arc<dyn Vm>,
    pub(crate) vcpus: &'a [SharedVcpu],
    pub(crate) devices: &'a Devices,
}

impl Source<'_> {
    /// Sends the memory of the machine, whose vCPUs and devices stand; how many frames had contents, and the state.
    pub(crate) fn send(
        &self,
        lanes: &SaveLanes,
        known: &Known,
    ) -> Result<(u32, MachineState), VmError> {
        let state = self.state()?;
        let sent = lanes.send(self.memory, known).map_err(VmError::host("send the machine"))?;
        Ok((sent, state))
    }

    /// The machine, whose vCPUs and devices stand until this returns.
    pub(crate) fn freeze(&self, known: &Known) -> Result<FrozenMachine, VmError> {
        let state = self.state()?;
        let frozen = FrozenMachine::new(self.memory, known, state);
        frozen.map_err(|error| VmError::Host("freeze memory".into(), std::io::Error::other(error)))
    }

    /// Flushes all disks.
    pub(crate) fn flush(&self) -> Result<(), VmError> {
        let mut disks = self.devices.virtio.iter().filter_map(Weak::upgrade);
        disks.try_for_each(|disk| disk.flush()).map_err(VmError::host("flush a disk"))
    }

    /// Everything but the memory. Disks are flushed.
    pub(crate) fn state(&self) -> Result<MachineState, VmError> {
        // Together, so that time that passes until somebody goes on from here is all that is lost.
        let clock = ClockState { kvmclock_ns: self.vm.clock_ns()?, unix_ns: unix_ns() };
        let vcpus = self.vcpus()?;
        let board = self.board()?;
        self.memory.catch_up();
        let processor =
            self.vcpus[0].lock().unwrap_or_else(PoisonError::into_inner).processor().clone();
        Ok(MachineState {
            version: VERSION,
            config: self.plan.as_saved(),
            engine: self.plan.engine.kind.name().to_owned(),
            processor,
            vcpus,
            io_apic: self.vm.io_apic()?,
            clock,
            board,
            disks: self
                .plan
                .disks
                .iter()
                .map(|disk| identity(disk.written()))
                .collect::<Result<_, _>>()?,
            ballooned: ballooned(self.memory),
        })
    }

    /// All TSCs as of when that of vCPU 0 was read.
    fn vcpus(&self) -> Result<Vec<VcpuState>, VmError> {
        let mut states = Vec::new();
        let mut offsets = Vec::new();
        for vcpu in self.vcpus {
            let vcpu = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
            states.push(vcpu.state()?);
            offsets.push(vcpu.tsc_offset());
        }
        let first = states.first().and_then(tsc).zip(offsets.first().copied().flatten());
        let Some((first, base)) = first else { return Ok(states) };
        for (state, offset) in states.iter_mut().zip(offsets) {
            if let Some(offset) = offset {
                set_tsc(state, first.wrapping_add(offset.wrapping_sub(base)));
            }
        }
        Ok(states)
    }

    fn board(&self) -> Result<BoardState, VmError> {
        let gone = || VmError::Host("save the devices".into(), std::io::ErrorKind::NotFound.into());
        let mut virtio = Vec::new();
        for transport in &self.devices.virtio {
            let transport = transport.upgrade().ok_or_else(gone)?;
            transport.flush().map_err(VmError::host("flush a disk"))?;
            virtio.push(transport.state());
        }
        let serial = self.devices.serial.upgrade().ok_or_else(gone)?.state();
        let rtc = self.devices.rtc.upgrade().ok_or_else(gone)?.state();
        Ok(BoardState { serial, rtc, virtio })
    }
}

pub(super) fn tsc(state: &VcpuState) -> Option<u64> {
    state.msrs.iter().find(|entry| entry.index == msr::TSC).map(|entry| entry.value)
}

pub(super) fn set_tsc(state: &mut VcpuState, value: u64) {
    if let Some(entry) = state.msrs.iter_mut().find(|entry| entry.index == msr::TSC) {
        entry.value = value;
    }
}

/// The host's time of day.
pub(super) fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Who `path` is now.
pub(super) fn identity(path: &Path) -> Result<DiskIdentity, VmError> {
    let what = format!("look at disk {}", path.display());
    let metadata = path.metadata().map_err(VmError::host(&what))?;
    let (len, modified_ns) =
        if metadata.is_file() { (metadata.len(), modified_ns(&metadata)) } else { (0, 0) };
    Ok(DiskIdentity { path: path.to_owned(), len, modified_ns })
}

fn modified_ns(metadata: &Metadata) -> u64 {
    let seconds = u64::try_from(metadata.mtime()).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec().unsigned_abs())
}

fn ballooned(memory: &GuestMemory) -> Vec<FrameRun> {
    let mut runs: Vec<FrameRun> = Vec::new();
    // While everybody stands, there is no time to look at each frame for nothing.
    if memory.counts().ballooned == 0 {
        return runs;
    }
    for number in 0..memory.layout().frames() {
        let is_there =
            memory.facts(Frame(number)).is_some_and(|facts| facts.state == FrameState::Ballooned);
        match runs.last_mut().filter(|run| is_there && run.first + run.count == number) {
            Some(run) => run.count += 1,
            None if is_there => runs.push(FrameRun { first: number, count: 1 }),
            None => {}
        }
    }
    runs
}
