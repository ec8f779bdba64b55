//! Reading the user's files, with errors that name them.

use std::fs::{File, FileType};
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::error::BootError;

/// The content of the regular file at `path`, at most `limit` bytes. `what` names its purpose.
pub(super) fn read(what: &'static str, path: &Path, limit: u64) -> Result<Vec<u8>, BootError> {
    let (file, length) = open(what, path, limit)?;
    let failed = |source| BootError::Read { what, path: path.to_owned(), source };
    let bytes = read_up_to(&file, length, limit).map_err(failed)?;
    bytes.ok_or_else(|| BootError::FileTooLarge { what, path: path.to_owned(), limit })
}

/// The regular file at `path`, and its length, at most `limit` bytes.
///
/// Anything else is refused before it is opened: pipes and devices may block, or never end.
pub(super) fn open(what: &'static str, path: &Path, limit: u64) -> Result<(File, u64), BootError> {
    let failed = |source| BootError::Read { what, path: path.to_owned(), source };
    let metadata = path.metadata().map_err(failed)?;
    if !metadata.is_file() {
        let found = describe(metadata.file_type());
        return Err(BootError::NotAFile { what, path: path.to_owned(), found });
    }
    if metadata.len() > limit {
        return Err(BootError::FileTooLarge { what, path: path.to_owned(), limit });
    }
    Ok((File::open(path).map_err(failed)?, metadata.len()))
}

fn describe(kind: FileType) -> &'static str {
    match kind {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_char_device() => "a character device",
        kind if kind.is_block_device() => "a block device",
        kind if kind.is_fifo() => "a pipe",
        kind if kind.is_socket() => "a socket",
        _ => "of an unknown kind",
    }
}

/// The rest of `file`, or nothing if it is longer than `limit`; it was `length` bytes long a moment ago.
fn read_up_to(file: &File, length: u64, limit: u64) -> io::Result<Option<Vec<u8>>> {
    // One more, so that the end is found without growing.
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0).saturating_add(1));
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(path: &Path) -> String {
        read("kernel", path, 16).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_the_file_and_what_it_is() {
        let missing = Path::new("/nonexistent/vmlinuz");
        assert_eq!(message(missing), "cannot read the kernel /nonexistent/vmlinuz");
        assert!(message(Path::new("/")).contains("a directory"));
        assert!(message(Path::new("/dev/zero")).contains("a character device"));
    }

    #[test]
    fn the_limit_is_exact() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7; 16]).unwrap();
        assert_eq!(read("kernel", file.path(), 16).unwrap(), [7; 16]);
        std::fs::write(file.path(), [7; 17]).unwrap();
        assert!(message(file.path()).contains("larger than 16 bytes"));
    }
}
