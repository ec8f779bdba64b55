//! Breakpoints and watchpoints of gdb's.

use gdbstub::target::TargetResult;
use gdbstub::target::ext::breakpoints::{
    Breakpoints, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
    SwBreakpointOps, WatchKind,
};
use memory::DeviceView;

use super::base::told;
use super::{DebugError, GuestTarget};
use crate::debug::breakpoints::Watch;
use crate::debug::walk::{self, AddressError};

impl Breakpoints for GuestTarget {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for GuestTarget {
    fn add_sw_breakpoint(&mut self, va: u64, _: usize) -> TargetResult<bool, Self> {
        let view = self.view().map_err(told)?;
        let gpa = self.translate_anywhere(&view, va).map_err(told)?;
        if !self.desk.breakpoints().insert(&view, va, gpa) {
            return Err(told(AddressError::NoRam { va, gpa }));
        }
        Ok(true)
    }

    fn remove_sw_breakpoint(&mut self, va: u64, _: usize) -> TargetResult<bool, Self> {
        let view = self.view().map_err(told)?;
        self.desk.breakpoints().remove(&view, va);
        Ok(true)
    }
}

impl GuestTarget {
    /// Where `va` leads in the address space of the vCPU that stopped, or of the first that has it: gdb
    /// does not say whose it means.
    fn translate_anywhere(&mut self, view: &DeviceView, va: u64) -> Result<u64, DebugError> {
        let count = self.machine()?.vcpu_count();
        let mut result = Err(AddressError::NotMapped(va).into());
        for id in [self.current].into_iter().chain(0..count) {
            result = walk::translate(self.state(id)?, view, va).map_err(DebugError::from);
            if result.is_ok() {
                break;
            }
        }
        result
    }
}

impl HwBreakpoint for GuestTarget {
    fn add_hw_breakpoint(&mut self, va: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.hardware.insert(Watch::Execute, va, 1))
    }

    fn remove_hw_breakpoint(&mut self, va: u64, _: usize) -> TargetResult<bool, Self> {
        self.hardware.remove(Watch::Execute, va, 1);
        Ok(true)
    }
}

impl HwWatchpoint for GuestTarget {
    fn add_hw_watchpoint(
        &mut self,
        va: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(self.hardware.insert(watch(kind), va, len))
    }

    fn remove_hw_watchpoint(
        &mut self,
        va: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        self.hardware.remove(watch(kind), va, len);
        Ok(true)
    }
}

fn watch(kind: WatchKind) -> Watch {
    match kind {
        WatchKind::Write => Watch::Write,
        WatchKind::Read => Watch::Read,
        WatchKind::ReadWrite => Watch::Access,
    }
}
