//! The signals that end a process, as an event.

use std::fmt;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use event_manager::{EventOps, EventSet, EventSubscriber, Events};
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::flag;
use signal_hook::low_level::{pipe, unregister};

/// Reports SIGHUP, SIGINT, SIGQUIT and SIGTERM to the event loop, so that the machine is stopped
/// in order: disks flushed, terminal restored.
///
/// While an orderly stop is under way a second signal kills the process as it would have without
/// this value, for the case that the stop itself hangs.
pub struct ExitSignals {
    reader: UnixStream,
    registered: Vec<SigId>,
    on_signal: Box<dyn Fn() + Send + Sync>,
}

impl ExitSignals {
    /// From here on these signals call `on_signal`, on the thread that runs the event loop.
    ///
    /// # Errors
    /// The host is out of file descriptors.
    pub fn new(on_signal: impl Fn() + Send + Sync + 'static) -> io::Result<Self> {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        let mut signals = Self { reader, registered: Vec::new(), on_signal: Box::new(on_signal) };
        let stopping = Arc::new(AtomicBool::new(false));
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
            // In this order: the first signal finds the flag down and then raises it.
            let second = flag::register_conditional_default(signal, Arc::clone(&stopping))?;
            signals.registered.push(second);
            signals.registered.push(flag::register(signal, Arc::clone(&stopping))?);
            signals.registered.push(pipe::register(signal, writer.try_clone()?)?);
        }
        Ok(signals)
    }

    /// Empties the pipe; true if there was a signal.
    fn take(&self) -> bool {
        let (mut bytes, mut any) = ([0; 16], false);
        while matches!((&self.reader).read(&mut bytes), Ok(n) if n > 0) {
            any = true;
        }
        any
    }
}

impl EventSubscriber for ExitSignals {
    fn init(&self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.reader, EventSet::IN)) {
            tracing::warn!("exit signals: {error}: a signal kills the process at once");
        }
    }

    fn process(&self, _events: Events, _ops: &mut EventOps<'_>) {
        if self.take() {
            (self.on_signal)();
        }
    }
}

impl Drop for ExitSignals {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            unregister(id);
        }
    }
}

impl fmt::Debug for ExitSignals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExitSignals").finish_non_exhaustive()
    }
}
