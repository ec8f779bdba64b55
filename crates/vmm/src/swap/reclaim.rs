//! The thread that takes frames, while somebody wants some taken.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use insight::{ColdFrame, coldest};
use memory::{EvictError, FRAME_SIZE, FrameState};

use super::{ReclaimRequest, ReclaimStatus, Swap};
use crate::control::RunState;
use crate::machine::Machine;
use crate::observer::Observer;

/// Frames taken at a time: 1 MiB. Each time costs vCPUs their translations.
const BATCH: usize = 256;
/// Frames that are chosen at a time: 16 MiB.
const CHOICE: usize = 16 * BATCH;
/// How long accesses are watched before anything is chosen, if nobody has done so.
const WATCH: Duration = Duration::from_millis(2500);
/// Between two looks whether that is over, and before memory is asked for again that is being saved.
const PAUSE: Duration = Duration::from_millis(100);

/// What is taken of a machine.
#[derive(Default)]
pub(crate) struct Reclaim {
    swap: OnceLock<Arc<Swap>>,
    state: Mutex<State>,
    /// Held while frames are taken, and while nobody may: who saves the machine, or makes an image of it.
    turn: Mutex<()>,
}

#[derive(Default)]
struct State {
    wanted: u64,
    bytes_per_second: Option<u64>,
    /// The thread is there.
    works: bool,
    /// Why it has given up.
    why: Option<String>,
}

impl Reclaim {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is taken while the guard lives.
    pub(crate) fn hold(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Reclaim::hold`], without waiting.
    pub(crate) fn try_hold(&self) -> Option<MutexGuard<'_, ()>> {
        match self.turn.try_lock() {
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Ok(guard) => Some(guard),
        }
    }

    /// Where what is taken goes, if anything ever was asked for.
    pub(crate) fn swap(&self) -> Option<&Arc<Swap>> {
        self.swap.get()
    }

    /// The same from now on.
    pub(crate) fn begin(&self, swap: Arc<Swap>) {
        let _ = self.swap.set(swap);
    }

    /// What has come of it; `None` where nobody has ever asked.
    pub(crate) fn status(&self) -> Option<ReclaimStatus> {
        let mut status = self.swap.get()?.status();
        let state = self.lock();
        status.wanted_bytes = state.wanted;
        status.problem = status.problem.or_else(|| state.why.clone());
        Some(status)
    }

    /// What is left to take; `None`: nothing, so that the thread ends.
    fn next(&self) -> Option<(u64, Option<u64>)> {
        let mut state = self.lock();
        state.works = state.wanted >= FRAME_SIZE as u64;
        if !state.works {
            state.wanted = 0;
        }
        state.works.then_some((state.wanted, state.bytes_per_second))
    }

    fn taken(&self, frames: u32) {
        let mut state = self.lock();
        state.wanted = state.wanted.saturating_sub(u64::from(frames) * FRAME_SIZE as u64);
    }

    fn give_up(&self, why: Option<String>) {
        let mut state = self.lock();
        state.wanted = 0;
        state.why = why;
    }
}

/// Has `request` taken by a thread of its own, which ends when it is done. Nothing runs, or waits, for a machine of which
/// nothing is wanted.
pub(crate) fn ask(
    machine: &Arc<Machine>,
    observer: &Arc<Observer>,
    request: ReclaimRequest,
) -> io::Result<()> {
    let reclaim = &machine.reclaim;
    let mut state = reclaim.lock();
    state.wanted = request.bytes;
    state.bytes_per_second = request.bytes_per_second;
    state.why = None;
    if state.works || request.bytes == 0 {
        return Ok(());
    }
    let (machine, observer) = (Arc::clone(machine), Arc::clone(observer));
    // With the rights of who asks: what it takes is among them (memory, disks, threads).
    Builder::new().name("reclaim".into()).spawn(move || work(&machine, &observer))?;
    state.works = true;
    Ok(())
}

fn work(machine: &Machine, observer: &Observer) {
    let Some(swap) = machine.reclaim.swap() else { return };
    watch(machine, observer);
    let mut chosen: Vec<ColdFrame> = Vec::new();
    // Of those chosen last; before the first choice there is no reason to give up.
    let mut taken_of_choice = 1;
    while let Some((wanted, rate)) = machine.reclaim.next() {
        if machine.control.run_state() == RunState::Ended {
            machine.reclaim.give_up(None);
            continue;
        }
        let begun = Instant::now();
        observer.watch();
        if chosen.is_empty() {
            if std::mem::take(&mut taken_of_choice) == 0 {
                let why = "what is left is in use, or can be put nowhere".to_owned();
                machine.reclaim.give_up(Some(why));
                continue;
            }
            chosen = choose(machine, observer, wanted);
            if chosen.is_empty() {
                machine.reclaim.give_up(Some("there is nothing to take".to_owned()));
                continue;
            }
        }
        let most = BATCH.min((wanted / FRAME_SIZE as u64).try_into().unwrap_or(BATCH));
        let batch: Vec<ColdFrame> = chosen.drain(..most.min(chosen.len())).collect();
        match take(machine, swap, &batch) {
            Ok(taken) => {
                taken_of_choice += taken;
                machine.reclaim.taken(taken);
                if let Some(rate) = rate {
                    let bytes = u64::from(taken) * FRAME_SIZE as u64;
                    let due = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
                    machine.control.sleep(due.saturating_sub(begun.elapsed()));
                }
            }
            Err(EvictError::Frozen) => {
                taken_of_choice += 1;
                machine.control.sleep(PAUSE);
            }
            Err(error) => machine.reclaim.give_up(Some(error.to_string())),
        }
    }
}

/// Waits until it is known what the guest uses, as far as it comes to be known.
fn watch(machine: &Machine, observer: &Observer) {
    let begun = Instant::now();
    while observer.latest().is_none()
        && begun.elapsed() < WATCH
        && machine.control.run_state() != RunState::Ended
    {
        observer.watch();
        machine.control.sleep(PAUSE);
    }
}

/// The coldest frames, as many as are wanted and somewhat more, since some will be touched.
fn choose(machine: &Machine, observer: &Observer, wanted: u64) -> Vec<ColdFrame> {
    machine.memory.catch_up();
    let most = usize::try_from(wanted / FRAME_SIZE as u64).unwrap_or(CHOICE);
    let most = (most + BATCH).min(CHOICE);
    observer.with_classes(|class| coldest(&machine.memory, most, class))
}

/// Takes those that nobody has touched since they were chosen.
fn take(machine: &Machine, swap: &Swap, batch: &[ColdFrame]) -> Result<u32, EvictError> {
    let memory = &machine.memory;
    if memory.is_anonymous() && !machine.can_be_watched() {
        return Err(EvictError::Anonymous);
    }
    let is_cold = |cold: &&ColdFrame| {
        let facts = memory.facts(cold.frame);
        facts.is_some_and(|facts| {
            facts.state == FrameState::Resident && facts.accessed == cold.accessed
        })
    };
    let frames: Vec<_> = batch.iter().filter(is_cold).map(|cold| cold.frame).collect();
    let _turn = machine.reclaim.hold();
    if machine.tells_accesses() {
        return swap.take(memory, frames);
    }
    // Its guest reaches frames by itself: it stands for the time that a batch takes.
    let taken = machine.control.while_still(|| machine.kick(), || swap.take(memory, frames));
    taken.unwrap_or(Ok(0))
}
