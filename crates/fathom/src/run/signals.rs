//! Signals that ask the process to end, turned into an orderly end of the VM: disks flushed, terminal
//! restored, socket removed.

use std::io;
use std::thread::{self, JoinHandle};

use confine::Thread;
use devices::terminal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use signal_hook::low_level::emulate_default_handler;
use vmm::VmHandle;

/// Watches until dropped.
pub(super) struct StopSignals {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl StopSignals {
    /// The first signal stops the VM. The second, for the case that stopping hangs, ends the process as it
    /// would have without us, but for the terminal.
    pub(super) fn watch(vm: VmHandle) -> io::Result<Self> {
        let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])?;
        let handle = signals.handle();
        let builder = thread::Builder::new().name("signals".to_owned());
        let thread = confine::spawn(builder, Thread::Signals, move || {
            let mut signals = signals.forever();
            if signals.next().is_some() {
                vm.stop();
            }
            if let Some(signal) = signals.next() {
                terminal::restore();
                // Fails only for signals that cannot be watched.
                let _ = emulate_default_handler(signal);
            }
        })?;
        Ok(Self { handle, thread: Some(thread) })
    }
}

impl Drop for StopSignals {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            // It cannot panic, and if it has, there is nothing left to watch.
            let _ = thread.join();
        }
    }
}
