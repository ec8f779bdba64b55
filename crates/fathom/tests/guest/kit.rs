//! Where kernels, initial RAM disks and the disk image are.

use std::path::{Path, PathBuf};

/// The Debian kernels of the kit.
#[derive(Clone, Copy)]
pub(crate) enum Kernel {
    /// linux-image-cloud-amd64
    Cloud,
    /// linux-image-amd64
    Full,
}

impl Kernel {
    pub(crate) fn image(self) -> String {
        file(match self {
            Self::Cloud => "kernel/vmlinuz",
            Self::Full => "full/vmlinuz",
        })
    }

    pub(crate) fn initramfs(self) -> String {
        file(match self {
            Self::Cloud => "initramfs.cpio",
            Self::Full => "initramfs-full.cpio",
        })
    }
}

/// An ext4 file system with a small Debian. No test may write to it.
pub(crate) fn disk_image() -> String {
    file("disk.img")
}

/// Many programs in one, for a host that may not have them.
pub(crate) fn busybox() -> String {
    file("busybox")
}

fn file(name: &str) -> String {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder =
        std::env::var_os("FATHOM_KIT").map_or_else(|| workspace.join(".kit"), PathBuf::from);
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{}: not there: run `cargo xtask guest --full --disk`, or test with `cargo xtask test`",
        path.display()
    );
    path.to_str().expect("the kit's path is text").to_owned()
}
