//! Any bytes as a guest's page tables, and any frames as their roots: each sweep of the classifier ends, without a
//! panic, and every frame has one class.
//!
//! The input is a list of patches: frame, place in it, length and bytes. The first byte says how many roots there are,
//! and those after it which.
#![no_main]

use std::sync::Arc;

use insight::{CacheTracker, Classifier, FrameClass};
use libfuzzer_sys::fuzz_target;
use memory::{DeviceView, Event, Frame, Gpa, GuestMemory, Inbox, ReadView};

/// More than a large page, so that one can be mapped.
const FRAMES: u32 = 1024;

fuzz_target!(|input: &[u8]| {
    let [roots, input @ ..] = input else { return };
    let memory = Arc::new(GuestMemory::with_bytes(u64::from(FRAMES) << 12).expect("memory"));
    let events = memory.listen(64);
    let (roots, mut patches) = input.split_at(input.len().min(usize::from(roots % 16)));
    for root in roots {
        events.tell(Event::AddressSpace { root: Frame((*root).into()), vcpu: 0 });
    }
    let view = DeviceView::new(Arc::clone(&memory));
    while let [frame, low, high, len, rest @ ..] = patches {
        let (bytes, later) = rest.split_at(rest.len().min(usize::from(*len) + 1));
        let offset = u64::from(u16::from_le_bytes([*low, *high]) & 0xfff);
        // Frames above 255 are data: what lies there is not looked at but for zeros.
        let _ = view.write(Gpa((u64::from(*frame) << 12) + offset), bytes);
        patches = later;
    }
    let contents = Box::new(ReadView::new(Arc::clone(&memory)));
    let mut cache = CacheTracker::new(FRAMES, contents);
    let mut classifier = Classifier::new(Arc::clone(&memory));
    let mut inbox = Inbox::default();
    for _ in 0..3 {
        while let Some(stamped) = inbox.take(events) {
            classifier.tell(&stamped);
            cache.tell(stamped);
        }
        memory.advance_epoch();
        classifier.sweep(&cache);
    }
    let summary = classifier.summary(&cache);
    let frames: u64 = summary.classes.iter().map(|class| class.frames).sum();
    assert_eq!(frames, u64::from(FRAMES));
    assert_eq!(summary.classes[FrameClass::Free as usize].frames, 0);
    assert!(classifier.processes().count() <= 16);
});
