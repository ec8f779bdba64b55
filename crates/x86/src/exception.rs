//! Exception vectors and their error codes (SDM volume 3, chapter 6).

use serde::{Deserialize, Serialize};

/// An exception vector, 0 to 31.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Vector(pub u8);

impl Vector {
    /// Divide error.
    pub const DE: Self = Self(0);
    /// Debug.
    pub const DB: Self = Self(1);
    /// Non-maskable interrupt.
    pub const NMI: Self = Self(2);
    /// Breakpoint.
    pub const BP: Self = Self(3);
    /// Overflow.
    pub const OF: Self = Self(4);
    /// BOUND range exceeded.
    pub const BR: Self = Self(5);
    /// Invalid opcode.
    pub const UD: Self = Self(6);
    /// Device not available.
    pub const NM: Self = Self(7);
    /// Double fault.
    pub const DF: Self = Self(8);
    /// Invalid TSS.
    pub const TS: Self = Self(10);
    /// Segment not present.
    pub const NP: Self = Self(11);
    /// Stack-segment fault.
    pub const SS: Self = Self(12);
    /// General protection.
    pub const GP: Self = Self(13);
    /// Page fault.
    pub const PF: Self = Self(14);
    /// x87 floating-point error.
    pub const MF: Self = Self(16);
    /// Alignment check.
    pub const AC: Self = Self(17);
    /// Machine check.
    pub const MC: Self = Self(18);
    /// SIMD floating-point exception.
    pub const XM: Self = Self(19);

    /// Whether the processor pushes an error code for this vector.
    #[must_use]
    pub const fn has_error_code(self) -> bool {
        matches!(self.0, 8 | 10..=14 | 17 | 21)
    }
}

/// An exception that an instruction raised.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Exception {
    /// Which one.
    pub vector: Vector,
    /// Pushed where [`Vector::has_error_code`]; 0 elsewhere.
    pub error_code: u32,
    /// The linear address for CR2 where `vector` is `PF`; 0 elsewhere.
    pub address: u64,
}

impl Exception {
    /// An exception without error code (or with code 0).
    #[must_use]
    pub const fn new(vector: Vector) -> Self {
        Self { vector, error_code: 0, address: 0 }
    }

    /// An exception with an error code.
    #[must_use]
    pub const fn with_code(vector: Vector, error_code: u32) -> Self {
        Self { vector, error_code, address: 0 }
    }

    /// `#GP(0)`.
    pub const GP0: Self = Self::new(Vector::GP);
    /// `#UD`.
    pub const UD: Self = Self::new(Vector::UD);

    /// A page fault at `address` with the bits of [`page_fault`].
    #[must_use]
    pub const fn page_fault(address: u64, error_code: u32) -> Self {
        Self { vector: Vector::PF, error_code, address }
    }
}

/// Page-fault error-code bits (SDM volume 3, 4.7).
pub mod page_fault {
    /// The page was present: a protection violation.
    pub const PRESENT: u32 = 1 << 0;
    /// The access was a write.
    pub const WRITE: u32 = 1 << 1;
    /// The access was made in user mode.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit was set in a paging entry.
    pub const RESERVED: u32 = 1 << 3;
    /// The access was an instruction fetch.
    pub const FETCH: u32 = 1 << 4;
}
