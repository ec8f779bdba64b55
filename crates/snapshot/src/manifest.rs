//! The manifest: what the snapshot is of, and what its other parts must be.

use memory::{FRAME_SIZE, Gpa, RamLayout, RamRange};
use serde::{Deserialize, Serialize};

use crate::checksum::{Checksum, Id, parse_hexadecimal};
use crate::codec::Compression;
use crate::error::{SnapshotError, printable};
use crate::store::{PartFile, Store};

/// The format that this crate reads and writes.
pub const VERSION: u32 = 1;

/// A manifest with more bytes than this is refused.
pub(crate) const BYTES_MAX: u64 = 1 << 20;
/// The machine's state with more bytes than this is refused.
pub(crate) const MACHINE_BYTES_MAX: u64 = 64 << 20;

/// Names of the parts.
pub(crate) mod part {
    pub(crate) const MANIFEST: &str = "manifest";
    pub(crate) const MACHINE: &str = "machine";
    pub(crate) const FRAMES: &str = "frames";
    pub(crate) const INDEX: &str = "index";
    pub(crate) const MEMORY: &str = "memory";
    pub(crate) const CHUNKS: &str = "chunks";
    pub(crate) const WORKING_SET: &str = "working-set";
    pub(crate) const WORKING_SET_NEW: &str = "working-set.new";
    pub(crate) const EXTENTS: &str = "extents";
    /// All that a snapshot's directory may hold, and the shared files.
    pub(crate) const ALL: [&str; 9] =
        [MANIFEST, MACHINE, FRAMES, INDEX, MEMORY, CHUNKS, WORKING_SET, WORKING_SET_NEW, EXTENTS];
    const SHARED: &str = "shared-";

    /// A file that it has in common with others, from 1 on.
    pub(crate) fn shared(number: usize) -> String {
        format!("{SHARED}{number}")
    }

    /// Whether it is the name of such a file.
    pub(crate) fn is_shared(name: &str) -> bool {
        let number = name.strip_prefix(SHARED).and_then(|number| number.parse::<usize>().ok());
        number.is_some_and(|number| {
            (1..=crate::extents::SHARED_MAX).contains(&number) && shared(number) == name
        })
    }
}

/// The names of a snapshot's parts, in no order; not all have all.
pub const PARTS: [&str; 7] = [
    part::MANIFEST,
    part::MACHINE,
    part::FRAMES,
    part::INDEX,
    part::MEMORY,
    part::CHUNKS,
    part::WORKING_SET,
];

/// Frames may be elsewhere than at their place in `memory`: the part `extents`.
pub(crate) const FEATURE_EXTENTS: &str = "extents";

/// First word of a manifest.
const MAGIC: &str = "FATHOM-SNAPSHOT";

/// What a snapshot is of: told by who saves, opaque to this crate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// When, by the host's clock.
    pub saved_at: Time,
    /// The program and its version.
    pub writer: String,
    /// The engine that ran it.
    pub engine: String,
    /// The processor that the guest was promised.
    pub cpu: Cpu,
    /// How many processors.
    pub vcpus: u32,
    /// Version of the part `machine`.
    pub machine_version: u32,
    /// Its disks, in order.
    pub disks: Vec<Disk>,
    /// The VM generation identity that the guest sees (Microsoft's VMGenID), if it sees one.
    pub generation: Option<Id>,
    /// Whether an agent in the guest has made it ready to be started many times.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub agent: bool,
}

/// A moment by the host's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Time {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds, below 10^9.
    pub nanoseconds: u32,
}

/// A processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// What was asked for.
    pub model: String,
    /// What the guest was told of, so that a host without it cannot go on with it.
    pub features: Vec<String>,
}

/// A disk as it was when the VM was saved. Its contents are not in the snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The image.
    pub image: DiskFile,
    /// What the guest wrote, if not to the image.
    pub overlay: Option<DiskFile>,
    /// Whether the guest may not write.
    pub read_only: bool,
}

/// A file of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFile {
    /// Its path when the VM was saved.
    pub path: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// When it was changed last; 1970 for a device.
    pub modified: Time,
    /// Changes whenever a VM has written to it, if somebody counts that; else 0.
    pub generation: u64,
}

/// A part's length and checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its length.
    pub bytes: u64,
    /// Of all of it.
    pub checksum: Checksum,
}

/// The parts that the manifest vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// The machine's state.
    pub machine: Part,
    /// What each frame is.
    pub frames: Part,
    /// A checksum or a place for each frame whose contents are stored.
    pub index: Part,
    /// Length of the memory image. Its checksums are in `index` or `chunks`.
    pub memory_bytes: u64,
    /// The chunks of a compressed image.
    pub chunks: Option<Part>,
    /// Where frames are that are not at their place in the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extents: Option<Part>,
    /// Lengths of the files that it has in common with others: `shared-1` and so on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_bytes: Vec<u64>,
}

/// How many frames are of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// In this snapshot's memory image.
    pub stored: u32,
    /// In that of its parent, or of the parent's parent.
    pub parent: u32,
    /// All zeros.
    pub zero: u32,
    /// Left out: the guest had no use for them.
    pub free: u32,
    /// In the balloon.
    pub ballooned: u32,
    /// Left out: on a disk.
    pub disk: u32,
}

/// Guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Where it lies in the guest's physical address space. Frames are numbered through all of it.
    pub ranges: Vec<Range>,
    /// Of the image.
    pub compression: Compression,
    /// How many frames are of each kind.
    pub frames: Totals,
}

