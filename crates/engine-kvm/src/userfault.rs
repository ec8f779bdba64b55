//! Page faults that we answer: the guest wants a frame that is absent, or writes to memory that is frozen.
//!
//! The mapping is registered with userfaultfd(2) for two things. *Missing* faults, on ranges that held an
//! absent frame: the handler thread resolves the frame through the table, which puts its contents into the
//! file, and lets the guest look again. And *write-protect* on everything, although nothing is
//! protected but while memory is frozen: on such a range the kernel does not map a read page's neighbours along
//! with it, which would count them as accessed.
//!
//! While memory is frozen all of the mapping is write-protected. The first write to a frame, by the guest or by the
//! host's kernel for it, waits until the thread has had its contents kept. Anonymous memory is registered for that
//! time only: there devices write by the same mapping, after they have had the contents kept themselves.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use confine::Thread;
use engine::EngineError;
use memory::{Access, FRAME_SIZE, Frame, FrameRange, GuestMemory, ResolveError, UserFaults, waits};
use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use crate::error::host;
use crate::guest_ram::GuestRam;
use crate::uffd::{FaultKind, Mode, Uffd};

/// How long a fetch may take when the VM has ended.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks whether it has.
const LOOK: Duration = Duration::from_millis(1);

/// The descriptor, the ranges that it reports, and the thread that answers.
pub(crate) struct UserFaultHandler {
    uffd: Uffd,
    kind: UserFaults,
    /// Started with the first absent frame or the first freeze.
    thread: Mutex<Option<Answering>>,
    failed: Mutex<Failed>,
}

/// Frames that could not be fetched: the guest's accesses to them fail until somebody has been told.
#[derive(Default)]
struct Failed {
    frames: BTreeMap<Frame, ResolveError>,
    /// Times that frames were taken from here. vCPUs that have met the same failure find it changed.
    taken: u64,
}

/// Why a run failed.
pub(crate) enum Failure {
    /// A source may give the frame later.
    Unavailable(Frame),
    /// The contents of a frame are lost.
    Lost(String),
    /// Another vCPU has been told meanwhile.
    Told,
}

struct Answering {
    stop: Arc<EventFd>,
    thread: thread::JoinHandle<()>,
}

impl UserFaultHandler {
    /// Opens the descriptor with as much power as this process may have. `None` where the host's kernel does
    /// not have it.
    pub(crate) fn open() -> Option<Self> {
        let (uffd, kind) = [UserFaults::All, UserFaults::UserMode]
            .into_iter()
            .find_map(|kind| Uffd::open(kind).ok().map(|uffd| (uffd, kind)))?;
        Some(Self { uffd, kind, thread: Mutex::default(), failed: Mutex::default() })
    }

    /// Registers all of `ram`, which is a file's, for write protection.
    pub(crate) fn cover(&self, ram: &GuestRam) -> std::io::Result<()> {
        let (start, bytes) = span(ram, ram.all());
        self.uffd.register(start, bytes, Mode::WriteProtect)
    }

    /// From now on the guest's first access to a frame of `ranges` without a page waits for the table.
    pub(crate) fn watch(
        self: &Arc<Self>,
        ram: &Arc<GuestRam>,
        memory: &Weak<GuestMemory>,
        ranges: &[FrameRange],
    ) -> Result<(), EngineError> {
        self.may_take_all("absent frames")?;
        self.start(ram, memory)?;
        for &range in ranges {
            let (start, bytes) = span(ram, range);
            self.uffd
                .register(start, bytes, Mode::MissingAndWriteProtect)
                .map_err(host("register absent frames with userfaultfd"))?;
        }
        Ok(())
    }

    /// From now on the guest's first write to each frame waits for the table. On an error nothing is protected.
    pub(crate) fn protect(
        self: &Arc<Self>,
        ram: &Arc<GuestRam>,
        memory: &Weak<GuestMemory>,
    ) -> Result<(), EngineError> {
        self.may_take_all("frozen memory")?;
        self.start(ram, memory)?;
        let (start, bytes) = span(ram, ram.all());
        if is_anonymous(memory) {
            self.uffd
                .register(start, bytes, Mode::WriteProtect)
                .map_err(host("register guest memory with userfaultfd"))?;
        }
        let protected = self.uffd.write_protect(start, bytes, true);
        if protected.is_err() {
            self.unprotect(ram, memory, ram.all());
        }
        protected.map_err(host("write-protect guest memory with userfaultfd"))
    }

    /// The guest may write to these frames, and those who wait to go on.
    pub(crate) fn unprotect(&self, ram: &GuestRam, memory: &Weak<GuestMemory>, range: FrameRange) {
        let (start, bytes) = span(ram, range);
        if let Err(error) = self.uffd.write_protect(start, bytes, false) {
            tracing::error!("let the guest write again: {error}: it may hang");
        }
        if range == ram.all()
            && is_anonymous(memory)
            && let Err(error) = self.uffd.unregister(start, bytes)
        {
            tracing::error!("unregister guest memory from userfaultfd: {error}");
        }
    }

    fn may_take_all(&self, what: &str) -> Result<(), EngineError> {
        if self.kind == UserFaults::All {
            return Ok(());
        }
        Err(EngineError::Unsupported(format!(
            "{what}: KVM's page faults may not be taken by this process: set \
             vm.unprivileged_userfaultfd=1 or give access to /dev/userfaultfd"
        )))
    }

