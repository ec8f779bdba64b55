//! Making KVM_RUN return, without a lost wake-up.
//!
//! Two things together: `immediate_exit` in kvm_run, which KVM_RUN looks at when it is entered, and a
//! signal, which makes one that has been entered return. A kick between the two orders itself:
//!
//! ```text
//!   kick:  wanted = true; immediate_exit = 1; if thread != 0: signal the thread
//!   run:   thread = me; KVM_RUN; thread = 0; if interrupted: immediate_exit = 0; take wanted
//! ```
//! A signal that comes when the thread is not inside KVM_RUN does nothing: its handler is empty, and the
//! flag is still set for the next entry.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use engine::EngineError;

use crate::error::host;
use crate::run_page::RunPage;

/// How often one who waits for a vCPU to leave the guest looks whether it has.
const FLUSH_POLL: Duration = Duration::from_micros(20);

/// What other threads need of a vCPU.
pub(crate) struct Kicker {
    page: RunPage,
    /// The thread inside KVM_RUN, or 0.
    thread: AtomicI32,
    /// A caller wants [`engine::Exit::Kicked`].
    wanted: AtomicBool,
    /// Somebody wants to know how the vCPU stands.
    asked: AtomicBool,
    /// KVM_RUNs that have returned, for [`Kicker::flush`].
    returns: AtomicU64,
}

impl Kicker {
    pub(crate) fn new(page: RunPage) -> Result<Self, EngineError> {
        install_handler()?;
        Ok(Self {
            page,
            thread: AtomicI32::new(0),
            wanted: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            returns: AtomicU64::new(0),
        })
    }

    pub(crate) fn page(&self) -> &RunPage {
        &self.page
    }

    /// Makes the vCPU's run return [`engine::Exit::Kicked`].
    pub(crate) fn kick(&self) {
        self.wanted.store(true, Ordering::SeqCst);
        self.interrupt();
    }

    /// Has the vCPU's own thread look how the vCPU stands, once it is outside of the guest, which is soon. Its run goes
    /// on by itself afterwards.
    pub(crate) fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
        self.interrupt();
    }

    /// After a KVM_RUN: whether it is to look. Once for each time that it was asked, or for several.
    pub(crate) fn take_question(&self) -> bool {
        self.asked.load(Ordering::Relaxed) && self.asked.swap(false, Ordering::SeqCst)
    }

    /// Makes a KVM_RUN under way return, so that the processor's buffer of written pages is emptied into
    /// the log or ring. Waits until it has; the run goes on by itself afterwards.
    pub(crate) fn flush(&self) {
        let before = self.returns.load(Ordering::SeqCst);
        let inside = || {
            self.thread.load(Ordering::SeqCst) != 0 && self.returns.load(Ordering::SeqCst) == before
        };
        // Once does, since a signal that comes early leaves the flag. Many would keep the thread busy
        // with nothing but its handler.
        if inside() {
            self.interrupt();
        }
        while inside() {
            std::thread::sleep(FLUSH_POLL);
        }
    }

    fn interrupt(&self) {
        self.page.set_immediate_exit(true);
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            signal_thread(thread);
        }
    }

    /// The vCPU's thread enters KVM_RUN.
    pub(crate) fn enter(&self) {
        self.thread.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::SeqCst);
    }

    /// The vCPU's thread has left KVM_RUN.
    pub(crate) fn leave(&self) {
        self.thread.store(0, Ordering::SeqCst);
        self.returns.fetch_add(1, Ordering::SeqCst);
    }

    /// After a run that was made to return at once for a reason of our own. A kick that the flag swallowed is
    /// still wanted. It is looked for after the flag is gone: one that comes later sets the flag itself.
    pub(crate) fn keep(&self) {
        self.page.set_immediate_exit(false);
        if self.wanted.load(Ordering::SeqCst) {
            self.page.set_immediate_exit(true);
        }
    }

    /// After an interrupted run: whether somebody kicked. The flag goes first, so that a kick after it
    /// sets it again.
    pub(crate) fn take(&self) -> bool {
        self.page.set_immediate_exit(false);
        self.wanted.swap(false, Ordering::SeqCst)
    }
}

/// The signal that interrupts KVM_RUN: the first real-time signal that libc leaves free.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

fn signal_thread(thread: i32) {
    // SAFETY: tgkill(2) takes no memory of ours. The thread may have ended meanwhile, which is an error
    // that does not matter: it cannot be inside KVM_RUN.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, kick_signal()) };
}

extern "C" fn nothing(_: libc::c_int) {}

/// Installs a handler that does nothing: without one the signal would end the process. SA_RESTART, so
/// that a late signal disturbs no other system call of the thread; KVM_RUN returns EINTR all the same.
fn install_handler() -> Result<(), EngineError> {
    static INSTALLED: Once = Once::new();
    let mut outcome = Ok(());
    INSTALLED.call_once(|| {
        // SAFETY: all zeros is a valid sigaction: no flags, nothing masked.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the handler is async-signal-safe, as it does nothing; the structure lives through the
        // call.
        let result =
            unsafe { libc::sigaction(kick_signal(), &raw const action, std::ptr::null_mut()) };
        if result != 0 {
            outcome = Err(std::io::Error::last_os_error());
        }
    });
    outcome.map_err(host("install the handler of the kick signal"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_makes_a_run_return_and_is_no_kick() {
        let kicker = Kicker::new(RunPage::without_vcpu()).expect("a handler");
        assert!(!kicker.take_question());
        kicker.ask();
        kicker.ask();
        assert!(kicker.page().is_immediate_exit());
        assert_eq!([kicker.take_question(), kicker.take_question()], [true, false]);
        assert!(!kicker.take() && !kicker.page().is_immediate_exit());
    }

    #[test]
    fn a_run_that_was_to_return_at_once_keeps_kicks_and_nothing_else() {
        let kicker = Kicker::new(RunPage::without_vcpu()).expect("a handler");
        for kicked in [true, false] {
            kicker.page().set_immediate_exit(true);
            if kicked {
                kicker.kick();
            }
            kicker.keep();
            assert_eq!(kicker.page().is_immediate_exit(), kicked);
            assert_eq!(kicker.take(), kicked);
        }
    }
}
