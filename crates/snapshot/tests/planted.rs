//! Whether mutations find what they are for: readers with mistakes that are easily made are caught by a few of them.

#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(dead_code, reason = "each test program uses a part")]
#[path = "support/hostile.rs"]
mod hostile;
#[allow(dead_code, reason = "each test program uses a part")]
#[path = "support/mutations.rs"]
mod mutations;
mod support;

use std::panic::catch_unwind;

use memory::FRAME_SIZE;
use mutations::{Mutant, draw};
use serde_json::Value;
use support::splitmix;

/// Mutants until one is caught, at most: a fifth of what the suite reads.
const CASES: u64 = 4000;

/// How many mutants it takes until `caught` says that one shows the mistake.
fn mutants_until(caught: impl Fn(&Mutant) -> bool) -> Option<u64> {
    (0..CASES).find(|case| {
        let mut state = case.wrapping_mul(0x2545_f491_4f6c_dd1d);
        caught(&draw(&mut || splitmix(&mut state)))
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

fn manifest(mutant: &Mutant) -> Option<Value> {
    let text = mutant.store.parts.get("manifest")?;
    let begin = text.iter().position(|&byte| byte == b'\n')?;
    serde_json::from_slice(&text[begin..]).ok()
}

/// A sum of two numbers of a file, which overflows.
#[test]
fn a_sum_that_overflows_is_found() {
    let ends = |mutant: &Mutant| {
        let Some(frames) = mutant.store.parts.get("frames") else { return };
        for run in frames.chunks_exact(24) {
            let (first, count) = (word(run, 0).unwrap(), word(run, 4).unwrap());
            let _ = first.checked_add(count).expect("planted");
        }
    };
    let found = mutants_until(|mutant| catch_unwind(|| ends(mutant)).is_err());
    assert!(found.is_some());
}

/// A slice by a number of a file, past its end.
#[test]
fn an_index_past_the_end_is_found() {
    let chunks = |mutant: &Mutant| {
        let parts = &mutant.store.parts;
        let (Some(chunks), Some(memory)) = (parts.get("chunks"), parts.get("memory")) else {
            return;
        };
        for record in chunks.chunks_exact(288) {
            let (offset, stored) = (word(record, 0).unwrap(), word(record, 8).unwrap());
            let end = offset as usize + stored as usize;
            let _ = &memory[offset as usize..end];
        }
    };
    let found = mutants_until(|mutant| catch_unwind(|| chunks(mutant)).is_err());
    assert!(found.is_some());
}

/// Memory by what a file claims instead of by what it has: seen as `mutations.rs` sees it.
#[test]
fn memory_by_a_claim_is_found() {
    let before = support::peak_bytes();
    let claims = |mutant: &Mutant| {
        let claimed = manifest(mutant)?.pointer("/memory/ranges/0/bytes")?.as_u64()?;
        // A byte for each frame, and not so much that the test fails by it.
        let bytes = (claimed / FRAME_SIZE as u64).min(256 << 20) as usize;
        drop(std::hint::black_box(Vec::<u8>::with_capacity(bytes)));
        (support::peak_bytes() - before > 64 << 20).then_some(())
    };
    assert!(mutants_until(|mutant| claims(mutant).is_some()).is_some());
}

/// Contents that nobody compares with their checksum.
#[test]
fn contents_that_nobody_checks_are_found() {
    let unlike = |mutant: &Mutant| {
        // Frame 8 of the plain one is at its place.
        let (pages, memory) = (mutant.pages?, mutant.store.parts.get("memory")?);
        let is_plain = mutant.what.starts_with("v1-plain") && memory.len() == pages.len() * 4096;
        let page = memory.get(8 * FRAME_SIZE..9 * FRAME_SIZE)?;
        (is_plain && page != pages[8]).then_some(())
    };
    assert!(mutants_until(|mutant| unlike(mutant).is_some()).is_some());
}

/// An identity that nobody compares with the parent's.
#[test]
fn a_parent_that_is_another_is_found() {
    let other = |mutant: &Mutant| {
        let parent = mutant.store.parent.as_ref()?;
        let text = parent.parts.get("manifest")?;
        let begin = text.iter().position(|&byte| byte == b'\n')?;
        let parent: Value = serde_json::from_slice(&text[begin..]).ok()?;
        let expected = manifest(mutant)?.pointer("/parent/id")?.clone();
        (parent.get("id")? != &expected).then_some(())
    };
    assert!(mutants_until(|mutant| other(mutant).is_some()).is_some());
}
