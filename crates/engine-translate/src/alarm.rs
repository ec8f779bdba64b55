//! The host's timer that makes a thread look up from the blocks that it runs.
//!
//! ```text
//!   ring_at(T) --> timer_settime, unless it rings by T already
//!   at T:          signal to the thread --> handler: rang = true, pending = true of the vCPU that it runs
//!   the vCPU:      finds pending, fires the APIC timer if it is time, says ring_at again
//! ```
//! It rings too early where the guest has put its deadline off: that costs a look, where changing the timer
//! would cost a system call each time.
//!
//! A timer is its thread's, not a vCPU's: made when the thread first runs one, deleted by the thread as it
//! ends. So a signal is for nobody but the thread that set the timer, and its handler needs no pointer that
//! could outlive what it is to: all that it touches is the thread's own [`Bell`].

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use engine::EngineError;

use crate::attention::Attention;
use crate::clock;

thread_local! {
    /// Constant and without a destructor: a plain access, in a signal's handler and at a thread's end too.
    static BELL: Bell =
        const { Bell { rang: AtomicBool::new(false), at: AtomicUsize::new(0), pending: AtomicPtr::new(ptr::null_mut()) } };
    static TIMER: Timer = const { Timer { id: Cell::new(None), armed: Cell::new(NEVER) } };
}

/// No alarm is set.
const NEVER: u64 = u64::MAX;

/// What the handler of the signal touches.
struct Bell {
    /// The timer has expired since it was set last.
    rang: AtomicBool,
    /// Where the thread was then, until somebody has asked; 0 for nowhere.
    at: AtomicUsize,
    /// The flag of the vCPU that the thread runs, or null.
    pending: AtomicPtr<AtomicBool>,
}

/// The timer of a thread.
struct Timer {
    id: Cell<Option<libc::timer_t>>,
    /// TSC of the host at which it rings, or [`NEVER`].
    armed: Cell<u64>,
}

/// While it is there, alarms of this thread make a vCPU look up.
pub(crate) struct Watch<'a> {
    attention: PhantomData<&'a Attention>,
    /// It stays on its thread.
    thread: PhantomData<*const ()>,
}

/// Installs the handler. To be done before any thread makes a timer: the signal would end the process.
pub(crate) fn prepare() -> io::Result<()> {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    if INSTALLED.get().is_none() {
        install_handler()?;
        // Twice would do no harm.
        let _ = INSTALLED.set(());
    }
    Ok(())
}

/// The failure of `action`.
pub(crate) fn refused(action: &'static str) -> impl FnOnce(io::Error) -> EngineError {
    move |source| EngineError::Host { action: action.into(), source }
}

/// From now on alarms of this thread raise `attention`. One vCPU at a time.
pub(crate) fn watch(attention: &Attention) -> io::Result<Watch<'_>> {
    TIMER.with(Timer::make)?;
    let pending = attention.pending_address().cast_mut().cast();
    BELL.with(|bell| bell.pending.store(pending, Ordering::Relaxed));
    Ok(Watch { attention: PhantomData, thread: PhantomData })
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        BELL.with(|bell| bell.pending.store(ptr::null_mut(), Ordering::Relaxed));
    }
}

/// Has the alarm ring when the host's TSC is `deadline`, or before. It is `now`. There must be a [`Watch`].
pub(crate) fn ring_at(deadline: u64, now: u64) -> io::Result<()> {
    TIMER.with(|timer| {
        // It may also have rung early, the clocks of TSC and timer not being one.
        if BELL.with(|bell| bell.rang.swap(false, Ordering::Relaxed)) {
            timer.armed.set(NEVER);
        }
        if deadline < timer.armed.get() { timer.set(deadline, now) } else { Ok(()) }
    })
}

/// The host address that this thread was at when its alarm rang, if it has since it was last asked.
pub(crate) fn rang_at() -> Option<usize> {
    let at = BELL.with(|bell| bell.at.swap(0, Ordering::Relaxed));
    (at != 0).then_some(at)
}

