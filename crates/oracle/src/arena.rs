//! Where things are: addresses that the host process and the interpreted machine share.

use std::ops::{Deref, DerefMut};

/// The start of the arena. Low, so that 32-bit code and addresses reach it, and free in any
/// position-independent process.
pub const START: u64 = 0x2000_0000;
/// Bytes reserved.
pub const LEN: usize = 0x2_0000;
/// Entry and exit code of [`crate::native`].
pub const STUB: u64 = START;
/// The page for the code under test, filled with INT3.
pub const CODE: u64 = START + 0x1000;
/// Where in it the code under test starts: in the middle, so that short branches stay inside.
pub const ENTRY: u64 = CODE + 0x800;
/// Registers in and out.
pub const CONTROL: u64 = START + 0x2000;
/// XSAVE image in.
pub const XSTATE_IN: u64 = START + 0x3000;
/// XSAVE image out.
pub const XSTATE_OUT: u64 = START + 0x4000;
/// The data pages. The pages before and after are not accessible.
pub const DATA: u64 = START + 0x1_1000;
/// Bytes of data.
pub const DATA_LEN: usize = 0x2000;
/// The base of GS while code under test runs.
pub const GS_BASE: u64 = 0x1230;

/// The data pages. Generated code works on them in place, and takes the low bits of their addresses for the
/// machine's.
#[derive(Clone, PartialEq, Eq, Debug)]
#[repr(C, align(4096))]
pub struct Pages(pub [u8; DATA_LEN]);

impl Deref for Pages {
    type Target = [u8; DATA_LEN];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}
