//! Which frames a guest really touches after a restore, and in which order.

use std::io::{self, Write};
use std::process::Child;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use confine::Thread;
use memory::{Epoch, Frame};

use super::Restore;
use crate::error::VmError;

/// As long as it is watched: what comes later was not what it needed first.
const WINDOW: Duration = Duration::from_secs(10);
/// Between two looks, at first. It doubles until [`SLOWEST`]: the order matters most where it is fastest.
const FASTEST: Duration = Duration::from_millis(5);
const SLOWEST: Duration = Duration::from_millis(320);

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
    pub(crate) fn start(restore: &Arc<Restore>, learning: Child) -> Result<Self, VmError> {
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
    fn learn(&self, stop: &Stop, learning: Child) {
        let begun = Instant::now();
        let contents = self.snapshot.runs().iter().filter(|run| run.kind.has_contents());
        let mut unseen: Vec<Frame> =
            contents.flat_map(|run| (run.first.0..run.first.0 + run.count).map(Frame)).collect();
        let mut seen = Vec::new();
        let mut pause = FASTEST;
        loop {
            let stopped = stop.sleep(pause);
            // Frames that came ahead of the guest do not count as accessed.
            self.memory.catch_up();
            unseen.retain(|&frame| {
                let touched =
                    self.memory.facts(frame).is_some_and(|facts| facts.accessed > Epoch::NEVER);
                if touched {
                    seen.push(frame);
                }
                !touched
            });
            if stopped || begun.elapsed() >= WINDOW {
                break;
            }
            pause = (pause * 2).min(SLOWEST);
        }
        if let Err(error) = tell(learning, &union(seen, self.progress.set())) {
            tracing::warn!("{error}: what was learnt of the working set is lost");
        }
    }
}

/// Tells who keeps it, and waits until that is done.
fn tell(mut keeper: Child, frames: &[Frame]) -> io::Result<()> {
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
