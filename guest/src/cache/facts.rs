//! What it takes to read the events, one fact a line.
//!
//! ```text
//! begin TSC NANOSECONDS            the load began; end: it ended
//! lost COUNT
//! event NAME ID FIELD:OFFSET:SIZE ..
//! symbol NAME FIRST END            a function's addresses, hexadecimal
//! disk NAME DEVICE                 a device's number as in events: major << 20 | minor
//! mount DEVICE KIND FOLDER
//! swap NUMBER DEVICE
//! extent DEVICE INODE TSC PAGE BLOCK COUNT
//! free FRAME COUNT                 frames that nobody had after the end
//! vmstat begin|end NAME VALUE
//! ```

use super::extents;
use super::place::{FOLDER, Place};
use super::tracer::{self, Traced};
use crate::patching::tracefs;
use crate::sys;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Error, Read, Result};
use std::os::unix::fs::MetadataExt;

/// One moment by two clocks.
#[derive(Clone, Copy)]
pub(super) struct Instant {
    tsc: u64,
    pub(super) nanoseconds: u64,
}

pub(super) type Counters = Vec<(String, u64)>;

/// Counters of /proc/vmstat that say what the page cache did; those that begin so.
const COUNTERS: [&str; 9] = [
    "nr_file_pages",
    "pgpgin",
    "pgpgout",
    "pgsteal_",
    "workingset_refault_",
    "pswpin",
    "pswpout",
    "pgmigrate_success",
    "pginodesteal",
];

/// Who removes pages one by one.
const CALLERS: [&str; 2] = ["__remove_mapping", "filemap_remove_folio"];

pub(super) fn tsc() -> u64 {
    // SAFETY: a processor of x86-64 has it, and Linux lets programs use it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Of several attempts that in which both clocks were read within the shortest time: on a busy host a vCPU stands for
/// some hundred milliseconds, perhaps between the two.
pub(super) fn now() -> Instant {
    const ATTEMPTS: usize = 50;
    let attempt = |_| {
        let before = tsc();
        let nanoseconds = sys::clock(libc::CLOCK_MONOTONIC);
        (tsc() - before, Instant { tsc: before, nanoseconds })
    };
    let (gap, first) = attempt(0);
    let all = (1..ATTEMPTS).map(attempt);
    all.fold((gap, first), |best, next| if next.0 < best.0 { next } else { best }).1
}

pub(super) fn vmstat() -> Counters {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let counters = text.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        COUNTERS.iter().any(|wanted| name.starts_with(wanted)).then_some(())?;
        Some((name.to_owned(), value.parse().ok()?))
    });
    counters.collect()
}

/// The kernel's own number of a device, from that of its programs.
pub(super) fn device(number: u64) -> u64 {
    u64::from(libc::major(number)) << 20 | u64::from(libc::minor(number))
}

pub(super) fn text(
    place: &Place,
    traced: &Traced,
    time: [Instant; 2],
    counters: [&Counters; 2],
    free: &[[u32; 2]],
) -> Result<String> {
    let mut text = String::new();
    for ((state, time), counters) in ["begin", "end"].into_iter().zip(time).zip(counters) {
        let _ = writeln!(text, "{state} {} {}", time.tsc, time.nanoseconds);
        for (name, value) in counters {
            let _ = writeln!(text, "vmstat {state} {name} {value}");
        }
    }
    for [first, count] in free {
        let _ = writeln!(text, "free {first} {count}");
    }
    let _ = writeln!(text, "lost {}", traced.lost);
    for name in tracer::events() {
        text += &event(name).map_err(Error::other)?;
    }
    text += &symbols(&fs::read_to_string("/proc/kallsyms")?);
    disks(&mut text)?;
    swaps(&mut text)?;
    sys::sync();
    let mount = device(fs::metadata(FOLDER)?.dev());
    let _ = writeln!(text, "mount {mount} {} {FOLDER}", kind_of_mount());
    text += &place.gone.borrow();
    for folder in place.folders.borrow().iter() {
        extents::of_folder(folder, fs::metadata(folder)?.dev(), &mut text)?;
    }
    Ok(text)
}

