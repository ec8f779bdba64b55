//! The kernel's tracing files.

use super::{Result, read, write};
use std::fs;

const FOLDER: &str = "/sys/kernel/tracing";

pub(crate) fn mount() -> Result<()> {
    if fs::exists(path("trace")).unwrap_or(false) {
        return Ok(());
    }
    crate::sys::mount("tracefs", FOLDER, "tracefs", 0)
        .map_err(|error| format!("mount {FOLDER}: {error}"))
}

pub(crate) fn path(file: &str) -> String {
    format!("{FOLDER}/{file}")
}

pub(crate) fn set(file: &str, text: &str) -> Result<()> {
    write(&path(file), text)
}

/// Make a file's content nothing else than this.
pub(crate) fn replace(file: &str, text: &str) -> Result<()> {
    fs::write(path(file), text).map_err(|error| format!("write {text:?} to {file}: {error}"))
}

pub(crate) fn forget_trace() -> Result<()> {
    replace("trace", "")
}

/// What was traced since it was forgotten, on all processors, kept or not.
pub(super) fn traced() -> Result<u64> {
    counted(crate::sys::cpus_online(), &["entries: ", "overrun: "])
}

/// The sum of counters of so many processors' buffers.
pub(crate) fn counted(cpus: u64, names: &[&str]) -> Result<u64> {
    let mut count = 0;
    for cpu in 0..cpus {
        let stats = read(&path(&format!("per_cpu/cpu{cpu}/stats")))?;
        for line in stats.lines() {
            if let Some(number) = names.iter().find_map(|name| line.strip_prefix(name)) {
                count += number.trim().parse::<u64>().map_err(|_| stats.clone())?;
            }
        }
    }
    Ok(count)
}

/// How often a probe was hit; that it missed some is an error.
pub(super) fn hits(profile: &str, probe: &str) -> Result<u64> {
    let text = read(&path(profile))?;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(at) = words.iter().position(|word| *word == probe) else { continue };
        let numbers: Vec<u64> =
            words[at + 1..].iter().filter_map(|word| word.parse().ok()).collect();
        return match numbers[..] {
            [hits] | [hits, 0] => Ok(hits),
            _ => Err(format!("{line}: hits were missed")),
        };
    }
    Err(format!("{profile} has no {probe}: {text}"))
}
