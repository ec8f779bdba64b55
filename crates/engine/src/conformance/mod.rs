//! The conformance suite: tiny guests that any engine must run to the same result.
//!
//! Each case builds a machine of 16 MiB, assembles a payload, runs it and compares what the payload
//! reported (see [`rig`], [`record`]) with what the manuals say. Cases know only the traits of this crate.
//!
//! An engine's crate runs the suite from its own tests:
//!
//! ```ignore
//! let report = engine::conformance::run(Arc::new(MyEngine::new()?), |case| case.starts_with("paging/"));
//! assert!(report.failures.is_empty(), "{report:#?}");
//! ```

#[allow(
    clippy::redundant_closure_for_method_calls,
    clippy::redundant_closure,
    reason = "a.fault(|a| a.ud2()) looks like its neighbours, which have operands"
)]
mod cases;
pub mod debugging;
pub mod layout;
pub mod payload;
pub mod record;
pub mod rig;
pub mod stubs;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use crate::traits::Engine;

/// A case that takes longer has hung in the engine, where no kick reaches it.
const PATIENCE: Duration = Duration::from_secs(90);

/// A payload and what must come of it.
#[derive(Clone, Copy)]
pub struct Case {
    /// `topic/case`, unique.
    pub name: &'static str,
    run: Run,
}

/// What a case is a function of.
#[derive(Clone, Copy)]
enum Run {
    One(fn(&dyn Engine)),
    /// The engine that a state is taken from, and the one that it is given to.
    Two(fn(&dyn Engine, &dyn Engine)),
}

impl Run {
    fn call(self, from: &dyn Engine, to: &dyn Engine) {
        match self {
            Self::One(run) => run(from),
            Self::Two(run) => run(from, to),
        }
    }
}

/// Every case.
#[must_use]
pub fn cases() -> Vec<Case> {
    cases::all()
}

/// What became of the cases.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Cases that came out right.
    pub passed: Vec<&'static str>,
    /// Cases that do not apply to the processor that the engine shows, and why.
    pub skipped: Vec<(&'static str, String)>,
    /// Cases that did not come out right, and the first assertion that did not hold.
    pub failures: Vec<(&'static str, String)>,
}

/// Runs the cases that `wanted` names; those that move a state move it to another machine of the engine.
pub fn run(engine: Arc<dyn Engine>, wanted: impl Fn(&str) -> bool) -> Report {
    let chosen = cases().into_iter().filter(|case| wanted(case.name));
    run_all(&engine, &engine, chosen)
}

/// Runs the cases that move a state, from one engine to another.
pub fn run_moves(from: Arc<dyn Engine>, to: Arc<dyn Engine>) -> Report {
    let moves = cases().into_iter().filter(|case| matches!(case.run, Run::Two(_)));
    run_all(&from, &to, moves)
}

fn run_all(
    from: &Arc<dyn Engine>,
    to: &Arc<dyn Engine>,
    cases: impl Iterator<Item = Case>,
) -> Report {
    let mut report = Report::default();
    for case in cases {
        match attempt(from, to, case) {
            Outcome::Passed => report.passed.push(case.name),
            Outcome::Skipped(why) => report.skipped.push((case.name, why)),
            Outcome::Failed(why) => report.failures.push((case.name, why)),
        }
    }
    report
}

enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

/// What [`skip`] unwinds with.
struct Skip(String);

/// Ends the running case as not applicable.
fn skip(why: &str) -> ! {
    resume_unwind(Box::new(Skip(why.to_owned())))
}

/// Runs a case on a thread of its own: one that hangs is left behind.
fn attempt(from: &Arc<dyn Engine>, to: &Arc<dyn Engine>, case: Case) -> Outcome {
    let (sender, receiver) = mpsc::channel();
    let (from, to) = (Arc::clone(from), Arc::clone(to));
    let thread = thread::Builder::new().name(case.name.to_owned());
    let spawned = thread.spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(|| case.run.call(&*from, &*to)));
        // Nobody listens any more if the case took too long.
        let _ = sender.send(result);
    });
    if let Err(error) = spawned {
        return Outcome::Failed(format!("spawn: {error}"));
    }
    match receiver.recv_timeout(PATIENCE) {
        Ok(Ok(())) => Outcome::Passed,
        Ok(Err(panic)) => outcome_of(&*panic),
        Err(_) => Outcome::Failed("the engine does not return, kicked or not".to_owned()),
    }
}

fn outcome_of(panic: &(dyn Any + Send)) -> Outcome {
    if let Some(Skip(why)) = panic.downcast_ref() {
        return Outcome::Skipped(why.clone());
    }
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    Outcome::Failed(text.unwrap_or_else(|| "panicked".to_owned()))
}
