//! Run states: who may run, who waits, and how it ends.
//!
//! ```text
//!            pause                      stop, power event, failure
//!   Running ------> Paused    Running, Paused ---------------------> Ended
//!            <------
//!            resume
//! ```
//!
//! `pause` returns when every vCPU has stopped at an instruction border. A debugger holds vCPUs besides,
//! each by itself: one runs while it is neither paused nor held. While a vCPU lacks a frame whose source fails, all
//! stand, too (`crate::shortage`). The first end wins; later ones change nothing. Ended is final for one life of the machine: a reboot builds a new one.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use memory::Frame;

use crate::outcome::End;

/// A vCPU each, by bit; there are at most 64.
pub(crate) type VcpuSet = u64;

/// All that there are, and more.
pub(crate) const ALL: VcpuSet = VcpuSet::MAX;

/// What vCPU threads and their controllers agree on.
#[derive(Debug)]
pub(crate) struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// The user wants them all to stand.
    paused: bool,
    /// Somebody changes what must not be changed while vCPUs run.
    still: bool,
    /// These stand for the debugger.
    held: VcpuSet,
    /// Frames that vCPUs need and cannot have now; each once.
    lacking: Vec<Frame>,
    /// vCPU threads inside [`Control::may_run`], waiting; `<= vcpus`.
    parked: u32,
    /// vCPU threads that have not finished.
    alive: u32,
    end: Option<End>,
    /// The guest kernel said that it panicked; whatever ends the machine next is that panic.
    panicked: bool,
}

impl State {
    fn stands(&self, id: u32) -> bool {
        let held = self.held >> id & 1 != 0;
        self.end.is_none() && (self.paused || self.still || held || !self.lacking.is_empty())
    }

    fn some_run(&self) -> bool {
        self.end.is_none() && self.parked < self.alive
    }
}

/// Whether the guest runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunState {
    /// vCPUs run.
    Running,
    /// All vCPUs stand at an instruction border until `resume`, until the debugger lets them go on, or until a frame
    /// that one of them needs can be had.
    Paused,
    /// The guest has ended; see the outcome.
    Ended,
}

