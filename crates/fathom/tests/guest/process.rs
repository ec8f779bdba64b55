//! What the host's kernel knows of a VM's process.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

/// Name of the file and its mappings.
const GUEST_RAM: &str = "memfd:fathom-guest-ram";
/// Generated code is mapped twice, once to write and once to execute: its pages count once. Shared anonymous memory is
/// called so.
const CODE: &str = "/dev/zero";

/// Resident memory, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Resident {
    /// Of guest RAM: its file, however often that is mapped, and what is anonymous.
    pub(crate) guest: u64,
    /// Of all others: the VMM's own.
    pub(crate) overhead: u64,
}

impl Resident {
    pub(crate) fn of(pid: u32) -> Self {
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("smaps");
        let (anonymous, overhead) = anonymous_and_overhead(&smaps);
        Self { guest: file_bytes(pid) + anonymous, overhead }
    }
}

/// Pages of the file behind guest RAM.
fn file_bytes(pid: u32) -> u64 {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors");
    let is_ram = |path: &PathBuf| {
        fs::read_link(path).is_ok_and(|target| target.to_string_lossy().contains(GUEST_RAM))
    };
    let ram = files.flatten().map(|file| file.path()).find(is_ram).expect("guest RAM's file");
    // Blocks are of 512 bytes whatever the file system.
    ram.metadata().expect("guest RAM's file").blocks() * 512
}

/// Of anonymous guest RAM, and of all that is not guest RAM. Nothing else of ours asks for large pages (`hg`
/// among the flags, which are a mapping's last line).
fn anonymous_and_overhead(smaps: &str) -> (u64, u64) {
    let (mut anonymous, mut overhead, mut resident, mut in_file) = (0, 0, 0, false);
    for line in smaps.lines() {
        if let Some(rest) = line.strip_prefix("Rss:") {
            let kib = rest.trim().trim_end_matches(" kB").parse::<u64>().expect("a size");
            resident = kib << 10;
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            let large = flags.split_whitespace().any(|flag| flag == "hg");
            anonymous += if large { resident } else { 0 };
            overhead += if large || in_file { 0 } else { resident };
        } else if line.starts_with(|c: char| c.is_ascii_digit() || ('a'..='f').contains(&c)) {
            in_file = line.contains(GUEST_RAM) || line.contains(CODE) && line.contains(" r-xs ");
        }
    }
    (anonymous, overhead)
}

/// What a process has of the host's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) threads: usize,
    /// Sockets are among them.
    pub(crate) descriptors: usize,
    pub(crate) overhead: u64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Self {
        let entries = |name| fs::read_dir(format!("/proc/{pid}/{name}")).expect("proc").count();
        let overhead = Resident::of(pid).overhead;
        Self { threads: entries("task"), descriptors: entries("fd"), overhead }
    }
}

/// CPU time of all threads that live.
pub(crate) fn cpu_time(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    // A thread may end between the two looks.
    let times =
        tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
    Duration::from_nanos(times.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum())
}

/// What each thread of each process that this one has started is doing: for who looks at a failure. Some of it
/// only root may see.
pub(crate) fn children() -> String {
    let us = format!("PPid:\t{}", std::process::id());
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    let entries = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten();
    let is_ours = |path: &PathBuf| read(path.join("status")).lines().any(|line| line == us);
    let ours = entries("/proc".into()).map(|entry| entry.path()).filter(is_ours);
    let threads = ours.flat_map(|path| entries(path.join("task")).map(|entry| entry.path()));
    let describe = |path: PathBuf| {
        // State, then time in user mode and in the kernel, behind the name, which may have spaces.
        let stat = read(path.join("stat"));
        let fields: Vec<_> =
            stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let [state, user, kernel] =
            [0, 11, 12].map(|field| fields.get(field).copied().unwrap_or("?"));
        let [name, waits, call] = ["comm", "wchan", "syscall"].map(|file| read(path.join(file)));
        let call = call.split(' ').next().unwrap_or_default().trim();
        format!(
            "{}: {} {state}, ticks {user} + {kernel}, in system call {call}, waits in {waits}\n",
            path.display(),
            name.trim()
        )
    };
    threads.map(describe).collect()
}

pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[test]
fn a_child_that_waits_is_described() {
    let mut child =
        std::process::Command::new("sleep").arg("60").spawn().expect("sleep is everywhere");
    let start = format!("/proc/{0}/task/{0}: ", child.id());
    let described = children();
    child.kill().and_then(|()| child.wait()).expect("its end");
    let line = described.lines().find(|line| line.starts_with(&start));
    assert!(line.is_some_and(|line| line.contains(" ticks 0 + ")), "{described}");
}

#[test]
fn guest_memory_is_told_from_the_rest() {
    let smaps = "\
7f0000000000-7f0010000000 rw-s 00000000 00:01 1029 /memfd:fathom-guest-ram (deleted)
Size:             262144 kB
Rss:               79544 kB
VmFlags: rd wr sh
7f0020000000-7f0030000000 rw-p 00000000 00:00 0
Size:             262144 kB
Rss:               12288 kB
VmFlags: rd wr mr mw me dc nr hg dd
55d000000000-55d000100000 r-xp 00000000 fe:00 12 /usr/bin/fathom
Rss:                3536 kB
VmFlags: rd ex
7f0010000000-7f0010001000 rw-p 00000000 00:00 0
Rss:                   4 kB
VmFlags: rd wr
";
    assert_eq!(anonymous_and_overhead(smaps), (12288 << 10, 3540 << 10));
}
