//! Whether the files named in a configuration are there and may be used as asked.

use std::fs::{File, FileType, Metadata};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::ConfigError;

/// `sun_path` has 108 bytes, the last of them zero (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// Which file it is, whatever the path that led there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

/// A file that is there.
pub(super) struct Found {
    pub(super) id: FileId,
    pub(super) length: u64,
}

/// A regular file with something in it, which we may read.
pub(super) fn readable(what: &'static str, path: &Path) -> Result<Found, ConfigError> {
    let metadata = metadata(what, path)?;
    if !metadata.is_file() {
        return Err(wrong_type(what, path, metadata.file_type(), "regular file"));
    }
    File::open(path).map_err(|source| cannot_open(what, path, source))?;
    found(what, path, &metadata, metadata.len())
}

/// An image or a block device with something in it, which we may read, and write if `write`.
pub(super) fn disk(path: &Path, write: bool) -> Result<Found, ConfigError> {
    let what = "disk";
    let metadata = metadata(what, path)?;
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(wrong_type(what, path, kind, "raw image or block device"));
    }
    let open = File::options().read(true).write(write).open(path);
    // The length of a block device is where its end is, not what stat says.
    let length = open.and_then(|mut file| file.seek(SeekFrom::End(0)));
    let length = length.map_err(|source| match write {
        true => cannot_write_disk(path, source),
        false => cannot_open(what, path, source),
    })?;
    found(what, path, &metadata, length)
}

/// A file which we may write, or could create. `None`: it is not there yet.
pub(super) fn writable(what: &'static str, path: &Path) -> Result<Option<FileId>, ConfigError> {
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => {
            Err(wrong_type(what, path, metadata.file_type(), "file, which need not exist yet"))
        }
        Ok(metadata) => access(path, Access::WRITE_OK)
            .map_err(|source| cannot_create(what, path, source))
            .map(|()| Some(id_of(&metadata))),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            access(&directory_of(path), Access::WRITE_OK | Access::EXEC_OK)
                .map_err(|source| cannot_create(what, path, source))
                .map(|()| None)
        }
        Err(source) => Err(cannot_create(what, path, source)),
    }
}

/// A place where a socket can be made, which may have one that was left behind.
pub(super) fn socket(what: &'static str, path: &Path) -> Result<(), ConfigError> {
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        let path = path.to_owned();
        return Err(ConfigError::SocketPath { what, path, length, max: SOCKET_PATH_MAX });
    }
    match path.symlink_metadata() {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(wrong_type(what, path, metadata.file_type(), "path where nothing is, for a socket"))
        }
        _ => access(&directory_of(path), Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|source| cannot_create(what, path, source)),
    }
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn access(path: &Path, wanted: Access) -> io::Result<()> {
    Ok(rustix::fs::access(path, wanted)?)
}

fn metadata(what: &'static str, path: &Path) -> Result<Metadata, ConfigError> {
    path.metadata().map_err(|source| cannot_open(what, path, source))
}

fn found(
    what: &'static str,
    path: &Path,
    metadata: &Metadata,
    length: u64,
) -> Result<Found, ConfigError> {
    if length == 0 {
        return Err(ConfigError::Empty { what, path: path.to_owned() });
    }
    Ok(Found { id: id_of(metadata), length })
}

fn id_of(metadata: &Metadata) -> FileId {
    FileId { device: metadata.dev(), inode: metadata.ino() }
}

fn cannot_open(what: &'static str, path: &Path, source: io::Error) -> ConfigError {
    let remedy = match source.kind() {
        ErrorKind::NotFound => "check the path",
        ErrorKind::PermissionDenied => "make it readable for you",
        _ => "name another file",
    };
    ConfigError::Open { what, path: path.to_owned(), source, remedy }
}

fn cannot_write_disk(path: &Path, source: io::Error) -> ConfigError {
    let remedy = match source.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "make it writable for you, or add ,ro or ,overlay=PATH"
        }
        ErrorKind::NotFound => "check the path",
        _ => "name another disk",
    };
    ConfigError::Open { what: "disk", path: path.to_owned(), source, remedy }
}

fn cannot_create(what: &'static str, path: &Path, source: io::Error) -> ConfigError {
    let remedy = "name a file in a directory that exists and is writable for you";
    ConfigError::Open { what, path: path.to_owned(), source, remedy }
}

fn wrong_type(
    what: &'static str,
    path: &Path,
    found: FileType,
    expected: &'static str,
) -> ConfigError {
    let found = match () {
        () if found.is_dir() => "directory",
        () if found.is_fifo() => "FIFO",
        () if found.is_socket() => "socket",
        () if found.is_char_device() => "character device",
        () if found.is_block_device() => "block device",
        () => "file of another kind",
    };
    ConfigError::FileType { what, path: path.to_owned(), found, expected }
}
