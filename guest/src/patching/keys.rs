//! Static keys: branches that are instructions, changed when a setting is.

use super::{Result, Test, busy, read, tracefs, write};

pub(super) const TESTS: &[Test] =
    &[("static-keys", settings), ("tracepoints", tracepoints), ("all-tracepoints", all)];

/// Settings behind which there is a key, or that change a branch on every path of the scheduler.
const SETTINGS: [&str; 3] = [
    "/proc/sys/kernel/sched_schedstats",
    "/proc/sys/kernel/bpf_stats_enabled",
    "/proc/sys/kernel/task_delayacct",
];

fn settings(rounds: u64) -> Result<String> {
    let there: Vec<_> = SETTINGS.into_iter().filter(|file| read(file).is_ok()).collect();
    let calls = busy::during(|| {
        for round in 0..rounds * 4 {
            for file in &there {
                write(file, if round % 2 == 0 { "1" } else { "0" })?;
            }
        }
        Ok(())
    })?;
    there.iter().try_for_each(|file| write(file, "0"))?;
    Ok(format!("{} settings {} times during {calls} calls", there.len(), rounds * 4))
}

/// The tracepoint at the entry of the counted call: as many events as calls while it is on, none after.
fn tracepoints(rounds: u64) -> Result<String> {
    const EVENT: &str = "events/syscalls/sys_enter_getpgid/enable";
    let calls = busy::during(|| {
        for _ in 0..rounds {
            tracefs::set(EVENT, "1")?;
            tracefs::set(EVENT, "0")?;
        }
        Ok(())
    })?;
    tracefs::forget_trace()?;
    tracefs::set(EVENT, "1")?;
    let made = busy::call(500)?;
    tracefs::set(EVENT, "0")?;
    busy::call(500)?;
    super::expect("events", tracefs::traced()?, made)?;
    Ok(format!("{rounds} times during {calls} calls"))
}

/// Whole groups of them, in the middle of the scheduler, interrupts, page faults and memory management.
fn all(rounds: u64) -> Result<String> {
    const GROUPS: [&str; 7] = ["sched", "irq", "kmem", "exceptions", "syscalls", "timer", "signal"];
    tracefs::forget_trace()?;
    let calls = busy::during(|| {
        for _ in 0..rounds.div_ceil(5) {
            for switch in ["1", "0"] {
                for group in GROUPS {
                    tracefs::set(&format!("events/{group}/enable"), switch)?;
                }
            }
        }
        Ok(())
    })?;
    let traced = tracefs::traced()?;
    tracefs::forget_trace()?;
    super::expect("whether anything was traced", u64::from(traced > 0), 1)?;
    Ok(format!("{} groups during {calls} calls, {traced} events", GROUPS.len()))
}
