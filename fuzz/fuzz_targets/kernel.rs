//! Any bytes as what a guest's kernel says of itself: each inspection ends, without a panic, with an answer
//! that keeps to the frames there are.
//!
//! The first byte chooses: the text of a note, a section of types, or a small guest in which patches of
//! region, offset, length and bytes are laid over its tables, `struct page` and lists.
#![no_main]

use insight::kernel::testing::{Like, RAM, SmallGuest};
use insight::kernel::{Kernel, Note, Types};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let [choice, input @ ..] = input else { return };
    match choice % 4 {
        0 => note(input),
        1 => types(input),
        2 => guest(Like::Linux6_1, input),
        _ => guest(Like::Linux6_12, input),
    }
});

fn note(text: &[u8]) {
    if let Ok(note) = Note::parse(text) {
        assert!((1..=64).contains(&note.release().len()));
        assert!(note.kaslr_offset() < 1 << 30);
    }
}

fn types(section: &[u8]) {
    let Ok(types) = Types::parse(section.to_vec()) else { return };
    for name in ["page", "folio", "task_struct", "a"] {
        types.size_of(name);
        for path in ["flags", "lru.next", "mapping", "a", "a.a.a"] {
            types.member(name, path);
        }
        types.enumerator(name, "a");
    }
}

fn guest(like: Like, mut patches: &[u8]) {
    let guest = SmallGuest::new(like);
    while let [region, low, high, len, rest @ ..] = patches {
        let (bytes, later) = rest.split_at(rest.len().min(usize::from(*len) + 1));
        guest.scribble(*region, u16::from_le_bytes([*low, *high]), bytes);
        patches = later;
    }
    let Ok(kernel) = Kernel::find(&guest.view()) else { return };
    kernel.missing();
    if let Ok(symbols) = kernel.symbols() {
        symbols.symbol_at(0xffff_ffff_8020_0000);
        assert_eq!(symbols.iter().count(), symbols.len());
    }
    if let Ok(pages) = kernel.pages() {
        assert_eq!(pages.classes().len() as u64, RAM >> 12);
        assert!(pages.cached().all(|cached| u64::from(cached.frame.0) < RAM >> 12));
    }
    if let Ok(together) = kernel.together() {
        assert!(together.len() as u64 <= RAM >> 12);
    }
    if let Ok(free) = kernel.free_frames() {
        let read = free.read(0..u32::MAX);
        assert_eq!(read.len() as u64, RAM >> 12);
        // Lists of CPUs have the others.
        let in_buddy = free.anew().in_buddy(0..u32::MAX);
        assert!(in_buddy.iter().zip(read).all(|(in_buddy, free)| !in_buddy || free));
    }
    if let Ok(Ok(found)) = kernel.free_lists().map(|lists| lists.walk()) {
        assert!(found.iter().all(|frames| u64::from(frames.end) <= RAM >> 12));
    }
    if let Ok(processes) = kernel.processes() {
        assert!(processes.list.iter().all(|process| process.name.chars().count() <= 15));
    }
}
