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
//! | 5, unchanged since the parent was saved | frame | frames | |
//! | 6, machine | 0 | bytes | the state of the machine as JSON; on the first lane |
//! | 7, end | 0 | 0 | the lane is complete |
//! | 8, needed | frame | frames | the guest used them last; on the first lane |
//!
//! The fourth number is 0. A lane that stops before its end is of a VM that failed, or whose host did. Each frame is told
//! once, on any lane. After all ends, who keeps it answers [`KEPT`] on the first lane, or closes it.

use std::io::{self, Read, Write};

use memory::{FRAME_SIZE, Frame, FrameRange};

/// Frames whose contents go in one record at most.
pub(super) const CONTENTS_MAX: u32 = 64;
/// More than any machine's state has.
const MACHINE_MAX: u32 = 64 << 20;
/// The snapshot is whole, and has its name.
pub(super) const KEPT: u8 = b'K';

/// What a record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Contents = 1,
    Zero = 2,
    Free = 3,
    Ballooned = 4,
    Unchanged = 5,
    Machine = 6,
    End = 7,
    Needed = 8,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Contents,
        Self::Zero,
        Self::Free,
        Self::Ballooned,
        Self::Unchanged,
        Self::Machine,
        Self::End,
        Self::Needed,
    ];
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
            Kind::Machine => self.count as usize,
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
            Kind::Contents => (1, CONTENTS_MAX),
            Kind::Machine => (0, MACHINE_MAX),
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
        fn what_is_written_is_read(kind in 0..8usize, first in 0..1u32 << 30, count in 1..65u32) {
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
    fn bounds_are_kept() {
        let with = |kind: u32, first: u32, count: u32, last: u32| {
            let words = [kind, first, count, last].map(u32::to_le_bytes);
            Header::read(words.as_flattened())
        };
        assert!(with(1, 0, 64, 0).is_ok() && with(1, 0, 65, 0).is_err() && with(1, 0, 0, 0).is_err());
        assert!(with(2, 5, u32::MAX - 5, 0).is_ok() && with(2, 6, u32::MAX - 5, 0).is_err());
        assert!(with(0, 0, 1, 0).is_err() && with(9, 0, 1, 0).is_err());
        assert!(with(7, 0, 0, 0).is_ok() && with(7, 0, 0, 1).is_err() && with(7, 0, 1, 0).is_err());
    }
}