/// Runs of frames that are free, by /proc/kpageflags, eight bytes a frame (Linux, Documentation/admin-guide/mm/pagemap.rst).
/// Takes next to no memory itself, for what it takes is free no more.
pub(super) fn free() -> Result<Vec<[u32; 2]>> {
    /// `KPF_BUDDY`. What a CPU keeps for its next allocations has no flag at all, nor has some of the kernel's own
    /// memory, hardly any of which is taken while a load runs.
    const FREE: u64 = 1 << 10;
    let mut file = File::open("/proc/kpageflags")?;
    let mut flags = [0; 4096];
    let (mut runs, mut frame): (Vec<[u32; 2]>, u32) = (Vec::new(), 0);
    loop {
        let read = file.read(&mut flags)?;
        if read == 0 {
            return Ok(runs);
        }
        for of in flags[..read].chunks_exact(8) {
            let flags = of.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
            match runs.last_mut() {
                _ if flags != 0 && flags & FREE == 0 => {}
                Some([first, count]) if *first + *count == frame => *count += 1,
                _ => runs.push([frame, 1]),
            }
            frame += 1;
        }
    }
}

fn event(name: &str) -> std::result::Result<String, String> {
    let path = tracefs::path(&format!("events/{name}/format"));
    let format = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let short = name.rsplit('/').next().unwrap_or(name);
    fields(short, &format).ok_or_else(|| format!("{path}: has no ID"))
}

/// From the kernel's description of an event (Documentation/trace/events.rst).
fn fields(name: &str, format: &str) -> Option<String> {
    let id = format.lines().find_map(|line| line.strip_prefix("ID: "))?;
    let mut text = format!("event {name} {id}");
    for line in format.lines().filter_map(|line| line.trim_start().strip_prefix("field:")) {
        let mut parts = line.split(';').map(str::trim);
        let field = parts.next()?.rsplit(' ').next()?;
        let offset = parts.next()?.strip_prefix("offset:")?;
        let size = parts.next()?.strip_prefix("size:")?;
        let _ = write!(text, " {field}:{offset}:{size}");
    }
    Some(text + "\n")
}

/// From where to where the callers' code goes: as far as the next symbol.
fn symbols(kallsyms: &str) -> String {
    let symbols = kallsyms.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((address, words.nth(1)?))
    });
    let symbols: Vec<_> = symbols.collect();
    let mut text = String::new();
    for (start, name) in symbols.iter().filter(|(_, name)| CALLERS.contains(name)) {
        let after = symbols.iter().map(|(address, _)| *address).filter(|address| address > start);
        let _ = writeln!(text, "symbol {name} {start:x} {:x}", after.min().unwrap_or(u64::MAX));
    }
    text
}

fn disks(text: &mut String) -> Result<()> {
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        let (name, number) = (entry.file_name(), fs::read_to_string(entry.path().join("dev"))?);
        let numbers = number.trim().split_once(':');
        let numbers =
            numbers.and_then(|(a, b)| Some((a.parse::<u64>().ok()?, b.parse::<u64>().ok()?)));
        let Some((major, minor)) = numbers else { continue };
        let _ = writeln!(text, "disk {} {}", name.to_string_lossy(), major << 20 | minor);
    }
    Ok(())
}

/// In the order in which they were begun to be used, which is what entries number them by.
fn swaps(text: &mut String) -> Result<()> {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    for (number, line) in swaps.lines().skip(1).enumerate() {
        let path = line.split_whitespace().next().unwrap_or_default();
        let _ = writeln!(text, "swap {number} {}", device(fs::metadata(path)?.rdev()));
    }
    Ok(())
}

fn kind_of_mount() -> String {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(FOLDER));
    line.and_then(|line| line.split(' ').nth(2)).unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_events_fields_come_from_its_format() {
        let format = "name: a\nID: 497\nformat:\n\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
                      \tfield:unsigned long pfn;\toffset:8;\tsize:8;\tsigned:0;\n\nprint fmt: \"\"\n";
        assert_eq!(fields("a", format).unwrap(), "event a 497 common_pid:4:4 pfn:8:8\n");
        assert!(fields("a", "format:\n").is_none());
    }

    #[test]
    fn a_function_ends_where_the_next_symbol_begins() {
        let text = "10 T x\n30 t __remove_mapping\n50 T y\n48 t z\n";
        assert_eq!(symbols(text), "symbol __remove_mapping 30 48\n");
    }

    #[test]
    fn devices_are_numbered_as_in_events() {
        assert_eq!(device(libc::makedev(254, 17)), 254 << 20 | 17);
    }
}
