//! The disk image: an ext4 file system with a small Debian, made by an ordinary user.
//!
//! Packages are unpacked, not installed: none of their scripts runs. `mke2fs -d` fills the file
//! system from a folder, so nothing is mounted.

use super::{Kit, apt};
use crate::command::{find_program, run};
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

/// What is on an image.
pub(super) struct Image {
    packages: &'static [&'static str],
    /// Sparse: what is free costs nothing on the host.
    size: &'static str,
}

/// What tests and people have.
pub(super) const COMMON: Image = Image {
    packages: &["bash", "coreutils", "gzip", "python3", "sqlite3", "stress-ng"],
    size: "320M",
};
/// That, and a compiler of C.
pub(super) const COMPILER: Image = Image {
    packages: &["bash", "coreutils", "gzip", "python3", "sqlite3", "gcc", "libc6-dev"],
    size: "640M",
};

/// By the first a guest shows that all programs work, by the second that they go on working.
const SCRIPTS: [(&str, &str); 2] =
    [("check.sh", include_str!("check.sh")), ("stress.sh", include_str!("stress.sh"))];
/// That, and a server that keeps what it has in memory.
pub(super) const LOADS: Image = Image {
    packages: &[
        "bash",
        "coreutils",
        "gzip",
        "python3",
        "sqlite3",
        "gcc",
        "libc6-dev",
        "redis-server",
        "redis-tools",
    ],
    size: "700M",
};

/// A compiler, and many sources in C: the headers that modules of Debian's kernel are built with.
pub(super) const SOURCES: Image = Image {
    packages: &["bash", "coreutils", "grep", "gcc", "libc6-dev", "linux-headers-cloud-amd64"],
    size: "1G",
};

/// Raise it when an image made before is no longer good.
const LAYOUT: u32 = 2;

/// Build the image unless there is one by the same recipe.
pub(super) fn build(kit: &Kit, image: &Image, file: &Path, refresh: bool) -> Result<()> {
    let Image { packages, size } = image;
    let scripts = SCRIPTS.map(|(_, script)| script).concat();
    let recipe = format!("layout {LAYOUT}, {size}\n{}\n{scripts}", packages.join(" "));
    let kept = file.with_extension("recipe");
    let same = file.is_file() && fs::read_to_string(&kept).is_ok_and(|old| old == recipe);
    if same && !refresh {
        return Ok(());
    }
    make(kit, image, file)?;
    fs::write(&kept, recipe).with_context(|| format!("write {}", kept.display()))
}

fn make(kit: &Kit, image: &Image, file: &Path) -> Result<()> {
    let mke2fs = find_program("mke2fs").context("mke2fs is missing: apt-get install e2fsprogs")?;
    let apt = kit.apt()?;
    let packages = apt.closure(image.packages)?;
    let files = apt.download(&packages)?;
    eprintln!("kit: building a disk image from {} packages", files.len());
    let root = tempfile::tempdir_in(&kit.folder)?;
    lay_out(root.path())?;
    for deb in &files {
        apt::unpack_merged(deb, root.path())?;
    }
    finish(root.path())?;
    let new = file.with_extension("new");
    if new.exists() {
        fs::remove_file(&new)?;
    }
    run(Command::new(mke2fs)
        .args([
            "-q",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-L",
            "fathom",
            "-m",
            "0",
            "-E",
            "root_owner=0:0",
            "-d",
        ])
        .arg(root.path())
        .arg(&new)
        .arg(image.size))?;
    fs::rename(&new, file).with_context(|| format!("replace {}", file.display()))
}

/// Debian's merged `/usr`: packages still carry files under `/bin` and `/lib`.
pub(super) fn lay_out(root: &Path) -> Result<()> {
    for name in ["bin", "lib", "lib64", "sbin"] {
        fs::create_dir_all(root.join("usr").join(name))?;
        symlink(format!("usr/{name}"), root.join(name))?;
    }
    for name in ["dev", "etc", "proc", "root", "run", "sys", "tmp", "var"] {
        fs::create_dir(root.join(name))?;
    }
    Ok(())
}

/// What installation scripts would have made.
fn finish(root: &Path) -> Result<()> {
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/bash\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    fs::write(root.join("etc/hostname"), "fathom\n")?;
    for (name, script) in SCRIPTS {
        fs::write(root.join(name), script)?;
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o755))?;
    }
    let shell = root.join("bin/sh");
    if !shell.exists() {
        symlink("bash", &shell)?;
    }
    let awk = root.join("bin/awk");
    if !awk.exists() && root.join("bin/mawk").exists() {
        symlink("mawk", &awk)?;
    }
    Ok(())
}
