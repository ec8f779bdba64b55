//! Memory used in known ways, one after the other: each size in steps, all of it again and again, or some of it far more
//! often.
//!
//! What is touched is told with each phase: `begin`, `steady` once all of it was touched, `end`.

use crate::random::Random;
use crate::report::emit;
use crate::request::{Request, Work};
use crate::sys::{Mapping, PAGE};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// Between two touches of some pages.
const PAUSE: Duration = Duration::from_millis(5);
/// A round of `cycle` takes so many pauses: a second or a little more.
const PARTS: usize = 200;
/// Pages of each touch of `skew`.
const SOME: usize = 100;

/// `reuse:step,30,90` and the like: one phase for each size.
pub(super) fn run(work: &Work, request: &Request) -> bool {
    let pattern = match work.args.split(',').next() {
        Some("step") => Pattern::Step,
        Some("cycle") => Pattern::Cycle,
        Some("skew") => Pattern::Skew,
        _ => return failed("no such pattern"),
    };
    work.numbers().into_iter().all(|mib| phase(pattern, mib, request.phase))
}

#[derive(Clone, Copy)]
enum Pattern {
    Step,
    Cycle,
    Skew,
}

impl Pattern {
    fn name(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Cycle => "cycle",
            Self::Skew => "skew",
        }
    }

    /// The pages to touch next.
    fn next(self, pages: usize, at: &mut usize, random: &mut Random) -> Vec<usize> {
        match self {
            Self::Step => (0..pages).collect(),
            Self::Cycle => {
                let first = *at;
                *at += pages.div_ceil(PARTS);
                (first..*at).map(|page| page % pages).collect()
            }
            // The cube of what is uniform: half of all touches go to an eighth of the pages.
            Self::Skew => {
                let uniform = || random.below(1 << 20) as f64 / f64::from(1 << 20);
                let popular = std::iter::repeat_with(uniform).map(|part| part * part * part);
                popular.take(SOME).map(|part| (part * pages as f64) as usize).collect()
            }
        }
    }
}

fn phase(pattern: Pattern, mib: u64, length: Duration) -> bool {
    let says = |state: &'static str| {
        let fields = [
            ("name", pattern.name().into()),
            ("state", state.into()),
            ("bytes", (mib * MIB).into()),
        ];
        emit("reuse", &fields);
    };
    says("begin");
    let bytes = (mib * MIB) as usize;
    let memory = if bytes == 0 { None } else { memory_of(bytes) };
    if bytes != 0 && memory.is_none() {
        return failed("no address space");
    }
    says("steady");
    let (start, mut at, mut random) = (Instant::now(), 0, Random::new());
    while start.elapsed() < length {
        if let Some(memory) = &memory {
            let pages = pattern.next(bytes / PAGE, &mut at, &mut random);
            pages.into_iter().for_each(|page| touch(memory, bytes, page));
        }
        std::thread::sleep(PAUSE);
    }
    says("end");
    true
}

fn memory_of(bytes: usize) -> Option<Mapping> {
    let memory = Mapping::new(bytes, libc::PROT_READ | libc::PROT_WRITE).ok()?;
    memory.small_pages_only();
    memory.touch_every_page(0);
    Some(memory)
}

fn touch(memory: &Mapping, bytes: usize, page: usize) {
    assert!(page < bytes / PAGE, "page {page} of {bytes} bytes");
    // SAFETY: inside the mapping, by the line above; only we use it.
    unsafe { memory.pointer().add(page * PAGE).cast::<u64>().write_volatile(page as u64) };
}

fn failed(why: &str) -> bool {
    emit("reuse", &[("error", why.into())]);
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_has_every_page_once_and_then_begins_again() {
        let (mut at, mut random) = (0, Random::new());
        let mut next = || Pattern::Cycle.next(1000, &mut at, &mut random);
        let round: Vec<usize> = (0..PARTS).flat_map(|_| next()).collect();
        assert_eq!(round, (0..1000).collect::<Vec<_>>());
        assert_eq!(next(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn half_of_all_goes_to_an_eighth() {
        let (mut at, mut random) = (0, Random::new());
        let pages: Vec<usize> =
            (0..100).flat_map(|_| Pattern::Skew.next(8000, &mut at, &mut random)).collect();
        let popular = pages.iter().filter(|page| **page < 1000).count();
        assert!((4800..5200).contains(&popular), "{popular}");
        assert!(pages.iter().all(|page| *page < 8000));
    }
}
