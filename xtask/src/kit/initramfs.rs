//! The initramfs: our guest program as `/init`, our agent and busybox beside it, the modules to load.

use super::cpio::CpioWriter;
use super::{Kit, write_changed};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// Build the archive unless it is there already, just so.
///
/// It is two archives, one after the other: what comes from the distribution, and what is ours.
pub(super) fn build(file: &Path, modules: &Path, kit: &Kit) -> Result<()> {
    let mut bytes = distribution_part(modules, &kit.busybox())?;
    bytes.extend(own_part(kit)?);
    write_changed(file, &bytes)
}

fn distribution_part(modules: &Path, busybox: &Path) -> Result<Vec<u8>> {
    let mut cpio = CpioWriter::new(Vec::new());
    for folder in ["bin", "dev", "disk", "etc", "modules", "proc", "sys", "tmp"] {
        cpio.directory(folder)?;
    }
    cpio.character_device("dev/console", (5, 1))?;
    cpio.character_device("dev/null", (1, 3))?;
    cpio.file("bin/busybox", 0o755, &read(busybox)?)?;
    cpio.symlink("bin/sh", "busybox")?;
    for list in ["order", "later"] {
        let names = read(&modules.join(list))?;
        for name in String::from_utf8_lossy(&names).lines() {
            cpio.file(&format!("modules/{name}"), 0o644, &read(&modules.join(name))?)?;
        }
        cpio.file(&format!("modules/{list}"), 0o644, &names)?;
    }
    Ok(cpio.finish()?)
}

fn own_part(kit: &Kit) -> Result<Vec<u8>> {
    let mut cpio = CpioWriter::new(Vec::new());
    cpio.file("init", 0o755, &read(&kit.guest_program())?)?;
    cpio.file("bin/agent", 0o755, &read(&kit.agent())?)?;
    Ok(cpio.finish()?)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("read {}", file.display()))
}
