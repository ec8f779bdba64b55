//! Contents that are stored once: found, bounded, compared; and gone from one, there for the others.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::tests::{FRAMES, Refusing, good, layout, names, vm};
use super::*;

/// A page that is like no other of another number.
fn page(number: u32) -> [u8; FRAME_SIZE] {
    let mut page = [0x5a; FRAME_SIZE];
    page[100..104].copy_from_slice(&number.to_le_bytes());
    page
}

/// However short they are.
fn sharing(with: Vec<Arc<Snapshot>>) -> Sharing {
    Sharing::new(with).at_least(1)
}

/// Saves frames with these contents, by number; 0 is a frame of zeros.
fn save(
    path: &Path,
    contents: impl Fn(u32) -> u32,
    common: Sharing,
    host: Arc<dyn Host>,
) -> Result<Saved, SnapshotError> {
    let options = Options { sharing: Some(common), ..Options::new(layout()) };
    let writer = Writer::create_on(path, options, host)?;
    let mut lane = writer.lane()?;
    for frame in 0..FRAMES {
        let page = match contents(frame) {
            0 => [0; FRAME_SIZE],
            number => page(number),
        };
        lane.write(Frame(frame), &page)?;
    }
    lane.finish()?;
    writer.finish(vm(), b"{}", &[Frame(50), Frame(3)])
}

fn open(path: &Path) -> Arc<Snapshot> {
    Arc::new(Snapshot::open(path).expect("whole"))
}

fn check(path: &Path, contents: impl Fn(u32) -> u32) {
    let snapshot = open(path);
    snapshot.verify().expect("all of it");
    let mut found = vec![0; FRAMES as usize];
    let mut batch = crate::Batch::new();
    for place in snapshot.places() {
        snapshot.read_place(place, &mut batch).expect("read");
        for (frame, contents) in batch.iter() {
            found[frame.index()] = u32::from_le_bytes(*contents[100..].first_chunk().expect("4"));
        }
    }
    for frame in 0..FRAMES {
        let mut read = [1; FRAME_SIZE];
        snapshot.read(Frame(frame), &mut read).expect("read");
        let number = contents(frame);
        assert!(read == if number == 0 { [0; FRAME_SIZE] } else { page(number) }, "{frame}");
        assert_eq!(found[frame as usize], number, "{frame}");
    }
}

fn host_bytes(path: &Path) -> u64 {
    fs::metadata(path.join(part::MEMORY)).expect("attributes").blocks() * 512
}

#[test]
fn runs_that_another_has_elsewhere_are_stored_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let (a, b, c) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("c"));
    let of_a = |frame| if frame < 200 { frame + 1 } else { 0 };
    // Shifted by 7, with new ones in the middle and at the end.
    let of_b = |frame| match frame {
        0..7 | 250.. => 0,
        90..100 => 5000 + frame,
        207..250 => 6000 + frame,
        _ => frame - 6,
    };
    // Of either.
    let of_c = |frame| if frame < 128 { of_b(frame + 80) } else { of_a(frame - 128) };
    let saved = save(&a, of_a, sharing(Vec::new()), good()).expect("saved");
    assert_eq!((saved.image_bytes, saved.shared_bytes), (200 * 4096, 0));
    assert!(open(&a).manifest().needs.is_empty());
    let saved = save(&b, of_b, sharing(vec![open(&a)]), good()).expect("saved");
    assert_eq!((saved.image_bytes, saved.shared_bytes), (53 * 4096, 190 * 4096));
    assert_eq!(open(&b).plain_image().expect("plain").extents.len(), 2);
    assert_eq!(host_bytes(&b), 53 * 4096);
    let saved = save(&c, of_c, sharing(vec![open(&a), open(&b)]), good()).expect("saved");
    assert_eq!(saved.image_bytes, 0, "{saved:?}");
    let image = open(&c);
    let image = image.plain_image().expect("plain");
    assert_eq!((image.extents.len(), image.shared.len()), (5, 2), "{:?}", image.extents);
    for (path, of) in [(&a, &of_a as &dyn Fn(u32) -> u32), (&b, &of_b), (&c, &of_c)] {
        check(path, of);
    }
    // A child stores what differs, and reads the rest through extents.
    let child = folder.path().join("child");
    let options = Options { parent: Some(open(&c)), ..Options::new(layout()) };
    let writer = Writer::create(&child, options).expect("begun");
    let mut lane = writer.lane().expect("a lane");
    lane.write(Frame(0), &page(9999)).expect("written");
    lane.finish().expect("written");
    writer.unchanged(FrameRange { first: Frame(1), count: FRAMES - 1 }).expect("unchanged");
    writer.finish(vm(), b"{}", &[]).expect("saved");
    check(&child, |frame| if frame == 0 { 9999 } else { of_c(frame) });
    // Whoever goes takes nothing from the others.
    crate::remove(&a).expect("removed");
    check(&b, of_b);
    // A damaged one, too.
    fs::remove_file(b.join("manifest")).expect("removed");
    crate::remove(&b).expect("removed");
    check(&c, of_c);
    assert_eq!(names(folder.path()), ["c", "child"]);
    let error = crate::remove(folder.path()).expect_err("no snapshot").to_string();
    assert!(error.contains("is no snapshot"), "{error}");
    // What only others have by name is found again.
    let d = folder.path().join("d");
    let saved = save(&d, |frame| of_a(255 - frame.min(255)), sharing(vec![open(&c)]), good());
    assert!(saved.expect("saved").shared_bytes >= 120 * 4096);
    check(&d, |frame| of_a(255 - frame));
}

