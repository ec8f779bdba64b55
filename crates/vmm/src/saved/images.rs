//! Images of disks that nobody writes: what a frame was read from is there still, and need not be saved.
//!
//! An image under an overlay, or one that the guest may only read. What is in an overlay, or in an image that is written,
//! is never relied on, so no write to a disk has to wait for a frame that is still to be read from there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use memory::{DiskBlock, FRAME_SIZE};
use snapshot::{DiskBlocks, Kind, Manifest, Run};

use super::capture::identity;
use super::{SavedError, keep};
use crate::config::VmConfig;
use crate::error::VmError;

/// By the number of the disk.
#[derive(Debug, Default)]
pub(crate) struct Images(Vec<Option<File>>);

impl Images {
    /// Those of `paths` that can be read and are plain files.
    pub(crate) fn that_can_be_read(paths: &[Option<PathBuf>]) -> Self {
        let open = |path: &Option<PathBuf>| {
            // To open a pipe would be to wait for whoever writes to it.
            let path = path.as_ref().filter(|path| path.is_file())?;
            File::open(path).ok()
        };
        Self(paths.iter().map(open).collect())
    }

    /// Those that `runs` need, which must be what they were.
    pub(super) fn needed_by(
        runs: &[Run],
        config: &VmConfig,
        manifest: &Manifest,
    ) -> Result<Self, SavedError> {
        let mut images = Self(Vec::new());
        for run in runs {
            let Kind::Disk(DiskBlock { disk, block }) = run.kind else { continue };
            let number = usize::from(disk);
            if images.0.get(number).is_none_or(Option::is_none) {
                images.0.resize_with(images.0.len().max(number + 1), || None);
                images.0[number] = Some(open_as_saved(number, config, manifest)?);
            }
            let length = config.disks.get(number).zip(manifest.vm.disks.get(number));
            let blocks = length.map_or(0, |(_, saved)| saved.image.bytes / FRAME_SIZE as u64);
            if block + u64::from(run.count) > blocks {
                let what = format!("block {block} + {}, it has {blocks}", run.count);
                return Err(SavedError::field(&format!("disk {disk}"), what));
            }
        }
        Ok(images)
    }

    fn file(&self, disk: u8) -> io::Result<&File> {
        let file = self.0.get(usize::from(disk)).and_then(Option::as_ref);
        file.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn open_as_saved(
    number: usize,
    config: &VmConfig,
    manifest: &Manifest,
) -> Result<File, SavedError> {
    let Some((disk, saved)) = config.disks.get(number).zip(manifest.vm.disks.get(number)) else {
        return Err(SavedError::field(&format!("disk {number}"), "there is none"));
    };
    if !disk.read_only && disk.overlay.is_none() {
        let what = "frames are to be read from it, and the guest writes to it";
        return Err(SavedError::field(&format!("disk {number}"), what));
    }
    let changed = |what: &str| SavedError::Disk { path: disk.path.clone(), what: what.to_owned() };
    let now = identity(&disk.path).map_err(|error| match error {
        VmError::Host(_, source) => SavedError::File { path: disk.path.clone(), source },
        other => SavedError::field(&format!("disk {number}"), other),
    })?;
    let now = keep::disk_file(&now);
    if !disk.path.is_file() || now.bytes != saved.image.bytes {
        return Err(changed("it has another length than when the VM was saved"));
    }
    if now.modified != saved.image.modified {
        return Err(changed("it has been written since the VM was saved"));
    }
    File::open(&disk.path).map_err(SavedError::file(&disk.path))
}

impl DiskBlocks for Images {
    fn read(&self, block: DiskBlock, into: &mut [u8; FRAME_SIZE]) -> io::Result<()> {
        self.read_run(block, into)
    }

    fn read_run(&self, first: DiskBlock, into: &mut [u8]) -> io::Result<()> {
        let at = first.block.checked_mul(FRAME_SIZE as u64).ok_or(io::ErrorKind::InvalidInput)?;
        self.file(first.disk)?.read_exact_at(into, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("image");
        std::fs::write(&path, [[1; FRAME_SIZE], [2; FRAME_SIZE]].as_flattened()).expect("written");
        let paths = [None, Some(path), Some(folder.path().join("none")), Some("/dev/null".into())];
        let images = Images::that_can_be_read(&paths);
        let mut page = [0; FRAME_SIZE];
        let mut read = |disk, block| {
            images.read(DiskBlock { disk, block }, &mut page).is_ok().then_some(page[0])
        };
        assert_eq!((read(1, 0), read(1, 1), read(1, 2)), (Some(1), Some(2), None));
        assert_eq!([0, 2, 3, 4].map(|disk| read(disk, 0)), [None; 4]);
        assert_eq!(read(1, u64::MAX), None);
        let mut both = [0; 2 * FRAME_SIZE];
        images.read_run(DiskBlock { disk: 1, block: 0 }, &mut both).expect("both");
        assert_eq!((both[FRAME_SIZE - 1], both[FRAME_SIZE]), (1, 2));
    }
}
