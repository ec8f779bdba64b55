//! The cache against a plain array: contents in any order of requests and evictions, and with threads at once.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use memory::{Gpa, GuestMemory};
use proptest::prelude::*;

use super::*;
use crate::DeviceView;
use crate::virtio::queue::{GuestBuffer, Segment, Segments};

/// The last block is cut.
const LEN: usize = 24 * BLOCK + 512;
const SECTORS: u64 = (LEN / 512) as u64;

/// A disk in memory that can fail.
struct Array {
    bytes: Vec<u8>,
    broken: Arc<AtomicBool>,
}

impl Array {
    fn check(&self) -> io::Result<()> {
        match self.broken.load(Ordering::Relaxed) {
            true => Err(io::Error::other("the disk died")),
            false => Ok(()),
        }
    }
}

impl Storage for Array {
    fn read(&self, offset: u64, to: &GuestBuffer<'_>) -> io::Result<()> {
        self.check()?;
        to.copy_from(&self.bytes[offset as usize..][..to.len() as usize])
    }

    fn read_host(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.check()?;
        let end = offset as usize + to.len();
        let part = self.bytes.get(offset as usize..end);
        to.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&mut self, offset: u64, from: &GuestBuffer<'_>) -> io::Result<()> {
        self.write_host(offset, &from.to_vec()?)
    }

    /// Of what fails, the first sector is written.
    fn write_host(&mut self, offset: u64, from: &[u8]) -> io::Result<()> {
        let done = if self.check().is_ok() { from.len() } else { 512 };
        self.bytes[offset as usize..][..done].copy_from_slice(&from[..done]);
        self.check()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.check()
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len, true)
    }

    fn write_zeroes(&mut self, offset: u64, len: u64, _: bool) -> io::Result<()> {
        self.check()?;
        self.bytes[offset as usize..][..len as usize].fill(0);
        Ok(())
    }
}

struct Setup {
    cache: Arc<HostCache>,
    disk: Cached,
    broken: Arc<AtomicBool>,
    view: DeviceView,
}

impl Setup {
    fn new(blocks: usize, policy: HostCachePolicy) -> Self {
        let cache = Arc::new(HostCache::new((blocks * BLOCK) as u64, policy));
        let broken = Arc::new(AtomicBool::new(false));
        let array = Array { bytes: start(), broken: Arc::clone(&broken) };
        let disk = Cached::new(Box::new(array), &cache, 1, LEN as u64);
        let view = DeviceView::new(Arc::new(GuestMemory::with_bytes(1 << 20).unwrap()));
        Self { cache, disk, broken, view }
    }

    fn buffer(&self, len: usize) -> GuestBuffer<'_> {
        let mut segments = Segments::default();
        let first = len / 3;
        segments.push(Segment { address: Gpa(0x4_0123), len: first as u64 });
        segments.push(Segment { address: Gpa(0x8_0000), len: (len - first) as u64 });
        GuestBuffer::new(&self.view, segments)
    }

    fn read(&self, offset: usize, len: usize) -> io::Result<Vec<u8>> {
        let buffer = self.buffer(len);
        self.disk.read(offset as u64, &buffer)?;
        buffer.to_vec()
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let view = self.view.clone();
        let mut segments = Segments::default();
        segments.push(Segment { address: Gpa(0x1_0000), len: bytes.len() as u64 });
        let buffer = GuestBuffer::new(&view, segments);
        buffer.copy_from(bytes)?;
        self.disk.write(offset as u64, &buffer)
    }

    /// What the thread does that fills.
    fn fill(&self, most: usize) {
        let batch = self.cache.lock().candidates.take(most);
        self.cache.read_all(batch);
    }

    fn tell(&self, block: u64, whereabouts: Whereabouts) {
        self.cache.tell([(DiskBlock { disk: 1, block }, whereabouts)]);
    }

    fn counts(&self) -> HostCacheCounts {
        self.cache.status().counts
    }

    /// What is cached is what the disk has.
    fn check(&self, model: &[u8]) {
        let state = self.cache.lock();
        assert!(state.blocks.len() * BLOCK <= self.cache.size_bytes as usize);
        for block in 0..=(LEN / BLOCK) as u64 {
            let at = block as usize * BLOCK;
            if let Some(bytes) = state.blocks.get(DiskBlock { disk: 1, block }) {
                assert_eq!(Some(bytes), model.get(at..at + BLOCK), "block {block}");
            }
        }
    }
}

