//! The MADT: interrupt controllers (ACPI 6.5, 5.2.12).

use acpi_tables::sdt::Sdt;

use crate::boot::layout::{IO_APIC_ID, IO_APIC_START, LOCAL_APIC_START};

const REVISION: u8 = 5;
const LOCAL_APIC: u8 = 0;
const IO_APIC: u8 = 1;
const LOCAL_X2APIC: u8 = 9;
const ENABLED: u32 = 1;
/// The first APIC identifier that a local APIC entry cannot hold: 255 is its broadcast.
const X2APIC_FIRST: u32 = 255;

/// The MADT of a machine with `vcpus` processors, whose APIC identifiers and UIDs are 0 to `vcpus - 1`.
///
/// The flags say that there is no 8259 pair. Written here and not by `acpi_tables`, whose MADT is of a
/// revision without x2APIC entries.
pub(super) fn table(vcpus: u32) -> Sdt {
    let mut madt = super::table(*b"APIC", REVISION);
    madt.append_slice(&(LOCAL_APIC_START as u32).to_le_bytes());
    madt.append_slice(&0u32.to_le_bytes());
    let processors: Vec<u8> = (0..vcpus).flat_map(processor).collect();
    madt.append_slice(&processors);
    madt.append_slice(&[IO_APIC, 12, IO_APIC_ID, 0]);
    madt.append_slice(&(IO_APIC_START as u32).to_le_bytes());
    madt.append_slice(&0u32.to_le_bytes()); // its first input is GSI 0
    madt
}

/// The entry of one processor. The specification asks for the old form where the identifier fits, and
/// Linux from 6.7 on ignores the new one there if any processor has the old; with both it goes to x2APIC
/// mode if CPUID offers that.
fn processor(id: u32) -> Vec<u8> {
    if id < X2APIC_FIRST {
        let mut entry = vec![LOCAL_APIC, 8, id as u8, id as u8];
        entry.extend(ENABLED.to_le_bytes());
        return entry;
    }
    let mut entry = vec![LOCAL_X2APIC, 16, 0, 0];
    entry.extend([id, ENABLED, id].iter().flat_map(|field| field.to_le_bytes()));
    entry
}
