//! What generated code keeps beside the registers, and where all of it is.
//!
//! While generated code runs, GS has the address of the [`Cpu`] as its base (nothing else in a Linux
//! process uses GS), and the host's registers hold the guest's:
//!
//! ```text
//!   RAX RCX RDX RBX RBP RSI RDI R8-R12   the guest's of the same name
//!   R15                                  the guest's RSP
//!   RSP                                  the host's stack
//!   R14, R13                             scratch: T0, T1
//!   RFLAGS                               the guest's status flags, DF clear, nothing else of the guest
//! ```
//!
//! The guest's R13, R14 and R15 stay in [`Cpu::regs`]: compilers use R9 to R11 less, but in loops that call nothing. Vector and x87 registers are the guest's while they are
//! *live* (see [`super::live`]), else the host's.

use std::mem::offset_of;

use super::stats::Counts;
use crate::cpu::{Cpu, REG_RIP};

/// Scratch: addresses.
pub(super) const T0: u8 = 14;
/// Scratch.
pub(super) const T1: u8 = 13;
/// Where the guest's RSP is.
pub(super) const SP: u8 = 15;

/// See the module. Addresses are of the host.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct Fields {
    /// Linear address of the page that RIP is in.
    pub(super) page: u64,
    /// The table of translations in use.
    pub(super) translations: usize,
    /// The second one.
    pub(super) second: usize,
    /// Page of the stack, if it may be read: see [`super::slot`].
    pub(super) stack_read: u64,
    /// The same if it may be written.
    pub(super) stack_write: u64,
    /// What is added to an address there to have the host's.
    pub(super) stack_host: u64,
    /// Rounds of a strip, less one, and its driver's value behind the last: see [`super::strips`].
    pub(super) rounds: u64,
    pub(super) limit_of_strip: u64,
    /// The table of guards in use.
    pub(super) guards: usize,
    /// Where indirect branches look.
    pub(super) jumps: usize,
    /// A byte that is 1 when the core is wanted back.
    pub(super) pending: usize,
    /// What instructions of [`super::system`] need.
    pub(super) system: System,
    /// Status flags, put aside in the form of LAHF and SETO.
    pub(super) flags: u64,
    /// RCX, put aside.
    pub(super) rcx: u64,
    /// A branch target, put aside.
    pub(super) target: u64,
    /// The indirect branch on its way: its offset in the page, and how far it has moved RSP (from bit 16).
    pub(super) from: u64,
    /// The host's stack pointer behind entry, without any of [`super::pairs`].
    pub(super) stack: u64,
    /// Where it is with all of them that there may be.
    pub(super) limit: u64,
    /// Where it goes on when what was called out for is done.
    pub(super) top: u64,
    /// The branch that came out and could be linked; see [`super::lane::Lane::connect`].
    pub(super) site: u64,
    /// The core, and the function that executes one instruction on it.
    pub(super) core: usize,
    pub(super) call_out: usize,
    /// What the core called out for lately: see [`super::outside`].
    pub(super) decoded: usize,
    /// [`crate::InsnFlags`] of the instruction that stopped.
    pub(super) stopped: u64,
    pub(super) counts: Counts,
    /// The guest's vector registers: see [`super::live`].
    pub(super) vector: Vectors,
}

/// What is refused is executed outside. 0 means no, 1 yes.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub(super) struct System {
    /// An event may be waiting for its window.
    pub(super) held: u64,
    /// RDTSC and RDTSCP.
    pub(super) tsc_refused: u64,
    /// What is added to the host's TSC.
    pub(super) tsc_offset: u64,
    /// What RDTSCP and RDPID tell.
    pub(super) tsc_aux: u64,
    /// RDFSBASE and its kin.
    pub(super) bases_refused: u64,
    /// Copies of whole pages in the upper half.
    pub(super) copies_told: u64,
    /// Address of the [`Calls`](super::Calls), or 0.
    pub(super) calls: usize,
    /// The tables of the supervisor and of the user: all 0 where nothing is known of them.
    pub(super) supervisor: Tables,
    pub(super) user: Tables,
    /// The privilege level has changed, and the machine does not know.
    pub(super) moved: u64,
}

