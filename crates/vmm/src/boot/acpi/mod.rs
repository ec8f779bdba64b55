//! The ACPI tables: what the guest learns about the machine.
//!
//! The machine is hardware-reduced (ACPI 6.5, 3.11.1): no PIC, no PIT, no power-management timer, no
//! system control interrupt; Linux then expects none of them. Power-off goes through the sleep control
//! register, restart through the reset register, both I/O ports that [`super::layout`] names (Linux writes
//! the latter by itself with `reboot=a` only, else by way of the reset vector; see entry.rs).
//!
//! | table | content |
//! |-------|---------|
//! | RSDP  | at [`ACPI_START`], points to the XSDT |
//! | XSDT  | points to FADT and MADT |
//! | FADT  | hardware-reduced; sleep, reset; no VGA, no CMOS clock, no 8042; points to the DSDT |
//! | MADT  | one local APIC a vCPU, one I/O APIC with GSI 0 to 23, no interrupt override |
//! | DSDT  | `\_S5`, COM1, pvpanic, the VM's generation with its event, one device for each virtio-mmio slot |
//!
//! There are no processor devices (`ACPI0007`): Linux takes its processors from the MADT, and with such a
//! device it would replace its plain HLT idle loop by one that polls before it halts.

mod dsdt;
mod fadt;
mod madt;

use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, sdt::Sdt};

use super::error::BootError;
use super::layout::{ACPI_SIZE, ACPI_START, VIRTIO_MMIO_SLOTS};

const OEM_ID: [u8; 6] = *b"FATHOM";
const OEM_TABLE_ID: [u8; 8] = *b"FATHOMVM";
const OEM_REVISION: u32 = 1;
/// Tables begin at multiples of this.
const ALIGNMENT: u64 = 64;
/// More would overflow nothing, but no machine is tested with them.
const VCPUS_MAX: u32 = 1024;

/// What of a machine the tables describe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Platform {
    /// vCPUs; vCPU n has APIC identifier n. From 1 to 1024.
    pub vcpus: u32,
    /// Virtio-mmio slots in use: 0 to `virtio_devices - 1`. At most [`VIRTIO_MMIO_SLOTS`].
    pub virtio_devices: u32,
    /// Whether there is a COM1.
    pub serial: bool,
    /// Whether there is a pvpanic device.
    pub pvpanic: bool,
}

/// The tables for `platform` as one block for [`ACPI_START`], which begins with the RSDP.
pub(super) fn tables(platform: &Platform) -> Result<Vec<u8>, BootError> {
    check_count("vCPUs", platform.vcpus, 1, VCPUS_MAX)?;
    check_count("virtio devices", platform.virtio_devices, 0, VIRTIO_MMIO_SLOTS)?;
    let mut block = Block { bytes: vec![0; Rsdp::len()] };
    let dsdt = block.push(&dsdt::table(platform));
    let fadt = block.push(&fadt::table(dsdt));
    let madt = block.push(&madt::table(platform.vcpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = block.push(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    block.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    block.finish()
}

fn check_count(what: &'static str, found: u32, min: u32, max: u32) -> Result<(), BootError> {
    if (min..=max).contains(&found) {
        Ok(())
    } else {
        Err(BootError::Count { what, found, min, max })
    }
}

/// An empty table with our names in its header.
fn table(signature: [u8; 4], revision: u8) -> Sdt {
    Sdt::new(signature, 36, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION)
}

/// Tables one after the other, for [`ACPI_START`].
struct Block {
    bytes: Vec<u8>,
}

impl Block {
    /// Appends a table and tells its address.
    fn push(&mut self, table: &dyn Aml) -> u64 {
        let offset = (self.bytes.len() as u64).next_multiple_of(ALIGNMENT);
        self.bytes.resize(offset as usize, 0);
        table.to_aml_bytes(&mut self.bytes);
        ACPI_START + offset
    }

    fn finish(self) -> Result<Vec<u8>, BootError> {
        let size = self.bytes.len() as u64;
        if size > ACPI_SIZE {
            return Err(BootError::AcpiTooLarge { size, room: ACPI_SIZE });
        }
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests;
