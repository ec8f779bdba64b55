//! XFS: for the guest a module, for the host the program that makes a file system.

use super::cpio::CpioWriter;
use super::{Kit, apt, disk, write_changed};
use crate::command::find_program;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = "mkfs.xfs";

impl Kit {
    /// The initramfs with the modules that `modules/apart` lists, in a folder of that name.
    pub(crate) fn xfs_initramfs(&self) -> Result<PathBuf> {
        let mut bytes = read(&self.initramfs())?;
        let modules = self.kernel().modules();
        let names = read(&modules.join("apart"))?;
        let mut cpio = CpioWriter::new(Vec::new());
        cpio.directory("modules/apart")?;
        for name in String::from_utf8_lossy(&names).lines() {
            cpio.file(&format!("modules/apart/{name}"), 0o644, &read(&modules.join(name))?)?;
        }
        cpio.file("modules/apart/order", 0o644, &names)?;
        bytes.extend(cpio.finish()?);
        let file = self.folder.join("initramfs-xfs.cpio");
        write_changed(&file, &bytes)?;
        Ok(file)
    }

    /// The host's `mkfs.xfs`, else Debian's with its libraries in a folder of the kit; to be given arguments.
    pub(crate) fn mkfs_xfs(&self) -> Result<Command> {
        if let Some(program) = find_program(PROGRAM) {
            return Ok(Command::new(program));
        }
        let root = self.folder.join("xfsprogs");
        if !root.is_dir() {
            self.fetch_xfsprogs(&root)?;
        }
        // With its own C library, too: the host's may be older.
        let mut command = Command::new(root.join("usr/lib64/ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(root.join("usr/lib/x86_64-linux-gnu"));
        command.arg(root.join("usr/sbin").join(PROGRAM));
        Ok(command)
    }

    fn fetch_xfsprogs(&self, root: &Path) -> Result<()> {
        let apt = self.apt().context("mkfs.xfs is missing: install xfsprogs")?;
        let files = apt.download(&apt.closure(&["xfsprogs"])?)?;
        let new = tempfile::tempdir_in(&self.folder)?;
        disk::lay_out(new.path())?;
        for deb in &files {
            apt::unpack_merged(deb, new.path())?;
        }
        fs::rename(new.keep(), root)
            .with_context(|| format!("put xfsprogs into {}", root.display()))
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("read {}", file.display()))
}
