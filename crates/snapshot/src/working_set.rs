//! The working set: which frames the guest needs first, in what order, and their contents in that order.
//!
//! One file that stands by itself, so that it can be replaced when more is known of the guest, and the
//! snapshot stays as it is.

use std::num::NonZero;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use memory::Frame;
use rustix::fs::Advice;

use crate::checksum::Checksum;
use crate::chunk::{Batch, CHUNK_FRAMES, RECORD_BYTES, Record};
use crate::codec::{Compression, Compressor};
use crate::error::SnapshotError;
use crate::host::{Host, Output, RealHost};
use crate::manifest::part;
use crate::map::Kind;
use crate::reader::Snapshot;
use crate::store::PartFile;

const MAGIC: [u8; 8] = *b"FATHOMWS";
const VERSION: u32 = 1;
/// Bytes of the header that its checksum covers; the checksum follows.
const CHECKED: usize = 48;
const HEADER_BYTES: usize = CHECKED + 8;
/// Where records begin, and a multiple of it where data does.
const PAGE: u64 = 4096;
/// Records that are read at once.
const RECORDS_AT_ONCE: usize = 256;
/// Of more, the beginning is read ahead by [`WorkingSet::expect`]: asking takes time, too.
const EXPECTED_MAX: u64 = 64 << 20;

/// A working set that is read.
pub struct WorkingSet {
    file: PartFile,
    compression: Compression,
    /// Where chunks are counted from.
    data: u64,
    records: Vec<Record>,
    frames: Vec<Frame>,
}

struct Header {
    compression: Compression,
    id: [u8; 16],
    frames: u32,
    data_bytes: u64,
}

impl Header {
    fn chunks(&self) -> u32 {
        self.frames.div_ceil(CHUNK_FRAMES as u32)
    }

    fn data_at(&self) -> u64 {
        (PAGE + u64::from(self.chunks()) * RECORD_BYTES as u64).next_multiple_of(PAGE)
    }

    fn encode(&self) -> [u8; HEADER_BYTES] {
        let compression: u32 = match self.compression {
            Compression::None => 0,
            Compression::Lz4 => 1,
            Compression::Zstd => 2,
        };
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&compression.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.id);
        bytes[32..36].copy_from_slice(&self.frames.to_le_bytes());
        bytes[36..40].copy_from_slice(&(CHUNK_FRAMES as u32).to_le_bytes());
        bytes[40..48].copy_from_slice(&self.data_bytes.to_le_bytes());
        let checksum = Checksum::of(&bytes[..CHECKED]);
        bytes[CHECKED..].copy_from_slice(&checksum.0.to_le_bytes());
        bytes
    }

    fn read(file: &PartFile, snapshot: &Snapshot) -> Result<Header, SnapshotError> {
        let mut bytes = [0; HEADER_BYTES];
        file.read(&mut bytes, 0)?;
        let word =
            |at: usize| bytes[at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word));
        let long =
            |at: usize| bytes[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
        if bytes[..8] != MAGIC {
            let found = String::from_utf8_lossy(&bytes[..8]).into_owned();
            return Err(file.corrupt(0, "magic", "FATHOMWS", format!("{found:?}")));
        }
        if word(8) != VERSION {
            let found = word(8).to_string();
            return Err(SnapshotError::Version { path: file.path.clone(), found });
        }
        let (expected, found) = (Checksum::of(&bytes[..CHECKED]), Checksum(long(CHECKED)));
        if expected != found {
            return Err(file.corrupt(CHECKED as u64, "checksum of the header", expected, found));
        }
        let compression = match word(12) {
            0 => Compression::None,
            1 => Compression::Lz4,
            2 => Compression::Zstd,
            other => return Err(file.corrupt(12, "compression", "0 to 2", other)),
        };
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[16..32]);
        let header = Header { compression, id, frames: word(32), data_bytes: long(40) };
        header.check(file, snapshot, word(36))
    }

    fn check(
        self,
        file: &PartFile,
        snapshot: &Snapshot,
        chunk_frames: u32,
    ) -> Result<Header, SnapshotError> {
        let expected = snapshot.manifest().id;
        if self.id != expected.0 {
            return Err(file.corrupt(16, "snapshot", expected, crate::Id(self.id)));
        }
        if chunk_frames != CHUNK_FRAMES as u32 {
            return Err(file.corrupt(36, "frames in a chunk", CHUNK_FRAMES, chunk_frames));
        }
        let most = snapshot.layout().frames();
        if self.frames > most {
            let expected = format!("at most {most}");
            return Err(file.corrupt(32, "frames", expected, self.frames));
        }
        let end = self.data_at().checked_add(self.data_bytes);
        if end != Some(file.bytes) {
            let expected = end.map_or("less than 2^64".into(), |end| end.to_string());
            return Err(file.corrupt(0, "length", expected, file.bytes));
        }
        Ok(self)
    }
}

