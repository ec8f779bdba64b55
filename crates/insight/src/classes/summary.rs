//! All frames in one table.

use serde::Serialize;

use super::FrameClass;

/// Frames of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ClassUse {
    /// The class.
    pub class: FrameClass,
    /// How many.
    pub frames: u64,
    /// Those with a page of the host.
    pub resident: u64,
    /// Those of which another has the same contents, all but one of each: an estimate.
    pub shareable: u64,
    /// Those that a program had and has let go of, free or kept by a file in memory.
    pub vacated: u64,
}

impl ClassUse {
    pub(super) fn new(class: FrameClass) -> Self {
        Self { class, frames: 0, resident: 0, shareable: 0, vacated: 0 }
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
