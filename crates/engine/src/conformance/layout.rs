//! Where things are in the machine that payloads run on, and its tables.
//!
//! ```text
//! 0x01000  GDT, TSS per vCPU   0x02000  IDT            0x03000  exception stubs
//! 0x06000  PML4, PDPT, 4 PD    0x0c000  page table of the 2 MiB at WINDOW
//! 0x0e000  start-up code of the second vCPU
//! 0x10000  payload             0x14000  HANDLER        0x18000  payload of the second vCPU
//! 0x20000  frames (what exceptions pushed)
//! 0x28000  stacks: payload 0x2f000, second vCPU 0x37000, IST1 0x3b000, from user mode 0x3f000
//! 0x40000  DATA, free up to WINDOW
//! 0x200000 WINDOW: 512 pages of 4 KiB, identity-mapped until a case changes them
//! ```
//!
//! Linear memory below 4 GiB is mapped to itself with 2 MiB user-accessible pages.

use memory::{DeviceView, Gpa};
use x86::paging;

/// Bytes of guest RAM.
pub const RAM: u64 = 16 << 20;
/// Where payloads are.
pub const CODE: u64 = 0x1_0000;
/// Where a case puts an interrupt handler of its own.
pub const HANDLER: u64 = 0x1_4000;
/// Where the payload of the second vCPU is.
pub const CODE1: u64 = 0x1_8000;
/// Where RSP starts.
pub const STACK: u64 = 0x2_f000;
/// Where RSP of the second vCPU starts.
pub const STACK1: u64 = 0x3_7000;
/// Stack of gates with IST 1.
pub const IST1: u64 = 0x3_b000;
/// Stack for exceptions that come from user mode.
pub const KERNEL_STACK: u64 = 0x3_f000;
/// Free for the payload.
pub const DATA: u64 = 0x4_0000;
/// Where RSP starts in user mode.
pub const USER_STACK: u64 = 0x7_0000;
/// 2 MiB mapped by 4 KiB pages through [`WINDOW_TABLE`].
pub const WINDOW: u64 = 0x20_0000;
/// The page table of the window.
pub const WINDOW_TABLE: u64 = 0xc000;
/// The PML4.
pub const PML4: u64 = 0x6000;
/// The page-directory-pointer table of the lowest 512 GiB.
pub const PDPT: u64 = 0x7000;
/// The first page directory; three more follow.
pub const DIRECTORY: u64 = 0x8000;
/// Start-up code of the second vCPU: its start-up vector is this address shifted right by 12.
pub const TRAMPOLINE: u64 = 0xe000;
/// Where there is no RAM and no interrupt controller.
pub const MMIO: u64 = 0x4000_0000;
/// The IO-APIC.
pub const IO_APIC: u64 = 0xfec0_0000;

/// The descriptor table.
pub const GDT: u64 = 0x1000;
pub(super) const GDT_LIMIT: u16 = 0x8f;
/// TSS of the first vCPU; that of vCPU n is [`TSS_SIZE`] * n further on.
pub const TSS: u64 = 0x1800;
pub(super) const TSS_SIZE: u64 = 0x400;
pub(super) const IDT: u64 = 0x2000;
pub(super) const STUBS: u64 = 0x3000;
pub(super) const STUB_SIZE: u64 = 16;
pub(super) const FRAMES: u64 = 0x2_0000;
pub(super) const FRAME_SIZE: u64 = 128;
pub(super) const FRAMES_MAX: u64 = 0xff;

/// Selectors; kernel and user pairs lie as SYSCALL and SYSRET want them.
pub mod selector {
    #![allow(missing_docs, reason = "the names say it")]
    pub const KERNEL_CODE: u16 = 0x10;
    pub const KERNEL_DATA: u16 = 0x18;
    pub const USER_CODE32: u16 = 0x23;
    pub const USER_DATA: u16 = 0x2b;
    pub const USER_CODE: u16 = 0x33;
    pub const TSS: u16 = 0x40;
    /// A data segment that is not present.
    pub const ABSENT: u16 = 0x50;
    /// A data segment whose accessed bit is clear.
    pub const UNUSED_DATA: u16 = 0x58;
    pub const TSS1: u16 = 0x60;
    /// Code that may not be read.
    pub const EXECUTE_ONLY: u16 = 0x70;
    /// Code of 32 bits for the way up from real mode.
    pub const KERNEL_CODE32: u16 = 0x78;
    /// Data that may not be written.
    pub const READ_ONLY: u16 = 0x80;
    /// Past the end of the table.
    pub const OUTSIDE: u16 = 0x90;
}

