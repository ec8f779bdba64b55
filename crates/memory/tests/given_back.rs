//! Pages given back leave the process: seen by the kernel's own accounts.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::Arc;

use memory::{DeviceView, Discard, FRAME_SIZE, Frame, FrameState, Gpa, GuestMemory};

const MIB: u64 = 1 << 20;

/// Resident bytes of the mapping that holds `address`, from /proc/self/smaps (proc(5)).
fn rss_of_mapping(address: usize) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or("");
        if let Some((start, end)) = first.split_once('-')
            && let Ok(start) = usize::from_str_radix(start, 16)
            && let Ok(end) = usize::from_str_radix(end, 16)
        {
            inside = (start..end).contains(&address);
        } else if inside && first == "Rss:" {
            let kib = line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
            return kib * 1024;
        }
    }
    panic!("no mapping holds {address:#x}");
}

fn filled(bytes: u64) -> DeviceView {
    let view = DeviceView::new(Arc::new(GuestMemory::with_bytes(bytes).unwrap()));
    view.write(Gpa(0), &vec![0xa5; bytes as usize]).unwrap();
    view
}

#[test]
fn discarded_frames_leave_smaps_and_the_file() {
    let view = filled(16 * MIB);
    let memory = view.memory();
    let address = memory.resolve(Frame(0), memory::Access::Read).unwrap().as_ptr() as usize;
    assert_eq!(rss_of_mapping(address), 16 * MIB);
    assert_eq!(memory.backed_bytes().unwrap(), 16 * MIB);

    // 4 MiB in one run, then every second frame of 2 MiB: no run longer than a frame.
    let run = (256..1280).map(Frame);
    let scattered = (2048..2560).step_by(2).map(Frame);
    memory.discard(run.chain(scattered), Discard::Balloon).unwrap();
    let rest = 16 * MIB - 4 * MIB - MIB;
    assert_eq!(rss_of_mapping(address), rest);
    assert_eq!(memory.backed_bytes().unwrap(), rest);
    assert_eq!(memory.resident_bytes(), rest);

    let mut kept = [0; FRAME_SIZE];
    view.read(Gpa(2049 * FRAME_SIZE as u64), &mut kept).unwrap();
    assert_eq!(kept, [0xa5; FRAME_SIZE]);
}

#[test]
fn a_ballooned_frame_comes_back_as_zeros_one_at_a_time() {
    let view = filled(4 * MIB);
    let memory = view.memory();
    memory.discard((0..1024).map(Frame), Discard::Balloon).unwrap();
    assert_eq!(memory.backed_bytes().unwrap(), 0);
    let mut bytes = [1; FRAME_SIZE];
    view.read(Gpa(7 * FRAME_SIZE as u64), &mut bytes).unwrap();
    assert_eq!(bytes, [0; FRAME_SIZE]);
    assert_eq!(memory.facts(Frame(7)).unwrap().state, FrameState::Resident);
    assert_eq!(memory.counts().ballooned, 1023);
    assert_eq!(memory.return_from_balloon((0..1024).map(Frame)), 1023);
    assert_eq!(memory.counts().untouched, 1023);
    assert_eq!(memory.backed_bytes().unwrap(), FRAME_SIZE as u64);
}

#[test]
fn a_fresh_guest_costs_nothing() {
    let memory = GuestMemory::with_bytes(6 << 30).unwrap();
    let address = memory.resolve(Frame(0), memory::Access::Read).unwrap().as_ptr() as usize;
    assert_eq!(memory.counts().untouched, (6 << 18) - 1);
    assert_eq!(memory.backed_bytes().unwrap(), 0);
    assert_eq!(rss_of_mapping(address), 0);
}
