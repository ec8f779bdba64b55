//! A writer of `newc` cpio archives, the format of Linux's initramfs
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Archives may be concatenated: the kernel unpacks each in turn.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Writes entries to `sink` in the order given: folders must come before what they hold.
pub(crate) struct CpioWriter<W> {
    sink: W,
    inode: u32,
}

impl<W: Write> CpioWriter<W> {
    pub(crate) fn new(sink: W) -> Self {
        Self { sink, inode: 0 }
    }

    pub(crate) fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// A regular file; `mode` holds the permission bits.
    pub(crate) fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(name, FILE | mode, (0, 0), content)
    }

    pub(crate) fn symlink(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.entry(name, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    pub(crate) fn character_device(&mut self, name: &str, device: (u32, u32)) -> io::Result<()> {
        self.entry(name, CHARACTER_DEVICE | 0o600, device, &[])
    }

    /// Write the trailer and give the sink back.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.sink.flush()?;
        Ok(self.sink)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        let size = u32::try_from(data.len())
            .map_err(|_| io::Error::other(format!("{name}: over 4 GiB, too large for cpio")))?;
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        self.inode += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        write!(self.sink, "070701")?;
        // inode, mode, uid, gid, links, mtime, size, device, device named, name size, checksum
        let fields =
            [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        for field in fields {
            write!(self.sink, "{field:08X}")?;
        }
        self.sink.write_all(name.as_bytes())?;
        self.sink.write_all(b"\0")?;
        self.pad(110 + name.len() + 1)?;
        self.sink.write_all(data)?;
        self.pad(data.len())
    }

    /// Header with name, and data, each end on a multiple of four.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.sink.write_all(&[0; 3][..written.wrapping_neg() % 4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut cpio = CpioWriter::new(Vec::new());
        cpio.directory("dev").unwrap();
        cpio.character_device("dev/console", (5, 1)).unwrap();
        cpio.file("hello", 0o755, b"hello").unwrap();
        cpio.symlink("link", "hello").unwrap();
        cpio.finish().unwrap()
    }

    #[test]
    fn everything_is_aligned_to_four_and_ends_with_the_trailer() {
        let bytes = sample();
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.windows(11).any(|w| w == b"TRAILER!!!\0"));
        let headers: Vec<_> =
            (0..bytes.len() - 6).filter(|&i| &bytes[i..i + 6] == b"070701").collect();
        assert_eq!(headers.len(), 5);
        assert!(headers.iter().all(|at| at % 4 == 0), "{headers:?}");
    }

    #[test]
    fn a_header_holds_the_fields_in_hexadecimal() {
        let bytes = sample();
        let at = bytes.windows(6).position(|w| w == b"hello\0").unwrap() - 110;
        let field = |n: usize| {
            let text = std::str::from_utf8(&bytes[at + 6 + 8 * n..at + 14 + 8 * n]).unwrap();
            u32::from_str_radix(text, 16).unwrap()
        };
        assert_eq!((field(1), field(6), field(11)), (0o100_755, 5, 6));
    }
}
