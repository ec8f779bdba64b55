//! Descriptors that came from whoever started the process.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::ConfineError;

/// The first one beside standard input, output and error.
const FIRST: RawFd = 3;

/// Closes every descriptor above standard error, but for `keep`, which the user passed on purpose.
///
/// To be called first in `main`, before this process has opened anything of its own.
///
/// # Errors
/// The host refuses; or a thread runs already, whose files these might be.
pub fn close_inherited(keep: &[RawFd]) -> Result<(), ConfineError> {
    let action = "close inherited descriptors";
    let failed = || ConfineError::host(action);
    if threads().map_err(failed())? != 1 {
        return Err(failed()(io::Error::other("other threads run already")));
    }
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|&fd| fd >= FIRST).collect();
    keep.sort_unstable();
    let mut first = FIRST;
    for fd in keep {
        close(first, fd - 1).map_err(failed())?;
        first = fd + 1;
    }
    close(first, RawFd::MAX).map_err(failed())
}

/// Another descriptor of what an inherited one, `fd`, is of, for who was told its number and wants to own one. Programs
/// that are started later inherit neither.
///
/// # Errors
/// There is none of that number.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the calls take no memory of ours. The second answers a new descriptor, which nobody else can own.
    unsafe {
        let kept = libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        let new = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, FIRST);
        if kept < 0 || new < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(new))
    }
}

fn threads() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

/// Closes `first` to `last`, both included.
fn close(first: RawFd, last: RawFd) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // By number, for C libraries older than the call.
    // SAFETY: the call takes no memory of ours. That nothing in this process owns a descriptor in the range
    // is the contract of `close_inherited`, which has seen that no other thread could have opened one.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    match (done, io::Error::last_os_error()) {
        (0, _) => Ok(()),
        (_, error) if error.raw_os_error() == Some(libc::ENOSYS) => close_one_by_one(first, last),
        (_, error) => Err(error),
    }
}

/// Before Linux 5.9.
fn close_one_by_one(first: RawFd, last: RawFd) -> io::Result<()> {
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|fd| (first..=last).contains(fd))
        .collect();
    for fd in open {
        // SAFETY: as in `close`. The descriptor of the directory read above is closed already, which makes
        // this fail and harms nobody.
        unsafe { libc::close(fd) };
    }
    Ok(())
}
