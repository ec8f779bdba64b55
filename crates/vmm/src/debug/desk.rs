//! What vCPU threads, the supervisor and the debugger's thread tell each other.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use engine::DebugStop;
use memory::DeviceView;
use rustix::event::{EventfdFlags, eventfd};
use x86::VcpuState;

use super::breakpoints::MemoryBreakpoints;
use crate::control::{ALL, VcpuSet};
use crate::machine::Machine;
use crate::outcome::End;

/// How the VM ended, as an exit status that gdb shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Finish(pub(crate) u8);

impl Finish {
    /// The host failed.
    pub(crate) const FAILED: Self = Self(1);
}

/// The meeting point. All methods return at once, and may be called from any thread.
pub(crate) struct Desk {
    state: Mutex<State>,
    /// INT3s of the debugger's in guest memory.
    breakpoints: Mutex<MemoryBreakpoints>,
    /// A debugger is there, or is waited for: a life begins with all vCPUs held.
    holds: AtomicBool,
    /// Readable when there is something new.
    wake: OwnedFd,
}

#[derive(Default)]
struct State {
    stops: VecDeque<(u32, DebugStop)>,
    life: Life,
    /// The debugger wants no further life.
    killed: bool,
}

/// What the debugger debugs.
#[derive(Clone, Default)]
pub(super) enum Life {
    /// Nothing yet.
    #[default]
    Unborn,
    /// The number tells one life from the next.
    Machine(Weak<Machine>, u64),
    Over(Finish),
}

impl Desk {
    /// `wait`: the first life waits for a debugger.
    pub(super) fn new(wait: bool) -> io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            breakpoints: Mutex::default(),
            holds: AtomicBool::new(wait),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// The vCPUs that a life which is about to begin holds.
    pub(crate) fn held_at_birth(&self) -> VcpuSet {
        if self.holds.load(Ordering::SeqCst) { ALL } else { 0 }
    }

    /// A life has begun.
    pub(crate) fn begin(&self, machine: &Arc<Machine>) {
        self.breakpoints().forget();
        let mut state = self.state();
        if state.killed {
            machine.end(End::Stopped);
        }
        let number = match state.life {
            Life::Machine(_, number) => number + 1,
            Life::Unborn | Life::Over(_) => 0,
        };
        state.stops.clear();
        state.life = Life::Machine(Arc::downgrade(machine), number);
        drop(state);
        self.wake();
    }

    /// No further life will begin.
    pub(crate) fn over(&self, finish: Finish) {
        self.state().life = Life::Over(finish);
        self.wake();
    }

    /// A vCPU has stopped for the debugger. The caller has all of them stand.
    pub(crate) fn stopped(&self, id: u32, stop: DebugStop) {
        self.state().stops.push_back((id, stop));
        self.wake();
    }

    /// Whether the INT3 at RIP is the debugger's, not the guest's own.
    pub(crate) fn owns_int3(&self, state: &VcpuState, view: &DeviceView) -> bool {
        self.breakpoints().is_at(state, view)
    }

    pub(super) fn kill(&self) {
        self.state().killed = true;
    }

    pub(super) fn set_holds(&self, holds: bool) {
        self.holds.store(holds, Ordering::SeqCst);
    }

    pub(super) fn life(&self) -> Life {
        self.state().life.clone()
    }

    pub(super) fn next_stop(&self) -> Option<(u32, DebugStop)> {
        self.state().stops.pop_front()
    }

    pub(super) fn has_stop(&self) -> bool {
        !self.state().stops.is_empty()
    }

    pub(super) fn breakpoints(&self) -> MutexGuard<'_, MemoryBreakpoints> {
        // Every change is one entry and one byte of guest memory.
        self.breakpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wake(&self) {
        // The only failure is a full counter, and a full counter wakes.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Takes the signal of [`Desk::wake_fd`].
    pub(super) fn woken(&self) {
        // Nothing to read: somebody has taken it.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }

    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
