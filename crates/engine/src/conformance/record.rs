//! What a payload did.

use memory::{DeviceView, Gpa};
use x86::Vector;

use super::layout::{FRAME_SIZE, FRAMES, FRAMES_MAX};
use crate::exit::Exit;

/// Tag of an interrupt in the log: this value, or'ed with the vector.
pub const IRQ: u32 = 0xd000_0000;

/// What a payload did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Values written to the log port, and [`IRQ`] | vector of each interrupt.
    pub log: Vec<u32>,
    /// Every other port and memory-mapped access, as exits.
    pub exits: Vec<Exit>,
    /// What exceptions and interrupts pushed, by all vCPUs so far.
    pub frames: Vec<Frame>,
}

impl Record {
    /// The exceptions, in order.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let exceptions = self.frames.iter().filter(|frame| frame.vector < 32 && frame.vector != 2);
        exceptions.map(Frame::fault).collect()
    }
}

/// What an interruption pushed, and what its stub saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the names are the registers'")]
pub struct Frame {
    pub vector: u8,
    pub error_code: u32,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub cr2: u64,
    /// R13, which payloads point at the instruction they mean.
    pub mark: u64,
    /// Address of the pushed RIP.
    pub at: u64,
}

impl Frame {
    fn fault(&self) -> Fault {
        Fault {
            vector: self.vector,
            error_code: self.error_code,
            cr2: if self.vector == Vector::PF.0 { self.cr2 } else { 0 },
            offset: self.rip.wrapping_sub(self.mark) as i64,
        }
    }
}

/// The part of a [`Frame`] that most cases compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which exception.
    pub vector: u8,
    /// 0 where the processor pushes none.
    pub error_code: u32,
    /// 0 but for page faults.
    pub cr2: u64,
    /// Pushed RIP, from the payload's mark.
    pub offset: i64,
}

impl Fault {
    /// At the mark, without error code or with code 0.
    #[must_use]
    pub const fn new(vector: Vector) -> Self {
        Self::with_code(vector, 0)
    }

    /// At the mark, with an error code.
    #[must_use]
    pub const fn with_code(vector: Vector, error_code: u32) -> Self {
        Self { vector: vector.0, error_code, cr2: 0, offset: 0 }
    }

    /// A page fault at the mark.
    #[must_use]
    pub const fn page(cr2: u64, error_code: u32) -> Self {
        Self { vector: Vector::PF.0, error_code, cr2, offset: 0 }
    }

    /// The same, `offset` bytes past the mark.
    #[must_use]
    pub const fn at(self, offset: i64) -> Self {
        Self { offset, ..self }
    }
}

/// Reads what the stubs wrote.
pub(super) fn frames(view: &DeviceView) -> Vec<Frame> {
    let word = |gpa: u64| {
        let mut bytes = [0; 8];
        view.read(Gpa(gpa), &mut bytes).expect("inside RAM");
        u64::from_le_bytes(bytes)
    };
    let frame = |index: u64| {
        let at = FRAMES + FRAME_SIZE * (index + 1);
        let field = |number: u64| word(at + number * 8);
        Frame {
            vector: field(0) as u8,
            error_code: field(1) as u32,
            rip: field(2),
            cs: field(3),
            rflags: field(4),
            rsp: field(5),
            ss: field(6),
            cr2: field(7),
            mark: field(8),
            at: field(9),
        }
    };
    (0..word(FRAMES).min(FRAMES_MAX)).map(frame).collect()
}
