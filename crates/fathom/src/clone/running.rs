//! Processes that were started run, and what they run becomes who it is to be.

use std::collections::VecDeque;
use std::process::Child;
use std::thread::{self, ScopedJoinHandle};
use std::time::Instant;

use super::{Clone, wait_until_it_runs};
use crate::failure::Failure;
use crate::identity::{AT_ONCE, Became, Change};

/// A process, and how far it has come.
struct Ended {
    clone: Clone,
    /// It runs, or ran.
    pid: Option<u32>,
    became: Result<Option<Became>, Failure>,
}

/// Waits until each of `children` runs, and has it become what `changes` has for it, if anything: several at a time, each
/// as soon as it runs. With each is what it has said before. `runs` is told of those that do. All that run, and the first failure.
pub(super) fn wait_for_all(
    children: Vec<((Clone, Child), Vec<u8>)>,
    changes: &[Change],
    begun: Instant,
    mut runs: impl FnMut(&str),
) -> (Vec<Clone>, Option<Failure>) {
    let (mut running, mut failed) = (Vec::new(), None);
    let mut take = |ended: Ended| {
        let Ended { clone, pid, became } = ended;
        let became = became.unwrap_or_else(|error| {
            failed.get_or_insert(error);
            None
        });
        if let Some(pid) = pid {
            runs(&clone.name);
            running.push(Clone { pid, became, ..clone });
        }
    };
    thread::scope(|scope| {
        let mut waiting: VecDeque<ScopedJoinHandle<'_, Ended>> = VecDeque::new();
        let mut join = |thread: ScopedJoinHandle<'_, Ended>| match thread.join() {
            Ok(ended) => take(ended),
            Err(panic) => std::panic::resume_unwind(panic),
        };
        for (index, ((clone, child), said)) in children.into_iter().enumerate() {
            if waiting.len() >= AT_ONCE {
                waiting.pop_front().into_iter().for_each(&mut join);
            }
            let change = changes.get(index);
            waiting.push_back(scope.spawn(move || run(clone, child, said, change, begun)));
        }
        waiting.into_iter().for_each(join);
    });
    (running, failed)
}

fn run(
    clone: Clone,
    child: Child,
    said: Vec<u8>,
    change: Option<&Change>,
    begun: Instant,
) -> Ended {
    let pid = match wait_until_it_runs(child, said) {
        Ok(pid) => pid,
        Err(error) => return Ended { clone, pid: None, became: Err(error) },
    };
    let applied = change.map(|change| change.apply(&clone.name, clone.vsock.as_deref(), begun));
    match applied.transpose() {
        Ok(became) => Ended { clone, pid: Some(pid), became: Ok(became) },
        Err(failed) => {
            let pid = (!failed.ended).then_some(pid);
            Ended { clone, pid, became: Err(failed.why) }
        }
    }
}