impl WorkingSet {
    pub(crate) fn open(snapshot: &Snapshot) -> Result<Option<WorkingSet>, SnapshotError> {
        let file = match PartFile::open(snapshot.store(), part::WORKING_SET) {
            Err(SnapshotError::Host { error, .. })
                if error.kind() == std::io::ErrorKind::NotFound =>
            {
                return Ok(None);
            }
            opened => opened?,
        };
        let header = Header::read(&file, snapshot)?;
        let records = read_records(&file, &header, snapshot)?;
        let frames: Vec<Frame> = records.iter().flat_map(Record::frames).collect();
        check_frames(&file, &frames, snapshot)?;
        let (compression, data) = (header.compression, header.data_at());
        Ok(Some(WorkingSet { file, compression, data, records, frames }))
    }

    /// The frames, in the order in which they are wanted. No frame is there twice.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// In how many pieces it is read: the first has the first frames.
    pub fn chunks(&self) -> u32 {
        self.records.len() as u32
    }

    /// Has the host begin to read it, where it is a file and not in the page cache: so the device has much to do at a
    /// time, and no read waits for the one before. It does not wait itself.
    pub fn expect(&self) {
        let Some(file) = self.file.file.descriptor() else { return };
        let bytes = self.file.bytes.saturating_sub(self.data).min(EXPECTED_MAX);
        // Without it reads are slower, and that is all.
        let _ = rustix::fs::fadvise(file, self.data, NonZero::new(bytes), Advice::WillNeed);
    }

    /// Reads piece `chunk`, up to 64 frames. From any thread.
    ///
    /// # Errors
    /// It cannot be read, or is not what was written; what `batch` holds is of no meaning then.
    pub fn read(&self, chunk: u32, batch: &mut Batch) -> Result<(), SnapshotError> {
        let Some(record) = self.records.get(chunk as usize) else {
            let why = format!("chunk {chunk} of {} of a working set", self.records.len());
            return Err(SnapshotError::Bug(why));
        };
        record.read(&self.file, self.data, self.compression, batch)
    }

    /// Writes a working set for `snapshot`, in the place of the one that it has: what was learnt of restores.
    /// The contents are read from the snapshot, ancestors and disks. Frames without contents, and those that
    /// came before, are left out. After an error the old one is there still.
    ///
    /// # Errors
    /// The snapshot is not in a directory, cannot be read, or the host refuses.
    pub fn replace(
        snapshot: &Snapshot,
        frames: &[Frame],
        compression: Compression,
    ) -> Result<(), SnapshotError> {
        let directory = snapshot.store().directory().ok_or_else(|| SnapshotError::Refused {
            path: snapshot.store().name(),
            why: "not a directory: its working set cannot be replaced".into(),
        })?;
        let host = RealHost;
        let (new, path) =
            (directory.join(part::WORKING_SET_NEW), directory.join(part::WORKING_SET));
        let written = match host.remove_file(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(SnapshotError::host("remove", new.display())(error))
            }
            _ => write(&host, &new, snapshot, frames, compression).and_then(|()| {
                host.rename(&new, &path).map_err(SnapshotError::host("rename", new.display()))
            }),
        };
        if written.is_err() {
            // What is left is overwritten by the next one.
            let _ = host.remove_file(&new);
        }
        written?;
        host.sync_directory(directory).map_err(SnapshotError::host("sync", directory.display()))
    }
}

