//! The block device (virtio 1.2, 5.2): a raw image, read-only or not, or a copy-on-write overlay
//! over a shared image.
//!
//! `DiskConfig` (asked) -> `DiskPlan` (files open and checked) -> `Disk` (running) -> `DiskState`
//! (saved).

mod config;
mod device;
mod events;
mod file;
mod host_cache;
mod image;
mod metrics;
mod overlay;
mod raw;
mod request;
mod state;
mod storage;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use config::{DiskConfig, DiskPlan};
pub use device::Disk;
pub use host_cache::{HostCache, HostCacheCounts, HostCachePolicy, HostCacheStatus, Whereabouts};
pub use image::PageCache;
pub use metrics::DiskMetrics;
pub use overlay::OverlayError;
pub use state::DiskState;

/// Bytes of a sector: the unit of virtio-blk whatever the block size (5.2.4).
pub const SECTOR: u64 = 512;

/// A disk cannot be opened.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The host refused.
    #[error("disk {path}: {operation}: {source}: check that the file exists and is yours to use")]
    Host {
        /// The file.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Neither a regular file nor a block device.
    #[error("disk {path}: not a file or block device: name a raw disk image")]
    NotADisk {
        /// The path.
        path: PathBuf,
    },
    /// No sectors, or a part of one.
    #[error(
        "disk {path}: size {size} is not a positive multiple of 512: pad it with truncate -s %512 FILE"
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// An image in a format that is not raw.
    #[error("disk {path}: a {format} image: convert it with qemu-img convert -O raw")]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: &'static str,
    },
    /// Another VM has it.
    #[error("disk {path}: in use by another VM: give each VM its own overlay=, or use ro")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Read-only and an overlay to write to.
    #[error("disk {path}: ro and overlay= exclude each other: leave one out")]
    ReadOnlyOverlay {
        /// The file.
        path: PathBuf,
    },
    /// The overlay is unusable.
    #[error("overlay {path}: {source}")]
    Overlay {
        /// The overlay file.
        path: PathBuf,
        /// What is wrong with it.
        source: OverlayError,
    },
}