const DESCRIPTORS: [u64; 18] = [
    0,
    0,
    0x00af_9b00_0000_ffff, // kernel code
    0x00cf_9300_0000_ffff, // kernel data
    0x00cf_fb00_0000_ffff, // user code, 32 bits
    0x00cf_f300_0000_ffff, // user data
    0x00af_fb00_0000_ffff, // user code, 64 bits
    0,
    0x0000_8b00_0000_0067 | TSS << 16,
    0,
    0x00cf_1300_0000_ffff, // not present
    0x00cf_9200_0000_ffff, // accessed bit clear
    0x0000_8b00_0000_0067 | (TSS + TSS_SIZE) << 16,
    0,
    0x00af_9900_0000_ffff, // execute-only
    0x00cf_9b00_0000_ffff, // kernel code, 32 bits
    0x00cf_9100_0000_ffff, // read-only
    0,
];

/// Address of the descriptor that `selector` names.
#[must_use]
pub const fn descriptor(selector: u16) -> u64 {
    GDT + (selector & !7) as u64
}

/// Address of the page-table entry of page `page` of the window.
#[must_use]
pub const fn window_entry(page: u64) -> u64 {
    WINDOW_TABLE + page * 8
}

/// Address of page `page` of the window.
#[must_use]
pub const fn window(page: u64) -> u64 {
    WINDOW + page * 4096
}

pub(super) fn set_word(view: &DeviceView, gpa: u64, value: u64) {
    view.write(Gpa(gpa), &value.to_le_bytes()).expect("inside RAM");
}

/// Page tables, GDT and TSSs.
pub(super) fn write_tables(view: &DeviceView) {
    const ALL: u64 = paging::PRESENT | paging::WRITABLE | paging::USER;
    const READY: u64 = ALL | paging::ACCESSED | paging::DIRTY;
    set_word(view, PML4, PDPT | ALL);
    for gib in 0..4 {
        let directory = DIRECTORY + gib * 0x1000;
        set_word(view, PDPT + gib * 8, directory | ALL);
        for page in 0..512 {
            let gpa = gib << 30 | page << 21;
            set_word(view, directory + page * 8, gpa | READY | paging::LARGE);
        }
    }
    set_word(view, DIRECTORY + 8, WINDOW_TABLE | ALL);
    for page in 0..512 {
        set_word(view, window_entry(page), window(page) | READY);
    }
    for (index, descriptor) in DESCRIPTORS.into_iter().enumerate() {
        set_word(view, GDT + index as u64 * 8, descriptor);
    }
    for vcpu in 0..2 {
        let tss = TSS + vcpu * TSS_SIZE;
        set_word(view, tss + 4, KERNEL_STACK);
        set_word(view, tss + 0x24, IST1);
        // The I/O permission map starts past the limit: no port is open to user mode.
        view.write(Gpa(tss + 0x66), &0x68u16.to_le_bytes()).expect("inside RAM");
    }
}

/// A gate of the IDT (SDM volume 3, 6.14.1).
#[derive(Clone, Copy)]
pub struct Gate {
    /// Linear address of the handler.
    pub handler: u64,
    /// Privilege that INT n needs.
    pub dpl: u8,
    /// Stack of the TSS to use, 1 to 7, or 0.
    pub ist: u8,
    /// Whether the gate is present.
    pub present: bool,
}

impl Gate {
    /// Interrupt gate to `handler` that anybody may call.
    #[must_use]
    pub const fn to(handler: u64) -> Self {
        Self { handler, dpl: 3, ist: 0, present: true }
    }

    /// The gate that every vector has at first.
    #[must_use]
    pub const fn stub(vector: u8) -> Self {
        Self::to(STUBS + vector as u64 * STUB_SIZE)
    }

    pub(super) fn write(self, view: &DeviceView, vector: u8) {
        let at = IDT + u64::from(vector) * 16;
        let kind = 0xe | u64::from(self.dpl) << 5 | u64::from(self.present) << 7;
        let low = self.handler & 0xffff | u64::from(selector::KERNEL_CODE) << 16;
        let middle = u64::from(self.ist) << 32 | kind << 40 | (self.handler >> 16 & 0xffff) << 48;
        set_word(view, at, low | middle);
        set_word(view, at + 8, self.handler >> 32);
    }
}
