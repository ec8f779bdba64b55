//! Paths: what is translated as one piece of host code, and by which rules it is chosen.
//!
//! A path is entered at its head only. From there it goes through instructions in the order in which they are thought
//! to run: over conditional branches in one of their two directions, along direct jumps and calls. Whatever leaves it
//! goes out by a stub until it is linked. All of it lies in one page, so that it is of one frame.
//!
//! ```text
//!   Policy --Start--> a head --Follow, Limits--> Path { fragments } --native--> code, stubs (Stubs), links (Links)
//! ```

mod grow;
mod policy;
mod record;

pub use grow::{Known, grow};
pub use policy::{Follow, Limits, Links, Policy, Start, Stubs};
pub use record::Recorder;

/// Bytes of a page that follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// Of the first one in the page.
    pub offset: u16,
    /// How many.
    pub len: u16,
}

impl Fragment {
    /// Offset behind the last byte.
    #[must_use]
    pub fn end(self) -> u32 {
        u32::from(self.offset) + u32::from(self.len)
    }

    /// Whether one of its bytes is in `[from, to)`.
    #[must_use]
    pub fn overlaps(self, from: u32, to: u32) -> bool {
        u32::from(self.offset) < to && self.end() > from
    }
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Path {
    /// In the order in which they run; at least one, none empty.
    pub fragments: Vec<Fragment>,
}

impl Path {
    /// One run of `len` bytes at `offset` in the page.
    #[must_use]
    pub fn run(offset: u32, len: u32) -> Self {
        Self { fragments: vec![Fragment { offset: offset as u16, len: len as u16 }] }
    }

    /// Offset of the head in the page.
    #[must_use]
    pub fn head(&self) -> u32 {
        self.fragments[0].offset.into()
    }

    /// Bytes of guest code.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.fragments.iter().map(|fragment| u32::from(fragment.len)).sum()
    }

    /// Never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether an instruction on it starts at `offset`, or a byte of one is there.
    #[must_use]
    pub fn covers(&self, offset: u32) -> bool {
        self.fragments.iter().any(|fragment| fragment.overlaps(offset, offset + 1))
    }

    /// Adds bytes that run next; those that follow the last directly make its fragment longer.
    fn push(&mut self, offset: u32, len: u32) {
        match self.fragments.last_mut() {
            Some(last) if last.end() == offset => last.len += len as u16,
            _ => self.fragments.push(Fragment { offset: offset as u16, len: len as u16 }),
        }
    }
}

/// Bytes of a page from which a path is translated.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// Offset of the first one in the page.
    pub first: u32,
}

impl Source<'_> {
    /// The bytes in `[from, to)`, as far as they are here.
    #[must_use]
    pub fn part(&self, from: u32, to: u32) -> &[u8] {
        let index =
            |offset: u32| (offset.saturating_sub(self.first) as usize).min(self.bytes.len());
        &self.bytes[index(from)..index(to).max(index(from))]
    }
}
