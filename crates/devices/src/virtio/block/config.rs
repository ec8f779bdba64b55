//! A disk as asked for, and as checked.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;

use super::host_cache::{Cached, HostCache};
use super::image::{Image, PageCache};
use super::overlay::{self, Identity};
use super::raw::Raw;
use super::storage::Storage;
use super::{DiskError, SECTOR};

/// The one queue: requests.
pub(super) const REQUESTS: usize = 0;
/// Queue sizes.
pub(super) const QUEUES: &[u16] = &[256];

/// Bytes of a disk's identity.
pub(super) const ID_LEN: usize = VIRTIO_BLK_ID_BYTES as usize;

/// A disk as asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// Raw image or block device.
    pub path: PathBuf,
    /// The guest may not write.
    pub read_only: bool,
    /// Where the guest's writes go instead of `path`; made if it does not exist.
    pub overlay: Option<PathBuf>,
    /// What the guest sees as the disk's serial number, cut to 20 bytes; none if empty.
    pub serial: String,
    /// Which of the VM's disks it is, in what it tells of its transfers.
    pub number: u8,
    /// Past the host's page cache, where that can be.
    pub bypass_page_cache: bool,
}

/// A disk whose files are open, locked and checked.
pub struct DiskPlan {
    pub(super) storage: Box<dyn Storage>,
    pub(super) sectors: u64,
    pub(super) read_only: bool,
    pub(super) id: [u8; ID_LEN],
    pub(super) number: u8,
    pub(super) page_cache: PageCache,
}

impl DiskConfig {
    /// Opens and checks the disk's files.
    ///
    /// # Errors
    /// A file is missing, not readable, not a raw image, in use, or an overlay of something else.
    pub fn plan(&self) -> Result<DiskPlan, DiskError> {
        if self.read_only && self.overlay.is_some() {
            return Err(DiskError::ReadOnlyOverlay { path: self.path.clone() });
        }
        let shared = self.read_only || self.overlay.is_some();
        let mut file = open(&self.path, !shared)?;
        let size = size(&self.path, &mut file)?;
        let identity = Identity::of(&file, size).map_err(host(&self.path, "read attributes"))?;
        let bypass = self.bypass_page_cache;
        let (image, mut page_cache) = Image::new(&self.path, file, size, !shared, bypass);
        let storage: Box<dyn Storage> = match &self.overlay {
            None => Box::new(Raw(image)),
            Some(path) => {
                let failed = |source| DiskError::Overlay { path: path.clone(), source };
                let (overlay, of_overlay) =
                    overlay::open(path, image, identity, bypass).map_err(failed)?;
                if page_cache == PageCache::Bypassed {
                    page_cache = of_overlay;
                }
                Box::new(overlay)
            }
        };
        Ok(DiskPlan {
            storage,
            sectors: size / SECTOR,
            read_only: self.read_only,
            id: id(&self.serial),
            number: self.number,
            page_cache,
        })
    }
}

/// Opens an image, alone for writing or together with others for reading.
fn open(path: &Path, write: bool) -> Result<File, DiskError> {
    let file = OpenOptions::new().read(true).write(write).open(path).map_err(host(path, "open"))?;
    let kind = file.metadata().map_err(host(path, "read attributes"))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(DiskError::NotADisk { path: path.to_path_buf() });
    }
    let how = if write {
        FlockOperation::NonBlockingLockExclusive
    } else {
        FlockOperation::NonBlockingLockShared
    };
    match flock(&file, how) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(DiskError::InUse { path: path.to_path_buf() }),
        Err(error) => Err(host(path, "lock")(error.into())),
    }
}

fn size(path: &Path, image: &mut File) -> Result<u64, DiskError> {
    // Seeking also tells the size of a block device.
    let size = image.seek(SeekFrom::End(0)).map_err(host(path, "find its size"))?;
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err(DiskError::Size { path: path.to_path_buf(), size });
    }
    let mut magic = [0; 4];
    image.rewind().map_err(host(path, "read"))?;
    image.read_exact(&mut magic).map_err(host(path, "read"))?;
    match &magic {
        b"QFI\xfb" => Err(DiskError::Format { path: path.to_path_buf(), format: "qcow2" }),
        b"KDMV" => Err(DiskError::Format { path: path.to_path_buf(), format: "VMDK" }),
        _ => Ok(size),
    }
}

fn id(serial: &str) -> [u8; ID_LEN] {
    let mut id = [0; ID_LEN];
    for (to, from) in id.iter_mut().zip(serial.bytes()) {
        *to = from;
    }
    id
}

fn host(path: &Path, operation: &'static str) -> impl FnOnce(std::io::Error) -> DiskError {
    move |source| DiskError::Host { path: path.to_path_buf(), operation, source }
}

impl DiskPlan {
    /// The same disk with `cache` before it, which it has in common with the VM's other disks.
    #[must_use]
    pub fn with_host_cache(mut self, cache: &Arc<HostCache>) -> Self {
        let len = self.sectors * SECTOR;
        self.storage = Box::new(Cached::new(self.storage, cache, self.number, len));
        self
    }

    /// Whether the host's page cache has it, too.
    pub fn page_cache(&self) -> &PageCache {
        &self.page_cache
    }

    /// A block of 4 KiB as it is on the disk now; `None` where it cannot be read.
    pub fn block(&self, number: u64) -> Option<[u8; memory::FRAME_SIZE]> {
        let mut bytes = [0; memory::FRAME_SIZE];
        let offset = number.checked_mul(bytes.len() as u64)?;
        let end = offset.checked_add(bytes.len() as u64)?;
        let inside = end <= self.sectors * SECTOR;
        (inside && self.storage.read_host(offset, &mut bytes).is_ok()).then_some(bytes)
    }

    /// Size in sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }
}

impl fmt::Debug for DiskPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskPlan")
            .field("sectors", &self.sectors)
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}
