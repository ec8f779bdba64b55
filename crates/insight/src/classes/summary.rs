//! All frames in one table.

use serde::Serialize;

use super::FrameClass;

/// Upper ends of the ages that are told apart, in epochs since the last access; what is older is one more.
pub const AGES: [u32; 7] = [1, 3, 10, 30, 60, 120, 300];

/// Frames of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ClassUse {
    /// The class.
    pub class: FrameClass,
    /// How many.
    pub frames: u64,
    /// Those with a page of the host.
    pub resident: u64,
    /// The resident ones by the age of their last access: each below the end of the same place in [`AGES`], the last
    /// of any age above.
    pub idle: [u64; AGES.len() + 1],
    /// Those of which another has the same contents, all but one of each: an estimate.
    pub shareable: u64,
    /// Those that a program had and has let go of: free, unless a file in memory keeps them.
    pub vacated: u64,
}

impl ClassUse {
    pub(super) fn new(class: FrameClass) -> Self {
        Self { class, frames: 0, resident: 0, idle: [0; AGES.len() + 1], shareable: 0, vacated: 0 }
    }
}

/// Where a guest's memory is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassSummary {
    /// In the order of [`FrameClass::ALL`].
    pub classes: Vec<ClassUse>,
    /// Frames looked into in the last complete round, for zeros and what is alike.
    pub looked_into: u64,
    /// Those of zeros, of whichever class.
    pub zeros: u64,
    /// Address spaces of programs that are there.
    pub processes: u64,
    /// Those that began, from the beginning on.
    pub processes_created: u64,
    /// Those that ended.
    pub processes_gone: u64,
}

/// The place in [`ClassUse::idle`] of an age.
pub(super) fn age_place(age: u32) -> usize {
    AGES.iter().position(|&end| age < end).unwrap_or(AGES.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_age_has_its_place() {
        let places = [0, 1, 2, 3, 299, 300, u32::MAX].map(age_place);
        assert_eq!(places, [0, 1, 1, 2, 6, 7, 7]);
    }
}
