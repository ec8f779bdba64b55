//! Contents supplied before anybody asks, beside everybody who does not wait for them.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;

use memory::{
    Access, Discard, Epoch, FRAME_SIZE, Frame, FrameState, GuestMemory, ResolveError, Source,
    SourceError, SourceId,
};

type Page = [u8; FRAME_SIZE];

/// Fills each frame with its number, and counts.
#[derive(Default)]
struct Numbers(AtomicU32);

impl Source for Numbers {
    fn fetch(&self, frame: Frame, into: &mut Page) -> Result<(), SourceError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        *into = page(frame);
        Ok(())
    }
}

fn page(frame: Frame) -> Page {
    let mut page = [0; FRAME_SIZE];
    page.as_chunks_mut().0.fill((u64::from(frame.0) << 32 | 1).to_le_bytes());
    page
}

fn memory(frames: u32) -> (Arc<GuestMemory>, Arc<Numbers>, SourceId) {
    let memory = Arc::new(GuestMemory::with_bytes(u64::from(frames) * FRAME_SIZE as u64).unwrap());
    let numbers = Arc::new(Numbers::default());
    let source = memory.add_source(numbers.clone()).unwrap();
    (memory, numbers, source)
}

fn state(memory: &GuestMemory, frame: u32) -> FrameState {
    memory.facts(Frame(frame)).unwrap().state
}

/// The first word of a resident frame.
fn word(memory: &GuestMemory, frame: Frame) -> &AtomicU64 {
    let page = memory.resolve(frame, Access::Write).unwrap();
    // SAFETY: a resident page, aligned, mapped as long as the memory; all users of the test are atomic.
    unsafe { AtomicU64::from_ptr(page.as_ptr().cast()) }
}

#[test]
fn only_frames_absent_at_that_source_are_supplied() {
    let (memory, numbers, source) = memory(16);
    let other = memory.add_source(Arc::new(Numbers::default())).unwrap();
    memory.make_absent((0..8).map(Frame), source).unwrap();
    memory.make_absent([Frame(8)], other).unwrap();
    memory.discard([Frame(9)], Discard::Balloon).unwrap();
    memory.discard([Frame(3)], Discard::Reported).unwrap();
    word(&memory, Frame(5)).store(77, Ordering::Relaxed);
    assert_eq!(numbers.0.load(Ordering::Relaxed), 1);

    memory.advance_epoch();
    let contents: Vec<Page> = (0..12).map(|frame| page(Frame(frame))).collect();
    let pages: Vec<_> = (0..).map(Frame).zip(&contents).collect();
    // All but 3 and 5, and what was never absent or not there.
    assert_eq!(memory.supply(source, &pages).unwrap(), 6);
    assert_eq!(memory.supply(source, &pages).unwrap(), 0);
    for frame in [0, 1, 2, 4, 6, 7] {
        let facts = memory.facts(Frame(frame)).unwrap();
        assert_eq!(facts.state, FrameState::Resident, "frame {frame}");
        assert_eq!((facts.accessed, facts.written), (Epoch::NEVER, Epoch::NEVER), "frame {frame}");
    }
    assert_eq!(state(&memory, 8), FrameState::Absent(other));
    assert_eq!(state(&memory, 9), FrameState::Ballooned);
    for frame in [3, 10, 11] {
        assert_eq!(state(&memory, frame), FrameState::Untouched, "frame {frame}");
    }
    assert_eq!(memory.backed_bytes().unwrap(), 7 * FRAME_SIZE as u64);
    assert_eq!(word(&memory, Frame(5)).load(Ordering::Relaxed), 77);
    for frame in [0, 1, 2, 4, 6, 7].map(Frame) {
        let mut bytes = [0; FRAME_SIZE];
        let start = word(&memory, frame).as_ptr().cast::<u8>();
        // SAFETY: a resident page that nobody writes.
        unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(start, FRAME_SIZE) };
        assert_eq!(bytes, page(frame), "frame {frame}");
    }
    assert_eq!(numbers.0.load(Ordering::Relaxed), 1, "nothing was fetched");
}

#[test]
fn any_order_will_do_and_a_frame_past_the_end_stops_it_before_it_begins() {
    let (memory, _, source) = memory(300);
    memory.make_absent((0..300).map(Frame), source).unwrap();
    let one = page(Frame(1));
    let past = [(Frame(1), &one), (Frame(300), &one)];
    let error = memory.supply(source, &past).unwrap_err();
    assert!(matches!(error, ResolveError::NoSuchFrame(Frame(300))), "{error}");
    assert_eq!(memory.counts().absent, 300);

    assert_eq!(memory.supply(source, &[]).unwrap(), 0);
    let contents: Vec<Page> = (0..300).map(|frame| page(Frame(frame))).collect();
    let falling = (0..300).rev().map(|frame| (Frame(frame), &contents[frame as usize]));
    let twice: Vec<_> = falling.flat_map(|page| [page, page]).take(200).collect();
    assert_eq!(memory.supply(source, &twice).unwrap(), 100);
    let rising: Vec<_> = (0..).map(Frame).zip(&contents).collect();
    assert_eq!(memory.supply(source, &rising).unwrap(), 200);
    for frame in (0..300).map(Frame) {
        let expected = u64::from(frame.0) << 32 | 1;
        assert_eq!(word(&memory, frame).load(Ordering::Relaxed), expected, "frame {frame}");
    }
}

