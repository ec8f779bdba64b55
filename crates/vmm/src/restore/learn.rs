//! Which frames a guest really touches after a restore, and in which order.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use confine::Thread;
use memory::{Epoch, Frame};

use super::{Keeper, Restore};
use crate::error::VmError;
use crate::first_touches::{FirstTouches, pauses};

/// As long as it is watched: what comes later was not what it needed first.
const WINDOW: Duration = Duration::from_secs(10);

/// The thread. Dropping it writes down what is known.
pub(crate) struct Learner {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Stop {
    asked: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    fn asked(&self) -> MutexGuard<'_, bool> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps; whether it is to stop.
    fn sleep(&self, time: Duration) -> bool {
        let asked = self.changed.wait_timeout_while(self.asked(), time, |asked| !*asked);
        asked.is_ok_and(|(asked, _)| *asked)
    }
}

impl Learner {
    /// Watches from now on.
    pub(crate) fn start(restore: &Arc<Restore>, learning: Keeper) -> Result<Self, VmError> {
        let stop = Arc::new(Stop::default());
        let (restore, asked) = (Arc::clone(restore), Arc::clone(&stop));
        let body = move || restore.learn(&asked, learning);
        let builder = thread::Builder::new().name("learn".into());
        let thread = confine::spawn(builder, Thread::Restore, body)
            .map_err(VmError::host("start the thread that learns the working set"))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Learner {
    fn drop(&mut self) {
        *self.stop.asked() = true;
        self.stop.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so, and nothing was learnt.
            let _ = thread.join();
        }
    }
}

impl Restore {
    fn learn(&self, stop: &Stop, learning: Keeper) {
        let begun = Instant::now();
        let contents = self.snapshot.runs().iter().filter(|run| run.kind.has_contents());
        let frames = contents.flat_map(|run| (run.first.0..run.first.0 + run.count).map(Frame));
        let mut touches = FirstTouches::of(&self.memory, frames, Epoch::FIRST);
        for pause in pauses() {
            let stopped = stop.sleep(pause);
            touches.look();
            if stopped || begun.elapsed() >= WINDOW {
                break;
            }
        }
        if let Err(error) = tell(learning, &union(touches.seen(), self.progress.set())) {
            tracing::warn!("{error}: what was learnt of the working set is lost");
        }
    }
}

/// Tells who keeps it, and waits until that is done.
fn tell(keeper: Keeper, frames: &[Frame]) -> io::Result<()> {
    let mut keeper = match keeper {
        Keeper::Process(child) => child,
        // A VM that ended before it ran has nothing to tell.
        Keeper::Told(_) if frames.is_empty() => return Ok(()),
        Keeper::Told(told) => return told(frames),
    };
    let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.0.to_le_bytes()).collect();
    // Closed behind the last one.
    let told = keeper.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(&bytes));
    let status = keeper.wait()?;
    told?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("keeper: {status}"))) }
}

/// What was touched this time in its order, and then what was touched before. A frame that is in vain there costs a
/// copy; one that is missing costs a wait.
fn union(seen: Vec<Frame>, before: &[Frame]) -> Vec<Frame> {
    let known: std::collections::HashSet<Frame> = seen.iter().copied().collect();
    let mut union = seen;
    union.extend(before.iter().filter(|frame| !known.contains(frame)));
    union
}
