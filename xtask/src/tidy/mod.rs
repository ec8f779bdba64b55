//! Rules of the project that a machine can check: `cargo xtask tidy`, and the same as a test.
//!
//! Each rule takes plain data and gives a list of violations, so that its own tests need no
//! workspace.

mod crates;
mod files;

use crate::command::output;
use crate::workspace;
use anyhow::{Context, Result, bail};
use crates::Package;
use std::process::Command;

/// Check the whole workspace; the error lists every violation.
pub(crate) fn run() -> Result<()> {
    let violations = violations()?;
    if violations.is_empty() {
        return Ok(());
    }
    bail!("tidy: {} violations\n  {}", violations.len(), violations.join("\n  "));
}

fn violations() -> Result<Vec<String>> {
    let root = workspace::root();
    let metadata =
        output(workspace::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let packages = Package::all(&metadata)?;
    let architecture = std::fs::read_to_string(root.join("ARCHITECTURE.md"))
        .context("read ARCHITECTURE.md: it must name every crate")?;
    let mut found = crates::direction(&packages);
    found.extend(crates::unsafe_allowed(&packages)?);
    found.extend(crates::named(&packages, &architecture));
    found.extend(files::check(&root, &tracked_files()?)?);
    Ok(found)
}

/// What git tracks, or would if it were added.
fn tracked_files() -> Result<Vec<String>> {
    let mut git = Command::new("git");
    git.current_dir(workspace::root());
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    Ok(output(&mut git)?.lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_workspace_is_tidy() {
        let violations = super::violations().unwrap();
        assert!(violations.is_empty(), "\n  {}", violations.join("\n  "));
    }
}
