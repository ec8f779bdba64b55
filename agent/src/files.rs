//! Files of the guest.

use std::fs;
use std::io;
use std::path::Path;

/// Puts `content` at `path`, whole or not at all where it can; in place where another file cannot take its place, such as
/// one that is mounted there.
pub(crate) fn replace(path: &str, content: &str) -> io::Result<()> {
    let new = format!("{path}.fathom");
    let replaced = fs::write(&new, content).and_then(|()| fs::rename(&new, path));
    replaced.or_else(|_| {
        // Not there is fine.
        let _ = fs::remove_file(&new);
        fs::write(path, content)
    })
}

/// What a file of the kernel's says, without the line feed.
pub(crate) fn line(path: impl AsRef<Path>) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() {
        let folder = std::env::temp_dir().join(format!("fathom-agent-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("file");
        let name = path.to_str().expect("text");
        for content in ["a longer text\n", "b\n"] {
            replace(name, content).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("read"), content);
        }
        assert_eq!(fs::read_dir(&folder).expect("read").count(), 1);
        assert!(replace("/proc/nowhere/file", "x").is_err());
        fs::remove_dir_all(&folder).expect("removed");
    }
}
