//! Where everything lies in a guest's physical address space.
//!
//! ```text
//! 0x0_0000  ┌──────────────────────────────┐
//!           │ left zero: a real-mode vector table and BIOS data area would be here
//! 0x0_0500  │ GDT (GDT_START), then the TSS (TSS_START)
//! 0x0_7000  │ zero page: struct boot_params (ZERO_PAGE)
//! 0x0_8000  │ initial stack, grows down from STACK_TOP
//! 0x0_9000  │ page tables: PML4, PDPT, four page directories (PAGE_TABLES)
//! 0x0_f000  │ free
//! 0x2_0000  │ command line, NUL-terminated (CMDLINE_START, CMDLINE_SIZE)
//! 0x3_0000  │ free: the kernel puts its start-up trampoline for other processors here
//! 0x9_fc00  ├──────────────────────────────┤ e820: reserved from here (EBDA_START)
//! 0xe_0000  │ ACPI: RSDP first, then XSDT, FADT, MADT, DSDT (ACPI_START, ACPI_SIZE)
//! 0xf_0000  │ the VM's generation (GENERATION_ID)
//! 0xf_fff0  │ what a guest jumps to for a restart by firmware (RESET_VECTOR)
//! 0x10_0000 ├──────────────────────────────┤ e820: RAM again (HIGH_MEMORY)
//!           │ kernel, at the addresses it is linked for (Debian: 16 MiB)
//!           │ free
//!           │ initrd, as high as RAM and the kernel allow
//!           ├──────────────────────────────┤ end of low RAM, at most DEVICE_HOLE
//! 0xc000_0000 device hole: no RAM
//! 0xd000_0000 virtio-mmio slot n at VIRTIO_MMIO_START + n * VIRTIO_MMIO_SIZE
//! 0xfec0_0000 I/O APIC        0xfee0_0000 local APICs
//! 0x1_0000_0000 the rest of RAM
//! ```
//!
//! The low RAM below [`EBDA_START`] is the kernel's as soon as it has copied the zero page and the
//! command line and loaded its own tables, which it does before anything else.
//!
//! What is *not* here: who answers at a device's address. The builder of a machine gives these
//! constants to its devices, and the ACPI tables give the same ones to the guest.

use std::ops::Range;

/// The initial GDT.
pub const GDT_START: u64 = 0x500;
/// The initial task-state segment, all zero: a processor in 64-bit mode needs one in TR.
pub const TSS_START: u64 = 0x600;
/// Limit of the initial task-state segment (SDM volume 3, figure 8-11: 104 bytes).
pub const TSS_LIMIT: u32 = 0x67;
/// The zero page, `struct boot_params`.
pub const ZERO_PAGE: u64 = 0x7000;
/// Top of the initial stack; the kernel switches to its own in its first instructions.
pub const STACK_TOP: u64 = 0x9000;
/// The initial page tables; CR3 holds this address.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const CMDLINE_START: u64 = 0x2_0000;
/// Room for the command line with its NUL.
pub const CMDLINE_SIZE: u64 = 0x1_0000;
/// End of the conventional memory; reserved from here to [`HIGH_MEMORY`].
pub const EBDA_START: u64 = 0x9_fc00;
/// The ACPI tables; the RSDP is at this very address, where a scan finds it too.
pub const ACPI_START: u64 = 0xe_0000;
/// Room for the ACPI tables.
pub const ACPI_SIZE: u64 = 0x1_0000;
/// The VM's generation: see the DSDT's device of that name.
pub const GENERATION_ID: u64 = 0xf_0000;
/// Bytes of it.
pub const GENERATION_ID_SIZE: u64 = 16;
/// 16 bytes of real-mode code that restart the machine: f000:fff0, where a PC's firmware starts.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Start of the RAM that kernels and initrds are loaded into.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// Start of the hole that RAM leaves for devices.
pub const DEVICE_HOLE: u64 = 0xc000_0000;
/// End of the hole; RAM that does not fit below it goes on here.
pub const DEVICE_HOLE_END: u64 = 1 << 32;

/// Registers of the first virtio-mmio slot.
pub const VIRTIO_MMIO_START: u64 = 0xd000_0000;
/// Bytes of registers of one virtio-mmio slot.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// Interrupt of the Generic Event Device (ACPI 6.5, 5.6.9), edge-triggered: the VM has a new generation.
pub const EVENT_GSI: u32 = 3;
/// Interrupt of the first virtio-mmio slot; slot n has `VIRTIO_MMIO_GSI + n`, edge-triggered.
pub const VIRTIO_MMIO_GSI: u32 = 5;
/// Virtio-mmio slots: the I/O APIC's inputs from [`VIRTIO_MMIO_GSI`] up.
pub const VIRTIO_MMIO_SLOTS: u32 = IO_APIC_INPUTS - VIRTIO_MMIO_GSI;

