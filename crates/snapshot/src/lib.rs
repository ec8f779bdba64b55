//! Saved VMs: the format (docs/formats/snapshot.md), its writer and its reader.
//!
//! ```text
//!   frames, from any thread          a directory               by frame: memory::Source
//!   -----> Lane ---+                 +-------------+       +-->   many, in the order of the file: Place
//!   -----> Lane ---+---> Writer ---> | manifest    | ---> Snapshot --> the working set, in its order
//!   runs left out -+                 | machine ... |       |       mapped: PlainImage
//!   the machine's state              +-------------+       +--> parent, its parent, ...
//! ```
//!
//! A snapshot is whole or absent. Its parts are written under another name, made durable, and get theirs in
//! one step; one that was there is replaced in that step. Every byte that is read is checked against a
//! checksum, and every number against a bound: a file that is cut short, changed or made up to do harm is an
//! error that says where, never a panic, and takes no more memory than it has bytes.
//!
//! It is *not* what saves or restores: it knows no engine, no device and no clock. The machine's state is
//! bytes, which frames may be left out is known elsewhere, and so is in which order to fetch them.
//!
//! ```
//! use memory::{Frame, FrameRange, RamLayout};
//! use snapshot::{Description, Left, Options, Snapshot, Time, Writer};
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("saved");
//! let writer = Writer::create(&path, Options::new(RamLayout::new(1 << 20)?))?;
//! let mut lane = writer.lane()?;
//! lane.write(Frame(7), &[1; 4096])?;
//! lane.finish()?;
//! writer.leave(FrameRange { first: Frame(0), count: 7 }, Left::Zero)?;
//! writer.leave(FrameRange { first: Frame(8), count: 248 }, Left::Free)?;
//! let vm = Description {
//!     saved_at: Time { seconds: 0, nanoseconds: 0 },
//!     writer: "example".into(),
//!     engine: "none".into(),
//!     cpu: Default::default(),
//!     vcpus: 1,
//!     machine_version: 1,
//!     disks: Vec::new(),
//!     generation: None,
//!     agent: false,
//! };
//! writer.finish(vm, b"{}", &[Frame(7)])?;
//!
//! let snapshot = Snapshot::open(&path)?;
//! let mut contents = [0; 4096];
//! snapshot.read(Frame(7), &mut contents)?;
//! assert_eq!(contents, [1; 4096]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub use checksum::{Checksum, Id};
pub use chunk::Batch;
pub use codec::Compression;
pub use error::SnapshotError;
pub use extents::Extent;
pub use manifest::{
    Cpu, Description, Disk, DiskFile, Manifest, Memory, PARTS, Parent, Part, Parts, Range, Time,
    Totals, VERSION,
};
pub use map::{Kind, Run};
pub use outline::Outline;
pub use reader::{DiskBlocks, Place, PlainImage, Snapshot};
pub use store::{Directory, InMemory, ReadAt, Store};
pub use urgency::{is_ahead, read_ahead};
pub use working_set::WorkingSet;
pub use writer::{Lane, Left, Options, Saved, Sharing, Writer, remove};

mod checksum;
mod chunk;
mod codec;
mod error;
mod extents;
mod host;
mod manifest;
mod map;
mod outline;
mod reader;
pub mod responsiveness;
mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod urgency;
mod working_set;
mod writer;
