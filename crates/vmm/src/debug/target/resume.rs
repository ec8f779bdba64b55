//! Letting the guest go on, all of it or a vCPU, freely or by a step.

use std::collections::BTreeMap;

use engine::DebugControl;
use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::multithread::{
    MultiThreadResume, MultiThreadSchedulerLocking, MultiThreadSchedulerLockingOps,
    MultiThreadSingleStep, MultiThreadSingleStepOps,
};

use super::{DebugError, GuestTarget, on_vcpu, vcpu_of};
use crate::control::VcpuSet;

/// What gdb wants of each vCPU.
#[derive(Clone, Debug, Default)]
pub(super) struct Actions {
    named: BTreeMap<u32, Action>,
    /// Those that are not named stand.
    others_stand: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Continue,
    Step,
    Stand,
}

impl Actions {
    fn of(&self, id: u32) -> Action {
        let other = if self.others_stand { Action::Stand } else { Action::Continue };
        self.named.get(&id).copied().unwrap_or(other)
    }
}

impl MultiThreadResume for GuestTarget {
    fn resume(&mut self) -> Result<(), DebugError> {
        self.states.clear();
        // What is still to be told comes first; between two lives nobody can go on.
        let Ok(machine) = self.machine() else { return Ok(()) };
        if !self.untold.is_empty() {
            return Ok(());
        }
        let int3_stops = !self.desk.breakpoints().is_empty();
        let breakpoints = self.hardware.control();
        let mut standing: VcpuSet = 0;
        for id in 0..machine.vcpu_count() {
            let action = self.actions.of(id);
            let single_step = action == Action::Step;
            let control = DebugControl { single_step, int3_stops, breakpoints };
            on_vcpu(&machine, id, |vcpu| vcpu.set_debug(&control))?;
            standing |= VcpuSet::from(action == Action::Stand) << id;
        }
        machine.control.release(standing);
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), DebugError> {
        self.actions = Actions::default();
        Ok(())
    }

    /// Signals mean nothing to a machine.
    fn set_resume_action_continue(
        &mut self,
        tid: Tid,
        _: Option<Signal>,
    ) -> Result<(), DebugError> {
        self.actions.named.insert(vcpu_of(tid)?, Action::Continue);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for GuestTarget {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), DebugError> {
        self.actions.named.insert(vcpu_of(tid)?, Action::Step);
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for GuestTarget {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), DebugError> {
        self.actions.others_stand = true;
        Ok(())
    }
}
