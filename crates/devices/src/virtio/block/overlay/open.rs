//! Making and opening overlay files.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::bitmap::Bitmap;
use super::header::{HEADER_LEN, Header, Identity};
use super::{Overlay, OverlayError};
use crate::virtio::block::file::HostFile;
use crate::virtio::block::image::{Image, PageCache};

/// Opens the overlay at `path` over `image`, or makes it; past the host's page cache if `bypass` says so.
///
/// # Errors
/// It is in use, damaged, something else, or was made over another image; it is left as it is.
pub(in super::super) fn open(
    path: &Path,
    image: Image,
    identity: Identity,
    bypass: bool,
) -> Result<(Overlay<Image>, PageCache), OverlayError> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let (file, header, bitmap) = match file {
        Ok(file) if !is_empty(&file)? => open_existing(file, identity)?,
        Ok(_) => create(path, identity)?,
        Err(error) if error.kind() == ErrorKind::NotFound => create(path, identity)?,
        Err(error) => return Err(host("open")(error)),
    };
    let (file, page_cache) = Image::new(path, file, header.file_len(), true, bypass);
    Ok((Overlay::new(image, file, header, bitmap), page_cache))
}

/// An empty file (as mktemp makes) holds nothing that could be lost.
fn is_empty(file: &File) -> Result<bool, OverlayError> {
    let metadata = file.metadata().map_err(host("read attributes"))?;
    if !metadata.is_file() {
        return Err(OverlayError::NotAnOverlay);
    }
    Ok(metadata.len() == 0)
}

/// What an overlay is made of, but for its image.
type Parts = (File, Header, Bitmap);

fn open_existing(file: File, identity: Identity) -> Result<Parts, OverlayError> {
    lock(&file)?;
    let mut bytes = [0; HEADER_LEN];
    file.read_host(0, &mut bytes).map_err(|_| OverlayError::NotAnOverlay)?;
    let header = Header::decode(&bytes)?;
    if header.image != identity {
        return Err(OverlayError::OtherImage {
            made_len: header.image.len,
            made_secs: header.image.modified_secs,
            len: identity.len,
            secs: identity.modified_secs,
        });
    }
    if file.metadata().map_err(host("read attributes"))?.len() < header.file_len() {
        return Err(OverlayError::Damaged { what: "file too short" });
    }
    let bitmap = Bitmap::read(&header, &file).map_err(host("read bitmap"))?;
    Ok((file, header, bitmap))
}

/// Under another name first, so that there is never half an overlay at `path`.
fn create(path: &Path, identity: Identity) -> Result<Parts, OverlayError> {
    let draft = draft_path(path);
    let header = Header::new(identity);
    // Not truncated before it is ours: another VM may be making it right now.
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&draft);
    let file = file.map_err(host("create"))?;
    lock(&file)?;
    let written = write_new(&file, &header).and_then(|()| fs::rename(&draft, path));
    written.and_then(|()| sync_folder(path)).map_err(host("create"))?;
    let bitmap = Bitmap::empty(&header);
    Ok((file, header, bitmap))
}

fn write_new(file: &File, header: &Header) -> io::Result<()> {
    use std::os::unix::fs::FileExt;

    file.set_len(0)?;
    file.set_len(header.file_len())?;
    file.write_all_at(&header.encode(), 0)?;
    file.sync_all()
}

fn draft_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".new");
    name.into()
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

fn lock(file: &File) -> Result<(), OverlayError> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(OverlayError::InUse),
        Err(error) => Err(host("lock")(error.into())),
    }
}

fn host(operation: &'static str) -> impl FnOnce(io::Error) -> OverlayError {
    move |source| OverlayError::Host { operation, source }
}
