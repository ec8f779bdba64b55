//! What a piece of guest code writes while it is recorded.

use crate::host;

/// Bytes that are kept together; a line lies in one page.
pub(super) const LINE: usize = 64;

/// What the machine does with accesses and with instructions that must not be executed twice.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Phase {
    /// Nothing out of the ordinary.
    #[default]
    Off,
    /// Stores are kept here, and loads find them.
    Record,
    /// Stores are made, too: page walks see them. They are taken back by [`Journal::undo`].
    RecordThrough,
    /// The piece runs again, as it would anyway.
    Repeat,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    phase: Phase,
    /// In order of host addresses.
    lines: Vec<Line>,
    /// The piece came to what must not be executed twice, and stopped before it.
    refused: bool,
}

/// Memory around what was written.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// Host address.
    at: usize,
    /// Linear address that it was first written at.
    pub(super) va: u64,
    pub(super) old: [u8; LINE],
    pub(super) new: [u8; LINE],
    /// Bit by byte: it was written.
    written: u64,
}

impl Journal {
    /// Begins to record; `through` as in [`Phase::RecordThrough`].
    pub(super) fn record(&mut self, through: bool) {
        self.phase = if through { Phase::RecordThrough } else { Phase::Record };
        self.refused = false;
        self.lines.clear();
        // What a long string instruction has left is not worth keeping.
        self.lines.shrink_to(4096);
    }

    /// What was recorded is going to run again.
    pub(super) fn repeat(&mut self) {
        self.phase = Phase::Repeat;
        self.refused = false;
    }

    /// Ends either. Whether the piece stopped before something that must not be executed twice.
    pub(super) fn end(&mut self) -> bool {
        self.phase = Phase::Off;
        std::mem::take(&mut self.refused)
    }

    pub(crate) fn is_on(&self) -> bool {
        self.phase != Phase::Off
    }

    pub(crate) fn records(&self) -> bool {
        matches!(self.phase, Phase::Record | Phase::RecordThrough)
    }

    /// The piece must stop here.
    pub(crate) fn refuse(&mut self) {
        self.refused = true;
    }

    /// Reads bytes of one page as the piece sees them.
    ///
    /// # Safety
    /// As for [`host::load_bytes`].
    pub(super) unsafe fn read(&self, at: usize, into: &mut [u8]) {
        // SAFETY: the caller's promise.
        unsafe { host::load_bytes(at, into) };
        let end = at + into.len();
        let from = self.lines.partition_point(|line| line.at + LINE <= at);
        for line in self.lines[from..].iter().take_while(|line| line.at < end) {
            for byte in line.at.max(at)..end.min(line.at + LINE) {
                if line.has(byte - line.at) {
                    into[byte - at] = line.new[byte - line.at];
                }
            }
        }
    }

    /// Writes bytes of one page, at `at` in the host and `va` in the guest.
    ///
    /// # Safety
    /// As for [`host::store_bytes`].
    pub(super) unsafe fn write(&mut self, at: usize, va: u64, from: &[u8]) {
        let mut done = 0;
        while done < from.len() {
            let offset = (at + done) % LINE;
            let part = &from[done..][..(LINE - offset).min(from.len() - done)];
            // SAFETY: a line lies in one page, as the written bytes do, and pages are mapped whole.
            let line = unsafe { self.line(at + done - offset, va + done as u64 - offset as u64) };
            line.put(offset, part);
            done += part.len();
        }
        if self.phase == Phase::RecordThrough {
            // SAFETY: the caller's promise.
            unsafe { host::store_bytes(at, from) };
        }
    }

    /// # Safety
    /// The line's page is mapped.
    unsafe fn line(&mut self, at: usize, va: u64) -> &mut Line {
        let index = self.lines.partition_point(|line| line.at < at);
        if self.lines.get(index).is_none_or(|line| line.at != at) {
            let mut old = [0; LINE];
            // SAFETY: the caller's promise.
            unsafe { host::load_bytes(at, &mut old) };
            self.lines.insert(index, Line { at, va, old, new: old, written: 0 });
        }
        &mut self.lines[index]
    }