impl WorkingSet {
    /// The file that [`WorkingSet::replace`] would write, for a snapshot that is in no directory.
    ///
    /// # Errors
    /// The snapshot cannot be read.
    pub fn make(
        snapshot: &Snapshot,
        frames: &[Frame],
        compression: Compression,
    ) -> Result<Vec<u8>, SnapshotError> {
        let made = Made::default();
        let name = format!("{}/{}", snapshot.store().name(), part::WORKING_SET);
        write_into(&made, &name, snapshot, frames, compression)?;
        Ok(made.0.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A file in memory.
#[derive(Default)]
struct Made(Mutex<Vec<u8>>);

impl Made {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Output for Made {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        let from = offset as usize;
        let end = from + bytes.len();
        let mut all = self.bytes();
        if all.len() < end {
            all.resize(end, 0);
        }
        all[from..end].copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> std::io::Result<()> {
        self.bytes().resize(bytes as usize, 0);
        Ok(())
    }

    fn punch(&self, offset: u64, bytes: u64) -> std::io::Result<()> {
        let mut all = self.bytes();
        let end = all.len().min((offset + bytes) as usize);
        all[..end].iter_mut().skip(offset as usize).for_each(|byte| *byte = 0);
        Ok(())
    }

    fn sync(&self) -> std::io::Result<()> {
        Ok(())
    }
}

fn read_records(
    file: &PartFile,
    header: &Header,
    snapshot: &Snapshot,
) -> Result<Vec<Record>, SnapshotError> {
    let (chunks, frames) = (header.chunks(), snapshot.layout().frames());
    let mut records = Vec::new();
    let mut buffer = vec![0; RECORDS_AT_ONCE.min(chunks as usize) * RECORD_BYTES];
    while records.len() < chunks as usize {
        let left = (chunks as usize - records.len()).min(RECORDS_AT_ONCE);
        let buffer = &mut buffer[..left * RECORD_BYTES];
        let at = PAGE + (records.len() * RECORD_BYTES) as u64;
        file.read(buffer, at)?;
        for (n, bytes) in buffer.as_chunks().0.iter().enumerate() {
            let at = at + (n * RECORD_BYTES) as u64;
            let record = Record::decode(file, at, bytes, header.data_bytes, frames)?;
            let rest = header.frames as usize - records.len() * CHUNK_FRAMES;
            if record.count() != rest.min(CHUNK_FRAMES) {
                let expected = rest.min(CHUNK_FRAMES);
                return Err(file.corrupt(at + 12, "frames in a chunk", expected, record.count()));
            }
            records.push(record);
        }
    }
    Ok(records)
}

/// Each is there once, and has contents.
fn check_frames(
    file: &PartFile,
    frames: &[Frame],
    snapshot: &Snapshot,
) -> Result<(), SnapshotError> {
    let mut sorted = frames.to_vec();
    sorted.sort_unstable();
    if let Some(twice) = sorted.array_windows().find(|[a, b]| a == b) {
        return Err(file.corrupt(PAGE, "frames", "each once", format!("{} twice", twice[0])));
    }
    let idle = |frame: &&Frame| !snapshot.kind(**frame).is_some_and(Kind::has_contents);
    match frames.iter().find(idle) {
        None => Ok(()),
        Some(frame) => {
            let found = format!("frame {frame}: {:?}", snapshot.kind(*frame));
            Err(file.corrupt(PAGE, "frames", "frames with contents", found))
        }
    }
}

/// Writes the file at `path`, which does not exist, and syncs it.
pub(crate) fn write(
    host: &dyn Host,
    path: &Path,
    snapshot: &Snapshot,
    frames: &[Frame],
    compression: Compression,
) -> Result<(), SnapshotError> {
    let refused = |operation| SnapshotError::host(operation, path.display());
    let output = host.create(path).map_err(refused("create"))?;
    write_into(&*output, &path.display().to_string(), snapshot, frames, compression)
}

fn write_into(
    output: &dyn Output,
    name: &str,
    snapshot: &Snapshot,
    frames: &[Frame],
    compression: Compression,
) -> Result<(), SnapshotError> {
    let frames = wanted(snapshot, frames);
    let refused = |operation| SnapshotError::host(operation, name);
    let (id, count) = (snapshot.manifest().id.0, frames.len() as u32);
    let mut header = Header { compression, id, frames: count, data_bytes: 0 };
    let mut compressor = Compressor::new(compression).map_err(refused("compress"))?;
    let mut records = Vec::with_capacity(frames.len().div_ceil(CHUNK_FRAMES) * RECORD_BYTES);
    let mut contents = vec![[0; memory::FRAME_SIZE]; CHUNK_FRAMES.min(frames.len())];
    for chunk in frames.chunks(CHUNK_FRAMES) {
        let contents = &mut contents[..chunk.len()];
        for (frame, page) in chunk.iter().zip(contents.iter_mut()) {
            snapshot.read(*frame, page)?;
        }
        let stored = compressor.compress(contents.as_flattened()).map_err(refused("compress"))?;
        let at = header.data_at() + header.data_bytes;
        output.write_all_at(stored, at).map_err(refused("write"))?;
        records.extend_from_slice(&Record::new(chunk, header.data_bytes, stored).encode());
        header.data_bytes += stored.len() as u64;
    }
    let end = header.data_at() + header.data_bytes;
    finish(output, &header, &records, end).map_err(refused("write"))
}

fn finish(output: &dyn Output, header: &Header, records: &[u8], end: u64) -> std::io::Result<()> {
    output.write_all_at(records, PAGE)?;
    output.write_all_at(&header.encode(), 0)?;
    output.set_len(end)?;
    output.sync()
}

/// Those of `frames` that have contents, each once, where it was first.
fn wanted(snapshot: &Snapshot, frames: &[Frame]) -> Vec<Frame> {
    let mut seen = std::collections::HashSet::new();
    let contents = |frame: &Frame| snapshot.kind(*frame).is_some_and(Kind::has_contents);
    frames.iter().copied().filter(|frame| contents(frame) && seen.insert(*frame)).collect()
}
