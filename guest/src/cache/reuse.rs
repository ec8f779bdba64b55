//! What is evicted is wanted again: loads for a cache below the guest's own.

use super::Load;
use super::files::no_readahead;
use super::place::{Numbers, Place, read_through};
use crate::sys::PAGE;
use std::fs::{File, OpenOptions};
use std::io::Result;
use std::os::unix::fs::FileExt;

pub(super) const LOADS: [Load; 3] = [
    Load { name: "loop", run: around },
    Load { name: "skew", run: skew },
    Load { name: "database", run: database },
];

/// A part of the big file, larger than memory, in order and again.
fn around(place: &Place) -> Result<()> {
    const ROUNDS: u64 = 5;
    (0..ROUNDS).try_for_each(|_| read_through(&place.big(), 0, place.size_or(130)))
}

/// Single pages of a part of the big file, some much more often than others.
fn skew(place: &Place) -> Result<()> {
    const ROUNDS: u64 = 4;
    let file = File::open(place.big())?;
    no_readahead(&file);
    let mut pages = Skewed::new(place.size_or(200));
    let mut page = [0; PAGE];
    for _ in 0..ROUNDS * pages.count {
        file.read_exact_at(&mut page, pages.next() * PAGE as u64)?;
    }
    Ok(())
}

/// As a database does: from the root of a tree over an inner page to a leaf; each tenth leaf is changed, and each hundredth
/// time this is logged and made durable.
fn database(place: &Place) -> Result<()> {
    const ROUNDS: u64 = 3;
    /// Leaves of one inner page.
    const FAN_OUT: u64 = 128;
    const UPDATE: u64 = 10;
    const COMMIT: u64 = 100;
    let file = OpenOptions::new().read(true).write(true).open(place.big())?;
    no_readahead(&file);
    let log = File::create(place.path("log"))?;
    let mut leaves = Skewed::new(place.size_or(180));
    let inner = leaves.count.div_ceil(FAN_OUT);
    let mut page = [0; PAGE];
    for number in 0..ROUNDS * leaves.count {
        let leaf = leaves.next();
        for at in [0, 1 + leaf / FAN_OUT, 1 + inner + leaf] {
            file.read_exact_at(&mut page, at * PAGE as u64)?;
        }
        if number % UPDATE == 0 {
            file.write_all_at(&number.to_le_bytes(), (1 + inner + leaf) * PAGE as u64 + 512)?;
        }
        if number % COMMIT == 0 {
            log.write_all_at(&page, number / COMMIT % 256 * PAGE as u64)?;
            log.sync_data()?;
        }
    }
    file.sync_data()
}

/// Numbers of pages, of which a fifth is asked for in half of all cases or so.
struct Skewed {
    numbers: Numbers,
    count: u64,
}

impl Skewed {
    fn new(bytes: u64) -> Self {
        Self { numbers: Numbers::new(), count: (bytes / PAGE as u64).max(1) }
    }

    fn next(&mut self) -> u64 {
        const ONE: u64 = 1 << 20;
        // The square root of a uniform number would be even less than this; the more often, the smaller.
        let random = self.numbers.below(ONE);
        let rank = (random * random / ONE) * self.count / ONE;
        // Neighbours in rank are none in the file; 2^32 divided by the golden ratio, which is odd.
        rank * 0x9e37_79b1 % self.count
    }
}