fn start() -> Vec<u8> {
    (0..LEN).map(|at| 0x80 | (at / 512) as u8).collect()
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Read(usize, usize),
    Write(usize, usize, u8),
    Zero(usize, usize, bool),
    Move(u64, bool),
    Fill(usize),
    Break(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || {
        // Whole blocks more often than not.
        let sectors = (0..SECTORS, 1..40u64);
        let blocks = (0..SECTORS / 8, 1..5u64).prop_map(|(first, count)| (first * 8, count * 8));
        prop_oneof![1 => sectors, 2 => blocks].prop_map(|(first, count)| {
            (first as usize * 512, count.min(SECTORS - first) as usize * 512)
        })
    };
    let step = prop_oneof![
        6 => range().prop_map(|(at, len)| Step::Read(at, len)),
        4 => (range(), 1u8..0x7f).prop_map(|((at, len), fill)| Step::Write(at, len, fill)),
        1 => (range(), any::<bool>()).prop_map(|((at, len), discard)| Step::Zero(at, len, discard)),
        // Also of blocks that there are not.
        8 => (prop_oneof![30 => 0..26u64, 1 => any::<u64>()], prop::bool::weighted(0.8))
            .prop_map(|(block, evicted)| Step::Move(block, evicted)),
        4 => (1..9usize).prop_map(Step::Fill),
        1 => prop::bool::weighted(0.3).prop_map(Step::Break),
    ];
    proptest::collection::vec(step, 1..80)
}

proptest! {
    /// Whatever is inferred, and whatever fails, the guest reads what it wrote.
    #[test]
    fn contents_are_the_disks(
        steps in steps(),
        blocks in 0..12usize,
        demand in any::<bool>(),
    ) {
        let policy = if demand { HostCachePolicy::Demand } else { HostCachePolicy::Eviction };
        let mut setup = Setup::new(blocks, policy);
        let mut model = start();
        for step in steps {
            let broken = setup.broken.load(Ordering::Relaxed);
            match step {
                Step::Read(at, len) => {
                    if let Ok(bytes) = setup.read(at, len) {
                        prop_assert!(bytes == model[at..at + len]);
                    } else {
                        prop_assert!(broken);
                    }
                }
                Step::Write(at, len, fill) => {
                    let bytes = vec![fill; len];
                    let done = if broken { 512 } else { len };
                    prop_assert_eq!(setup.write(at, &bytes).is_err(), broken);
                    model[at..at + done].fill(fill);
                }
                Step::Zero(at, len, discard) => {
                    let (at64, len64) = (at as u64, len as u64);
                    let done = match discard {
                        true => setup.disk.discard(at64, len64),
                        false => setup.disk.write_zeroes(at64, len64, false),
                    };
                    prop_assert_eq!(done.is_err(), broken);
                    if !broken {
                        model[at..at + len].fill(0);
                    }
                }
                Step::Move(block, evicted) => {
                    let to = if evicted { Whereabouts::Evicted } else { Whereabouts::Guest };
                    setup.tell(block, to);
                }
                Step::Fill(most) => setup.fill(most),
                Step::Break(broken) => setup.broken.store(broken, Ordering::Relaxed),
            }
            setup.check(&model);
        }
    }

    /// With guesses that are right, both hold a block at the same time never.
    #[test]
    fn eviction_is_exclusive(steps in proptest::collection::vec((0..24u64, any::<bool>()), 1..80)) {
        let setup = Setup::new(8, HostCachePolicy::Eviction);
        let mut guest = HashSet::new();
        for (block, fills) in steps {
            if guest.remove(&block) {
                setup.tell(block, Whereabouts::Evicted);
            } else {
                setup.read(block as usize * BLOCK, BLOCK).unwrap();
                guest.insert(block);
            }
            if fills {
                setup.fill(99);
            }
            let state = setup.cache.lock();
            let both = guest.iter().any(|&block| state.blocks.contains(DiskBlock { disk: 1, block }));
            prop_assert!(!both);
        }
    }
}

#[test]
fn a_block_enters_when_it_is_evicted_and_leaves_when_it_is_read() {
    let setup = Setup::new(4, HostCachePolicy::Eviction);
    setup.read(0, 2 * BLOCK).unwrap();
    setup.tell(0, Whereabouts::Evicted);
    setup.tell(1, Whereabouts::Evicted);
    setup.fill(9);
    assert_eq!(setup.cache.status().cached_bytes, 2 * BLOCK as u64);
    // A part of a block does not bring all of it to the guest.
    assert_eq!(setup.read(512, 1024).unwrap(), start()[512..1536]);
    assert_eq!(setup.read(0, BLOCK).unwrap(), start()[..BLOCK]);
    let expected = HostCacheCounts {
        hits: 2,
        misses: 2,
        inserted_by_eviction: 2,
        ..HostCacheCounts::default()
    };
    assert_eq!((setup.counts(), setup.cache.status().cached_bytes), (expected, BLOCK as u64));
}

#[test]
fn demand_keeps_what_was_read_and_has_what_was_written() {
    let mut setup = Setup::new(2, HostCachePolicy::Demand);
    setup.read(0, 3 * BLOCK).unwrap();
    setup.write(BLOCK, &[9; BLOCK]).unwrap();
    setup.tell(0, Whereabouts::Evicted);
    setup.fill(9);
    assert_eq!(setup.read(BLOCK, BLOCK).unwrap(), [9; BLOCK]);
    setup.write(2 * BLOCK, &[8; 512]).unwrap();
    let expected = HostCacheCounts {
        hits: 1,
        misses: 3,
        inserted_by_demand: 3,
        displaced: 1,
        dropped_by_writes: 1,
        ..HostCacheCounts::default()
    };
    assert_eq!(setup.counts(), expected);
}

#[test]
fn what_comes_back_or_changes_first_is_too_late() {
    let mut setup = Setup::new(4, HostCachePolicy::Eviction);
    (0..4).for_each(|block| setup.tell(block, Whereabouts::Evicted));
    setup.read(0, BLOCK).unwrap();
    setup.write(BLOCK, &[1; 512]).unwrap();
    setup.tell(2, Whereabouts::Guest);
    setup.fill(9);
    // Seen afterwards to be back.
    setup.tell(3, Whereabouts::Guest);
    let counts = setup.counts();
    assert_eq!((counts.too_late, counts.inserted_by_eviction), (4, 1));
    assert_eq!(setup.cache.status().cached_bytes, 0);
}

#[test]
fn a_read_that_fails_only_drops_the_candidate() {
    let setup = Setup::new(4, HostCachePolicy::Eviction);
    setup.broken.store(true, Ordering::Relaxed);
    for block in [0, 24, u64::MAX] {
        setup.tell(block, Whereabouts::Evicted);
    }
    setup.cache.tell([(DiskBlock { disk: 7, block: 0 }, Whereabouts::Evicted)]);
    setup.fill(9);
    setup.broken.store(false, Ordering::Relaxed);
    let status = setup.cache.status();
    assert_eq!((status.counts.failed, status.cached_bytes, status.waiting), (3, 0, 0));
    assert_eq!(setup.read(0, BLOCK).unwrap(), start()[..BLOCK]);
}

/// A guest that writes each block with rising numbers and reads the last one back, while others infer at random and
/// fill: an old number would be an insertion that overtook a write.
#[test]
fn threads_never_bring_old_contents() {
    const BLOCKS: u64 = 16;
    const ROUNDS: u64 = 20_000;
    for policy in [HostCachePolicy::Eviction, HostCachePolicy::Demand] {
        let mut setup = Setup::new(10, policy);
        let cache = Arc::clone(&setup.cache);
        let ended = AtomicBool::new(false);
        let told = AtomicU64::new(0);
        // What shows that the threads were at it together.
        let enough = |counts: &HostCacheCounts, told: &AtomicU64| {
            let by_eviction = policy != HostCachePolicy::Eviction
                || counts.inserted_by_eviction > 100 && counts.too_late > 0;
            counts.hits > 0 && counts.misses > 0 && told.load(Ordering::Relaxed) > 0 && by_eviction
        };
        thread::scope(|scope| {
            scope.spawn(|| cache.fill());
            scope.spawn(|| {
                let mut random = 0x9e37_79b9_7f4a_7c15_u64;
                while !ended.load(Ordering::Relaxed) {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let block = DiskBlock { disk: 1, block: random >> 33 & (BLOCKS - 1) };
                    let is_back = random >> 60 == 0;
                    let to = if is_back { Whereabouts::Guest } else { Whereabouts::Evicted };
                    cache.tell([(block, to)]);
                    told.fetch_add(1, Ordering::Relaxed);
                }
            });
            let mut written = [0_u64; BLOCKS as usize];
            let mut random = 1_u64;
            let mut round = 0;
            // On a crowded machine, the others may have had no turn in all rounds.
            while round < ROUNDS || !enough(&setup.counts(), &told) {
                round += 1;
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(3);
                let block = (random >> 33) as usize % BLOCKS as usize;
                if random >> 62 == 0 {
                    let mut bytes = [0; BLOCK];
                    bytes[..8].copy_from_slice(&round.to_le_bytes());
                    setup.write(block * BLOCK, &bytes).unwrap();
                    written[block] = round;
                } else {
                    let bytes = setup.read(block * BLOCK, BLOCK).unwrap();
                    let found = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                    let first =
                        u64::from_le_bytes(start()[block * BLOCK..][..8].try_into().unwrap());
                    let expected = if written[block] == 0 { first } else { written[block] };
                    if found != expected {
                        ended.store(true, Ordering::Relaxed);
                        cache.stop();
                        panic!("block {block} has {found} after {expected} was written");
                    }
                }
                if round % 64 == 0 {
                    thread::yield_now();
                }
            }
            ended.store(true, Ordering::Relaxed);
            cache.stop();
        });
    }
}
