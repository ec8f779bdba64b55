//! The root file system of the lab's machine: an ext4 image that `mke2fs` fills from a folder.
//!
//! A file has the same path there as on the host, so that paths which are built into test
//! programs, or given as arguments, need no translation. An image costs the machine no memory
//! beyond its page cache, as an initramfs would.

use super::libraries;
use crate::command::{find_program, output, run};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

/// Free for what runs there; sparse, so it costs nothing until it is used.
const FREE_MIB: u64 = 2048;
/// Per file, for its inode and what its last block wastes.
const OVERHEAD_BYTES: u64 = 8192;

/// A folder that becomes an image; removed when dropped.
pub(super) struct Image {
    folder: tempfile::TempDir,
    /// Places on the host whose files are here already.
    added: BTreeSet<PathBuf>,
    bytes: u64,
}

impl Image {
    /// With busybox as the shell and all its small programs.
    ///
    /// Made within `parent`, best on the file system of what will be added: then it is linked,
    /// not copied.
    pub(super) fn new(parent: &Path, busybox: &Path) -> Result<Self> {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        let folder = tempfile::Builder::new().prefix("lab-").tempdir_in(parent)?;
        let mut image = Self { folder, added: BTreeSet::new(), bytes: 0 };
        image.lay_out()?;
        image.place(busybox, Path::new("/usr/bin/busybox"))?;
        image.permit("/usr/bin/busybox", 0o755)?;
        for name in output(Command::new(busybox).arg("--list"))?.lines() {
            if name != "busybox" {
                symlink("busybox", image.inside(Path::new("/usr/bin").join(name))?)?;
            }
        }
        Ok(image)
    }

    /// Fails where images cannot be made.
    pub(super) fn check_tools() -> Result<()> {
        mke2fs().map(drop)
    }

    /// Add a file with the libraries it needs, or a folder with all that is in it.
    pub(super) fn add(&mut self, path: &Path) -> Result<()> {
        let path = std::path::absolute(path)?;
        if !self.added.insert(path.clone()) {
            return Ok(());
        }
        if path.is_dir() {
            return self.add_folder(&path);
        }
        self.place(&path, &path)?;
        for library in libraries::of(&path)? {
            self.add(&library)?;
        }
        Ok(())
    }

    /// Write a file of our own.
    pub(super) fn write(&mut self, path: &str, mode: u32, content: &str) -> Result<()> {
        let inside = self.inside(path)?;
        fs::write(&inside, content).with_context(|| format!("write {}", inside.display()))?;
        self.permit(path, mode)
    }

    /// Make a folder, for somebody to work in.
    pub(super) fn make_folder(&self, path: &Path) -> Result<()> {
        let inside = self.inside(path)?;
        fs::create_dir_all(&inside).with_context(|| format!("create {}", inside.display()))
    }

    /// Make the image, in the folder where the files are, so that it goes away with them.
    pub(super) fn build(&self) -> Result<PathBuf> {
        let mke2fs = mke2fs()?;
        let image = self.folder.path().join("image");
        let size = self.bytes + (FREE_MIB << 20);
        fs::File::create(&image)
            .and_then(|file| file.set_len(size))
            .with_context(|| format!("create {}", image.display()))?;
        run(Command::new(mke2fs)
            .args(["-q", "-t", "ext4", "-b", "4096", "-m", "0", "-O", "^has_journal"])
            .args(["-E", "root_owner=0:0,lazy_itable_init=1,nodiscard", "-d"])
            .arg(self.root())
            .arg(&image))?;
        Ok(image)
    }

    /// For files that are no part of the image, and go away with it.
    pub(super) fn scratch(&self) -> &Path {
        self.folder.path()
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    fn lay_out(&self) -> Result<()> {
        let root = self.root();
        for name in ["bin", "lib", "lib64", "sbin"] {
            fs::create_dir_all(root.join("usr").join(name))?;
            symlink(format!("usr/{name}"), root.join(name))?;
        }
        for name in ["dev", "etc", "lab", "proc", "root", "run", "sys", "tmp", "var"] {
            fs::create_dir(root.join(name))?;
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        fs::write(root.join("etc/hostname"), "lab\n")?;
        fs::write(root.join("etc/hosts"), "127.0.0.1 localhost lab\n")?;
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
        )?;
        Ok(fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?)
    }

    fn add_folder(&mut self, folder: &Path) -> Result<()> {
        self.make_folder(folder)?;
        let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_symlink() {
                symlink(fs::read_link(&path)?, self.inside(&path)?)?;
            } else if kind.is_file() || kind.is_dir() {
                self.add(&path)?;
            }
        }
        Ok(())
    }

    /// The content of `source`, itself and not a link to it, as `path`.
    fn place(&mut self, source: &Path, path: &Path) -> Result<()> {
        let source = source.canonicalize().with_context(|| format!("find {}", source.display()))?;
        let inside = self.inside(path)?;
        if inside.exists() {
            return Ok(());
        }
        // Linking fails between file systems, and for what belongs to others.
        if fs::hard_link(&source, &inside).is_err() {
            fs::copy(&source, &inside)
                .with_context(|| format!("copy {} for the lab", source.display()))?;
        }
        self.bytes += fs::metadata(&inside)?.len() + OVERHEAD_BYTES;
        Ok(())
    }

    fn permit(&self, path: &str, mode: u32) -> Result<()> {
        Ok(fs::set_permissions(self.inside(path)?, fs::Permissions::from_mode(mode))?)
    }

    /// Where an absolute path of the machine lies on the host; its folder is made.
    fn inside(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        let inside = self.root().join(relative(path.as_ref())?);
        if let Some(parent) = inside.parent() {
            fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        }
        Ok(inside)
    }
}

fn mke2fs() -> Result<PathBuf> {
    find_program("mke2fs").context("mke2fs is missing: apt-get install e2fsprogs")
}

/// From the root, with nothing that leads out of it.
fn relative(path: &Path) -> Result<PathBuf> {
    let mut relative = PathBuf::new();
    for component in path.components() {
        match component {
            Component::RootDir => {}
            Component::Normal(name) => relative.push(name),
            _ => bail!("{}: not a plain absolute path", path.display()),
        }
    }
    Ok(relative)
}
