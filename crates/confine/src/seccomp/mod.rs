//! Which system calls a thread may make: a filter for the process, and a narrower one for each kind of
//! thread. The rules are data: see the folder `seccomp` of this crate and its README.

mod calls;
mod compile;
mod rules;
mod values;
mod violation;

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;
use std::thread::{Builder, JoinHandle};

use serde::Deserialize;

use crate::{ConfineError, Missing};
use compile::Programs;

/// A kind of thread.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Thread {
    /// The one that waits for the end.
    Main,
    /// Builds machines.
    Supervisor,
    /// Runs guest code.
    Vcpu,
    /// Devices work here.
    Io,
    /// Ends epochs.
    WorkingSet,
    /// Serves the API.
    Api,
    /// Waits for signals.
    Signals,
    /// Writes console output.
    Console,
    /// Serves the debugger.
    Gdb,
    /// Answers faults of a guest on KVM.
    Userfault,
    /// Reads the memory of a restored machine.
    Restore,
}

/// What a VM has that takes system calls of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Having {
    /// The KVM engine.
    Kvm,
    /// The translator's engine.
    Translate,
    /// A debugger's socket.
    Gdb,
    /// Network interfaces.
    Net,
    /// A virtio-vsock.
    Vsock,
}

impl Thread {
    /// All kinds.
    pub const ALL: [Self; 11] = [
        Self::Main,
        Self::Supervisor,
        Self::Vcpu,
        Self::Io,
        Self::WorkingSet,
        Self::Api,
        Self::Signals,
        Self::Console,
        Self::Gdb,
        Self::Userfault,
        Self::Restore,
    ];

    /// The data file.
    const fn file(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Supervisor => "supervisor",
            Self::Vcpu => "vcpu",
            Self::Io => "io",
            Self::WorkingSet => "working-set",
            Self::Api => "api",
            Self::Signals => "signals",
            Self::Console => "console",
            Self::Gdb => "gdb",
            Self::Userfault => "userfault",
            Self::Restore => "restore",
        }
    }
}

/// The programs of threads, once the process has confined itself.
static THREADS: OnceLock<BTreeMap<Thread, Programs>> = OnceLock::new();

/// Puts up the filter of the process, on this thread and those that it will start.
pub(crate) fn restrict(having: &[Having]) -> Result<Option<Missing>, ConfineError> {
    // rustix finds the kernel's functions once; before Linux 6.4 it opens a file for that.
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (process, threads) = compile::all(having).map_err(ConfineError::Filter)?;
    violation::watch().map_err(ConfineError::host("handle SIGSYS"))?;
    match process.apply() {
        Err(seccompiler::Error::Seccomp(error) | seccompiler::Error::Prctl(error))
            if error.raw_os_error() == Some(libc::EINVAL)
                || error.raw_os_error() == Some(libc::ENOSYS) =>
        {
            let why = "not in this kernel: the process can make every system call".to_owned();
            return Ok(Some(Missing { wall: "seccomp", why }));
        }
        result => result.map_err(|error| ConfineError::Filter(error.to_string()))?,
    }
    // Twice only in tests.
    let _ = THREADS.set(threads);
    Ok(None)
}

/// Narrows what the calling thread may do to what its kind needs, if the process is confined.
///
/// # Errors
/// The host refuses: the thread must not go on.
pub fn enter(thread: Thread) -> io::Result<()> {
    let Some(programs) = THREADS.get().and_then(|threads| threads.get(&thread)) else {
        return Ok(());
    };
    violation::name_thread(thread.file());
    programs.apply().map_err(|error| io::Error::other(format!("seccomp filter: {error}")))
}

/// Starts a thread that is narrowed to `thread` before it does anything else.
///
/// Does not wait until it is: a host that refuses the filter now, although it took that of the process, ends
/// the process.
///
/// # Errors
/// The host refuses the thread.
pub fn spawn(
    builder: Builder,
    thread: Thread,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    builder.spawn(move || match enter(thread) {
        Ok(()) => body(),
        Err(error) => violation::give_up(&format!("thread {}: {error}", thread.file())),
    })
}

impl Programs {
    fn apply(&self) -> seccompiler::Result<()> {
        // The one that traps is first, and lets the call through that puts up the others.
        self.0.iter().try_for_each(|program| seccompiler::apply_filter(program))
    }
}