/// In the order of [`Fields`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Tables {
    pub(super) translations: usize,
    pub(super) second: usize,
    pub(super) guards: usize,
}

impl Fields {
    /// How often generated code was left.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

/// What generated code knows of the guest's vector and x87 registers. 0 means no, 1 yes, so that JRCXZ can
/// ask.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub(super) struct Vectors {
    /// They are in the image, not in the host's: instructions of SSE must not run.
    pub(super) sse_off: u64,
    /// The same for AVX: never 0 where `sse_off` is not.
    pub(super) avx_off: u64,
    /// The same for x87 and MMX: never 0 where `sse_off` is not.
    pub(super) x87_off: u64,
    /// The gates or an unmasked exception forbid to run instructions of SSE.
    pub(super) sse_refused: u64,
    /// The same for AVX.
    pub(super) avx_refused: u64,
    /// The same for x87 and MMX.
    pub(super) x87_refused: u64,
    /// Address of the image.
    pub(super) image: usize,
    /// MXCSR as the host has it.
    pub(super) host_mxcsr: u64,
    /// An operand in two pages: see [`super::crossing`].
    pub(super) buffer: [u64; 8],
    /// Address of the buffer.
    pub(super) buffer_at: usize,
    /// Host addresses of the operand's two parts.
    pub(super) first: usize,
    pub(super) second: usize,
    /// Bytes of the first.
    pub(super) in_first: u64,
}

macro_rules! field {
    ($name:ident) => {
        (std::mem::offset_of!($crate::Cpu, native)
            + std::mem::offset_of!($crate::native::Fields, $name)) as i32
    };
    (system.$name:ident) => {
        $crate::native::fields::field!(system)
            + std::mem::offset_of!($crate::native::fields::System, $name) as i32
    };
    (vector.$name:ident) => {
        $crate::native::fields::field!(vector)
            + std::mem::offset_of!($crate::native::fields::Vectors, $name) as i32
    };
}
pub(super) use field;

/// Offset of RFLAGS from GS.
pub(super) const RFLAGS: i32 = offset_of!(Cpu, rflags) as i32;
/// Offset of the privilege level, a byte, from GS.
pub(super) const CPL: i32 = offset_of!(Cpu, cpl) as i32;
/// Offset of the interrupt shadow, a byte, from GS.
pub(super) const SHADOW: i32 = offset_of!(Cpu, shadow) as i32;
/// Offset of what SWAPGS exchanges from GS.
pub(super) const KERNEL_GS_BASE: i32 = offset_of!(Cpu, kernel_gs_base) as i32;
/// Offset of RIP from GS.
pub(super) const RIP: i32 = register(REG_RIP);

/// Offset of a guest register from GS.
pub(super) const fn register(slot: u8) -> i32 {
    (offset_of!(Cpu, regs) + 8 * slot as usize) as i32
}

/// Offset of a segment register from GS.
pub(super) fn segment(slot: usize) -> i32 {
    (offset_of!(Cpu, segs) + slot * size_of::<x86::Segment>()) as i32
}

/// Offset of a segment's base from GS.
pub(super) fn segment_base(slot: usize) -> i32 {
    segment(slot) + offset_of!(x86::Segment, base) as i32
}

/// Offset of a segment's selector from GS.
pub(super) fn segment_selector(slot: usize) -> i32 {
    segment(slot) + offset_of!(x86::Segment, selector) as i32
}

/// Where the guest's register is while generated code runs, if it is in one of the host's.
pub(super) const fn host(slot: u8) -> Option<u8> {
    match slot {
        4 => Some(SP),
        13..=15 => None,
        _ => Some(slot),
    }
}
