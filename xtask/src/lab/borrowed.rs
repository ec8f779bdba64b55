//! Programs of the host that tests run beside guests, where the host has them. A test whose program
//! is missing says so itself.

use super::libraries;
use crate::command::find_program;
use anyhow::Result;
use std::path::PathBuf;

const PROGRAMS: [&str; 2] = ["gdb", "passt"];

/// The programs, and what they read beside their libraries.
pub(super) fn files() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for program in PROGRAMS.iter().filter_map(|name| find_program(name)) {
        for library in libraries::of(&program)? {
            files.extend(modules_of(&library));
        }
        files.push(program);
    }
    // gdb's own commands, in Python.
    files.push("/usr/share/gdb".into());
    files.retain(|file| file.exists());
    Ok(files)
}

/// Python's standard library, without which `libpython` does not start.
fn modules_of(library: &std::path::Path) -> Option<PathBuf> {
    let name = library.file_name()?.to_str()?;
    let version = name.strip_prefix("libpython")?.split(".so").next()?;
    Some(format!("/usr/lib/python{version}").into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn modules_are_of_the_librarys_version() {
        let modules = |library: &str| modules_of(Path::new(library));
        assert_eq!(modules("/lib/libpython3.11.so.1.0"), Some("/usr/lib/python3.11".into()));
        assert_eq!(modules("/lib/libc.so.6"), None);
    }
}
