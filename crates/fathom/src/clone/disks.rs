//! Overlays of clones: copies of those of their parent, made while it stands.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;
use vmm::config::VmConfig;

use super::config;
use crate::failure::Failure;

/// The overlays of clones. Those that nobody has kept are removed when it is dropped.
pub(super) struct Overlays {
    /// The first clone's; the others' are copies of them.
    first: Vec<PathBuf>,
    parents: Vec<PathBuf>,
    /// Where they are made, if not beside the parents'.
    folder: Option<PathBuf>,
    made: BTreeMap<String, Vec<PathBuf>>,
}

impl Overlays {
    /// Copies those of the parent, which stands, for the first of `names`.
    pub(super) fn copy_first(
        parent: &VmConfig,
        names: &[String],
        folder: Option<&Path>,
    ) -> Result<Self, Failure> {
        let (parents, folder) = (config::overlays(parent), folder.map(Path::to_owned));
        let mut overlays = Self { first: Vec::new(), parents, folder, made: BTreeMap::new() };
        if let Some(name) = names.first() {
            let from = overlays.parents.clone();
            overlays.copy(&from, name)?;
            overlays.first = overlays.made.get(name).cloned().unwrap_or_default();
        }
        Ok(overlays)
    }

    /// Those of the clone `name`; none of the clones runs yet, or not yet for long enough to change the first one's.
    pub(super) fn of(&mut self, name: &str) -> Result<Vec<PathBuf>, Failure> {
        if !self.made.contains_key(name) {
            let from = self.first.clone();
            self.copy(&from, name)?;
        }
        Ok(self.made.get(name).cloned().unwrap_or_default())
    }

    /// They are a running clone's.
    pub(super) fn keep(&mut self, name: &str) {
        self.made.remove(name);
    }

    fn path(&self, parents: &Path, name: &str) -> PathBuf {
        if let (Some(folder), Some(file)) = (&self.folder, parents.file_name()) {
            return folder.join(format!("{name}.{}", file.to_string_lossy()));
        }
        let mut path = parents.to_owned().into_os_string();
        path.push(".");
        path.push(name);
        path.into()
    }

    fn copy(&mut self, from: &[PathBuf], name: &str) -> Result<(), Failure> {
        for (from, parents) in from.iter().zip(&self.parents) {
            let path = self.path(parents, name);
            copy(from, &path).map_err(|error| {
                Failure::Host(format!(
                    "copy overlay {} to {}: {error}",
                    from.display(),
                    path.display()
                ))
            })?;
            self.made.entry(name.to_owned()).or_default().push(path);
        }
        Ok(())
    }
}

impl Drop for Overlays {
    fn drop(&mut self) {
        for path in self.made.values().flatten() {
            // What cannot be removed now, the user can.
            let _ = fs::remove_file(path);
        }
    }
}

/// A new file with the same contents and holes, in common with the old one where the file system can.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let from = File::open(from)?;
    let into = OpenOptions::new().write(true).create_new(true).open(to)?;
    let copied = match ioctl_ficlone(&into, &from) {
        Ok(()) => Ok(()),
        Err(_) => copy_extents(&from, &into),
    };
    copied.inspect_err(|_| {
        let _ = fs::remove_file(to);
    })
}

fn copy_extents(from: &File, into: &File) -> io::Result<()> {
    let len = from.metadata()?.len();
    into.set_len(len)?;
    let mut at = 0;
    while at < len {
        let start = match seek(from, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            start => start?,
        };
        let end = seek(from, SeekFrom::Hole(start))?;
        let (mut reads, mut writes) = (start, start);
        while reads < end {
            let rest = usize::try_from(end - reads).unwrap_or(usize::MAX);
            let copied = copy_file_range(from, Some(&mut reads), into, Some(&mut writes), rest)?;
            if copied == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        at = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_copy_has_the_same_contents_and_holes() {
        let folder = tempfile::tempdir().expect("folder");
        let (from, to) = (folder.path().join("a"), folder.path().join("b"));
        let file = File::create(&from).expect("a file");
        file.set_len(64 << 20).expect("its length");
        file.write_all_at(b"begin", 0).expect("written");
        file.write_all_at(b"middle", 30 << 20).expect("written");
        copy(&from, &to).expect("copied");
        assert_eq!(fs::read(&from).expect("read"), fs::read(&to).expect("read"));
        let blocks = fs::metadata(&to).expect("attributes").blocks() * 512;
        assert!(blocks <= 1 << 20, "{blocks} bytes on disk");
        assert_eq!(copy(&from, &to).expect_err("there").kind(), io::ErrorKind::AlreadyExists);
    }
}