    /// How often failures were taken, to be given to [`Self::take_failure`] after a run.
    pub(crate) fn failures_taken(&self) -> u64 {
        self.failed().taken
    }

    /// Why the guest could not have a frame, where that is why a run failed that began when failures had been `taken` so
    /// often. Lets it try again.
    pub(crate) fn take_failure(&self, ram: &GuestRam, taken: u64) -> Option<Failure> {
        let mut failed = self.failed();
        let frames = std::mem::take(&mut failed.frames);
        for &frame in frames.keys() {
            if let Err(error) = ram.forbid(frame, false) {
                tracing::error!("allow frame {frame} again: {error}");
            }
        }
        let lost = frames.values().find(|error| !error.may_pass()).map(ToString::to_string);
        let first = frames.keys().next().copied();
        failed.taken += u64::from(first.is_some());
        let unavailable = first.map(Failure::Unavailable);
        let told = (failed.taken != taken).then_some(Failure::Told);
        lost.map(Failure::Lost).or(unavailable).or(told)
    }

    fn start(
        self: &Arc<Self>,
        ram: &Arc<GuestRam>,
        memory: &Weak<GuestMemory>,
    ) -> Result<(), EngineError> {
        let mut running = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_some() {
            return Ok(());
        }
        let stop = Arc::new(EventFd::new(EFD_CLOEXEC).map_err(host("create an eventfd"))?);
        let asked = Arc::clone(&stop);
        let (handler, ram, memory) = (Arc::clone(self), Arc::clone(ram), Weak::clone(memory));
        let builder = thread::Builder::new().name("userfault".into());
        let thread = confine::spawn(builder, Thread::Userfault, move || {
            handler.answer_faults(&asked, &ram, &memory);
        })
        .map_err(host("start the userfault thread"))?;
        *running = Some(Answering { stop, thread });
        Ok(())
    }

    /// Ends the thread. No vCPU runs any more. One that hangs in a fetch is left behind: its source may never answer.
    pub(crate) fn stop(&self) {
        let running = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Answering { stop, thread }) = running else { return };
        if stop.write(1).is_err() {
            return;
        }
        let deadline = Instant::now() + PATIENCE;
        while !thread.is_finished() {
            if Instant::now() >= deadline {
                tracing::error!(
                    "a source of guest memory does not answer: its thread is left behind"
                );
                return;
            }
            thread::sleep(LOOK);
        }
        let _ = thread.join();
    }

    fn answer_faults(&self, stop: &EventFd, ram: &GuestRam, memory: &Weak<GuestMemory>) {
        loop {
            let mut wanted = [
                PollFd::new(&self.uffd, PollFlags::IN),
                PollFd::from_borrowed_fd(event_fd(stop), PollFlags::IN),
            ];
            match poll(&mut wanted, None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => {
                    tracing::error!("wait for page faults: {error}: the guest will hang");
                    return;
                }
                Ok(_) if !wanted[1].revents().is_empty() => return,
                Ok(_) => {}
            }
            let Some(memory) = memory.upgrade() else { return };
            while let Ok(Some(fault)) = self.uffd.next_fault() {
                let Some(frame) = ram.frame_at(fault.address) else { continue };
                waits::in_place_of(fault.thread, || match fault.kind {
                    FaultKind::Missing => self.answer(frame, ram, &memory),
                    FaultKind::Protected => self.answer_write(frame, ram, &memory),
                });
            }
        }
    }

    /// Puts the frame's contents into the file and lets the guest look again; or makes the guest's access
    /// fail, so that its run ends with an error.
    fn answer(&self, frame: Frame, ram: &GuestRam, memory: &GuestMemory) {
        let outcome = match memory.resolve(frame, Access::Read) {
            Ok(page) => {
                // SAFETY: the page of a resident frame is mapped; a frame that was untouched gets its
                // page in the file by this read, and the value does not matter.
                let _ = unsafe { page.as_ptr().read_volatile() };
                Ok(())
            }
            Err(error) => {
                self.failed().frames.insert(frame, error);
                ram.forbid(frame, true)
            }
        };
        if let Err(error) = outcome {
            tracing::error!("forbid frame {frame}: {error}: the guest waits for it for ever");
            return;
        }
        let (start, bytes) = span(ram, FrameRange { first: frame, count: 1 });
        if let Err(error) = self.uffd.wake(start, bytes) {
            tracing::error!("wake the guest at frame {frame}: {error}");
        }
    }

    /// Has the frame's contents kept and lets the guest write.
    fn answer_write(&self, frame: Frame, ram: &GuestRam, memory: &GuestMemory) {
        // It has a page, and a frame with a page is no source's.
        if let Err(error) = memory.resolve(frame, Access::Write) {
            tracing::error!("frame {frame} is written: {error}");
        }
        let (start, bytes) = span(ram, FrameRange { first: frame, count: 1 });
        if let Err(error) = self.uffd.write_protect(start, bytes, false) {
            tracing::error!("let the guest write to frame {frame}: {error}: it hangs");
        }
    }

    fn failed(&self) -> MutexGuard<'_, Failed> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn event_fd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: open as long as `event`.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

fn is_anonymous(memory: &Weak<GuestMemory>) -> bool {
    memory.upgrade().is_some_and(|memory| memory.is_anonymous())
}

fn span(ram: &GuestRam, range: FrameRange) -> (u64, u64) {
    (ram.address(range.first), u64::from(range.count) * FRAME_SIZE as u64)
}

#[cfg(test)]
#[path = "userfault_tests.rs"]
mod tests;
