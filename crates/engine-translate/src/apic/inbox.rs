//! What other threads may do to a local APIC: set requests. Everything else is the vCPU's own.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Interrupts that have arrived and are not yet in service.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    /// The interrupt request register, 256 bits.
    irr: [AtomicU64; 4],
    /// Trigger mode of each request: set for level. Written before the request.
    tmr: [AtomicU64; 4],
    /// The APIC is enabled by software: fixed interrupts are taken, else they are lost.
    accepting: AtomicBool,
    nmi: AtomicBool,
    init: AtomicBool,
    /// A start-up IPI's vector | `SIPI`, or 0.
    sipi: AtomicU32,
}

const SIPI: u32 = 1 << 8;

impl Inbox {
    pub(crate) fn set_accepting(&self, accepting: bool) {
        self.accepting.store(accepting, Ordering::SeqCst);
    }

    /// Requests `vector`.
    pub(crate) fn request(&self, vector: u8, level: bool) {
        if !self.accepting.load(Ordering::SeqCst) {
            return;
        }
        let (word, bit) = (usize::from(vector >> 6), 1u64 << (vector & 63));
        if level {
            self.tmr[word].fetch_or(bit, Ordering::SeqCst);
        } else {
            self.tmr[word].fetch_and(!bit, Ordering::SeqCst);
        }
        self.irr[word].fetch_or(bit, Ordering::SeqCst);
    }

    /// The highest requested vector.
    pub(crate) fn highest(&self) -> Option<u8> {
        highest(self.irr.each_ref().map(|word| word.load(Ordering::SeqCst)))
    }

    /// Takes the request of `vector`.
    pub(crate) fn take(&self, vector: u8) {
        self.irr[usize::from(vector >> 6)].fetch_and(!(1 << (vector & 63)), Ordering::SeqCst);
    }

    pub(crate) fn is_level(&self, vector: u8) -> bool {
        self.tmr[usize::from(vector >> 6)].load(Ordering::SeqCst) >> (vector & 63) & 1 != 0
    }

    /// 32 bits of a register, `index` 0 to 7.
    pub(crate) fn irr(&self, index: u32) -> u32 {
        half(&self.irr, index)
    }

    pub(crate) fn tmr(&self, index: u32) -> u32 {
        half(&self.tmr, index)
    }

    pub(crate) fn set_irr(&self, index: u32, value: u32) {
        set_half(&self.irr, index, value);
    }

    pub(crate) fn set_tmr(&self, index: u32, value: u32) {
        set_half(&self.tmr, index, value);
    }

    pub(crate) fn request_nmi(&self) {
        self.nmi.store(true, Ordering::SeqCst);
    }

    pub(crate) fn has_nmi(&self) -> bool {
        self.nmi.load(Ordering::SeqCst)
    }

    pub(crate) fn take_nmi(&self) -> bool {
        self.nmi.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn request_init(&self) {
        self.sipi.store(0, Ordering::SeqCst);
        self.init.store(true, Ordering::SeqCst);
    }

    pub(crate) fn take_init(&self) -> bool {
        self.init.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn request_start_up(&self, vector: u8) {
        self.sipi.store(SIPI | u32::from(vector), Ordering::SeqCst);
    }

    pub(crate) fn take_start_up(&self) -> Option<u8> {
        let sipi = self.sipi.swap(0, Ordering::SeqCst);
        (sipi & SIPI != 0).then_some(sipi as u8)
    }

    /// Forgets requests, as INIT does.
    pub(crate) fn clear(&self) {
        for word in self.irr.iter().chain(&self.tmr) {
            word.store(0, Ordering::SeqCst);
        }
        self.nmi.store(false, Ordering::SeqCst);
        self.set_accepting(false);
    }
}

/// The highest set bit of 256.
pub(super) fn highest(words: [u64; 4]) -> Option<u8> {
    let word = (0..4).rev().find(|&word| words[word] != 0)?;
    Some((word * 64 + 63 - words[word].leading_zeros() as usize) as u8)
}

fn half(words: &[AtomicU64; 4], index: u32) -> u32 {
    (words[(index / 2) as usize & 3].load(Ordering::SeqCst) >> (index % 2 * 32)) as u32
}

fn set_half(words: &[AtomicU64; 4], index: u32, value: u32) {
    let word = &words[(index / 2) as usize & 3];
    let shift = index % 2 * 32;
    let kept = word.load(Ordering::SeqCst) & !(0xffff_ffff << shift);
    word.store(kept | u64::from(value) << shift, Ordering::SeqCst);
}
