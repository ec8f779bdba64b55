//! The engine-neutral state of one vCPU: what a snapshot holds and what a payload starts from.

use serde::{Deserialize, Serialize};

use crate::exception::Exception;
use crate::rflags;
use crate::segment::{DescriptorTable, Segment};

/// Index of a general register in [`VcpuState::gpr`], in encoding order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the registers'")]
pub enum Gpr {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

/// CR0 bits.
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod cr0 {
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits.
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod cr4 {
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
}

/// EFER bits.
#[allow(missing_docs, reason = "the names are the manual's")]
pub mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
}

/// Bytes of the standard-format XSAVE image up to and with the AVX component (SDM volume 1, 13.4).
pub const XSTATE_SIZE: usize = 512 + 64 + 256;

/// A model-specific register and its value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Msr {
    /// Its number.
    pub index: u32,
    /// Its value.
    pub value: u64,
}

/// An interruption being delivered or waiting when the state was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Event {
    /// An exception whose delivery has not finished. RIP is where it will return to; but of #BP, at the
    /// INT3 that raised it.
    Exception(Exception),
    /// An external interrupt that the local APIC has handed over.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
}

/// The local APIC's registers, as the x2APIC MSRs show them (SDM volume 3, table 10-6).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ApicState {
    /// Register words by offset / 16, 64 of them.
    pub registers: Vec<u32>,
    /// IA32_TSC_DEADLINE; 0 where disarmed.
    pub tsc_deadline: u64,
}

/// Inputs of the IO-APIC.
pub const IO_APIC_INPUTS: usize = 24;

/// The IO-APIC's registers, and what is at its inputs (Intel 82093AA data sheet).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IoApicState {
    /// Which register the data window shows.
    pub select: u8,
    /// Its identifier; `<= 15`.
    pub id: u8,
    /// Redirection entries of inputs 0 and up; [`IO_APIC_INPUTS`] of them.
    pub entries: Vec<u64>,
    /// Inputs that are high, by bit.
    pub high: u32,
}

impl IoApicState {
    /// Whether there is such an IO-APIC.
    ///
    /// # Errors
    /// What is wrong, with the field's name.
    pub fn check(&self) -> Result<(), String> {
        if self.entries.len() != IO_APIC_INPUTS {
            let found = self.entries.len();
            return Err(format!("entries: {found} of them, expected {IO_APIC_INPUTS}"));
        }
        if self.id > 15 {
            return Err(format!("id {}: at most 15", self.id));
        }
        if self.high >> IO_APIC_INPUTS != 0 {
            return Err(format!("high {:#x}: there are {IO_APIC_INPUTS} inputs", self.high));
        }
        Ok(())
    }
}

/// All architectural state of one vCPU, independent of the engine that runs it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the registers'")]
pub struct VcpuState {
    /// General registers in encoding order; see [`Gpr`].
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: DescriptorTable,
    pub idtr: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub xcr0: u64,
    pub efer: u64,
    /// DR0 to DR3, DR6, DR7.
    pub debug: [u64; 6],
    /// x87, SSE and AVX state: an XSAVE image in the standard format, [`XSTATE_SIZE`] bytes. It has no component
    /// that the processor does not have; x87 and SSE each has (`model::state_components`).
    pub xstate: Vec<u8>,
    /// Every other MSR that the engine keeps for the guest.
    pub msrs: Vec<Msr>,
    pub apic: ApicState,
    /// Halted until an interrupt.
    pub halted: bool,
    /// An application processor that waits for a start-up IPI.
    pub waiting_for_sipi: bool,
    /// STI or MOV SS ran last: no interrupt before the next instruction.
    pub interrupt_shadow: bool,
    /// NMIs are blocked until the next IRET.
    pub nmi_blocked: bool,
    /// What was being delivered.
    pub event: Option<Event>,
}

impl VcpuState {
    /// A processor in 64-bit mode with flat segments, paging on and `cr3` still to be set: the state in
    /// which the 64-bit boot protocol enters a kernel, and conformance payloads start.
    #[must_use]
    pub fn long_mode() -> Self {
        Self {
            cs: Segment::CODE64,
            ss: Segment::DATA,
            ds: Segment::DATA,
            es: Segment::DATA,
            fs: Segment::DATA,
            gs: Segment::DATA,
            cr0: cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::PG,
            cr4: cr4::PAE,
            efer: efer::LME | efer::LMA,
            ..Self::reset()
        }
    }

    /// The state after a power-up reset, except that execution starts wherever the caller says: no
    /// firmware is modelled (SDM volume 3, table 9-1).
    #[must_use]
    pub fn reset() -> Self {
        let data = Segment::real(0, false);
        Self {
            gpr: [0; 16],
            rip: 0xfff0,
            rflags: rflags::FIXED,
            es: data,
            cs: Segment { base: 0xffff_0000, ..Segment::real(0xf000, true) },
            ss: data,
            ds: data,
            fs: data,
            gs: data,
            ldtr: Segment { attributes: 0x82, limit: 0xffff, ..Segment::default() },
            tr: Segment { attributes: 0x8b, limit: 0xffff, ..Segment::default() },
            gdtr: DescriptorTable { base: 0, limit: 0xffff },
            idtr: DescriptorTable { base: 0, limit: 0xffff },
            cr0: cr0::ET | cr0::NW | cr0::CD,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            xcr0: 1,
            efer: 0,
            debug: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
            xstate: initial_xstate(),
            msrs: Vec::new(),
            apic: ApicState::default(),
            halted: false,
            waiting_for_sipi: false,
            interrupt_shadow: false,
            nmi_blocked: false,
            event: None,
        }
    }
}

/// FCW = 0x37f, MXCSR = 0x1f80, everything else zero (SDM volume 1, 8.1.5 and 11.6.4).
fn initial_xstate() -> Vec<u8> {
    let mut image = vec![0; XSTATE_SIZE];
    image[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
    image[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    image
}
