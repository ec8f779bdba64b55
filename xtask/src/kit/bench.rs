//! What a benchmark compares guests by and to: a disk image with a compiler, its programs as
//! processes of the host, Debian's User-Mode Linux.

use super::{Kit, apt, copy, disk};
use crate::command::{find_program, output};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

impl Kit {
    /// A kernel that is a program; fetched when first asked for.
    pub(crate) fn user_mode_linux(&self) -> Result<PathBuf> {
        let program = self.bench_folder()?.join("linux");
        if !program.is_file() {
            let files = self.apt()?.download(&["user-mode-linux".to_owned()])?;
            let unpacked = tempfile::tempdir_in(self.folder())?;
            for deb in &files {
                apt::unpack(deb, unpacked.path())?;
            }
            copy(&unpacked.path().join("usr/bin/linux.uml"), &program)?;
        }
        Ok(program)
    }

    /// The disk image that has a compiler, too; made when first asked for.
    pub(crate) fn compiler_disk(&self) -> Result<PathBuf> {
        let image = self.bench_folder()?.join("compiler.img");
        disk::build(self, &disk::COMPILER, &image, false)?;
        Ok(image)
    }

    /// The disk image that has a compiler, grep and a tree of sources; made when first asked for.
    pub(crate) fn sources_disk(&self) -> Result<PathBuf> {
        let image = self.bench_folder()?.join("sources.img");
        disk::build(self, &disk::SOURCES, &image, false)?;
        Ok(image)
    }

    /// The disk image that has all programs whose memory is looked at; made when first asked for.
    pub(crate) fn loads_disk(&self) -> Result<PathBuf> {
        let image = self.bench_folder()?.join("loads.img");
        disk::build(self, &disk::LOADS, &image, false)?;
        Ok(image)
    }

    /// A folder beside an image with all that is on it: copied from it when first asked for, and
    /// again when the image is another.
    pub(crate) fn unpacked_disk(&self, image: &Path) -> Result<PathBuf> {
        let (folder, made_from) = (image.with_extension(""), image.with_extension("made-from"));
        let metadata = fs::metadata(image).with_context(|| format!("find {}", image.display()))?;
        let version = format!("{:?}\n", metadata.modified()?);
        if folder.is_dir() && fs::read_to_string(&made_from).is_ok_and(|old| old == version) {
            return Ok(folder);
        }
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        let new = tempfile::tempdir_in(self.folder())?;
        // Mounting is for root; this reads the file system as any user may.
        let debugfs = find_program("debugfs").context("debugfs is missing: install e2fsprogs")?;
        let request = format!("rdump / {}", new.path().display());
        output(Command::new(debugfs).args(["-R", &request]).arg(image))?;
        if !new.path().join("bin/bash").exists() {
            bail!("{}: debugfs read no bash from it", image.display());
        }
        fs::rename(new.keep(), &folder)
            .with_context(|| format!("put the disk's files into {}", folder.display()))?;
        fs::write(&made_from, version).with_context(|| format!("write {}", made_from.display()))?;
        Ok(folder)
    }

    /// All of the above is made anew when next asked for.
    pub(super) fn forget_bench(&self) -> Result<()> {
        let folder = self.bench_folder()?;
        fs::remove_dir_all(&folder).with_context(|| format!("delete {}", folder.display()))
    }

    pub(super) fn bench_folder(&self) -> Result<PathBuf> {
        let folder = self.folder().join("bench");
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(folder)
    }
}
