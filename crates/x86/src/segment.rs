//! Segment and descriptor-table registers.

use serde::{Deserialize, Serialize};

/// A segment register with its hidden part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Linear address of byte 0.
    pub base: u64,
    /// Highest offset, in bytes (granularity already applied).
    pub limit: u32,
    /// Descriptor bits 40..=55 at 0..=15, with limit bits 8..=11 zero: type (0-3), S (4), DPL (5-6),
    /// P (7), AVL (12), L (13), D/B (14), G (15).
    pub attributes: u16,
}

impl Segment {
    /// `L`: 64-bit code.
    pub const LONG: u16 = 1 << 13;
    /// `D/B`: 32-bit default operand size, or 32-bit stack.
    pub const BIG: u16 = 1 << 14;
    /// `P`: present.
    pub const PRESENT: u16 = 1 << 7;
    /// `S`: code or data, not a system descriptor.
    pub const CODE_OR_DATA: u16 = 1 << 4;
    /// Flat 64-bit kernel code, selector 0x10 (Linux `__BOOT_CS`).
    pub const CODE64: Self =
        Self { selector: 0x10, base: 0, limit: 0xffff_ffff, attributes: 0xa09b };
    /// Flat data, selector 0x18 (Linux `__BOOT_DS`).
    pub const DATA: Self = Self { selector: 0x18, base: 0, limit: 0xffff_ffff, attributes: 0xc093 };
    /// A real-mode segment: base is selector * 16.
    #[must_use]
    pub const fn real(selector: u16, code: bool) -> Self {
        let attributes = if code { 0x9b } else { 0x93 };
        Self { selector, base: (selector as u64) << 4, limit: 0xffff, attributes }
    }

    /// Descriptor privilege level.
    #[must_use]
    pub const fn dpl(&self) -> u8 {
        (self.attributes >> 5) as u8 & 3
    }

    /// Whether this is a 64-bit code segment.
    #[must_use]
    pub const fn is_long(&self) -> bool {
        self.attributes & Self::LONG != 0
    }

    /// Whether the default operand size (code) or the stack (SS) is 32 bits.
    #[must_use]
    pub const fn is_big(&self) -> bool {
        self.attributes & Self::BIG != 0
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear address.
    pub base: u64,
    /// Highest valid offset.
    pub limit: u16,
}
