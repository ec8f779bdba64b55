//! The guest as gdbstub sees it: a vCPU is a thread, numbered from 1.

mod base;
mod breakpoints;
mod resume;
mod stops;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};

use engine::{DebugControl, EngineError, Vcpu};
use gdbstub::common::Tid;
use memory::DeviceView;
use thiserror::Error;
use x86::VcpuState;

use self::resume::Actions;
use self::stops::Stop;
use super::breakpoints::HardwareBreakpoints;
use super::desk::{Desk, Life};
use super::walk::AddressError;
use crate::control::RunState;
use crate::machine::Machine;
use crate::outcome::End;

/// What gdb asks for cannot be done.
#[derive(Debug, Error)]
pub(super) enum DebugError {
    #[error("the guest has ended or reboots")]
    Gone,
    #[error("there is no vcpu of thread {0}")]
    NoVcpu(Tid),
    #[error("vcpu {0} runs")]
    Runs(u32),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Address(#[from] AddressError),
}

impl DebugError {
    /// As the number that gdb gets (gdb manual, "Errno Values").
    fn errno(&self) -> u8 {
        const EIO: u8 = 5;
        const EFAULT: u8 = 14;
        const EBUSY: u8 = 16;
        const EINVAL: u8 = 22;
        match self {
            Self::Gone | Self::Runs(_) => EBUSY,
            Self::NoVcpu(_) => EINVAL,
            Self::Engine(_) => EIO,
            Self::Address(_) => EFAULT,
        }
    }
}

/// The guest, while one gdb is there.
pub(super) struct GuestTarget {
    desk: Arc<Desk>,
    machine: Weak<Machine>,
    /// Which life `machine` is.
    life: Option<u64>,
    /// Of vCPUs that stand, as far as they have been asked for.
    states: BTreeMap<u32, VcpuState>,
    hardware: HardwareBreakpoints,
    actions: Actions,
    /// The vCPU that stopped last.
    current: u32,
    /// Stops that came together with the one that was told.
    untold: VecDeque<Stop>,
}

impl GuestTarget {
    pub(super) fn new(desk: Arc<Desk>) -> Self {
        let mut target = Self {
            desk,
            machine: Weak::new(),
            life: None,
            states: BTreeMap::new(),
            hardware: HardwareBreakpoints::default(),
            actions: Actions::default(),
            current: 0,
            untold: VecDeque::new(),
        };
        target.take_up_life();
        target
    }

    /// Has all vCPUs stand. False: there are none that could.
    pub(super) fn hold(&mut self) -> bool {
        self.states.clear();
        self.machine().is_ok_and(|machine| machine.control.hold(|| machine.kick()))
    }

    /// Turns to the machine that a reboot has made, and has it stand. True: there was one.
    pub(super) fn follow_life(&mut self) -> bool {
        let new = self.take_up_life();
        if new {
            self.hold();
        }
        new
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.desk.life(), Life::Over(_))
    }

    /// Ends the VM, and lets no reboot that is under way bring it back.
    pub(super) fn kill(&mut self) {
        self.desk.kill();
        self.follow_life();
        if let Ok(machine) = self.machine() {
            machine.end(End::Stopped);
        }
    }

    /// Makes as if there had been no debugger, and lets the guest go on.
    pub(super) fn leave(&mut self) {
        self.take_up_life();
        if !self.hold() {
            return;
        }
        let Ok(machine) = self.machine() else { return };
        self.desk.breakpoints().remove_all(&machine.view());
        for id in 0..machine.vcpu_count() {
            let calm = |vcpu: &mut dyn Vcpu| vcpu.set_debug(&DebugControl::default());
            if let Err(error) = on_vcpu(&machine, id, calm) {
                tracing::warn!("gdb: vcpu {id}: {error}: it may still stop");
            }
        }
        machine.control.release(0);
    }

    fn take_up_life(&mut self) -> bool {
        let Life::Machine(machine, number) = self.desk.life() else { return false };
        if self.life == Some(number) {
            return false;
        }
        (self.machine, self.life) = (machine, Some(number));
        self.current = 0;
        self.states.clear();
        self.untold.clear();
        true
    }

    fn machine(&self) -> Result<Arc<Machine>, DebugError> {
        let alive = |machine: &Arc<Machine>| machine.control.run_state() != RunState::Ended;
        self.machine.upgrade().filter(alive).ok_or(DebugError::Gone)
    }

    /// The state of a vCPU that stands.
    pub(super) fn state(&mut self, id: u32) -> Result<&VcpuState, DebugError> {
        if !self.states.contains_key(&id) {
            let state = self.fresh_state(id)?;
            self.states.insert(id, state);
        }
        self.states.get(&id).ok_or(DebugError::Gone)
    }

    fn fresh_state(&self, id: u32) -> Result<VcpuState, DebugError> {
        on_vcpu(&*self.machine()?, id, |vcpu| vcpu.state())
    }

    fn set_state(&mut self, id: u32, state: VcpuState) -> Result<(), DebugError> {
        self.states.remove(&id);
        on_vcpu(&*self.machine()?, id, |vcpu| vcpu.set_state(&without_time(&state)))?;
        self.states.insert(id, state);
        Ok(())
    }

    /// Between two lives gdb must not lose its threads: there is one at least.
    pub(super) fn vcpu_count(&self) -> u32 {
        self.machine.upgrade().map_or(1, |machine| machine.vcpu_count())
    }

    fn view(&self) -> Result<DeviceView, DebugError> {
        Ok(self.machine()?.view())
    }
}

/// A state to be loaded into the vCPU that it was taken from, whose clocks and interrupts went on.
pub(crate) fn without_time(state: &VcpuState) -> VcpuState {
    let mut state = state.clone();
    state.msrs.clear();
    state.apic.registers.clear();
    state
}

/// Does something with a vCPU that stands. Never waits for one that does not.
fn on_vcpu<T>(
    machine: &Machine,
    id: u32,
    act: impl FnOnce(&mut dyn Vcpu) -> Result<T, EngineError>,
) -> Result<T, DebugError> {
    let vcpu = machine.vcpu(id).ok_or(DebugError::NoVcpu(tid(id)))?;
    let mut vcpu = vcpu.try_lock().map_err(|_| DebugError::Runs(id))?;
    Ok(act(&mut **vcpu)?)
}

/// Threads are numbered from 1.
fn tid(id: u32) -> Tid {
    Tid::MIN.saturating_add(id as usize)
}

fn vcpu_of(tid: Tid) -> Result<u32, DebugError> {
    u32::try_from(tid.get() - 1).map_err(|_| DebugError::NoVcpu(tid))
}
