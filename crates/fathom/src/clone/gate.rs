//! Clones that are started together begin to run together.
//!
//! A guest that runs takes its part of the processors from those that are still being started: of a hundred busy ones
//! the last would run after seconds. So each stands when it is ready, and the end of a pipe, which all wait for, lets
//! them go; it comes, too, if who starts them dies.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::Child;

use rustix::io::FdFlags;
use rustix::pipe::{PipeFlags, pipe_with};

/// What a clone says that stands at the gate.
const STANDS: u8 = b'.';

/// At the side of who starts them.
pub(super) struct Gate {
    /// Inherited by what this process starts.
    awaited: OwnedFd,
    /// Closed, it lets them go; nobody else has it.
    closed: OwnedFd,
}

impl Gate {
    pub(super) fn new() -> io::Result<Self> {
        let (awaited, closed) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::fcntl_setfd(&awaited, FdFlags::empty())?;
        Ok(Self { awaited, closed })
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.awaited.as_fd().as_raw_fd()
    }

    /// Lets them go when each stands there, or has failed: of those, the first byte of what they said.
    pub(super) fn open<'a>(self, children: impl Iterator<Item = &'a mut Child>) -> Vec<Vec<u8>> {
        let said = children.map(|child| {
            let mut said = [0];
            let errors = child.stderr.as_mut();
            match errors.map(|errors| errors.read_exact(&mut said)) {
                Some(Ok(())) if said != [STANDS] => said.to_vec(),
                _ => Vec::new(),
            }
        });
        let said = said.collect();
        drop(self.closed);
        said
    }
}

/// At the side of a clone: tells that it stands there, and returns when it may go.
pub(super) fn stand(awaited: &mut File, mut client: &File) {
    // Who has left in the meantime has closed it.
    let _ = client.write_all(&[STANDS]);
    // `read_to_end` would ask for the length first, which this thread may not.
    while let Err(error) = awaited.read(&mut [0]) {
        if error.kind() != io::ErrorKind::Interrupted {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// Each says that it stands, or fails; none goes before all have said so.
    #[test]
    fn all_go_when_each_stands_or_has_failed() {
        let gate = Gate::new().unwrap();
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).stderr(Stdio::piped()).spawn().unwrap()
        };
        let fd = gate.descriptor();
        // Some shells know no descriptors above 9.
        let stands = format!("printf . >&2; cat /proc/self/fd/{fd}; printf + >&2");
        let late = format!("sleep 0.2; {stands}");
        let mut children = [shell(&stands), shell("echo 'fathom: no' >&2"), shell(&late)];
        children.iter_mut().for_each(|child| assert!(child.try_wait().is_ok()));
        assert_eq!(gate.open(children.iter_mut()), [vec![], b"f".to_vec(), vec![]]);
        let rest = children.map(|mut child| {
            let mut rest = String::new();
            child.stderr.take().unwrap().read_to_string(&mut rest).unwrap();
            child.wait().unwrap();
            rest
        });
        assert_eq!(rest, ["+", "athom: no\n", "+"]);
    }
}
