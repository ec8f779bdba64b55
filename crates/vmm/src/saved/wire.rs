//! How a machine travels from the VM's process, which can open no file, to who keeps it.
//!
//! Over one or more streams, *lanes*, each a sequence of records. A record is four numbers of 32 bits, little-endian, and
//! what follows them:
//!
//! | kind | first | count | follows |
//! |---|---|---|---|
//! | 1, contents | frame | 1 to 64 frames | 4096 bytes a frame |
//! | 2, zero | frame | frames | |
//! | 3, free | frame | frames | |
//! | 4, ballooned | frame | frames | |
//! | 5, machine | 0 | bytes | the state of the machine as JSON; on the first lane |
//! | 6, end | 0 | 0 | the lane is complete |
//! | 7, needed | frame | frames | the guest needs them first, in this order; on the first lane |
//! | 8, disks | 0 | bytes | JSON: of each disk the path of its image, if nobody writes to that, or null; before all frames |
//! | 9, origin | frame | frames | two numbers of 64 bits, of a disk and of a block: the frames of the next record of contents may have those of this block and its neighbours |
//!
//! The fourth number is 0. A lane that stops before its end is of a VM that failed, or whose host did. Each frame is told
//! once, on any lane. After all ends, who keeps it answers [`KEPT`] on the first lane, or closes it.

use std::io::{self, Read, Write};

use memory::{DiskBlock, FRAME_SIZE, Frame, FrameRange};

/// Frames whose contents go in one record at most.
pub(super) const CONTENTS_MAX: u32 = 64;
/// More than any machine's state has.
const MACHINE_MAX: u32 = 64 << 20;
/// Paths of some disks.
const DISKS_MAX: u32 = 1 << 20;
/// Bytes that say where frames are from: a disk, and a block.
pub(super) const ORIGIN: usize = 16;
/// The snapshot is whole, and has its name.
pub(super) const KEPT: u8 = b'K';

/// What a record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Contents = 1,
    Zero = 2,
    Free = 3,
    Ballooned = 4,
    Machine = 5,
    End = 6,
    Needed = 7,
    Disks = 8,
    Origin = 9,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Contents,
        Self::Zero,
        Self::Free,
        Self::Ballooned,
        Self::Machine,
        Self::End,
        Self::Needed,
        Self::Disks,
        Self::Origin,
    ];
}

/// Where frames may be from.
pub(super) fn encode_origin(block: DiskBlock) -> [u8; ORIGIN] {
    let mut bytes = [0; ORIGIN];
    bytes[..8].copy_from_slice(&u64::from(block.disk).to_le_bytes());
    bytes[8..].copy_from_slice(&block.block.to_le_bytes());
    bytes
}

/// The same; `None` if there is no such disk.
pub(super) fn decode_origin(bytes: [u8; ORIGIN]) -> Option<DiskBlock> {
    let [disk, block] = *bytes.as_chunks::<8>().0 else { return None };
    let disk = u8::try_from(u64::from_le_bytes(disk)).ok()?;
    Some(DiskBlock { disk, block: u64::from_le_bytes(block) })
}

/// A record, without what follows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) first: u32,
    pub(super) count: u32,
}

/// Bytes of a header.
pub(super) const HEADER: usize = 16;

impl Header {
    pub(super) const END: Self = Self { kind: Kind::End, first: 0, count: 0 };

    pub(super) const fn of(kind: Kind, frames: FrameRange) -> Self {
        Self { kind, first: frames.first.0, count: frames.count }
    }

    pub(super) const fn frames(&self) -> FrameRange {
        FrameRange { first: Frame(self.first), count: self.count }
    }

    /// Bytes that follow.
    pub(super) const fn follows(&self) -> usize {
        match self.kind {
            Kind::Contents => self.count as usize * FRAME_SIZE,
            Kind::Machine | Kind::Disks => self.count as usize,
            Kind::Origin => ORIGIN,
            _ => 0,
        }
    }

    pub(super) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let words = [self.kind as u32, self.first, self.count, 0];
        for (place, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
        bytes
    }

    pub(super) fn write(&self, mut to: impl Write) -> io::Result<()> {
        to.write_all(&self.encode())
    }

    /// # Errors
    /// The stream ends, or says what cannot be.
    pub(super) fn read(mut from: impl Read) -> io::Result<Self> {
        let mut bytes = [0; HEADER];
        from.read_exact(&mut bytes)?;
        let mut words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
        let mut next = || words.next().unwrap_or(0);
        let (kind, first, count, reserved) = (next(), next(), next(), next());
        let strange = |what: String| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        let Some(kind) = Kind::ALL.into_iter().find(|known| *known as u32 == kind) else {
            return strange(format!("record of kind {kind}"));
        };
        let (least, most) = match kind {
            Kind::Contents | Kind::Origin => (1, CONTENTS_MAX),
            Kind::Machine => (0, MACHINE_MAX),
            Kind::Disks => (0, DISKS_MAX),
            Kind::End => (0, 0),
            _ => (1, u32::MAX - first),
        };
        if reserved != 0 || !(least..=most).contains(&count) || first.checked_add(count).is_none() {
            return strange(format!("record {kind:?} of {first} + {count}, {reserved}"));
        }
        Ok(Self { kind, first, count })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(kind in 0..9usize, first in 0..1u32 << 30, count in 1..65u32) {
            let kind = Kind::ALL[kind];
            let header = if kind == Kind::End { Header::END } else { Header { kind, first, count } };
            prop_assert_eq!(Header::read(&header.encode()[..]).expect("a header"), header);
        }

        #[test]
        fn nothing_strange_is_taken(bytes: [u8; HEADER]) {
            if let Ok(header) = Header::read(&bytes[..]) {
                prop_assert_eq!(header.encode(), bytes);
                prop_assert!(header.follows() <= 64 << 20);
            }
        }
    }

    #[test]
    fn origins_are_read_as_they_were_written() {
        let block = DiskBlock { disk: 255, block: 1 << 54 };
        assert_eq!(decode_origin(encode_origin(block)), Some(block));
        assert_eq!(decode_origin([1; ORIGIN]), None);
    }

    #[test]
    fn bounds_are_kept() {
        let with = |kind: u32, first: u32, count: u32, last: u32| {
            let words = [kind, first, count, last].map(u32::to_le_bytes);
            Header::read(words.as_flattened())
        };
        assert!(
            with(1, 0, 64, 0).is_ok() && with(1, 0, 65, 0).is_err() && with(1, 0, 0, 0).is_err()
        );
        assert!(with(2, 5, u32::MAX - 5, 0).is_ok() && with(2, 6, u32::MAX - 5, 0).is_err());
        assert!(with(0, 0, 1, 0).is_err() && with(10, 0, 1, 0).is_err());
        assert!(with(6, 0, 0, 0).is_ok() && with(6, 0, 0, 1).is_err() && with(6, 0, 1, 0).is_err());
    }
}
