//! Processors: those that run are what the host says, as far as they are there
//! (Documentation/core-api/cpu_hotplug.rst).

use std::fs;
use std::path::{Path, PathBuf};

use crate::files;

const FOLDER: &str = "/sys/devices/system/cpu";
/// As Linux can have (CONFIG_NR_CPUS of x86-64 at most).
const CPUS_MAX: u32 = 8192;

/// How many there are, and how many run.
pub(crate) fn present_and_online() -> (u32, u32) {
    let count =
        |name: &str| files::line(Path::new(FOLDER).join(name)).map_or(0, |list| count(&list));
    (count("present"), count("online").max(1))
}

/// Has the first `wanted` run, and no others.
pub(crate) fn run(wanted: u32) -> Result<String, String> {
    let (present, _) = present_and_online();
    if wanted == 0 || wanted > present {
        return Err(format!("{wanted} are asked, 1 to {present} can be"));
    }
    for cpu in 0..present.min(CPUS_MAX) {
        set(cpu, cpu < wanted)?;
    }
    Ok(format!("{} of {present} run", present_and_online().1))
}

fn set(cpu: u32, online: bool) -> Result<(), String> {
    let file = switch(cpu);
    let state = match files::line(&file) {
        Ok(state) => state,
        // The first one has no switch, and always runs.
        Err(_) if online || cpu == 0 => return Ok(()),
        Err(error) => return Err(format!("processor {cpu} cannot be stopped: {error}")),
    };
    let digit = if online { "1" } else { "0" };
    if state == digit {
        return Ok(());
    }
    let verb = if online { "started" } else { "stopped" };
    fs::write(&file, digit).map_err(|error| format!("processor {cpu} cannot be {verb}: {error}"))
}

fn switch(cpu: u32) -> PathBuf {
    Path::new(FOLDER).join(format!("cpu{cpu}/online"))
}

/// Of a list as the kernel writes them, `0-3,8`.
fn count(list: &str) -> u32 {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.split(',').filter_map(range).fold(0, u32::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_counted() {
        for (list, expected) in [("0", 1), ("0-3", 4), ("0-1,4,6-7", 5), ("", 0), ("3-1", 0)] {
            assert_eq!(count(list), expected, "{list}");
        }
    }

    #[test]
    fn none_and_more_than_there_are_cannot_run() {
        assert!(run(0).is_err() && run(u32::MAX).is_err());
    }
}
