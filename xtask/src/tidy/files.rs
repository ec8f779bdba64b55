//! Rules about files: none too long, none with a path of somebody's machine.

use anyhow::{Context, Result};
use std::path::Path;

const LINES_MAX: usize = 1000;

/// Files that are tables, and may be as long as their tables are.
const TABLES: [&str; 0] = [];

/// Folders that exist on one machine only.
const MACHINE_FOLDERS: [&str; 3] =
    [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/home/", "user/")];

/// Check each of `files`, named from `root`; what is not text is passed over.
pub(super) fn check(root: &Path, files: &[String]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for file in files {
        let path = root.join(file);
        if !path.is_file() {
            continue;
        }
        let bytes = std::fs::read(&path).with_context(|| format!("read {file}"))?;
        if let Ok(text) = String::from_utf8(bytes) {
            found.extend(violations(file, &text));
        }
    }
    Ok(found)
}

fn violations(file: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let lines = text.lines().count();
    if file.ends_with(".rs") && lines > LINES_MAX && !TABLES.contains(&file) {
        found.push(format!("{file}: {lines} lines, at most {LINES_MAX}: split it"));
    }
    for (number, line) in text.lines().enumerate() {
        let folder = MACHINE_FOLDERS.iter().find(|folder| names_folder(line, folder));
        found.extend(folder.map(|folder| format!("{file}:{}: names {folder}", number + 1)));
    }
    found
}

/// As the beginning of a path: `src/work/` is none of them.
fn names_folder(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !(c.is_alphanumeric() || "._-/}".contains(c)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_sources_are_found() {
        let long = "x\n".repeat(LINES_MAX + 1);
        assert_eq!(violations("a.rs", &long).len(), 1);
        assert!(violations("Cargo.lock", &long).is_empty());
        assert!(violations("a.rs", &"x\n".repeat(LINES_MAX)).is_empty());
    }

    #[test]
    fn folders_of_a_machine_are_found_at_the_start_of_a_path_only() {
        let folder = MACHINE_FOLDERS[0];
        assert_eq!(violations("a.md", &format!("see `{folder}x`\n")).len(), 1);
        assert!(violations("a.md", &format!("see guest/src{folder}x\n")).is_empty());
    }
}
