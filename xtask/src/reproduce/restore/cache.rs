//! Whether the host has a snapshot's files in its page cache.

use anyhow::{Context, Result};
use rustix::fs::{Advice, fadvise};
use serde::Serialize;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Cache {
    /// All of them, and the guest's disk
    Warm,
    /// None of these: dropped by posix_fadvise, which any user may ask for
    Cold,
}

impl Cache {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Cold => "cold",
        }
    }

    /// `files`: or folders of files.
    pub(super) fn prepare(self, files: &[PathBuf]) -> Result<()> {
        for file in files.iter().map(|path| files_of(path)) {
            file?.iter().try_for_each(|file| self.prepare_file(file))?;
        }
        Ok(())
    }

    fn prepare_file(self, path: &Path) -> Result<()> {
        let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        match self {
            Self::Warm => std::io::copy(&mut file, &mut std::io::sink()).map(drop)?,
            Self::Cold => {
                // What is not on the disk yet is not dropped.
                file.sync_all().with_context(|| format!("sync {}", path.display()))?;
                fadvise(&file, 0, None, Advice::DontNeed)?;
            }
        }
        Ok(())
    }
}

fn files_of(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).with_context(|| format!("read {}", path.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        files.extend(files_of(&entry?.path())?);
    }
    Ok(files)
}

/// What they take of the disk: holes are not counted.
pub(super) fn size(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let blocks = files_of(path)?.into_iter().map(|file| Ok(fs::metadata(file)?.blocks()));
    blocks.sum::<Result<u64>>().map(|blocks| blocks * 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_of_a_folder_count() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/b"), [7; 5000]).unwrap();
        fs::write(folder.path().join("c"), [7; 5000]).unwrap();
        assert_eq!(files_of(folder.path()).unwrap().len(), 2);
        for cache in [Cache::Cold, Cache::Warm] {
            cache.prepare(&[folder.path().to_owned()]).unwrap();
        }
        assert!(size(folder.path()).unwrap() >= 10_000);
        assert!(Cache::Warm.prepare(&["/nowhere/at/all".into()]).is_err());
    }
}