/// As where an image is mapped that somebody cuts off: the contents cannot be read.
#[test]
fn contents_that_cannot_be_read_leave_their_frame_absent() {
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    let (memory, _, source) = memory(8);
    memory.make_absent((0..8).map(Frame), source).unwrap();
    let image = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&image, &[7; 2 * FRAME_SIZE], 0).unwrap();
    let bytes = 4 * FRAME_SIZE;
    // SAFETY: a new mapping. Nobody but the kernel reads it, which answers an error behind the file's end.
    let pages: &[Page] = unsafe {
        let start = mmap(std::ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::SHARED, &image, 0)
            .unwrap();
        std::slice::from_raw_parts(start.cast(), 4)
    };
    let named: Vec<_> = (2..).map(Frame).zip(pages).collect();
    let error = memory.supply(source, &named).unwrap_err();
    assert!(matches!(error, ResolveError::Store { frame: Frame(4), .. }), "{error}");
    assert_eq!([2, 3].map(|frame| state(&memory, frame)), [FrameState::Resident; 2]);
    assert_eq!([4, 5].map(|frame| state(&memory, frame)), [FrameState::Absent(source); 2]);
    assert_eq!(memory.backed_bytes().unwrap(), 2 * FRAME_SIZE as u64);
    assert_eq!(word(&memory, Frame(4)).load(Ordering::Relaxed), 4 << 32 | 1, "fetched after all");
    // SAFETY: the mapping made above, which nobody uses any more.
    unsafe { munmap(pages.as_ptr().cast_mut().cast(), bytes).unwrap() };
}

/// Readers bring all frames in while vCPUs add to frames all over and another thread gives some back: no addition is
/// lost, and none is to anything but the contents or, where a frame was given back, zeros.
#[test]
fn what_the_guest_writes_meanwhile_stays() {
    const FRAMES: u32 = 4096;
    const GIVEN_BACK: u32 = 7;
    let (memory, numbers, source) = memory(FRAMES);
    memory.make_absent((0..FRAMES).map(Frame), source).unwrap();
    let contents: Vec<Page> = (0..FRAMES).map(|frame| page(Frame(frame))).collect();
    let (next, memory, contents) = (&AtomicU32::new(0), &*memory, &contents);
    let supplied: u32 = thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(move || {
                    let mut supplied = 0;
                    loop {
                        // They overlap by half.
                        let first = next.fetch_add(32, Ordering::Relaxed);
                        if first >= FRAMES {
                            return supplied;
                        }
                        let batch = first..(first + 64).min(FRAMES);
                        let batch: Vec<_> =
                            batch.map(|frame| (Frame(frame), &contents[frame as usize])).collect();
                        supplied += memory.supply(source, &batch).unwrap();
                    }
                })
            })
            .collect();
        for vcpu in 0..2 {
            scope.spawn(move || {
                for step in 0..FRAMES {
                    let frame = Frame((step * 1531 + vcpu * 97) % FRAMES);
                    if !frame.0.is_multiple_of(GIVEN_BACK) {
                        word(memory, frame).fetch_add(1 << 8, Ordering::Relaxed);
                    }
                }
            });
        }
        scope.spawn(move || {
            let given_back =
                (0..FRAMES).map(Frame).filter(|frame| frame.0.is_multiple_of(GIVEN_BACK));
            for frame in given_back {
                memory.discard([frame], Discard::Reported).unwrap();
            }
        });
        readers.into_iter().map(|reader| reader.join().unwrap()).sum()
    });
    assert_eq!(memory.counts().absent, 0);
    assert!(supplied + numbers.0.load(Ordering::Relaxed) <= FRAMES);
    for frame in (0..FRAMES).map(Frame) {
        let contents = u64::from(frame.0) << 32 | 1;
        let seen = word(memory, frame).load(Ordering::Relaxed);
        match frame.0 % GIVEN_BACK {
            0 => assert!(seen == 0 || seen == contents, "frame {frame}: {seen:#x}"),
            _ => assert_eq!(seen, contents + (2 << 8), "frame {frame}"),
        }
    }
}
