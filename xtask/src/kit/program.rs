//! Building the guest's programs: statically linked, so that an initramfs needs nothing else.

use super::write_changed;
use crate::command::run;
use crate::workspace;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Build `package` in a target folder of its own (its flags differ) and copy its program to `file`.
pub(super) fn build(package: &str, file: &Path) -> Result<()> {
    let target_dir = workspace::root().join("target/guest");
    eprintln!("kit: building the program {package}");
    let mut cargo = workspace::cargo();
    cargo
        .args(["build", "--quiet", "--release", "--package", package, "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols");
    run(&mut cargo)?;
    let built = target_dir.join(TARGET).join("release").join(package);
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    write_changed(file, &bytes)?;
    make_executable(file)
}

fn make_executable(file: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(file, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", file.display()))
}