#[test]
fn what_is_in_it_twice_is_stored_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a");
    let contents = |frame| 1 + frame % 50;
    let saved = save(&path, contents, sharing(Vec::new()), good()).expect("saved");
    assert_eq!(saved.image_bytes, 50 * 4096);
    check(&path, contents);
    assert_eq!(host_bytes(&path), 50 * 4096);
    assert_eq!(open(&path).manifest().needs, ["extents"]);
}

#[test]
fn short_runs_are_stored() {
    let folder = tempfile::tempdir().expect("a folder");
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    save(&a, |frame| frame + 1, Sharing::new(Vec::new()), good()).expect("saved");
    // Three, four and five in a row.
    let contents = |frame| match frame {
        10..13 | 20..24 | 30..35 => frame + 1,
        _ => 8000 + frame,
    };
    let saved = save(&b, contents, Sharing::new(vec![open(&a)]), good()).expect("saved");
    assert_eq!(saved.shared_bytes, 9 * 4096);
    check(&b, contents);
}

#[test]
fn the_longest_runs_are_taken_and_no_more_than_may_be() {
    let folder = tempfile::tempdir().expect("a folder");
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    save(&a, |frame| frame + 1, sharing(Vec::new()), good()).expect("saved");
    // Runs of 1, 2, 3, ... frames, with one of its own between them.
    let contents = |frame| {
        let is_end =
            (1..FRAMES).scan(0, |end, n| Some((*end, *end += n + 1).0)).any(|at| at == frame);
        if is_end { 9000 + frame } else { frame + 1 }
    };
    let all = save(&b, contents, sharing(vec![open(&a)]), good()).expect("saved");
    assert_eq!(open(&b).plain_image().expect("plain").extents.len(), 22);
    check(&b, contents);
    fs::remove_dir_all(&b).expect("removed");
    let few = sharing(vec![open(&a)]).at_most(3);
    let some = save(&b, contents, few, good()).expect("saved");
    let lengths: Vec<u32> = {
        let snapshot = open(&b);
        let image = snapshot.plain_image().expect("plain");
        image.extents.iter().map(|extent| extent.frames.count).collect()
    };
    assert_eq!(lengths, [19, 20, 21]);
    assert_eq!(some.shared_bytes + some.image_bytes, all.shared_bytes + all.image_bytes);
    check(&b, contents);
}

/// With two bits of each checksum, most that seems the same is not.
#[test]
fn equal_checksums_of_other_contents_are_not_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    save(&a, |frame| frame + 1, sharing(Vec::new()), good()).expect("saved");
    let contents = |frame| if frame % 8 < 4 { frame + 1 } else { 7000 + frame };
    let common = sharing(vec![open(&a)]).with_collisions();
    let saved = save(&b, contents, common, good()).expect("saved");
    assert!(saved.image_bytes >= 128 * 4096, "{saved:?}");
    check(&b, contents);
    check(&a, |frame| frame + 1);
}

/// Whatever of the other was changed on the disk is found before it is relied on.
#[test]
fn contents_that_are_not_what_their_checksums_say_are_not_shared() {
    let folder = tempfile::tempdir().expect("a folder");
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    save(&a, |frame| frame + 1, sharing(Vec::new()), good()).expect("saved");
    let memory = fs::OpenOptions::new().write(true).open(a.join("memory")).expect("opened");
    FileExt::write_all_at(&memory, &[1], 30 * 4096).expect("written");
    let common = sharing(vec![open(&a)]);
    let saved = save(&b, |frame| frame + 1, common, good()).expect("saved");
    assert_eq!(saved.image_bytes, 4096);
    check(&b, |frame| frame + 1);
}

#[test]
fn a_step_that_fails_leaves_the_others_and_nothing_else() {
    let mut failures = 0;
    for step in 0.. {
        let folder = tempfile::tempdir().expect("a folder");
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        let of_a = |frame| frame / 3 + 1;
        save(&a, of_a, sharing(Vec::new()), good()).expect("saved");
        // For ever from some step on, or once.
        for times in [1, u32::MAX] {
            let host = Refusing::new(step, times);
            let common = sharing(vec![open(&a)]);
            let done = save(&b, |frame| frame / 2 + 1, common, Arc::new(host.clone()));
            if host.steps() <= step {
                done.expect("no step failed");
                assert!(failures > 40, "{failures}");
                return;
            }
            failures += 1;
            let text = done.expect_err("a step failed").to_string();
            assert!(text.contains(&folder.path().display().to_string()), "{text}");
            check(&a, of_a);
            if times == 1 {
                assert_eq!(names(folder.path()), ["a"]);
                continue;
            }
            // The next one cleans up.
            let common = sharing(vec![open(&a)]);
            save(&b, |frame| frame / 2 + 1, common, good()).expect("saved");
            check(&b, |frame| frame / 2 + 1);
            assert_eq!(names(folder.path()), ["a", "b"]);
        }
    }
}
