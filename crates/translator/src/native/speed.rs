//! What translating an instruction costs; prints, and asserts nothing.
//!
//! `cargo test --release -p translator translating -- --ignored --nocapture`

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::{CodeCache, Made, Options};
use crate::block::Mode;
use crate::block::tests::Idle;
use crate::cpu::Width;
use crate::paths::{Known, Path, Policy, Source, grow};

/// Pages of code of this very program.
const PAGES: usize = 400;

/// They are not all in the processor's caches.
const ROUNDS: usize = 4;

fn pages() -> Vec<Vec<u8>> {
    let start = (translating as fn() as usize) & !0xfff;
    let page = |index: usize| {
        let first = (start + index * 4096) as *const u8;
        // SAFETY: the program has far more code, which nobody changes.
        unsafe { std::slice::from_raw_parts(first, 4096) }.to_vec()
    };
    (0..PAGES).map(page).collect()
}

/// Of this thread's own processor time.
fn now() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().expect("a time since the start")
}

/// The paths of a page, one behind the other.
fn paths(page: &[u8]) -> Vec<Path> {
    let mode = Mode { width: Width::Bits64 };
    let (mut paths, mut head) = (Vec::new(), 0);
    while head < 4000 {
        let known = |_| Known::Runs(1);
        let Some(path) = grow::<Idle>(page, head, mode, &Policy::FATHOM, known) else { break };
        head = path.fragments.iter().map(|fragment| fragment.end()).max().unwrap_or(4096);
        paths.push(path);
    }
    paths
}

#[test]
#[ignore = "a measurement"]
fn translating() {
    let pages = pages();
    let (mut growing, mut translating) = (Duration::ZERO, Duration::ZERO);
    let (mut count, mut blocks, mut bytes) = (0, 0, 0);
    for round in 0..ROUNDS {
        let cache = CodeCache::new(64 << 20, Options::default(), Policy::FATHOM).expect("memory");
        for (number, page) in pages.iter().enumerate() {
            let began = now();
            let paths = paths(page);
            let grown = now();
            let source = Source { bytes: page, first: 0 };
            for path in &paths {
                let made = cache.translate::<Idle>(path, source, number as u64, number as u32);
                if let Ok(Made { .. }) = made {
                    blocks += usize::from(round > 0);
                }
            }
            if round > 0 {
                growing += grown - began;
                translating += now() - grown;
            }
        }
        let stats = cache.stats();
        if round > 0 {
            count += stats.instructions as u32;
            bytes += stats.code_bytes + stats.stub_bytes;
        }
    }
    let each = |time: Duration| time.as_nanos() as f64 / f64::from(count);
    let (grown, translated) = (each(growing), each(translating));
    println!("{blocks} paths, {count} instructions, {bytes} bytes");
    println!("{grown:.0} ns to grow, {translated:.0} ns to translate an instruction");
}