/// A range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// Its first guest physical address.
    pub start: u64,
    /// Its length.
    pub bytes: u64,
}

/// The snapshot that this one adds to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Where it was, relative to the folder that holds this snapshot's directory.
    pub path: String,
    /// Which it is.
    pub id: Id,
    /// Of its manifest, and by that of all that it vouches for.
    pub checksum: Checksum,
}

/// What the manifest says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Which snapshot this is.
    pub id: Id,
    /// Features without which it must not be read: `extents`, or none.
    #[serde(default)]
    pub needs: Vec<String>,
    /// What it is of.
    pub vm: Description,
    /// Guest memory.
    pub memory: Memory,
    /// What it adds to.
    pub parent: Option<Parent>,
    /// The other files.
    pub parts: Parts,
}

impl Manifest {
    /// The file's bytes, and the checksum of its second part.
    pub(crate) fn encode(&self) -> Result<(Vec<u8>, Checksum), SnapshotError> {
        let mut json = serde_json::to_vec_pretty(self)
            .map_err(|error| SnapshotError::Bug(format!("encode the manifest: {error}")))?;
        json.push(b'\n');
        let checksum = Checksum::of(&json);
        let mut bytes = format!("{MAGIC} {VERSION} {checksum}\n").into_bytes();
        bytes.extend_from_slice(&json);
        Ok((bytes, checksum))
    }

    /// Reads and checks the part `manifest`, which is all that is read; answers its checksum, too.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or of another version.
    pub fn read(store: &dyn Store) -> Result<(Manifest, Checksum), SnapshotError> {
        let file = PartFile::open(store, part::MANIFEST)?;
        if file.bytes > BYTES_MAX {
            return Err(file.corrupt(0, "length", format!("at most {BYTES_MAX}"), file.bytes));
        }
        let mut bytes = vec![0; file.bytes as usize];
        file.read(&mut bytes, 0)?;
        let (json, checksum) = open_envelope(&file, &bytes)?;
        let manifest = parse(&file, json, bytes.len() - json.len())?;
        Ok((manifest, checksum))
    }

    /// Where RAM lies.
    pub(crate) fn layout(&self, path: &str) -> Result<RamLayout, SnapshotError> {
        let bytes = self.memory.ranges.iter().try_fold(0u64, |sum, r| sum.checked_add(r.bytes));
        let layout = bytes.and_then(|bytes| RamLayout::new(bytes).ok());
        match layout {
            Some(layout) if ranges(&layout) == self.memory.ranges => Ok(layout),
            _ => Err(SnapshotError::Refused {
                path: path.into(),
                why: "lays guest memory out as no machine of this program has it".into(),
            }),
        }
    }
}

/// `layout` as the manifest says it.
pub(crate) fn ranges(layout: &RamLayout) -> Vec<Range> {
    let range = |RamRange { start: Gpa(start), bytes }| Range { start, bytes };
    layout.ranges().map(range).collect()
}

/// The first line, `FATHOM-SNAPSHOT VERSION CHECKSUM`: answers what comes after it, and its checksum.
fn open_envelope<'a>(
    file: &PartFile,
    bytes: &'a [u8],
) -> Result<(&'a [u8], Checksum), SnapshotError> {
    let line_end = bytes.iter().take(200).position(|&byte| byte == b'\n').unwrap_or(0);
    let (line, rest) = bytes.split_at(line_end);
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    if words.next() != Some(MAGIC) {
        let found: String = String::from_utf8_lossy(&bytes[..bytes.len().min(20)]).into_owned();
        return Err(file.corrupt(0, "first line", MAGIC, format!("{found:?}")));
    }
    let version = words.next().unwrap_or_default();
    if version != VERSION.to_string() {
        return Err(SnapshotError::Version { path: file.path.clone(), found: printable(version) });
    }
    let expected = words.collect::<Vec<_>>().join(" ");
    let json = rest.get(1..).unwrap_or_default();
    let found = Checksum::of(json);
    if parse_hexadecimal(&expected, 16) != Some(u128::from(found.0)) {
        return Err(file.corrupt(line_end as u64 + 1, "checksum", expected, found));
    }
    Ok((json, found))
}

/// `at`: where `json` begins in the file.
fn parse(file: &PartFile, json: &[u8], at: usize) -> Result<Manifest, SnapshotError> {
    /// Looked at before all else: what comes later may have other fields.
    #[derive(Deserialize)]
    struct Needs {
        #[serde(default)]
        needs: Vec<String>,
    }
    let wrong = |error: serde_json::Error| {
        let lines =
            json.split_inclusive(|&byte| byte == b'\n').take(error.line().saturating_sub(1));
        let offset = at + lines.map(<[u8]>::len).sum::<usize>() + error.column().saturating_sub(1);
        file.corrupt(offset as u64, "manifest", "fields of version 1", error)
    };
    let Needs { needs } = serde_json::from_slice(json).map_err(wrong)?;
    if let Some(feature) = needs.into_iter().find(|feature| feature != FEATURE_EXTENTS) {
        return Err(SnapshotError::Needs { path: file.path.clone(), feature });
    }
    serde_json::from_slice(json).map_err(wrong)
}

/// Bytes of a plain image.
pub(crate) fn plain_bytes(layout: &RamLayout) -> u64 {
    u64::from(layout.frames()) * FRAME_SIZE as u64
}
