//! Locked operations that are not aligned: within a line, over a line's end, over a page's end, where
//! the second page may be anywhere (SDM vol. 3, 9.1.2.2: "the integrity of a bus lock is not affected by
//! the alignment").

use super::{Test, on_two};
use crate::sys::{Mapping, PAGE};
use libc::{MAP_FAILED, MAP_FIXED, MAP_SHARED, PROT_READ, PROT_WRITE};
use std::arch::asm;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) const TESTS: &[Test] = &[
    ("split-in-line", |rounds| counters(rounds, PAGE + 3)),
    ("split-over-line", |rounds| counters(rounds, PAGE + 61)),
    ("split-over-page", |rounds| counters(rounds / 4, PAGE - 4)),
    ("split-over-line-halves", |rounds| halves(rounds, PAGE + 60)),
    ("split-over-page-halves", |rounds| halves(rounds / 4, PAGE - 4)),
    ("split-over-line-store", |rounds| beside_stores(rounds, PAGE + 60)),
    ("split-over-page-store", |rounds| beside_stores(rounds / 4, PAGE - 4)),
];

/// Two pages of a file, and the same two in the other order: what lies over the border in one has its halves
/// at the ends of the other.
struct Pages {
    place: Mapping,
}

impl Pages {
    fn new() -> Result<Self, String> {
        let said = |what: &str| format!("{what}: {}", std::io::Error::last_os_error());
        let place = Mapping::new(4 * PAGE, PROT_READ | PROT_WRITE).map_err(|_| said("mmap"))?;
        // SAFETY: a name and flags, then our own descriptor.
        let (fd, sized) = unsafe {
            let fd = libc::memfd_create(c"litmus".as_ptr(), 0);
            (fd, libc::ftruncate(fd, 2 * PAGE as i64))
        };
        if sized != 0 {
            return Err(said("memfd_create"));
        }
        for (page, of_file) in [(0, 0), (1, 1), (2, 1), (3, 0)] {
            let flags = MAP_SHARED | MAP_FIXED;
            // SAFETY: inside our own mapping, which nobody uses yet.
            let mapped = unsafe {
                let at = place.pointer().add(page * PAGE).cast();
                libc::mmap(at, PAGE, PROT_READ | PROT_WRITE, flags, fd, (of_file * PAGE) as i64)
            };
            if mapped == MAP_FAILED {
                return Err(said("mmap of a file"));
            }
        }
        // SAFETY: our own; the mappings keep the file.
        unsafe { libc::close(fd) };
        Ok(Self { place })
    }

    /// The eight bytes there.
    fn at(&self, offset: usize) -> Word<'_> {
        assert!(offset + 8 <= 4 * PAGE, "inside the pages");
        Word { address: self.place.pointer() as usize + offset, pages: PhantomData }
    }
}

/// Both threads add, exchange and compare the same eight bytes; nothing is lost and nothing comes twice.
fn counters(rounds: u64, offset: usize) -> Result<String, String> {
    let pages = Pages::new()?;
    let at = pages.at(offset);
    on_two(|_| (0..rounds).for_each(|_| at.add(0x1_0000_0001)));
    expect("add", at.read(), 0x1_0000_0001 * 2 * rounds)?;

    let sum = AtomicU64::new(0);
    on_two(|_| {
        let seen = (0..rounds).map(|_| at.exchange_add(1) & 0xffff_ffff);
        sum.fetch_add(seen.sum(), Ordering::Relaxed);
    });
    let first = (2 * rounds) & 0xffff_ffff;
    expect("xadd", sum.into_inner(), 2 * rounds * first + rounds * (2 * rounds - 1))?;

    // What one puts in another takes out, each once, but for the last.
    let (put, taken) = (AtomicU64::new(0), AtomicU64::new(at.read().wrapping_neg()));
    on_two(|id| {
        for round in 0..rounds {
            let value = (id as u64 + 1) * 0x0100_0000_0001 * round;
            put.fetch_add(value, Ordering::Relaxed);
            taken.fetch_add(at.exchange(value), Ordering::Relaxed);
        }
    });
    let taken = taken.into_inner().wrapping_add(at.read());
    expect("xchg", taken, put.into_inner())?;

    at.exchange(0);
    on_two(|_| {
        for _ in 0..rounds {
            let mut seen = at.read();
            while let Err(now) = at.compare_exchange(seen, seen + 0x1_0000_0001) {
                seen = now;
            }
        }
    });
    expect("cmpxchg", at.read(), 0x1_0000_0001 * 2 * rounds)?;
    Ok(format!("{rounds} of each kind on each"))
}