/// The I/O APIC.
pub const IO_APIC_START: u64 = 0xfec0_0000;
/// Bytes of I/O APIC registers.
pub const IO_APIC_SIZE: u64 = 0x1000;
/// Inputs of the I/O APIC; its first is GSI 0.
pub const IO_APIC_INPUTS: u32 = 24;
/// Identifier of the I/O APIC, in its ID register and in the MADT.
pub const IO_APIC_ID: u8 = 0;
/// The local APICs, for a guest that has not gone to x2APIC mode.
pub const LOCAL_APIC_START: u64 = 0xfee0_0000;

/// First I/O port of COM1, a 16550A with eight registers.
pub const SERIAL_PORT: u16 = devices::serial::COM1_BASE;
/// Interrupt of COM1, edge-triggered.
pub const SERIAL_GSI: u32 = devices::serial::COM1_IRQ;

/// I/O port of the pvpanic device, one byte.
///
/// A read gives the events that the device understands ([`PVPANIC_PANICKED`] |
/// [`PVPANIC_CRASH_LOADED`]); Linux reports only those. A write of one of them reports it.
pub const PVPANIC_PORT: u16 = devices::pvpanic::PORT;
/// Pvpanic event: the guest's kernel has panicked.
pub const PVPANIC_PANICKED: u8 = 1 << 0;
/// Pvpanic event: it has panicked and a crash kernel takes over.
pub const PVPANIC_CRASH_LOADED: u8 = 1 << 1;

/// I/O port of the ACPI sleep control register, one byte (ACPI 6.5, 4.8.3.7).
///
/// A write with [`SLEEP_ENABLE`] set enters the state in bits 2 to 4; [`SLEEP_S5`] is power-off.
pub const SLEEP_CONTROL_PORT: u16 = devices::reset::SLEEP_CONTROL_PORT;
/// I/O port of the ACPI sleep status register, one byte: reads as 0, writes are ignored.
pub const SLEEP_STATUS_PORT: u16 = devices::reset::SLEEP_STATUS_PORT;
/// I/O port of the ACPI reset register, one byte: a write of [`RESET_VALUE`] restarts the machine.
pub const RESET_PORT: u16 = devices::reset::RESET_PORT;
/// The value that resets; others are ignored.
pub const RESET_VALUE: u8 = devices::reset::RESET_VALUE;
/// `SLP_EN` in the sleep control register.
pub const SLEEP_ENABLE: u8 = 1 << 5;
/// `SLP_TYP` that stands for S5 here, as the DSDT's `\_S5` says.
pub const SLEEP_TYPE_S5: u8 = devices::reset::SLEEP_TYPE_S5;
/// What the guest writes to [`SLEEP_CONTROL_PORT`] to power off.
pub const SLEEP_S5: u8 = SLEEP_TYPE_S5 << 2 | SLEEP_ENABLE;

/// The RAM of a guest of `size` bytes: all below [`DEVICE_HOLE`] that fits, the rest from 4 GiB up.
///
/// One range or two, ascending. `size` is taken as it is: the caller has rounded it to pages.
#[must_use]
pub fn ram_ranges(size: u64) -> Vec<Range<u64>> {
    let low = size.min(DEVICE_HOLE);
    let mut ranges = vec![Range { start: 0, end: low }];
    if size > low {
        ranges.push(DEVICE_HOLE_END..DEVICE_HOLE_END.saturating_add(size - low));
    }
    ranges
}

/// Address of the registers of virtio-mmio slot `slot`, which is below [`VIRTIO_MMIO_SLOTS`].
#[must_use]
pub const fn virtio_mmio(slot: u32) -> u64 {
    VIRTIO_MMIO_START + slot as u64 * VIRTIO_MMIO_SIZE
}

const _: () = assert!(ACPI_START + ACPI_SIZE <= GENERATION_ID);
const _: () = assert!(GENERATION_ID + GENERATION_ID_SIZE <= RESET_VECTOR);

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use super::*;

    #[test]
    fn small_guests_have_one_range() {
        assert_eq!(ram_ranges(256 << 20), [0..256 << 20]);
        assert_eq!(ram_ranges(DEVICE_HOLE), [0..DEVICE_HOLE]);
    }

    #[test]
    fn what_exceeds_the_hole_goes_above_4_gib() {
        assert_eq!(ram_ranges(DEVICE_HOLE + 4096), [0..DEVICE_HOLE, 1 << 32..(1 << 32) + 4096]);
    }

    #[test]
    fn low_areas_do_not_overlap() {
        let areas = [
            GDT_START..TSS_START,
            TSS_START..TSS_START + u64::from(TSS_LIMIT) + 1,
            ZERO_PAGE..ZERO_PAGE + 0x1000,
            STACK_TOP - 0x1000..STACK_TOP,
            PAGE_TABLES..PAGE_TABLES + 6 * 0x1000,
            CMDLINE_START..CMDLINE_START + CMDLINE_SIZE,
            EBDA_START..ACPI_START,
            ACPI_START..ACPI_START + ACPI_SIZE,
            GENERATION_ID..GENERATION_ID + GENERATION_ID_SIZE,
        ];
        assert!(areas.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }

    #[test]
    fn device_slots_end_below_the_io_apic() {
        assert!(virtio_mmio(VIRTIO_MMIO_SLOTS) <= IO_APIC_START);
        assert_eq!(SLEEP_S5, 0x34);
    }
}
