//! Processes: talking to each other, made and ended.

use super::{Job, Workload};
use std::fs::File;
use std::io::{Error, Read, Result, Write};
use std::os::fd::FromRawFd;
use std::process::{Command, Stdio};

pub(super) const WORKLOADS: [Workload; 3] = [
    Workload { name: "pipe", group: "process", amount: 5_000, cpus: 1, run: pipe },
    Workload { name: "fork", group: "process", amount: 200, cpus: 1, run: fork },
    Workload { name: "exec", group: "process", amount: 60, cpus: 1, run: exec },
];

/// A byte to another process and back. Amount: both ways, so many times.
fn pipe(job: &Job<'_>) -> Result<()> {
    ping_pong(job)
}

/// Wherever the two processes run.
pub(super) fn ping_pong(job: &Job<'_>) -> Result<()> {
    let (mut from_parent, mut to_child) = pair()?;
    let (mut from_child, mut to_parent) = pair()?;
    // SAFETY: the child reads and writes descriptors and ends; it allocates nothing.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(to_child);
        let mut byte = [0];
        while from_parent.read(&mut byte).is_ok_and(|count| count == 1) {
            byte[0] = byte[0].wrapping_add(1);
            if to_parent.write(&byte).is_err() {
                break;
            }
        }
        end_child();
    }
    if child < 0 {
        return Err(Error::last_os_error());
    }
    let measured = job.measure(|| {
        let (mut byte, mut checksum) = ([0], 0_u64);
        for _ in 0..job.amount {
            to_child.write_all(&byte)?;
            from_child.read_exact(&mut byte)?;
            checksum += u64::from(byte[0]);
        }
        Ok(checksum)
    });
    drop(to_child);
    await_child(child)?;
    measured
}

fn pair() -> Result<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` takes two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: two open descriptors that nothing else owns.
    Ok(unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) })
}

/// A child that ends at once, and the wait for it. Amount: children.
fn fork(job: &Job<'_>) -> Result<()> {
    job.measure(|| {
        let mut ended = 0;
        for _ in 0..job.amount {
            // SAFETY: the child ends without touching anything.
            let child = unsafe { libc::fork() };
            if child == 0 {
                end_child();
            }
            ended += u64::from(await_child(child)?);
        }
        Ok(ended)
    })
}

fn end_child() -> ! {
    // SAFETY: ends the process without running anything of the parent's.
    unsafe { libc::_exit(0) }
}

/// Whether it ended well.
fn await_child(child: libc::pid_t) -> Result<bool> {
    let mut status = 0;
    // SAFETY: `status` takes the child's.
    let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
    if ended == child { Ok(status == 0) } else { Err(Error::last_os_error()) }
}

/// This program started anew to do nothing, and the wait for it. Amount: starts.
fn exec(job: &Job<'_>) -> Result<()> {
    let this = std::env::current_exe()?;
    job.measure(|| {
        let mut ended = 0;
        for _ in 0..job.amount {
            let status = Command::new(&this).arg("boot").stdin(Stdio::null()).status()?;
            ended += u64::from(status.success());
        }
        Ok(ended)
    })
}
