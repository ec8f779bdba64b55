//! The overlay against a plain array, on files that crash and fail.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use memory::{Gpa, GuestMemory};
use proptest::prelude::*;

use super::*;
use crate::DeviceView;
use crate::virtio::block::DiskConfig;
use crate::virtio::queue::{Segment, Segments};

/// Odd, so that the last cluster is cut.
const DISK_LEN: u64 = 5 * CLUSTER_LEN + 512;

/// A file in memory: what a crash leaves of it, and what it reads as now.
#[derive(Clone)]
struct Memory(Arc<Mutex<Contents>>);

struct Contents {
    durable: Vec<u8>,
    /// Since the last sync, in order.
    pending: Vec<(u64, Vec<u8>)>,
    now: Vec<u8>,
    /// Operations until all fail; counts down.
    lives: u32,
    can_punch: bool,
}

impl Memory {
    fn new(bytes: Vec<u8>) -> Self {
        let contents = Contents {
            durable: bytes.clone(),
            pending: Vec::new(),
            now: bytes,
            lives: u32::MAX,
            can_punch: true,
        };
        Self(Arc::new(Mutex::new(contents)))
    }

    fn set(&self, change: impl FnOnce(&mut Contents)) {
        change(&mut self.0.lock().unwrap());
    }

    fn change(&self, offset: u64, bytes: Vec<u8>) -> io::Result<()> {
        let mut file = self.0.lock().unwrap();
        file.live()?;
        file.now[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        file.pending.push((offset, bytes));
        Ok(())
    }

    /// What is left after a crash that lets those pending changes through that `survives` picks.
    fn crash(&self, survives: impl Fn(usize) -> bool) -> Memory {
        let file = self.0.lock().unwrap();
        let mut bytes = file.durable.clone();
        for (i, (offset, part)) in file.pending.iter().enumerate() {
            if survives(i) {
                bytes[*offset as usize..][..part.len()].copy_from_slice(part);
            }
        }
        Memory::new(bytes)
    }
}

impl Contents {
    fn live(&mut self) -> io::Result<()> {
        self.lives = self.lives.saturating_sub(1);
        if self.lives == 0 { Err(io::Error::other("the disk died")) } else { Ok(()) }
    }
}

impl HostFile for Memory {
    fn read_guest(&self, offset: u64, to: &GuestBuffer<'_>) -> io::Result<()> {
        let mut bytes = vec![0; to.len() as usize];
        self.read_host(offset, &mut bytes)?;
        to.copy_from(&bytes)
    }

    fn write_guest(&self, offset: u64, from: &GuestBuffer<'_>) -> io::Result<()> {
        self.change(offset, from.to_vec()?)
    }

    fn read_host(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let mut file = self.0.lock().unwrap();
        file.live()?;
        to.copy_from_slice(&file.now[offset as usize..][..to.len()]);
        Ok(())
    }

    fn write_host(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.change(offset, from.to_vec())
    }

    fn sync(&self) -> io::Result<()> {
        let mut file = self.0.lock().unwrap();
        file.live()?;
        file.durable = file.now.clone();
        file.pending.clear();
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<bool> {
        let can_punch = self.0.lock().unwrap().can_punch;
        if can_punch {
            self.change(offset, vec![0; len as usize])?;
        }
        Ok(can_punch)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.punch(offset, len)
    }
}

fn header() -> Header {
    Header::new(Identity { len: DISK_LEN, modified_secs: 0, modified_nanos: 0 })
}

fn image_bytes() -> Vec<u8> {
    (0..DISK_LEN).map(|at| 0x80 | (at / 512) as u8).collect()
}

/// A fresh overlay file. Its data part holds garbage, as after an earlier crash.
fn fresh_file() -> Memory {
    let mut bytes = vec![0; header().file_len() as usize];
    bytes[header().data_offset() as usize..].fill(0xee);
    Memory::new(bytes)
}

fn open_on(file: &Memory) -> Overlay<Memory> {
    let bitmap = Bitmap::read(&header(), file).unwrap();
    Overlay::new(Memory::new(image_bytes()), file.clone(), header(), bitmap)
}

/// A guest with one buffer, large enough for the disk.
struct Guest {
    view: DeviceView,
}

impl Guest {
    fn new() -> Self {
        let memory = Arc::new(GuestMemory::with_bytes(1 << 20).unwrap());
        Self { view: DeviceView::new(memory) }
    }

    /// In two pieces, the second one first in memory.
    fn buffer(&self, len: u64) -> GuestBuffer<'_> {
        let mut segments = Segments::default();
        segments.push(Segment { address: Gpa(0x4_0123), len: len / 3 });
        segments.push(Segment { address: Gpa(0x1_0000), len: len - len / 3 });
        GuestBuffer::new(&self.view, segments)
    }

