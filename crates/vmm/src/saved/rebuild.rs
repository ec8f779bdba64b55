//! A machine built of a saved one.

use std::io;
use std::sync::Arc;

use devices::virtio::DeviceState;
use engine::{EngineError, Vcpu, Vm};
use memory::{Discard, DiskBlock, FRAME_SIZE, Frame, GuestMemory};
use snapshot::Kind;
use x86::VcpuState;
use x86::cpuid::HYPERVISOR;

use super::capture::{identity, set_tsc, tsc, unix_ns};
use super::{MachineState, Saved, SavedError, fill};
use crate::board::Board;
use crate::config::VmPlan;
use crate::error::VmError;
use crate::generation;
use crate::restore::{Keeper, Restore, RestoreMode, RestoreOptions};

impl Saved {
    /// Has the contents of `memory`, which is untouched, come as the options say. Where the engine cannot wait for
    /// frames, all of it is in when this returns, and there is no restore to go on with. If `recorded`, it is written
    /// down who waits.
    pub(crate) fn fill(
        &self,
        memory: &Arc<GuestMemory>,
        options: RestoreOptions,
        recorded: bool,
    ) -> Result<(Option<Arc<Restore>>, Option<Keeper>), VmError> {
        self.tell_origins(memory);
        let RestoreOptions { mode, learning, asked } = options;
        let begun =
            match Restore::begin(memory, &self.snapshot, self.set.clone(), mode, asked, recorded) {
                Err(VmError::Engine(EngineError::Unsupported(why))) => {
                    if mode != RestoreMode::Eager {
                        tracing::warn!("{why}: all memory is read before the guest runs");
                    }
                    fill::eagerly(memory, &self.snapshot)?;
                    None
                }
                begun => Some(begun?),
            };
        if let Some(restore) = begun.as_ref().filter(|_| mode == RestoreMode::Eager) {
            restore.read_all()?;
        }
        self.state.take_balloon(memory)?;
        let learning = learning.filter(|_| begun.is_some());
        Ok((begun, learning))
    }
}

impl Saved {
    /// What is read from a disk now need not be saved the next time, either.
    fn tell_origins(&self, memory: &GuestMemory) {
        for run in self.snapshot.runs() {
            let Kind::Disk(first) = run.kind else { continue };
            for number in 0..run.count {
                let block = DiskBlock { block: first.block + u64::from(number), ..first };
                memory.note_origin(Frame(run.first.0 + number), Some(block));
            }
        }
    }
}

impl MachineState {
    /// What the balloon was asked to hold.
    pub(crate) fn balloon_target_bytes(&self) -> u64 {
        let balloon = self.board.virtio.iter().find_map(|transport| match &transport.device {
            DeviceState::Balloon(balloon) => Some(balloon.target),
            _ => None,
        });
        u64::from(balloon.unwrap_or(0)) * FRAME_SIZE as u64
    }

    /// Whether a machine of `plan` can take it up.
    pub(crate) fn check_plan(&self, plan: &VmPlan) -> Result<(), VmError> {
        self.check()?;
        let config = &self.config;
        if (plan.cpus, plan.memory, plan.disks.len())
            != (config.cpus, config.memory, config.disks.len())
        {
            return Err(SavedError::field("config", "restored with another configuration").into());
        }
        Ok(())
    }

    /// Whether the disks are as the guest knows them.
    pub(crate) fn check_disks(&self, plan: &VmPlan) -> Result<(), VmError> {
        for (saved, disk) in self.disks.iter().zip(&plan.disks) {
            let now = identity(disk.written())?;
            let what = match () {
                () if now.len != saved.len => {
                    format!("it has {} bytes, {} when the VM was saved", now.len, saved.len)
                }
                () if now.modified_ns != saved.modified_ns => {
                    "it has been written since the VM was saved".to_owned()
                }
                () => continue,
            };
            return Err(SavedError::Disk { path: now.path, what }.into());
        }
        Ok(())
    }

