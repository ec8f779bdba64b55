//! The packed word of the frame table: state, flags, source and pins of one frame.
//!
//! ```text
//!  63        52 51         32 31     24 23        8 7  6   5     4    3      2   0
//! +------------+-------------+---------+-----------+----+------+----+-------+-----+
//! |     0      | pins        |    0    | source    | 0  |WAITED|CODE|KEEPING| tag |
//! +------------+-------------+---------+-----------+----+------+----+-------+-----+
//! ```
//! All zeros is an untouched frame, so a fresh table is fresh memory of the host.

use crate::source::SourceId;

/// Where a frame is on its way through the table. Four tags are settled states; three belong to
/// a transition that some thread is carrying out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    Untouched = 0,
    Resident = 1,
    /// Resident, and a discard is revoking its translations: an access takes it back to resident.
    Discarding = 2,
    /// Its page is being given back: an access waits. No translation and no pin exists.
    Punching = 3,
    Ballooned = 4,
    Absent = 5,
    /// Its source is being asked: an access waits.
    Filling = 6,
}

const TAG_MASK: u64 = 0x7;
/// Of a frame that is discarding or punching: its contents are not to be lost, they go to a source.
const KEEPING: u64 = 1 << 3;
const CODE: u64 = 1 << 4;
const WAITED: u64 = 1 << 5;
const SOURCE_SHIFT: u32 = 8;
const SOURCE_MASK: u64 = 0xffff << SOURCE_SHIFT;
const PIN_SHIFT: u32 = 32;
const PIN_ONE: u64 = 1 << PIN_SHIFT;
/// The pin count sticks here, so that an overflow pins a frame for ever and nothing worse.
const PIN_MAX: u64 = (1 << 20) - 1;
const PIN_MASK: u64 = PIN_MAX << PIN_SHIFT;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(pub(crate) u64);

impl Word {
    pub(crate) const CODE: u64 = CODE;
    pub(crate) const WAITED: u64 = WAITED;
    /// Of a frame whose contents are in the image below.
    pub(crate) const BASE: Word = Word(0).with_tag(Tag::Absent).with_source(SourceId::BASE);

    #[inline]
    pub(crate) const fn tag(self) -> Tag {
        match self.0 & TAG_MASK {
            0 => Tag::Untouched,
            1 => Tag::Resident,
            2 => Tag::Discarding,
            3 => Tag::Punching,
            4 => Tag::Ballooned,
            5 => Tag::Absent,
            // Tag 7 is never stored: `with_tag` is the only writer of the tag bits.
            _ => Tag::Filling,
        }
    }

    #[inline]
    pub(crate) const fn is_resident(self) -> bool {
        self.0 & TAG_MASK == Tag::Resident as u64
    }

    /// Whether its contents are where its address is: in a page of its own, or in the image's.
    pub(crate) const fn has_page(self) -> bool {
        match self.tag() {
            Tag::Resident | Tag::Discarding => true,
            Tag::Absent => self.source().0 == SourceId::BASE.0,
            Tag::Untouched | Tag::Punching | Tag::Ballooned | Tag::Filling => false,
        }
    }

    /// Whether its contents are at a source that is asked for them.
    pub(crate) const fn is_absent_elsewhere(self) -> bool {
        matches!(self.tag(), Tag::Absent) && self.source().0 != SourceId::BASE.0
    }

    /// The same, or on its way from there.
    pub(crate) const fn is_elsewhere(self) -> bool {
        self.is_absent_elsewhere() || matches!(self.tag(), Tag::Filling)
    }

    /// Whether an access has to wait for another thread.
    pub(crate) const fn is_busy(self) -> bool {
        matches!(self.tag(), Tag::Punching | Tag::Filling)
    }

    /// In another state, in which nobody keeps its contents.
    pub(crate) const fn with_tag(self, tag: Tag) -> Word {
        Word(self.0 & !(TAG_MASK | KEEPING) | tag as u64)
    }

    pub(crate) const fn keeping(self) -> Word {
        Word(self.0 | KEEPING)
    }

    /// Whether it is on its way out with its contents.
    pub(crate) const fn is_keeping(self) -> bool {
        self.0 & KEEPING != 0
    }

    pub(crate) const fn source(self) -> SourceId {
        SourceId(((self.0 & SOURCE_MASK) >> SOURCE_SHIFT) as u16)
    }

    pub(crate) const fn with_source(self, source: SourceId) -> Word {
        Word(self.0 & !SOURCE_MASK | (source.0 as u64) << SOURCE_SHIFT)
    }

    pub(crate) const fn is_code(self) -> bool {
        self.0 & CODE != 0
    }

    pub(crate) const fn is_waited(self) -> bool {
        self.0 & WAITED != 0
    }

    pub(crate) const fn without(self, flags: u64) -> Word {
        Word(self.0 & !flags)
    }

    pub(crate) const fn pins(self) -> u64 {
        (self.0 & PIN_MASK) >> PIN_SHIFT
    }

    pub(crate) const fn pinned(self) -> Word {
        if self.pins() == PIN_MAX { self } else { Word(self.0 + PIN_ONE) }
    }

    pub(crate) const fn unpinned(self) -> Word {
        match self.pins() {
            0 | PIN_MAX => self,
            _ => Word(self.0 - PIN_ONE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_touch_each_other() {
        let word = Word(0).with_tag(Tag::Absent).with_source(SourceId(0xffff)).pinned();
        let word = Word(word.0 | CODE | WAITED);
        assert_eq!((word.tag(), word.source(), word.pins()), (Tag::Absent, SourceId(0xffff), 1));
        let leaving = word.with_tag(Tag::Discarding).keeping();
        assert_eq!((leaving.tag(), leaving.is_keeping()), (Tag::Discarding, true));
        assert!(!leaving.with_tag(Tag::Resident).is_keeping() && !word.is_keeping());
        let word = word.with_tag(Tag::Resident).with_source(SourceId(0)).unpinned();
        assert_eq!((word.tag(), word.source(), word.pins()), (Tag::Resident, SourceId(0), 0));
        assert!(word.is_code() && word.is_waited());
        assert_eq!(word.without(CODE | WAITED), Word(Tag::Resident as u64));
    }

    #[test]
    fn the_pin_count_sticks_at_its_end() {
        let mut word = Word(PIN_MASK - PIN_ONE).with_tag(Tag::Resident);
        word = word.pinned();
        assert_eq!(word.pins(), PIN_MAX);
        assert_eq!(word.pinned(), word);
        assert_eq!(word.unpinned(), word);
        assert_eq!(Word(0).unpinned(), Word(0));
    }
}
