//! What several tests need: a VM's description, and snapshots in memory.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use snapshot::{Cpu, Description, Disk, DiskFile, Id, ReadAt, Store, Time};

/// Of no machine that there is.
pub fn description() -> Description {
    let image = DiskFile {
        path: "/images/debian.raw".into(),
        bytes: 2 << 30,
        modified: Time { seconds: 1_700_000_000, nanoseconds: 999_999_999 },
        generation: 0,
    };
    let overlay = DiskFile { path: "/overlays/vm \"1\".ov".into(), generation: 7, ..image.clone() };
    Description {
        saved_at: Time { seconds: 1_790_000_000, nanoseconds: 1 },
        writer: "fathom 0.1.0".into(),
        engine: "translate".into(),
        cpu: Cpu { model: "base".into(), features: vec!["sse4_2".into(), "avx2".into()] },
        vcpus: 2,
        machine_version: 1,
        disks: vec![
            Disk { image: image.clone(), overlay: Some(overlay), read_only: false },
            Disk { image, overlay: None, read_only: true },
        ],
        generation: Some(Id([0xab; 16])),
    }
}

/// A snapshot's parts in memory; its parent, too, whatever it is called.
#[derive(Clone)]
pub struct InMemory {
    pub parts: BTreeMap<String, Vec<u8>>,
    pub parent: Option<Arc<InMemory>>,
}

impl InMemory {
    /// Reads the files of a directory.
    pub fn read(directory: &Path) -> InMemory {
        let entries = std::fs::read_dir(directory).expect("a directory");
        let part = |entry: io::Result<std::fs::DirEntry>| {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read(&path).expect("a part"))
        };
        InMemory { parts: entries.map(part).collect(), parent: None }
    }
}

struct Bytes(Vec<u8>);

impl ReadAt for Bytes {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..));
        let from = from.and_then(|from| from.get(..into.len()));
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl Store for InMemory {
    fn name(&self) -> String {
        "memory".into()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn ReadAt>> {
        let part = self.parts.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(Bytes(part.clone())))
    }

    fn parent(&self, _: &str) -> io::Result<Box<dyn Store>> {
        let parent = self.parent.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new((**parent).clone()))
    }
}