    /// Takes from `memory` what is in the balloon.
    pub(crate) fn take_balloon(&self, memory: &GuestMemory) -> Result<(), VmError> {
        let runs = self.ballooned.iter();
        let frames = runs.flat_map(|run| (run.first..run.first + run.count).map(Frame));
        let discarded = memory.discard(frames, Discard::Balloon);
        discarded.map(drop).map_err(|error| {
            VmError::Host("take the balloon's frames".into(), io::Error::other(error))
        })
    }

    /// Devices take up their states. Memory is there, and nobody works yet.
    pub(crate) fn restore_devices(&self, board: &Board) -> Result<(), VmError> {
        let saved = &self.board;
        let (found, expected) = (saved.virtio.len(), board.transports.len());
        if found != expected {
            let what = format!("{found} devices, the configuration makes {expected}");
            return Err(SavedError::field("board.virtio", what).into());
        }
        for (slot, (transport, state)) in board.transports.iter().zip(&saved.virtio).enumerate() {
            let refused = |source| SavedError::Device { slot, source };
            transport.restore(state).map_err(refused)?;
        }
        board.rtc.restore(saved.rtc);
        Ok(())
    }

    /// Clocks, vCPUs and interrupts. The vCPUs are new; time goes on as if they had only stood.
    pub(crate) fn restore_processors(
        &self,
        vm: &Arc<dyn Vm>,
        vcpus: &mut [Box<dyn Vcpu>],
        board: &Board,
    ) -> Result<(), VmError> {
        self.check_processor(&*vcpus[0])?;
        let state = self;
        let passed = unix_ns().saturating_sub(state.clock.unix_ns);
        vm.set_clock_ns(state.clock.kvmclock_ns.wrapping_add(passed))?;
        // As many as the guest has reckoned with: on another host they last a little longer or shorter.
        let khz = state.processor.cpuid.registers(HYPERVISOR + 0x10, 0)[0];
        let ticks = u128::from(passed) * u128::from(khz) / 1_000_000;
        let later = |vcpu: &VcpuState| {
            let mut later = vcpu.clone();
            let now = tsc(vcpu).map_or(0, |tsc| tsc.wrapping_add(ticks as u64));
            set_tsc(&mut later, now);
            later
        };
        for (id, (vcpu, saved)) in vcpus.iter_mut().zip(&state.vcpus).enumerate() {
            vcpu.set_state(&later(saved))
                .map_err(|error| refused(&format!("vcpus[{id}]"), error))?;
        }
        in_step(vcpus, &state.vcpus)?;
        vcpus.iter_mut().try_for_each(|vcpu| vcpu.tell_stopped())?;
        // After the local APICs, which a level that is high goes to.
        vm.set_io_apic(&state.io_apic).map_err(|error| refused("io_apic", error))?;
        board.raise_again();
        generation::renew(board.view.clone(), &**vm)
    }

    fn check_processor(&self, vcpu: &dyn Vcpu) -> Result<(), VmError> {
        let differences = vcpu.differences(&self.processor)?;
        let (fatal, others): (Vec<_>, Vec<_>) =
            differences.iter().partition(|difference| difference.is_fatal());
        if fatal.is_empty() {
            others.iter().for_each(|difference| tracing::warn!("{difference}"));
            return Ok(());
        }
        let names = fatal.iter().map(ToString::to_string).collect();
        Err(SavedError::Processor(names).into())
    }
}

/// TSCs are as far apart as they were: setting one after the other has moved them.
fn in_step(vcpus: &mut [Box<dyn Vcpu>], saved: &[VcpuState]) -> Result<(), VmError> {
    let base = vcpus[0].tsc_offset().zip(saved.first().and_then(tsc));
    let Some((base, first)) = base else { return Ok(()) };
    for (vcpu, saved) in vcpus.iter_mut().zip(saved).skip(1) {
        if let Some(tsc) = tsc(saved) {
            vcpu.set_tsc_offset(base.wrapping_add(tsc.wrapping_sub(first)))?;
        }
    }
    Ok(())
}

fn refused(field: &str, error: EngineError) -> VmError {
    match error {
        EngineError::State(what) => SavedError::field(field, what).into(),
        // KVM says no more of a state that it does not take.
        EngineError::Host { action, source } if source.kind() == io::ErrorKind::InvalidInput => {
            SavedError::field(field, format!("{action}: {source}")).into()
        }
        other => other.into(),
    }
}
