//! Page faults that we answer: the guest wants a frame that is absent.
//!
//! The mapping is registered with userfaultfd(2) for two things. *Missing* faults, on ranges that held an
//! absent frame: the handler thread resolves the frame through the table, which puts its contents into the
//! file, and lets the guest look again. And *write-protect* on everything, although nothing is ever
//! protected: on such a range the kernel does not map a read page's neighbours along with it, which would
//! count them as accessed.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;

use confine::Thread;
use engine::EngineError;
use memory::{Access, FRAME_SIZE, Frame, FrameRange, GuestMemory, UserFaults, waits};
use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

use crate::error::host;
use crate::guest_ram::GuestRam;
use crate::uffd::{Mode, Uffd};

/// The descriptor, the ranges that it reports, and the thread that answers.
pub(crate) struct UserFaultHandler {
    uffd: Uffd,
    kind: UserFaults,
    /// Started with the first absent frame.
    thread: Mutex<Option<Answering>>,
    /// Frames that could not be fetched, and why: the guest's accesses to them fail until the next run.
    failed: Mutex<BTreeMap<Frame, String>>,
}

struct Answering {
    stop: EventFd,
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
        if self.kind != UserFaults::All {
            return Err(EngineError::Unsupported(
                "absent frames: KVM's page faults may not be taken by this process: set \
                 vm.unprivileged_userfaultfd=1 or give access to /dev/userfaultfd"
                    .into(),
            ));
        }
        self.start(ram, memory)?;
        for &range in ranges {
            let (start, bytes) = span(ram, range);
            self.uffd
                .register(start, bytes, Mode::MissingAndWriteProtect)
                .map_err(host("register absent frames with userfaultfd"))?;
        }
        Ok(())
    }

    /// Why the guest could not have a frame, where that is why a run failed. Lets it try again.
    pub(crate) fn take_failure(&self, ram: &GuestRam) -> Option<String> {
        let mut failed = self.failed();
        let reason = failed.first_key_value().map(|(_, reason)| reason.clone());
        for (frame, _) in std::mem::take(&mut *failed) {
            if let Err(error) = ram.forbid(frame, false) {
                tracing::error!("allow frame {frame} again: {error}");
            }
        }
        reason
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
        let stop = EventFd::new(EFD_CLOEXEC).map_err(host("create an eventfd"))?;
        let asked = stop.try_clone().map_err(host("duplicate an eventfd"))?;
        let (handler, ram, memory) = (Arc::clone(self), Arc::clone(ram), Weak::clone(memory));
        let builder = thread::Builder::new().name("userfault".into());
        let thread = confine::spawn(builder, Thread::Userfault, move || {
            handler.answer_faults(&asked, &ram, &memory);
        })
        .map_err(host("start the userfault thread"))?;
        *running = Some(Answering { stop, thread });
        Ok(())
    }

    /// Ends the thread. No vCPU runs any more.
    pub(crate) fn stop(&self) {
        let running = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Answering { stop, thread }) = running
            && stop.write(1).is_ok()
        {
            let _ = thread.join();
        }
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
                if let Some(frame) = ram.frame_at(fault.address) {
                    waits::in_place_of(fault.thread, || self.answer(frame, ram, &memory));
                }
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
                self.failed().insert(frame, error.to_string());
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

    fn failed(&self) -> MutexGuard<'_, BTreeMap<Frame, String>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn event_fd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: open as long as `event`.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

fn span(ram: &GuestRam, range: FrameRange) -> (u64, u64) {
    (ram.address(range.first), u64::from(range.count) * FRAME_SIZE as u64)
}
