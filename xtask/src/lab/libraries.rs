//! Which shared libraries a program needs, as the dynamic linker itself tells.

use crate::command::output;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The libraries of a program or library, all the way down, and its dynamic linker; none of a
/// statically linked program or of a file that is neither.
pub(super) fn of(file: &Path) -> Result<Vec<PathBuf>> {
    if !is_elf(file)? {
        return Ok(Vec::new());
    }
    match output(Command::new("ldd").arg(file).env("LC_ALL", "C")) {
        Ok(text) => parse(&text).with_context(|| format!("{}", file.display())),
        Err(error) if format!("{error:#}").contains("not a dynamic executable") => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn is_elf(path: &Path) -> Result<bool> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut magic = [0; 4];
    Ok(file.read_exact(&mut magic).is_ok() && magic == *b"\x7fELF")
}

/// `ldd` says `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the dynamic linker, or a name
/// without a path for what the kernel maps.
fn parse(text: &str) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some((name, _)) = line.split_once(" => not found") {
            bail!("needs {name}, which this host does not have");
        }
        let place = line.split_once(" => ").map_or(line, |(_, place)| place);
        let path = place.rsplit_once(" (").map_or(place, |(path, _)| path);
        if path.starts_with('/') {
            libraries.push(PathBuf::from(path));
        }
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_linker_have_paths_and_the_kernels_page_has_none() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc4a7f2000)\n\
                    \tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f1)\n\
                    \tlibodd.so => /opt/a place (old)/libodd.so (0x00007f2)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f3)\n";
        let found = parse(text).unwrap();
        let expected = [
            "/lib/x86_64-linux-gnu/libgcc_s.so.1",
            "/opt/a place (old)/libodd.so",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(found, expected.map(PathBuf::from));
    }

    #[test]
    fn nothing_comes_of_a_static_program() {
        assert!(parse("\tstatically linked\n").unwrap().is_empty());
    }

    #[test]
    fn a_missing_library_is_an_error_with_its_name() {
        let error = parse("\tlibnone.so.3 => not found\n").unwrap_err();
        assert!(error.to_string().contains("libnone.so.3"), "{error}");
    }

    #[test]
    fn this_very_program_needs_the_c_library() {
        let libraries = of(&std::env::current_exe().unwrap()).unwrap();
        let named = |part: &str| libraries.iter().any(|path| path.to_string_lossy().contains(part));
        assert!(named("libc.so") && named("ld-linux"), "{libraries:?}");
        assert!(of(Path::new("/proc/self/stat")).unwrap().is_empty());
    }
}