/// One thread adds to all eight bytes, the other to the upper four by themselves, which are aligned: by the
/// same name, then by another where they are at a page's beginning.
fn halves(rounds: u64, offset: usize) -> Result<String, String> {
    let pages = Pages::new()?;
    let at = pages.at(offset);
    let mut uppers = vec![at.upper()];
    if offset < PAGE {
        uppers.push(pages.at(2 * PAGE));
    }
    for (upper, turn) in uppers.into_iter().zip(1..) {
        on_two(|id| {
            for _ in 0..rounds {
                if id == 0 { at.add(1) } else { upper.add_4(1) }
            }
        });
        let seen = at.read();
        expect("sum", seen, 0x1_0000_0001 * turn * rounds)?;
    }
    Ok(format!("{rounds} on each"))
}

/// One thread adds to all eight bytes, the other stores to the upper four by themselves, which are aligned, and finds
/// there what it has stored.
fn beside_stores(rounds: u64, offset: usize) -> Result<String, String> {
    let pages = Pages::new()?;
    let at = pages.at(offset);
    let lost = AtomicU64::new(0);
    on_two(|id| {
        for round in 0..rounds as u32 {
            if id == 0 {
                at.add(1);
                continue;
            }
            at.upper().store_4(round);
            for _ in 0..20 {
                lost.fetch_add(u64::from(at.upper().load_4() != round), Ordering::Relaxed);
            }
        }
    });
    expect("stores that were lost", lost.into_inner(), 0)?;
    expect("sum", at.read() & 0xffff_ffff, rounds)?;
    Ok(format!("{rounds} on each"))
}

fn expect(what: &str, seen: u64, expected: u64) -> Result<(), String> {
    if seen == expected { Ok(()) } else { Err(format!("{what}: {seen:#x}, not {expected:#x}")) }
}

/// Eight bytes of some [`Pages`], or four. The threads of a test change them by assembly alone.
#[derive(Clone, Copy)]
struct Word<'a> {
    address: usize,
    pages: PhantomData<&'a ()>,
}

impl Word<'_> {
    /// The second half.
    fn upper(self) -> Self {
        Self { address: self.address + 4, ..self }
    }

    fn add(self, value: u64) {
        // SAFETY: inside pages that last; no reference to them is ever made.
        unsafe { asm!("lock add [{}], {}", in(reg) self.address, in(reg) value) };
    }

    fn add_4(self, value: u32) {
        // SAFETY: as above.
        unsafe { asm!("lock add [{}], {:e}", in(reg) self.address, in(reg) value) };
    }

    fn exchange_add(self, mut value: u64) -> u64 {
        // SAFETY: as above.
        unsafe { asm!("lock xadd [{}], {}", in(reg) self.address, inout(reg) value) };
        value
    }

    fn exchange(self, mut value: u64) -> u64 {
        // SAFETY: as above.
        unsafe { asm!("xchg [{}], {}", in(reg) self.address, inout(reg) value) };
        value
    }

    fn compare_exchange(self, old: u64, new: u64) -> Result<(), u64> {
        let found;
        // SAFETY: as above.
        unsafe {
            asm!("lock cmpxchg [{}], {}", in(reg) self.address, in(reg) new, inout("rax") old => found);
        }
        if found == old { Ok(()) } else { Err(found) }
    }

    /// By a locked addition of nothing: a plain load would not be in one piece.
    fn read(self) -> u64 {
        self.exchange_add(0)
    }

    fn store_4(self, value: u32) {
        // SAFETY: as above.
        unsafe { asm!("mov [{}], {:e}", in(reg) self.address, in(reg) value) };
    }

    fn load_4(self) -> u32 {
        let value;
        // SAFETY: as above.
        unsafe { asm!("mov {:e}, [{}]", out(reg) value, in(reg) self.address) };
        value
    }
}
