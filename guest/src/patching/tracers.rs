//! The function tracers: the first instruction of each function of the kernel, or of some.

use super::{Result, Test, busy, expect, tracefs};

pub(super) const TESTS: &[Test] = &[
    ("function", |rounds| one(rounds, "function", 1)),
    ("function-graph", |rounds| one(rounds, "function_graph", 2)),
    ("filter", filter),
    ("every-function", |_| every("function")),
    ("every-function-graph", |_| every("function_graph")),
];

/// On and off for one function while it is called; then it traces each call, with so many events.
fn one(rounds: u64, tracer: &str, events: u64) -> Result<String> {
    tracefs::replace("set_ftrace_filter", busy::COUNTED)?;
    let calls = busy::during(|| {
        for _ in 0..rounds {
            tracefs::set("current_tracer", tracer)?;
            tracefs::set("current_tracer", "nop")?;
        }
        Ok(())
    })?;
    tracefs::set("current_tracer", tracer)?;
    tracefs::forget_trace()?;
    let made = busy::call(500)?;
    let traced = tracefs::traced()?;
    tracefs::set("current_tracer", "nop")?;
    tracefs::forget_trace()?;
    busy::call(100)?;
    let after = tracefs::traced()?;
    tracefs::replace("set_ftrace_filter", "")?;
    expect("events", traced, events * made)?;
    expect("events after it was off", after, 0)?;
    Ok(format!("{rounds} times during {calls} calls"))
}

/// Functions added to what is traced and taken out of it, while it is traced.
fn filter(rounds: u64) -> Result<String> {
    tracefs::replace("set_ftrace_filter", busy::COUNTED)?;
    tracefs::set("current_tracer", "function")?;
    let calls = busy::during(|| {
        for _ in 0..rounds {
            tracefs::set("set_ftrace_filter", "vfs_*")?;
            tracefs::set("set_ftrace_filter", "pipe_*")?;
            tracefs::set("set_ftrace_filter", "!vfs_*")?;
            tracefs::set("set_ftrace_filter", "!pipe_*")?;
        }
        Ok(())
    })?;
    tracefs::forget_trace()?;
    let made = busy::call(500)?;
    let traced = tracefs::traced()?;
    tracefs::set("current_tracer", "nop")?;
    tracefs::replace("set_ftrace_filter", "")?;
    expect("events", traced, made)?;
    Ok(format!("{rounds} times during {calls} calls"))
}

/// All functions that can be traced.
fn every(tracer: &str) -> Result<String> {
    tracefs::replace("set_ftrace_filter", "")?;
    tracefs::forget_trace()?;
    let calls = busy::during(|| {
        tracefs::set("current_tracer", tracer)?;
        tracefs::set("current_tracer", "nop")
    })?;
    // The buffers are emptied with the tracer: it is known to have worked by a call that it must see.
    tracefs::set("current_tracer", tracer)?;
    let made = busy::call(20)?;
    let traced = tracefs::traced()?;
    tracefs::set("current_tracer", "nop")?;
    if traced < 2 * made {
        return Err(format!("{traced} events of {made} calls"));
    }
    Ok(format!("during {calls} calls; {traced} events of {made} calls"))
}
