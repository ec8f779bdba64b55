//! What the lab's machine needs: QEMU, and a kernel with the modules of a host.

use super::apt::{self, Apt};
use super::{GuestArgs, Kit, fetch_busybox, install_package, modules};
use crate::command::find_program;
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

impl Kit {
    /// Fetch kernel and busybox of the lab's machine unless they are here.
    pub(crate) fn prepare_lab(&self) -> Result<()> {
        fetch_busybox(self, &GuestArgs::default())?;
        let kernel = self.lab_kernel();
        if kernel.is_complete(&modules::LAB) {
            return Ok(());
        }
        fs::create_dir_all(self.folder.join("lab"))?;
        install_package(self, "linux-image-cloud-amd64", &kernel, &modules::LAB)
    }

    /// The host's QEMU, else Debian's in a folder of the kit.
    pub(crate) fn qemu(&self) -> Result<Qemu> {
        if let Some(program) = find_program(PROGRAM) {
            return Ok(Qemu::Host(program));
        }
        let root = self.folder.join("lab/qemu");
        if !root.is_dir() {
            let apt = self.apt().context("QEMU is missing: install qemu-system-x86")?;
            self.fetch_qemu(&apt, &root)?;
        }
        Qemu::unpacked(root)
    }

    /// Of Debian's backports, mostly newer; fetched when first asked for.
    pub(crate) fn backports_qemu(&self) -> Result<Qemu> {
        let root = self.bench_folder()?.join("qemu-backports");
        if !root.is_dir() {
            let apt = Apt::open_backports(&self.folder.join("apt-backports"))?;
            self.fetch_qemu(&apt, &root)?;
        }
        Qemu::unpacked(root)
    }

    fn fetch_qemu(&self, apt: &Apt, root: &Path) -> Result<()> {
        let files = apt.download(&apt.closure(&["qemu-system-x86"])?)?;
        eprintln!("kit: unpacking QEMU and what it needs, {} packages", files.len());
        let parent = root.parent().context("a folder of the kit")?;
        fs::create_dir_all(parent)?;
        let new = tempfile::tempdir_in(parent)?;
        super::disk::lay_out(new.path())?;
        for deb in &files {
            apt::unpack_merged(deb, new.path())?;
        }
        fs::rename(new.keep(), root).with_context(|| format!("put QEMU into {}", root.display()))
    }
}

const PROGRAM: &str = "qemu-system-x86_64";

/// QEMU, wherever it comes from.
#[derive(Clone)]
pub(crate) enum Qemu {
    /// Installed.
    Host(PathBuf),
    /// Unpacked with all its libraries, the C library and the dynamic linker too: the host's may
    /// be older.
    Unpacked { root: PathBuf, libraries: OsString },
}

impl Qemu {
    fn unpacked(root: PathBuf) -> Result<Self> {
        let folders = ["usr/lib/x86_64-linux-gnu", "usr/lib"].map(|folder| root.join(folder));
        // Some packages have a folder of their own, which their installation makes known.
        let mut libraries = folders.to_vec();
        for folder in ["pulseaudio", "ceph"] {
            libraries.push(folders[0].join(folder));
        }
        let libraries = std::env::join_paths(libraries).context("the kit's path has a colon")?;
        Ok(Self::Unpacked { root, libraries })
    }

    /// What it takes to run it elsewhere: the program (its libraries not among these if it is the
    /// host's), firmware.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::Unpacked { root, .. } => vec![root.clone()],
            Self::Host(program) => {
                let usr = program.parent().and_then(Path::parent).unwrap_or(Path::new("/usr"));
                let firmware = ["share/qemu", "share/seabios"].map(|folder| usr.join(folder));
                let firmware = firmware.into_iter().filter(|folder| folder.is_dir());
                std::iter::once(program.clone()).chain(firmware).collect()
            }
        }
    }

    /// To be given arguments.
    pub(crate) fn command(&self) -> Command {
        match self {
            Self::Host(program) => Command::new(program),
            Self::Unpacked { root, libraries } => {
                let mut command = Command::new(root.join("usr/lib64/ld-linux-x86-64.so.2"));
                command
                    .arg("--library-path")
                    .arg(libraries)
                    .arg(root.join("usr/bin").join(PROGRAM));
                for firmware in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
                    command.arg("-L").arg(root.join(firmware));
                }
                let modules = root.join("usr/lib/x86_64-linux-gnu/qemu");
                command.env("QEMU_MODULE_DIR", modules);
                command
            }
        }
    }
}