    /// Takes what memory has as what the record says, where stores were made: walks have marked as accessed and
    /// written what was written as page tables.
    ///
    /// # Safety
    /// As for [`Journal::differing`].
    pub(super) unsafe fn take_marks(&mut self) {
        for line in &mut self.lines {
            // SAFETY: the caller's promise.
            unsafe { host::load_bytes(line.at, &mut line.new) };
        }
    }

    /// Lines that are not now as the record says.
    ///
    /// # Safety
    /// The pages that were written since [`Journal::record`] are mapped.
    pub(super) unsafe fn differing(&self) -> Vec<(&Line, [u8; LINE])> {
        let now = |line: &Line| {
            let mut bytes = [0; LINE];
            // SAFETY: the caller's promise.
            unsafe { host::load_bytes(line.at, &mut bytes) };
            bytes
        };
        let lines = self.lines.iter().map(|line| (line, now(line)));
        lines.filter(|(line, now)| line.new != *now).collect()
    }

    /// Gives the bytes that were written their old values.
    ///
    /// # Safety
    /// As for [`Journal::differing`], and they may be written.
    pub(super) unsafe fn undo(&self) {
        for line in &self.lines {
            let mut from = 0;
            while from < LINE {
                let len = (from..LINE).take_while(|&byte| line.has(byte)).count();
                // SAFETY: the caller's promise.
                unsafe { host::store_bytes(line.at + from, &line.old[from..from + len]) };
                from += len + 1;
            }
        }
    }
}

impl Line {
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.new[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.written |= (u64::MAX >> (LINE - bytes.len())) << offset;
    }

    pub(super) fn has(&self, offset: usize) -> bool {
        self.written >> offset & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page, and where it is.
    fn page() -> (Box<[u64; 512]>, usize) {
        let page = Box::new([0x1111_1111_1111_1111; 512]);
        let at = std::ptr::from_ref(&*page) as usize;
        // Lines are counted from multiples of their size, which the allocation need not begin at.
        (page, at.next_multiple_of(LINE))
    }

    fn read(journal: &Journal, at: usize) -> [u8; 8] {
        let mut bytes = [0; 8];
        // SAFETY: the callers ask for parts of their page.
        unsafe { journal.read(at, &mut bytes) };
        bytes
    }

    #[test]
    fn what_is_recorded_is_seen_by_the_piece_only() {
        let (_page, at) = page();
        let mut journal = Journal::default();
        journal.record(false);
        // SAFETY: inside the page, over the border of two lines.
        unsafe { journal.write(at + 62, 0x7062, &[1, 2, 3, 4]) };
        assert_eq!(read(&journal, at + 60), [0x11, 0x11, 1, 2, 3, 4, 0x11, 0x11]);
        // SAFETY: inside the page.
        let differing = unsafe { journal.differing() };
        assert_eq!(differing.iter().map(|(line, _)| line.va).collect::<Vec<_>>(), [0x7024, 0x7064]);
        assert!(differing[0].0.has(62) && !differing[0].0.has(61));
        assert_eq!(differing[1].1, [0x11; LINE]);
        journal.record(false);
        assert_eq!(read(&journal, at + 60), [0x11; 8]);
    }

    #[test]
    fn what_was_written_through_is_taken_back_to_the_byte() {
        let (_page, at) = page();
        let mut journal = Journal::default();
        journal.record(true);
        // SAFETY: inside the page.
        unsafe {
            journal.write(at + 1, 0x7001, &[1, 2]);
            journal.write(at + 5, 0x7005, &[3]);
            assert!(journal.differing().is_empty());
            // Somebody else writes between them.
            host::store_bytes(at + 3, &[9]);
            assert_eq!(journal.differing().len(), 1);
            journal.undo();
        }
        assert!(!journal.end());
        assert_eq!(read(&Journal::default(), at), [0x11, 0x11, 0x11, 9, 0x11, 0x11, 0x11, 0x11]);
    }
}
