//! Stops, as gdb is told of them.

use engine::DebugStop;
use gdbstub::common::Signal;
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::breakpoints::WatchKind;

use super::{GuestTarget, tid};
use crate::debug::breakpoints::Watch;
use crate::debug::desk::Life;

/// A vCPU has stopped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stop {
    id: u32,
    reason: Reason,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reason {
    Step,
    Int3,
    /// Before an instruction.
    Execute,
    /// Behind one that touched what is watched at this address.
    Data(WatchKind, u64),
}

impl GuestTarget {
    /// What has made the running guest stop, if anything has; all of it stands then.
    pub(in crate::debug) fn next_stop(&mut self) -> Option<MultiThreadStopReason<u64>> {
        if let Life::Over(finish) = self.desk.life() {
            return Some(MultiThreadStopReason::Exited(finish.0));
        }
        if self.follow_life() {
            tracing::warn!("gdb: the guest has rebooted: breakpoints in memory are gone");
            return Some(self.signal(Signal::SIGTRAP));
        }
        if self.untold.is_empty() {
            if !self.desk.has_stop() || !self.hold() {
                return None;
            }
            self.collect();
        }
        let stop = self.untold.pop_front()?;
        self.forget_repeatable();
        self.current = stop.id;
        Some(stop.told())
    }

    /// Ctrl-C in gdb.
    pub(in crate::debug) fn interrupt(&mut self) -> Option<MultiThreadStopReason<u64>> {
        self.hold();
        self.collect();
        self.forget_repeatable();
        Some(self.signal(Signal::SIGINT))
    }

    fn signal(&self, signal: Signal) -> MultiThreadStopReason<u64> {
        MultiThreadStopReason::SignalWithThread { tid: tid(self.current), signal }
    }

    /// Takes all stops that there are, in the words of the breakpoints that are set now.
    fn collect(&mut self) {
        while let Some((id, stop)) = self.desk.next_stop() {
            self.untold.push_back(Stop { id, reason: self.reason(stop) });
        }
    }

    /// A stop before an instruction comes again by itself when the vCPU goes on; a step that gdb does not
    /// wait for any more is no news.
    fn forget_repeatable(&mut self) {
        self.untold.retain(|stop| matches!(stop.reason, Reason::Data(..)));
    }

    fn reason(&self, stop: DebugStop) -> Reason {
        match stop {
            DebugStop::Step => Reason::Step,
            DebugStop::Int3 => Reason::Int3,
            DebugStop::Breakpoint(index) => match self.hardware.wish(index) {
                None => Reason::Step,
                Some((Watch::Execute, _)) => Reason::Execute,
                Some((Watch::Write, at)) => Reason::Data(WatchKind::Write, at),
                Some((Watch::Read, at)) => Reason::Data(WatchKind::Read, at),
                Some((Watch::Access, at)) => Reason::Data(WatchKind::ReadWrite, at),
            },
        }
    }
}

impl Stop {
    fn told(self) -> MultiThreadStopReason<u64> {
        let tid = tid(self.id);
        match self.reason {
            Reason::Step => {
                MultiThreadStopReason::SignalWithThread { tid, signal: Signal::SIGTRAP }
            }
            Reason::Int3 => MultiThreadStopReason::SwBreak(tid),
            Reason::Execute => MultiThreadStopReason::HwBreak(tid),
            Reason::Data(kind, addr) => MultiThreadStopReason::Watch { tid, kind, addr },
        }
    }
}
