//! What a benchmark compares guests to: Debian's User-Mode Linux, and the disk's programs as
//! processes of the host.

use super::{Kit, apt, copy};
use crate::command::{find_program, output};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

impl Kit {
    /// The kernel that is a program; fetched when first asked for.
    pub(crate) fn user_mode_linux(&self) -> Result<PathBuf> {
        let program = self.folder().join("uml/linux");
        if !program.is_file() {
            let files = self.apt()?.download(&["user-mode-linux".to_owned()])?;
            let unpacked = tempfile::tempdir_in(self.folder())?;
            for deb in &files {
                apt::unpack(deb, unpacked.path())?;
            }
            fs::create_dir_all(self.folder().join("uml"))?;
            copy(&unpacked.path().join("usr/bin/linux.uml"), &program)?;
        }
        Ok(program)
    }

    /// A folder with all that is on the disk image: copied from it when first asked for, and
    /// again when the image is another.
    pub(crate) fn disk_folder(&self) -> Result<PathBuf> {
        let (folder, made_from) =
            (self.folder().join("disk"), self.folder().join("disk.made-from"));
        let image = fs::metadata(self.disk()).context("no disk image: cargo xtask guest --disk")?;
        let image = format!("{:?}\n", image.modified()?);
        if folder.is_dir() && fs::read_to_string(&made_from).is_ok_and(|old| old == image) {
            return Ok(folder);
        }
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        let new = tempfile::tempdir_in(self.folder())?;
        // The image as ordinary users may read it, too: without mounting it.
        let debugfs = find_program("debugfs").context("debugfs is missing: install e2fsprogs")?;
        let request = format!("rdump / {}", new.path().display());
        output(Command::new(debugfs).args(["-R", &request]).arg(self.disk()))?;
        if !new.path().join("bin/bash").exists() {
            bail!("{}: debugfs read no bash from it", self.disk().display());
        }
        fs::rename(new.keep(), &folder)
            .with_context(|| format!("put the disk's files into {}", folder.display()))?;
        fs::write(&made_from, image).with_context(|| format!("write {}", made_from.display()))?;
        Ok(folder)
    }
}
