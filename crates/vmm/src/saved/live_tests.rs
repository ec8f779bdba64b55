use std::sync::atomic::AtomicBool;

use memory::{DeviceView, Gpa, GuestMemory, Source};

use super::*;

const FRAMES: u32 = 4096;

fn gpa(frame: u32) -> Gpa {
    Gpa(u64::from(frame) * FRAME_SIZE as u64)
}

/// What `frame` has at first: each third frame nothing.
fn first(frame: u32) -> Contents {
    let mut contents = [0; FRAME_SIZE];
    if !frame.is_multiple_of(3) {
        contents.as_chunks_mut::<4>().0.fill((frame | 1 << 31).to_le_bytes());
    }
    contents
}

fn memory() -> (Arc<GuestMemory>, DeviceView) {
    let memory = GuestMemory::with_bytes(u64::from(FRAMES) * FRAME_SIZE as u64).expect("memory");
    let memory = Arc::new(memory);
    let view = DeviceView::new(Arc::clone(&memory));
    for frame in (0..FRAMES).filter(|frame| !frame.is_multiple_of(3)) {
        view.write(gpa(frame), &first(frame)).expect("written");
    }
    (memory, view)
}

/// Overwrites all of memory again and again until `stop`, one frame at least. How many frames it wrote.
fn overwrite(view: &DeviceView, seed: u32, stop: &AtomicBool) -> u32 {
    for step in 0.. {
        view.write(gpa((step * 1021 + seed) % FRAMES), &[0xff; 300]).expect("written");
        if stop.load(Ordering::Relaxed) {
            return step + 1;
        }
    }
    unreachable!()
}

type Shelf = Mutex<Vec<Option<Box<Contents>>>>;

/// Puts each frame on the shelf, slowly, and once.
fn onto(
    shelf: &Shelf,
    slow: Duration,
) -> impl FnMut(Frame, &Contents) -> io::Result<()> + Send + use<'_> {
    move |frame, contents| {
        let mut shelf = shelf.lock().expect("no panic");
        let before = shelf[frame.index()].replace(Box::new(*contents));
        drop(shelf);
        assert!(before.is_none(), "{frame} comes twice");
        if !slow.is_zero() {
            thread::sleep(slow);
        }
        Ok(())
    }
}

fn shelf() -> Shelf {
    Mutex::new(vec![None; FRAMES as usize])
}

/// Copies under two writers.
fn copied(queue_bytes: usize, threads: usize, slow: Duration) -> (Copied, Shelf) {
    let (memory, view) = memory();
    let (keeper, kept) = queue(queue_bytes);
    let frozen = memory.freeze(Box::new(keeper)).expect("frozen");
    let (shelf, stop) = (shelf(), AtomicBool::new(false));
    let copied = thread::scope(|scope| {
        let writers = [0, 77].map(|seed| {
            scope.spawn({
                let (view, stop) = (&view, &stop);
                move || overwrite(view, seed, stop)
            })
        });
        let sinks = (0..threads).map(|_| onto(&shelf, slow)).collect();
        let copied = copy(&frozen, &kept, sinks).expect("copied");
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            assert!(writer.join().expect("no panic") > 0);
        }
        copied
    });
    assert_eq!(frozen.kept(), copied.kept);
    (copied, shelf)
}

#[test]
fn each_frame_comes_once_as_it_was() {
    for (bytes, threads, slow) in [
        (64 << 20, 1, Duration::ZERO),
        (64 << 20, 3, Duration::ZERO),
        (8 << 12, 2, Duration::from_micros(20)),
        (0, 2, Duration::from_micros(20)),
    ] {
        let (copied, shelf) = copied(bytes, threads, slow);
        assert_eq!(copied.taken + copied.kept + copied.zero, FRAMES, "{copied:?}");
        assert_eq!((copied.zero, copied.fetched), (FRAMES.div_ceil(3), 0));
        for (frame, contents) in (0..).zip(shelf.into_inner().expect("no panic")) {
            let contents = contents.map_or([0; FRAME_SIZE], |contents| *contents);
            assert!(contents == first(frame), "frame {frame}");
        }
    }
}