impl Control {
    /// For `vcpus` vCPUs, of which `held` stand for the debugger from the start.
    pub(crate) fn new(vcpus: u32, held: VcpuSet) -> Self {
        let state = State {
            paused: false,
            still: false,
            held,
            lacking: Vec::new(),
            parked: 0,
            alive: vcpus,
            end: None,
            panicked: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Called by the thread of vCPU `id` before it enters the guest: waits while the vCPU has to stand.
    /// False: finish.
    pub(crate) fn may_run(&self, id: u32) -> bool {
        let mut state = self.lock();
        if state.stands(id) {
            state.parked += 1;
            self.changed.notify_all();
            while state.stands(id) {
                state = self.wait(state);
            }
            state.parked -= 1;
        }
        state.end.is_none()
    }

    /// Called by a vCPU thread as its last act.
    pub(crate) fn finished(&self) {
        self.lock().alive -= 1;
        self.changed.notify_all();
    }

    /// Asks all vCPUs to park; `kick` makes them leave guest code. Returns when they have, or when the
    /// guest has ended meanwhile (false).
    pub(crate) fn pause(&self, kick: impl FnOnce()) -> bool {
        self.ask_to_pause();
        kick();
        self.await_parked(|state| state.paused)
    }

    /// The same, without waiting. The caller kicks those that run.
    pub(crate) fn ask_to_pause(&self) {
        self.lock().paused = true;
    }

    /// Lets parked vCPUs go on, but for those that the debugger holds. False when the guest has ended.
    pub(crate) fn resume(&self) -> bool {
        let mut state = self.lock();
        state.paused = false;
        self.changed.notify_all();
        state.end.is_none()
    }

    /// Does `act` while every vCPU stands, whoever else wants them to stand or run. One at a time. `None`
    /// when the guest has ended.
    pub(crate) fn while_still<T>(&self, kick: impl FnOnce(), act: impl FnOnce() -> T) -> Option<T> {
        self.lock().still = true;
        kick();
        let done = self.await_parked(|state| state.still).then(act);
        self.lock().still = false;
        self.changed.notify_all();
        done
    }

    /// Asks all vCPUs to stand for the debugger, without waiting. The caller kicks them.
    pub(crate) fn ask_to_stand(&self) {
        self.lock().held = ALL;
    }

    /// The same, and waits as [`Control::pause`] does.
    pub(crate) fn hold(&self, kick: impl FnOnce()) -> bool {
        self.ask_to_stand();
        kick();
        self.await_parked(|state| state.held == ALL)
    }

    /// Lets all but `held` go on, unless the machine is paused, too.
    pub(crate) fn release(&self, held: VcpuSet) {
        self.lock().held = held;
        self.changed.notify_all();
    }

    /// Waits for all to park, unless somebody takes back what was `wanted`.
    fn await_parked(&self, wanted: impl Fn(&State) -> bool) -> bool {
        let mut state = self.lock();
        while wanted(&state) && state.some_run() {
            state = self.wait(state);
        }
        state.end.is_none()
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
        }
        self.changed.notify_all();
    }

    pub(crate) fn run_state(&self) -> RunState {
        let state = self.lock();
        match state.end {
            Some(_) => RunState::Ended,
            None if state.paused || state.held != 0 || !state.lacking.is_empty() => {
                RunState::Paused
            }
            None => RunState::Running,
        }
    }

    /// Has all vCPUs stand until [`Control::supplied`]: one of them needs `frame`. The caller kicks them.
    pub(crate) fn lack(&self, frame: Frame) {
        let mut state = self.lock();
        if !state.lacking.contains(&frame) {
            state.lacking.push(frame);
        }
        self.changed.notify_all();
    }

    /// What vCPUs need and cannot have; waits until there is something. `None`: the machine has ended.
    pub(crate) fn lacking(&self) -> Option<Vec<Frame>> {
        let mut state = self.lock();
        while state.end.is_none() && state.lacking.is_empty() {
            state = self.wait(state);
        }
        state.end.is_none().then(|| state.lacking.clone())
    }

    /// The frame is there. vCPUs go on when none is lacking, unless somebody else wants them to stand.
    pub(crate) fn supplied(&self, frame: Frame) {
        self.lock().lacking.retain(|&lacking| lacking != frame);
        self.changed.notify_all();
    }

    /// Sleeps, or until the machine ends.
    pub(crate) fn sleep(&self, time: Duration) {
        let going = |state: &mut State| state.end.is_none();
        drop(self.changed.wait_timeout_while(self.lock(), time, going));
    }

    /// Waits until the machine has ended; its vCPU threads may not have finished.
    pub(crate) fn wait_end(&self) -> End {
        let mut state = self.lock();
        loop {
            match &state.end {
                Some(end) => return end.clone(),
                None => state = self.wait(state),
            }
        }
    }

    /// Whether every vCPU thread has finished, or does in that time.
    pub(crate) fn has_finished(&self, time: Duration) -> bool {
        let alive = |state: &mut State| state.alive != 0;
        let waited = self.changed.wait_timeout_while(self.lock(), time, alive);
        waited.unwrap_or_else(PoisonError::into_inner).0.alive == 0
    }

    /// Waits until the machine has ended and every vCPU thread has finished.
    #[cfg(test)]
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

    fn spin(control: &Arc<Control>, id: u32, count: &Arc<AtomicU64>) -> thread::JoinHandle<()> {
        let (control, count) = (Arc::clone(control), Arc::clone(count));
        thread::spawn(move || {
            while control.may_run(id) {
                count.fetch_add(1, Ordering::Relaxed);
            }
            control.finished();
        })
    }

    #[test]
    fn pause_stops_every_vcpu_and_resume_lets_them_go() {
        let control = Arc::new(Control::new(2, 0));
        let count = Arc::new(AtomicU64::new(0));
        let threads = [spin(&control, 0, &count), spin(&control, 1, &count)];
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
    fn stillness_comes_and_goes_beside_a_pause() {
        let control = Arc::new(Control::new(1, 0));
        let count = Arc::new(AtomicU64::new(0));
        let thread = spin(&control, 0, &count);
        let is_still = || {
            let before = count.load(Ordering::Relaxed);
            thread::yield_now();
            count.load(Ordering::Relaxed) == before
        };
        assert_eq!(control.while_still(|| (), is_still), Some(true));
        assert_eq!(control.run_state(), RunState::Running);
        while is_still() {}
        assert!(control.pause(|| ()));
        assert_eq!(control.while_still(|| (), is_still), Some(true));
        assert!(is_still());
        control.end(End::Stopped);
        assert_eq!(control.while_still(|| (), || ()), None);
        thread.join().unwrap();
    }

    #[test]
    fn a_paused_machine_can_end() {
        let control = Arc::new(Control::new(1, 0));
        let thread = spin(&control, 0, &Arc::default());
        assert!(control.pause(|| ()));
        control.end(End::Poweroff);
        assert_eq!(control.wait_ended(), End::Poweroff);
        thread.join().unwrap();
    }

    #[test]
    fn the_first_end_wins_and_a_panic_colours_a_reset() {
        let control = Control::new(0, 0);
        control.note_panic();
        control.end(End::Reboot);
        control.end(End::Poweroff);
        assert_eq!(control.wait_ended(), End::Panic);
    }
    #[test]
    fn held_vcpus_stand_whatever_the_user_wants() {
        let control = Arc::new(Control::new(2, ALL));
        let counts = [Arc::default(), Arc::<AtomicU64>::default()];
        let threads = [0, 1].map(|id| spin(&control, id, &counts[id as usize]));
        assert!(control.hold(|| ()) && control.resume());
        assert_eq!(control.run_state(), RunState::Paused);
        control.release(1 << 1);
        while counts[0].load(Ordering::Relaxed) < 1000 {
            thread::yield_now();
        }
        assert!(control.pause(|| ()));
        assert_eq!(counts[1].load(Ordering::Relaxed), 0);
        control.release(0);
        assert_eq!(control.run_state(), RunState::Paused);
        assert!(control.resume());
        while counts[1].load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        control.end(End::Stopped);
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(!control.hold(|| ()));
    }
}
