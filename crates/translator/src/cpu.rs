//! The architectural state that ordinary instructions read and write.

use x86::{Segment, XSTATE_SIZE, rflags};

use crate::native::Fields;

/// Slot of [`Cpu::regs`] that always holds zero: the base or index of an address that has none.
pub const REG_NONE: u8 = 16;
/// Slot of [`Cpu::regs`] that holds RIP.
pub const REG_RIP: u8 = 17;
/// Slot of RSP.
pub const RSP: u8 = 4;
/// Added to the slots 0..=3 to name AH, CH, DH, BH.
pub const HIGH_BYTE: u8 = 0x80;
/// Slot of [`Cpu::segs`] whose base is always zero.
pub const SEG_NONE: u8 = 6;

/// The default operand and address size of the code segment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Width {
    Bits16 = 16,
    Bits32 = 32,
    Bits64 = 64,
}

impl Width {
    /// The bits of RIP that count.
    #[inline(always)]
    #[must_use]
    pub const fn mask(self) -> u64 {
        match self {
            Self::Bits16 => 0xffff,
            Self::Bits32 => 0xffff_ffff,
            Self::Bits64 => u64::MAX,
        }
    }
}

/// The XSAVE image (standard format) in which SSE, AVX and x87 state lives between instructions.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct FpuState {
    /// Legacy area (512), header (64), upper halves of YMM0-15 (256).
    pub image: [u8; XSTATE_SIZE],
}

/// Registers of one processor. Privileged state (control registers, descriptor tables, MSRs) belongs to
/// the [`Machine`](crate::Machine).
#[derive(Clone)]
pub struct Cpu {
    /// RAX..R15 in encoding order, then [`REG_NONE`], [`REG_RIP`] and padding, so that an index masked
    /// with 31 needs no bounds check. Invariant: `regs[REG_NONE] == 0`.
    pub regs: [u64; 32],
    /// All of RFLAGS, always up to date.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS, then [`SEG_NONE`].
    pub segs: [Segment; 8],
    /// Vector and x87 state.
    pub fpu: Box<FpuState>,
    /// XCR0.
    pub xcr0: u64,
    /// Width of the current code segment.
    pub width: Width,
    /// Current privilege level, 0..=3. Changed only by the machine.
    pub cpl: u8,
    /// No interrupt is taken before the next instruction (behind STI and a load of SS).
    pub shadow: bool,
    /// IA32_KERNEL_GS_BASE: what SWAPGS exchanges with the base of GS.
    pub kernel_gs_base: u64,
    /// Which bits of RSP form a stack address: 16, 32 or 64 ones.
    pub stack_mask: u64,
    /// Instructions completed since start-up, without those of generated code.
    pub retired: u64,
    /// What generated code keeps here.
    pub native: Fields,
}

impl Cpu {
    /// A processor with all registers zero, in 64-bit mode at privilege level 0.
    #[must_use]
    pub fn new() -> Self {
        let mut image = [0; XSTATE_SIZE];
        image[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
        image[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        Self {
            regs: [0; 32],
            rflags: rflags::FIXED,
            segs: [Segment::default(); 8],
            fpu: Box::new(FpuState { image }),
            xcr0: 1,
            width: Width::Bits64,
            cpl: 0,
            shadow: false,
            kernel_gs_base: 0,
            stack_mask: u64::MAX,
            retired: 0,
            native: Fields::default(),
        }
    }

    /// RIP.
    #[inline(always)]
    #[must_use]
    pub fn rip(&self) -> u64 {
        self.regs[REG_RIP as usize]
    }

    /// Sets RIP, cut to the width of the code segment.
    #[inline(always)]
    pub fn set_rip(&mut self, rip: u64) {
        self.regs[REG_RIP as usize] = rip & self.width.mask();
    }

    /// Whether all `bits` of RFLAGS are set.
    #[inline(always)]
    #[must_use]
    pub fn flag(&self, bits: u64) -> bool {
        self.rflags & bits == bits
    }

    /// Replaces the RFLAGS bits in `mask` by those of `value`.
    #[inline(always)]
    pub fn set_flags(&mut self, mask: u64, value: u64) {
        self.rflags = self.rflags & !mask | value & mask;
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}
