//! Run states: who may run, who waits, and how it ends.
//!
//! ```text
//!            pause                      stop, power event, failure
//!   Running ------> Paused    Running, Paused ---------------------> Ended
//!            <------
//!            resume
//! ```
//!
//! `pause` returns when every vCPU has stopped at an instruction border. The first end wins; later ones
//! change nothing. Ended is final for one life of the machine: a reboot builds a new one.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::outcome::End;

/// What vCPU threads and their controllers agree on.
#[derive(Debug)]
pub(crate) struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    run: RunState,
    /// vCPU threads inside [`Control::may_run`], waiting; `<= vcpus`.
    parked: u32,
    /// vCPU threads that have not finished.
    alive: u32,
    end: Option<End>,
    /// The guest kernel said that it panicked; whatever ends the machine next is that panic.
    panicked: bool,
}

/// Whether the guest runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunState {
    /// vCPUs run.
    Running,
    /// All vCPUs stand at an instruction border until `resume`.
    Paused,
    /// The guest has ended; see the outcome.
    Ended,
}

impl Control {
    pub(crate) fn new(vcpus: u32) -> Self {
        let state =
            State { run: RunState::Running, parked: 0, alive: vcpus, end: None, panicked: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Called by a vCPU thread before it enters the guest: waits while paused. False: finish.
    pub(crate) fn may_run(&self) -> bool {
        let mut state = self.lock();
        if state.run == RunState::Running {
            return true;
        }
        state.parked += 1;
        self.changed.notify_all();
        while state.run == RunState::Paused {
            state = self.wait(state);
        }
        state.parked -= 1;
        state.run == RunState::Running
    }

    /// Called by a vCPU thread as its last act.
    pub(crate) fn finished(&self) {
        self.lock().alive -= 1;
        self.changed.notify_all();
    }

    /// Asks all vCPUs to park; `kick` makes them leave guest code. Returns when they have, or when the
    /// guest has ended meanwhile (false).
    pub(crate) fn pause(&self, kick: impl FnOnce()) -> bool {
        let mut state = self.lock();
        if state.run == RunState::Running {
            state.run = RunState::Paused;
        }
        drop(state);
        kick();
        state = self.lock();
        while state.run == RunState::Paused && state.parked < state.alive {
            state = self.wait(state);
        }
        state.run == RunState::Paused
    }

    /// Lets parked vCPUs go on. False when the guest has ended.
    pub(crate) fn resume(&self) -> bool {
        let mut state = self.lock();
        if state.run == RunState::Paused {
            state.run = RunState::Running;
            self.changed.notify_all();
        }
        state.run == RunState::Running
    }

    /// Notes that the guest kernel reported a panic; what ends the machine next counts as that.
    pub(crate) fn note_panic(&self) {
        self.lock().panicked = true;
    }

    /// Ends the machine. The caller kicks the vCPUs.
    pub(crate) fn end(&self, end: End) {
        let mut state = self.lock();
        if state.end.is_none() {
            let panicked = state.panicked && matches!(end, End::Reboot | End::Poweroff);
            state.end = Some(if panicked { End::Panic } else { end });
            state.run = RunState::Ended;
        }
        self.changed.notify_all();
    }

    pub(crate) fn run_state(&self) -> RunState {
        self.lock().run
    }

    /// Waits until the machine has ended and every vCPU thread has finished.
    pub(crate) fn wait_ended(&self) -> End {
        let mut state = self.lock();
        loop {
            match &state.end {
                Some(end) if state.alive == 0 => return end.clone(),
                _ => state = self.wait(state),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every update of the state is one assignment or is repeated: poisoning says nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use super::*;

    fn spin(control: &Arc<Control>, count: &Arc<AtomicU64>) -> thread::JoinHandle<()> {
        let (control, count) = (Arc::clone(control), Arc::clone(count));
        thread::spawn(move || {
            while control.may_run() {
                count.fetch_add(1, Ordering::Relaxed);
            }
            control.finished();
        })
    }

    #[test]
    fn pause_stops_every_vcpu_and_resume_lets_them_go() {
        let control = Arc::new(Control::new(2));
        let count = Arc::new(AtomicU64::new(0));
        let threads = [spin(&control, &count), spin(&control, &count)];
        for _ in 0..100 {
            assert!(control.pause(|| ()));
            let before = count.load(Ordering::Relaxed);
            thread::yield_now();
            assert_eq!(count.load(Ordering::Relaxed), before);
            assert!(control.resume());
        }
        control.end(End::Stopped);
        assert_eq!(control.wait_ended(), End::Stopped);
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(!control.resume());
        assert!(!control.pause(|| ()));
    }

    #[test]
    fn a_paused_machine_can_end() {
        let control = Arc::new(Control::new(1));
        let thread = spin(&control, &Arc::default());
        assert!(control.pause(|| ()));
        control.end(End::Poweroff);
        assert_eq!(control.wait_ended(), End::Poweroff);
        thread.join().unwrap();
    }

    #[test]
    fn the_first_end_wins_and_a_panic_colours_a_reset() {
        let control = Control::new(0);
        control.note_panic();
        control.end(End::Reboot);
        control.end(End::Poweroff);
        assert_eq!(control.wait_ended(), End::Panic);
    }
}
