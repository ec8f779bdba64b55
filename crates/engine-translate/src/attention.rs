//! How other threads reach a vCPU, and how translations are taken back from it.
//!
//! ```text
//!            enter                               leave
//!   Outside ------> Inside (uses translations) ------> Outside (halted, in an exit, waiting)
//!
//!   revoke: generation += 1; wake(all); wait until each is Outside or has acknowledged
//! ```
//!
//! A vCPU that is outside acknowledges when it next enters, before it uses anything. It is the quiescence
//! rule of docs/decisions/0002.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::{clock, poll};

/// The side of a vCPU that other threads touch.
#[derive(Debug, Default)]
pub(crate) struct Attention {
    /// Something to look at between two blocks. Set by others and by the thread's alarm, cleared by the vCPU.
    pending: AtomicBool,
    inside: AtomicBool,
    /// The generation whose revocations this vCPU has carried out.
    seen: AtomicU64,
    kicked: AtomicBool,
    /// Translations for writing are wanted back, before anything else is used.
    writes_wanted: AtomicBool,
    /// Which translations are wanted back: of [`Forget`].
    forget: AtomicU8,
    /// The vCPU sleeps or is about to: it sets this and then looks at `pending`, a waker does it the other way
    /// round, so one of them sees the other.
    asleep: AtomicBool,
    /// Guards nothing but the sleep: a waker takes it after its change, so no wake-up is lost.
    sleep: Mutex<()>,
    woken: Condvar,
}

/// Translations that are wanted back so that what they lead to is seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forget(u8);

impl Forget {
    /// Those to traced frames.
    pub(crate) const TRACED: Self = Self(1);
    /// Those through which watched frames are accessed untold.
    pub(crate) const WATCHED: Self = Self(2);

    pub(crate) fn has(self, what: Self) -> bool {
        self.0 & what.0 != 0
    }
}

impl Attention {
    /// Whether the vCPU should look around. One relaxed load: the hot path.
    #[inline(always)]
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    /// The byte that says so: 0 or 1, at this address for as long as the vCPU's VM exists. For generated code,
    /// which polls it in its loops and leaves when it is 1, and for the alarm's signal, which sets it. Only
    /// ever accessed as a whole, without an order: whoever finds it 1 goes on to [`Attention::take`].
    pub(crate) fn pending_address(&self) -> *const u8 {
        self.pending.as_ptr().cast_const().cast()
    }

    /// Clears the wish; the caller then looks at everything that may have raised it.
    pub(crate) fn take(&self) -> bool {
        self.pending.swap(false, Ordering::SeqCst)
    }

    /// Makes the vCPU look around, awake or asleep.
    pub(crate) fn raise(&self) {
        self.pending.store(true, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            drop(self.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            self.woken.notify_all();
        }
    }

    /// Waits until raised, or for `left` ticks of the TSC where that is said: looks out for the first `window`
    /// ticks, then sleeps. The vCPU is outside. True: while it looked out the host gave its processor to others.
    pub(crate) fn wait(&self, window: u64, left: Option<u64>) -> bool {
        let disturbed = self.poll(left.map_or(window, |left| left.min(window)));
        match left {
            None => self.sleep(None),
            Some(left) if left > window => {
                self.sleep(Some(clock::ticks_to_duration(left - window)));
            }
            Some(_) => {}
        }
        disturbed
    }

    fn poll(&self, ticks: u64) -> bool {
        let (since, gap) = (clock::host_tsc(), poll::gap());
        let (mut last, mut disturbed) = (since, false);
        while !self.is_pending() && last.wrapping_sub(since) < ticks {
            std::hint::spin_loop();
            let now = clock::host_tsc();
            disturbed |= now.wrapping_sub(last) > gap;
            last = now;
        }
        disturbed
    }

    fn sleep(&self, timeout: Option<Duration>) {
        let guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.asleep.store(true, Ordering::SeqCst);
        if !self.pending.load(Ordering::SeqCst) {
            // Spurious wake-ups are harmless: the caller looks around and comes back.
            match timeout {
                Some(timeout) => drop(self.woken.wait_timeout(guard, timeout)),
                None => drop(self.woken.wait(guard)),
            }
        }
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// The vCPU leaves: it uses no translation until it enters again.
    pub(crate) fn leave(&self) {
        self.inside.store(false, Ordering::SeqCst);
    }

    /// Whether the vCPU uses no translation from before `generation` any more.
    pub(crate) fn has_dropped(&self, generation: u64) -> bool {
        !self.inside.load(Ordering::SeqCst) || self.seen.load(Ordering::SeqCst) >= generation
    }

    /// Wants translations back. Who sleeps gives them up when it wakes: it uses none.
    pub(crate) fn raise_forget(&self, what: Forget) {
        self.forget.fetch_or(what.0, Ordering::SeqCst);
        self.pending.store(true, Ordering::SeqCst);
    }

    pub(crate) fn take_forget(&self) -> Forget {
        Forget(self.forget.swap(0, Ordering::SeqCst))
    }

    /// Wants translations for writing back when the vCPU next enters. True: it is inside now, and may use some.
    pub(crate) fn want_writes(&self) -> bool {
        self.writes_wanted.store(true, Ordering::SeqCst);
        self.inside.load(Ordering::SeqCst)
    }

    /// Once the vCPU is inside: whether to drop translations for writing. Who wants them either sees it inside or is
    /// seen here.
    pub(crate) fn take_writes_wanted(&self) -> bool {
        self.writes_wanted.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.raise();
    }

    pub(crate) fn take_kick(&self) -> bool {
        self.kicked.swap(false, Ordering::SeqCst)
    }
}

/// The generation counter of a VM, and the wait for its vCPUs.
#[derive(Debug, Default)]
pub(crate) struct Generation(AtomicU64);

impl Generation {
    /// A vCPU goes inside. True: translations were revoked since it last looked, drop them all.
    pub(crate) fn enter(&self, vcpu: &Attention) -> bool {
        vcpu.inside.store(true, Ordering::SeqCst);
        self.acknowledge(vcpu)
    }

    /// Between two blocks: true if translations were revoked; the vCPU has no pointer in use here, so
    /// acknowledging before it drops them is safe as long as it drops them before the next access.
    pub(crate) fn acknowledge(&self, vcpu: &Attention) -> bool {
        let now = self.0.load(Ordering::SeqCst);
        vcpu.seen.swap(now, Ordering::SeqCst) != now
    }

    /// Begins a revocation without waiting.
    pub(crate) fn advance<'a>(&self, vcpus: impl Iterator<Item = &'a Attention>) -> u64 {
        let generation = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        vcpus.for_each(Attention::raise);
        generation
    }

    /// Spares `vcpu`, which began `generation` itself, from dropping everything for it.
    pub(crate) fn excuse(&self, vcpu: &Attention, generation: u64) {
        let (before, now) = (generation - 1, generation);
        // Where an older revocation is still to be carried out, both are.
        let _ = vcpu.seen.compare_exchange(before, now, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Waits until each vCPU is outside or has acknowledged `generation`.
    pub(crate) fn wait<'a>(&self, generation: u64, vcpus: impl Iterator<Item = &'a Attention>) {
        for vcpu in vcpus {
            let mut spins = 0u32;
            while !vcpu.has_dropped(generation) {
                // A block takes under a microsecond; with more vCPUs than cores the other one may
                // not be running at all.
                spins += 1;
                if spins.is_multiple_of(64) {
                    thread::yield_now();
                } else {
                    std::hint::spin_loop();
                }
            }
        }
    }
}