    fn read(&self, disk: &mut impl Storage, offset: u64, len: u64) -> Vec<u8> {
        let buffer = self.buffer(len);
        disk.read(offset, &buffer).unwrap();
        buffer.to_vec().unwrap()
    }

    fn write(&self, disk: &mut impl Storage, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let buffer = self.buffer(bytes.len() as u64);
        buffer.copy_from(bytes).unwrap();
        disk.write(offset, &buffer)
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Write(u64, u64, u8),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Flush,
    Reopen,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let sectors = DISK_LEN / 512;
    let range = (0..sectors, 1..=sectors)
        .prop_map(move |(first, count)| (first * 512, count.min(sectors - first) * 512));
    let action = prop_oneof![
        6 => (range.clone(), 1_u8..0x7f).prop_map(|((at, len), fill)| Action::Write(at, len, fill)),
        2 => (range.clone(), any::<bool>()).prop_map(|((at, len), u)| Action::Zero(at, len, u)),
        2 => range.prop_map(|(at, len)| Action::Discard(at, len)),
        2 => Just(Action::Flush),
        1 => Just(Action::Reopen),
    ];
    proptest::collection::vec(action, 1..25)
}

/// Does `action` to the overlay and to a plain array.
fn apply(
    guest: &Guest,
    disk: &mut Overlay<Memory>,
    model: &mut [u8],
    action: Action,
) -> io::Result<()> {
    match action {
        Action::Write(at, len, fill) => {
            guest.write(disk, at, &vec![fill; len as usize])?;
            model[at as usize..][..len as usize].fill(fill);
        }
        Action::Zero(at, len, unmap) => {
            disk.write_zeroes(at, len, unmap)?;
            model[at as usize..][..len as usize].fill(0);
        }
        Action::Discard(at, len) => {
            disk.discard(at, len)?;
            // Whole clusters read as zero, the rest is as it was.
            for start in (0..DISK_LEN).step_by(CLUSTER_LEN as usize) {
                let end = (start + CLUSTER_LEN).min(DISK_LEN);
                if at <= start && end <= at + len {
                    model[start as usize..end as usize].fill(0);
                }
            }
        }
        Action::Flush => disk.flush()?,
        Action::Reopen => {}
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn an_overlay_reads_as_the_disk_it_stands_for(actions in actions(), can_punch: bool) {
        let guest = Guest::new();
        let file = fresh_file();
        file.set(|file| file.can_punch = can_punch);
        let mut disk = open_on(&file);
        let mut model = image_bytes();
        for action in actions {
            if let Action::Reopen = action {
                drop(disk);
                disk = open_on(&file);
            }
            let before = model.clone();
            apply(&guest, &mut disk, &mut model, action).unwrap();
            if !can_punch && matches!(action, Action::Discard(..)) {
                model = before;
            }
            prop_assert_eq!(&guest.read(&mut disk, 0, DISK_LEN), &model);
        }
        let part = guest.read(&mut disk, CLUSTER_LEN - 512, 1536);
        prop_assert_eq!(&part, &model[CLUSTER_LEN as usize - 512..][..1536]);
    }

    /// Whatever part of the unsynced changes a crash lets through, every sector holds something
    /// it has held since the last flush.
    #[test]
    fn a_crash_loses_nothing_that_was_flushed(actions in actions(), survivors: [u64; 4]) {
        let guest = Guest::new();
        let file = fresh_file();
        let mut disk = open_on(&file);
        let mut model = image_bytes();
        let mut since_flush = vec![model.clone()];
        for action in actions {
            if let Action::Flush = action {
                since_flush.clear();
            }
            apply(&guest, &mut disk, &mut model, action).unwrap();
            since_flush.push(model.clone());

            let survives = |i: usize| survivors[i / 64 % 4] >> (i % 64) & 1 != 0;
            let mut after = open_on(&file.crash(survives));
            let bytes = guest.read(&mut after, 0, DISK_LEN);
            for (sector, bytes) in bytes.chunks(512).enumerate() {
                let held = |state: &Vec<u8>| state[sector * 512..][..512] == *bytes;
                prop_assert!(since_flush.iter().any(held), "sector {}: {:x}", sector, bytes[0]);
            }
        }
    }

    /// The file dies at some operation: the error is reported, nothing panics, and every sector
    /// holds something it has held since the last flush.
    #[test]
    fn a_dying_file_is_reported(actions in actions(), lives in 1_u32..40) {
        let guest = Guest::new();
        let file = fresh_file();
        let mut disk = open_on(&file);
        file.set(|file| file.lives = lives);
        let mut model = image_bytes();
        let mut since_flush = vec![model.clone()];
        let died = actions.into_iter().any(|action| {
            let mut attempted = model.clone();
            let died = apply(&guest, &mut disk, &mut attempted, action).is_err();
            // A flush that failed may have flushed all the same.
            if let (Action::Flush, false) = (action, died) {
                since_flush.clear();
            }
            if !died {
                model = attempted;
                since_flush.push(model.clone());
            }
            died
        });
        if died {
            prop_assert!(disk.flush().is_err(), "a dead file is never flushed");
        }
        let mut after = open_on(&file.crash(|_| false));
        let bytes = guest.read(&mut after, 0, DISK_LEN);
        for (sector, bytes) in bytes.chunks(512).enumerate() {
            let held = |state: &Vec<u8>| state[sector * 512..][..512] == *bytes;
            prop_assert!(since_flush.iter().any(held), "sector {}: {:x}", sector, bytes[0]);
        }
    }
}

#[test]
fn no_bit_is_written_after_a_failed_sync() {
    let guest = Guest::new();
    let file = fresh_file();
    let mut disk = open_on(&file);
    guest.write(&mut disk, 0, &[1; 512]).unwrap();
    file.set(|file| file.lives = 1);
    assert!(disk.flush().is_err());
    file.set(|file| file.lives = u32::MAX);
    assert!(disk.flush().is_err(), "a later sync proves nothing about the first");
    drop(disk);
    assert!(!open_on(&file).bitmap.get(0));
}

#[test]
fn an_aligned_write_copies_nothing() {
    let guest = Guest::new();
    let file = fresh_file();
    let mut disk = open_on(&file);
    disk.image.set(|image| image.lives = 1);
    guest.write(&mut disk, CLUSTER_LEN, &[1; 2 * CLUSTER_LEN as usize]).unwrap();
    guest.write(&mut disk, DISK_LEN - 512, &[2; 512]).unwrap();
    assert!(guest.write(&mut disk, 512, &[1; 512]).is_err(), "this one needs the image");
}

fn config(folder: &Path) -> DiskConfig {
    let path = folder.join("disk.img");
    if !path.exists() {
        fs::write(&path, image_bytes()).unwrap();
    }
    DiskConfig { path, overlay: Some(folder.join("overlay")), ..DiskConfig::default() }
}

fn refusal(folder: &Path) -> String {
    config(folder).plan().unwrap_err().to_string()
}

#[test]
fn an_overlay_belongs_to_one_image_and_one_machine() {
    let folder = tempfile::tempdir().unwrap();
    let running = config(folder.path()).plan().unwrap();
    assert!(refusal(folder.path()).contains("in use by another VM"));
    drop(running);
    drop(config(folder.path()).plan().unwrap());

    let image = fs::File::options().write(true).open(folder.path().join("disk.img")).unwrap();
    image.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1000)).unwrap();
    let text = refusal(folder.path());
    assert!(text.contains("modified at 1000: restore the image, or delete"), "{text}");
}

#[test]
fn what_is_not_an_overlay_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("overlay");
    for bytes in [b"precious".to_vec(), vec![0; 100_000]] {
        fs::write(&path, &bytes).unwrap();
        assert!(refusal(folder.path()).contains("not an overlay of ours"));
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    fs::write(&path, []).unwrap();
    drop(config(folder.path()).plan().unwrap());
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert!(refusal(folder.path()).contains("file too short"));
    let mut changed = whole.clone();
    changed[20] ^= 1;
    fs::write(&path, &changed).unwrap();
    assert!(refusal(folder.path()).contains("damaged header (checksum)"));
    let mut later = whole;
    later[8] = 9;
    fs::write(&path, &later).unwrap();
    assert!(refusal(folder.path()).contains("format version 9"));
}

/// The released format, byte for byte: docs/formats/overlay.md.
#[test]
fn the_format_is_what_the_document_says() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    let image = fs::File::options().write(true).open(&config.path).unwrap();
    image.set_modified(SystemTime::UNIX_EPOCH + Duration::new(0x0102_0304, 5)).unwrap();
    drop(image);
    let path = config.overlay.take().unwrap();
    config.overlay = Some(path.clone());
    let mut plan = config.plan().unwrap();
    let guest = Guest::new();
    let buffer = guest.buffer(CLUSTER_LEN);
    buffer.copy_from(&[0x77; CLUSTER_LEN as usize]).unwrap();
    plan.storage.write(2 * CLUSTER_LEN, &buffer).unwrap();
    plan.storage.flush().unwrap();

    let bytes = fs::read(&path).unwrap();
    let mut golden = b"FATHOMOV".to_vec();
    golden.extend([1, 0, 0, 0, 0, 0x10, 0, 0]);
    golden.extend(DISK_LEN.to_le_bytes());
    golden.extend(DISK_LEN.to_le_bytes());
    golden.extend([4, 3, 2, 1, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    golden.extend(0x7922_b3d7_u32.to_le_bytes());
    assert_eq!(bytes[..52], golden);
    assert_eq!(bytes[4096..4098], [0b100, 0]);
    assert_eq!(bytes[0x1_0000 + 2 * 4096..][..4096], [0x77; 4096]);
    assert_eq!(bytes.len() as u64, 0x1_0000 + DISK_LEN);
}
