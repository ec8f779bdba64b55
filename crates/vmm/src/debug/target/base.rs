//! Registers, memory and threads.

use gdbstub::common::Tid;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{MultiThreadBase, MultiThreadResumeOps};
use gdbstub::target::ext::base::single_register_access::{
    SingleRegisterAccess, SingleRegisterAccessOps,
};
use gdbstub::target::ext::breakpoints::BreakpointsOps;
use gdbstub::target::ext::monitor_cmd::MonitorCmdOps;
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use x86::VcpuState;

use super::{DebugError, GuestTarget, tid, vcpu_of};
use crate::debug::memory::LinearMemory;
use crate::debug::registers::{RegisterFile, RegisterNumber, X86_64};

/// Whatever goes wrong is told to gdb; the session goes on.
pub(super) fn told(error: impl Into<DebugError>) -> TargetError<DebugError> {
    let error = error.into();
    tracing::debug!("gdb: {error}");
    TargetError::Errno(error.errno())
}

impl Target for GuestTarget {
    type Arch = X86_64;
    type Error = DebugError;

    fn base_ops(&mut self) -> BaseOps<'_, X86_64, DebugError> {
        BaseOps::MultiThread(self)
    }

    /// A breakpoint of the guest's program is not gdb's: those are asked for.
    fn guard_rail_implicit_sw_breakpoints(&self) -> bool {
        true
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for GuestTarget {
    fn read_registers(&mut self, regs: &mut RegisterFile, tid: Tid) -> TargetResult<(), Self> {
        let id = vcpu_of(tid).map_err(told)?;
        *regs = RegisterFile::of(self.state(id).map_err(told)?);
        Ok(())
    }

    fn write_registers(&mut self, regs: &RegisterFile, tid: Tid) -> TargetResult<(), Self> {
        self.change(tid, |state| regs.write_to(state))
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, va: u64, into: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let id = vcpu_of(tid).map_err(told)?;
        let view = self.view().map_err(told)?;
        self.state(id).map_err(told)?;
        let memory = LinearMemory { view: &view, state: &self.states[&id] };
        memory.read(va, into, &self.desk.breakpoints()).map_err(told)
    }

    fn write_addrs(&mut self, va: u64, from: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let id = vcpu_of(tid).map_err(told)?;
        let view = self.view().map_err(told)?;
        self.state(id).map_err(told)?;
        let memory = LinearMemory { view: &view, state: &self.states[&id] };
        memory.write(va, from, &mut self.desk.breakpoints()).map_err(told)
    }

    fn list_active_threads(&mut self, active: &mut dyn FnMut(Tid)) -> Result<(), DebugError> {
        (0..self.vcpu_count()).map(tid).for_each(active);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl GuestTarget {
    /// Changes a vCPU's state, unless `change` finds that it cannot be.
    fn change(
        &mut self,
        tid: Tid,
        change: impl FnOnce(&mut VcpuState) -> bool,
    ) -> TargetResult<(), Self> {
        let id = vcpu_of(tid).map_err(told)?;
        let before = self.state(id).map_err(told)?.clone();
        let mut after = before.clone();
        if !change(&mut after) {
            return Err(TargetError::NonFatal);
        }
        if after == before {
            return Ok(());
        }
        self.set_state(id, after).map_err(told)
    }
}

impl SingleRegisterAccess<Tid> for GuestTarget {
    fn read_register(
        &mut self,
        tid: Tid,
        register: RegisterNumber,
        into: &mut [u8],
    ) -> TargetResult<usize, Self> {
        let id = vcpu_of(tid).map_err(told)?;
        let bytes = register.read(self.state(id).map_err(told)?);
        let len = bytes.len().min(into.len());
        into[..len].copy_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn write_register(
        &mut self,
        tid: Tid,
        register: RegisterNumber,
        bytes: &[u8],
    ) -> TargetResult<(), Self> {
        self.change(tid, |state| register.write(state, bytes))
    }
}

impl ThreadExtraInfo for GuestTarget {
    fn thread_extra_info(&self, tid: Tid, into: &mut [u8]) -> Result<usize, DebugError> {
        let text = vcpu_of(tid).and_then(|id| {
            let state = self.fresh_state(id)?;
            Ok(format!("vcpu {id}, {}", doing(&state)))
        });
        let text = text.unwrap_or_else(|error| error.to_string());
        let len = text.len().min(into.len());
        into[..len].copy_from_slice(&text.as_bytes()[..len]);
        Ok(len)
    }
}

/// What a vCPU does, in a word or two.
fn doing(state: &VcpuState) -> &'static str {
    match state.cs.selector & 3 {
        _ if state.waiting_for_sipi => "not started",
        _ if state.halted => "halted",
        0 => "in the kernel",
        _ => "in a program",
    }
}