impl Timer {
    /// Makes the timer, where there is none yet.
    fn make(&self) -> io::Result<()> {
        if self.id.get().is_some() {
            return Ok(());
        }
        unblock_signal()?;
        // SAFETY: all zeros is a valid sigevent.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal();
        event.sigev_notify_thread_id = rustix::thread::gettid().as_raw_nonzero().get();
        let mut id = MaybeUninit::uninit();
        // SAFETY: both structures live through the call.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, id.as_mut_ptr()) }
            != 0
        {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has succeeded, so it has filled this in.
        self.id.set(Some(unsafe { id.assume_init() }));
        Ok(())
    }

    fn set(&self, deadline: u64, now: u64) -> io::Result<()> {
        let Some(id) = self.id.get() else {
            return Err(io::Error::other("this thread has no timer"));
        };
        // Zero would be no alarm.
        let left = clock::ticks_to_duration(deadline.saturating_sub(now).max(1));
        // SAFETY: all zeros is a valid itimerspec: once, without a period.
        let mut time: libc::itimerspec = unsafe { std::mem::zeroed() };
        time.it_value.tv_sec = libc::time_t::try_from(left.as_secs()).unwrap_or(libc::time_t::MAX);
        time.it_value.tv_nsec = left.subsec_nanos().into();
        // SAFETY: `id` is a timer of this process until this thread deletes it; the structure lives through
        // the call.
        if unsafe { libc::timer_settime(id, 0, &raw const time, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        self.armed.set(deadline);
        Ok(())
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            // SAFETY: a timer of this process that nobody else knows. A signal of it that is on its way finds
            // a `Bell` without a vCPU.
            unsafe { libc::timer_delete(id) };
        }
    }
}

/// The second real-time signal that libc leaves free: the first one is engine-kvm's kick.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

/// As SA_SIGINFO asks for.
type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::ucontext_t);

/// Stores only to this thread's own, and to a flag that the [`Watch`] keeps valid: async-signal-safe.
extern "C" fn ring(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the kernel passes one, valid until we return.
    let registers = unsafe { &(*context).uc_mcontext.gregs };
    BELL.with(|bell| {
        bell.rang.store(true, Ordering::Relaxed);
        bell.at.store(registers[libc::REG_RIP as usize] as usize, Ordering::Relaxed);
        let pending = bell.pending.load(Ordering::Relaxed);
        if !pending.is_null() {
            // SAFETY: not null, so this thread has a `Watch`, which borrows the flag's owner and clears the
            // pointer when it goes. This thread does not run beside its own handler.
            unsafe { (*pending).store(true, Ordering::SeqCst) };
        }
    });
}

/// SA_RESTART: what the thread does for a device is not disturbed. SA_ONSTACK: generated code may be running.
fn install_handler() -> io::Result<()> {
    // SAFETY: all zeros is a valid sigaction: nothing masked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = ring as Handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
    // SAFETY: the handler is async-signal-safe (see there); the structure lives through the call.
    match unsafe { libc::sigaction(signal(), &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whoever started the process may have left it blocked.
fn unblock_signal() -> io::Result<()> {
    // SAFETY: all zeros is a valid set, which the next call makes the empty one.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set lives through the calls, and it is a signal.
    let error = unsafe {
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut())
    };
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Spins as a vCPU runs blocks, until the alarm has raised attention.
    fn spin(attention: &Attention) {
        while !attention.take() {
            std::hint::spin_loop();
        }
    }

    fn ms(count: u64) -> u64 {
        clock::tsc_hz() / 1000 * count
    }

    fn armed() -> u64 {
        TIMER.with(|timer| timer.armed.get())
    }

    /// Timers of this process that signal a thread: proc_pid_timers(5). `None` where the kernel does not tell.
    fn timers_of(thread: i32) -> Option<usize> {
        let timers = std::fs::read_to_string("/proc/self/timers").ok()?;
        let line = format!("notify: signal/tid.{thread}");
        Some(timers.lines().filter(|other| *other == line).count())
    }

    #[test]
    fn a_thread_that_spins_is_reached_at_the_deadline() {
        prepare().unwrap();
        let attention = Attention::default();
        let _watch = watch(&attention).unwrap();
        for _ in 0..3 {
            let now = clock::host_tsc();
            let deadline = now + ms(2);
            ring_at(deadline, now).unwrap();
            spin(&attention);
            // What a clock that is being adjusted may be off by.
            assert!(clock::host_tsc() + ms(1) > deadline, "too early");
            assert!(rang_at().is_some() && rang_at().is_none());
        }
    }

    #[test]
    fn a_deadline_that_has_passed_rings_too() {
        prepare().unwrap();
        let attention = Attention::default();
        let _watch = watch(&attention).unwrap();
        let now = clock::host_tsc();
        ring_at(now - 5, now).unwrap();
        spin(&attention);
    }

    #[test]
    fn only_an_earlier_deadline_sets_the_timer_anew() {
        prepare().unwrap();
        let attention = Attention::default();
        let _watch = watch(&attention).unwrap();
        let now = clock::host_tsc();
        let (far, farther) = (now + ms(3_600_000), now + ms(7_200_000));
        ring_at(far, now).unwrap();
        assert_eq!(armed(), far);
        ring_at(farther, now).unwrap();
        assert_eq!(armed(), far);
        ring_at(now + ms(1), now).unwrap();
        assert_eq!(armed(), now + ms(1));
        spin(&attention);
        // It has rung: there is none any more.
        ring_at(far, now).unwrap();
        assert_eq!(armed(), far);
    }

    #[test]
    fn what_rings_between_two_runs_is_not_forgotten() {
        prepare().unwrap();
        let attention = Attention::default();
        let now = clock::host_tsc();
        let watching = watch(&attention).unwrap();
        ring_at(now + ms(1), now).unwrap();
        drop(watching);
        while BELL.with(|bell| !bell.rang.load(Ordering::Relaxed)) {
            std::hint::spin_loop();
        }
        assert!(!attention.is_pending(), "nobody runs it");
        // As if it had rung early: the same deadline is set once more.
        let _watch = watch(&attention).unwrap();
        ring_at(now + ms(1), now).unwrap();
        spin(&attention);
    }

    #[test]
    fn a_vcpu_may_go_from_thread_to_thread() {
        prepare().unwrap();
        let attention = Attention::default();
        for _ in 0..3 {
            let body = || {
                let _watch = watch(&attention).unwrap();
                let now = clock::host_tsc();
                ring_at(now + ms(1), now).unwrap();
                spin(&attention);
            };
            thread::scope(|scope| scope.spawn(body).join().unwrap());
        }
    }

    #[test]
    fn an_alarm_is_for_the_vcpu_that_the_thread_runs() {
        prepare().unwrap();
        let (first, second) = (Attention::default(), Attention::default());
        let now = clock::host_tsc();
        let watching = watch(&first).unwrap();
        ring_at(now + ms(1), now).unwrap();
        drop(watching);
        let _watch = watch(&second).unwrap();
        // Where it rang before that, it is set again.
        ring_at(now + ms(1), now).unwrap();
        spin(&second);
    }

    #[test]
    fn a_thread_has_one_timer_and_takes_it_along() {
        prepare().unwrap();
        let attention = Attention::default();
        let body = || {
            let thread = rustix::thread::gettid().as_raw_nonzero().get();
            let before = timers_of(thread);
            drop(watch(&attention).unwrap());
            let _watch = watch(&attention).unwrap();
            let now = clock::host_tsc();
            ring_at(now + ms(3_600_000), now).unwrap();
            (thread, before, timers_of(thread))
        };
        // Joined: the end of a scope alone would not wait until the thread has dropped what it had.
        let (thread, before, during) = thread::scope(|scope| scope.spawn(body).join().unwrap());
        if before.is_some() {
            assert_eq!((before, during, timers_of(thread)), (Some(0), Some(1), Some(0)));
        }
    }

    #[test]
    fn a_signal_that_was_blocked_is_not() {
        prepare().unwrap();
        // SAFETY: all zeros is a valid set; it lives through the calls.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&raw mut set, signal());
            assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()), 0);
        }
        let attention = Attention::default();
        let _watch = watch(&attention).unwrap();
        let now = clock::host_tsc();
        ring_at(now + ms(1), now).unwrap();
        spin(&attention);
    }
}