#[test]
fn a_full_queue_makes_who_writes_wait() {
    let (copied, ..) = copied(4 << 12, 1, Duration::from_micros(50));
    assert!(copied.kept > 4 && !copied.held_up.is_zero(), "{copied:?}");
}

/// `sink` ends the copy; writers go on.
fn fails(sink: impl FnMut(Frame, &Contents) -> io::Result<()> + Send + Clone) -> LiveError {
    let (memory, view) = memory();
    let (keeper, kept) = queue(4 << 12);
    let frozen = memory.freeze(Box::new(keeper)).expect("frozen");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| overwrite(&view, 5, &stop));
        let error = copy(&frozen, &kept, vec![sink.clone(), sink]).expect_err("a sink fails");
        // Still frozen, and nobody takes what is kept.
        thread::sleep(Duration::from_millis(5));
        drop(frozen);
        stop.store(true, Ordering::Relaxed);
        assert!(writer.join().expect("no panic") > 0);
        error
    })
}

#[test]
fn a_failing_sink_ends_the_copy_and_holds_nobody_up() {
    for after in [0, 1, 700, 2000] {
        let left = AtomicU32::new(after);
        let left = &left;
        let error = fails(move |_, _| {
            let step = |left: u32| left.checked_sub(1);
            match left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step) {
                Ok(_) => Ok(()),
                Err(_) => Err(io::ErrorKind::StorageFull.into()),
            }
        });
        assert!(matches!(error, LiveError::Sink { .. }), "{error}");
    }
}

#[test]
fn a_sink_that_panics_holds_nobody_up() {
    let (memory, view) = memory();
    let (keeper, kept) = queue(4 << 12);
    let frozen = memory.freeze(Box::new(keeper)).expect("frozen");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| overwrite(&view, 5, &stop));
        let sink = |frame: Frame, _: &Contents| {
            assert!(frame.0 != 1001, "a bug of the sink");
            Ok(())
        };
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = copy(&frozen, &kept, vec![sink, sink]);
        }));
        assert!(panicked.is_err());
        stop.store(true, Ordering::Relaxed);
        assert!(writer.join().expect("no panic") > 0);
    });
}

/// Has frames below `good`.
struct Store {
    good: u32,
}

impl Source for Store {
    fn fetch(&self, frame: Frame, into: &mut Contents) -> Result<(), SourceError> {
        if frame.0 >= self.good {
            return Err(SourceError::Unavailable("gone".into()));
        }
        *into = first(frame.0 * 3 + 1);
        Ok(())
    }
}

#[test]
fn absent_frames_are_fetched_and_a_source_that_fails_is_named() {
    for good in [FRAMES, 2500] {
        let bytes = u64::from(FRAMES) * FRAME_SIZE as u64;
        let memory = Arc::new(GuestMemory::with_bytes(bytes).expect("memory"));
        let source = memory.add_source(Arc::new(Store { good })).expect("a source");
        memory.make_absent((0..3000).map(Frame), source).expect("absent");
        let (keeper, kept) = queue(64 << 20);
        let frozen = memory.freeze(Box::new(keeper)).expect("frozen");
        DeviceView::new(Arc::clone(&memory)).write(gpa(7), &[1]).expect("fetched and written");
        let shelf = shelf();
        let copied = copy(&frozen, &kept, vec![onto(&shelf, Duration::ZERO)]);
        if good < 3000 {
            let error = copied.expect_err("the source fails");
            assert!(error.to_string().contains("frame 2500: fetch: unavailable"), "{error}");
            continue;
        }
        let copied = copied.expect("copied");
        assert_eq!((copied.fetched, copied.kept, copied.zero), (2999, 1, FRAMES - 3000));
        for (frame, contents) in (0..3000).zip(shelf.into_inner().expect("no panic")) {
            assert!(*contents.expect("given") == first(frame * 3 + 1), "frame {frame}");
        }
    }
}
