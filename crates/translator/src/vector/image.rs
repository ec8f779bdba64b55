//! Fields of the XSAVE image (SDM volume 1, 10.5.1 and 13.4; table 10-2).

use crate::cpu::FpuState;

/// Offset of MXCSR.
pub(crate) const MXCSR: usize = 24;
/// Offset of XMM0; one register each 16 bytes.
pub(crate) const XMM: usize = 160;
/// Offset of the XSAVE header.
pub(super) const HEADER: usize = 512;
/// Offset of the upper half of YMM0 in both formats, as no component stands before it.
pub(crate) const YMM_HIGH: usize = 576;

/// MXCSR after reset: all exceptions masked, round to nearest.
pub(crate) const MXCSR_DEFAULT: u32 = 0x1f80;
/// The bits of MXCSR that may be set: MXCSR_MASK of a processor with DAZ.
pub(super) const MXCSR_MASK: u32 = 0xffff;
/// FCW after FNINIT.
pub(crate) const FCW_DEFAULT: u16 = 0x37f;

/// ES and B of the x87 status word: an unmasked exception is pending. A processor may take ES at its word
/// whatever the flags are, so no thunk that waits may run with it set: #MF would be this process's.
const FSW_SUMMARY: u16 = 1 << 7 | 1 << 15;

impl FpuState {
    /// The x87 control word.
    #[must_use]
    pub fn fcw(&self) -> u16 {
        u16::from_le_bytes([self.image[0], self.image[1]])
    }

    /// The x87 status word.
    #[must_use]
    pub fn fsw(&self) -> u16 {
        u16::from_le_bytes([self.image[2], self.image[3]])
    }

    /// Whether an exception waits for the next waiting x87 instruction (SDM volume 1, 8.7): the summary bit
    /// says so, or an unmasked flag does.
    #[inline(always)]
    #[must_use]
    pub fn x87_pending(&self) -> bool {
        self.fsw() & FSW_SUMMARY != 0 || self.x87_unmasked()
    }

    #[inline(always)]
    fn x87_unmasked(&self) -> bool {
        self.fsw() & !self.fcw() & 0x3f != 0
    }

    /// MXCSR.
    #[must_use]
    pub fn mxcsr(&self) -> u32 {
        u32::from_le_bytes(self.bytes(MXCSR))
    }

    /// Sets MXCSR. Reserved bits are cleared: thunks load the value, and the host would refuse them.
    pub fn set_mxcsr(&mut self, value: u32) {
        self.set_bytes(MXCSR, (value & MXCSR_MASK).to_le_bytes());
    }

    /// XMM `index`, 0 to 15.
    #[must_use]
    pub fn xmm(&self, index: usize) -> u128 {
        u128::from_le_bytes(self.bytes(XMM + 16 * index))
    }

    /// Sets XMM `index`, 0 to 15; the upper half of the YMM register stays.
    pub fn set_xmm(&mut self, index: usize, value: u128) {
        self.set_bytes(XMM + 16 * index, value.to_le_bytes());
    }

    /// The upper half of YMM `index`, 0 to 15.
    #[must_use]
    pub fn ymm_high(&self, index: usize) -> u128 {
        u128::from_le_bytes(self.bytes(YMM_HIGH + 16 * index))
    }

    /// Sets the upper half of YMM `index`, 0 to 15.
    pub fn set_ymm_high(&mut self, index: usize, value: u128) {
        self.set_bytes(YMM_HIGH + 16 * index, value.to_le_bytes());
    }

    /// Makes an image that came from outside safe to run on: MXCSR without reserved bits, and the summary
    /// bits of the x87 status word, ES and B, in accord with its flags. Whoever writes
    /// [`FpuState::image`] directly must call this before the next instruction runs.
    pub fn sanitize(&mut self) {
        self.set_mxcsr(self.mxcsr());
        let flags = self.fsw() & !FSW_SUMMARY;
        let status = if self.x87_unmasked() { flags | FSW_SUMMARY } else { flags };
        self.set_bytes(2, status.to_le_bytes());
    }

    pub(super) fn bytes<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.image[offset..offset + N]);
        bytes
    }

    pub(super) fn set_bytes<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) {
        self.image[offset..offset + N].copy_from_slice(&bytes);
    }
}
