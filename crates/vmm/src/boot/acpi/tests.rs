//! The tables are walked from the RSDP as a guest would; `iasl` reads them too where it is installed.

use std::process::Command;

use super::*;
use crate::boot::layout::{IO_APIC_START, SLEEP_CONTROL_PORT, VIRTIO_MMIO_SLOTS, virtio_mmio};
use crate::boot::little_endian::{u32_at, u64_at};

fn platform(vcpus: u32, virtio_devices: u32) -> Platform {
    Platform { vcpus, virtio_devices, serial: true, pvpanic: true }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The table at `gpa`, whose signature and checksum are right.
fn table_at<'a>(block: &'a [u8], gpa: u64, signature: &[u8; 4]) -> &'a [u8] {
    let rest = &block[(gpa - ACPI_START) as usize..];
    let table = &rest[..u32_at(rest, 4).unwrap() as usize];
    assert_eq!((&table[..4], sum(table)), (&signature[..], 0));
    table
}

/// FADT, MADT and DSDT, found as a guest finds them.
fn walk(block: &[u8]) -> [&[u8]; 3] {
    assert_eq!(&block[..8], b"RSD PTR ");
    assert_eq!((sum(&block[..20]), sum(&block[..36])), (0, 0));
    let xsdt = table_at(block, u64_at(block, 24).unwrap(), b"XSDT");
    assert_eq!(xsdt.len(), 36 + 2 * 8);
    let fadt = table_at(block, u64_at(xsdt, 36).unwrap(), b"FACP");
    let madt = table_at(block, u64_at(xsdt, 44).unwrap(), b"APIC");
    let dsdt = table_at(block, u64_at(fadt, 140).unwrap(), b"DSDT");
    [fadt, madt, dsdt]
}

/// The entries of a MADT.
fn entries(madt: &[u8]) -> Vec<&[u8]> {
    let mut entries = Vec::new();
    let mut rest = &madt[44..];
    while !rest.is_empty() {
        let (entry, after) = rest.split_at(rest[1].into());
        entries.push(entry);
        rest = after;
    }
    entries
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[test]
fn the_fadt_is_hardware_reduced_with_reset_and_sleep_ports() {
    let block = tables(&platform(1, 0)).unwrap();
    let [fadt, ..] = walk(&block);
    assert_eq!(fadt.len(), 276);
    let flags = u32_at(fadt, 112).unwrap();
    assert_ne!(flags & 1 << 20, 0, "HW_REDUCED_ACPI");
    assert_ne!(flags & 1 << 10, 0, "RESET_REG_SUP");
    // Generic addresses: I/O space, 8 bits, byte access.
    assert_eq!(fadt[116..120], [1, 8, 0, 1]);
    assert_eq!((u64_at(fadt, 120), fadt[128]), (Some(0x604), 1));
    assert_eq!(fadt[244..248], [1, 8, 0, 1]);
    assert_eq!(u64_at(fadt, 248), Some(SLEEP_CONTROL_PORT.into()));
    assert_eq!(u64_at(fadt, 260), Some(0x601));
    // No 8042, no VGA, no CMOS clock.
    assert_eq!(fadt[109..111], [1 << 2 | 1 << 5, 0]);
}

#[test]
fn the_madt_names_every_vcpu_and_the_io_apic() {
    let block = tables(&platform(257, 0)).unwrap();
    let [_, madt, _] = walk(&block);
    assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (Some(0xfee0_0000), Some(0)));
    let entries = entries(madt);
    assert_eq!(entries.len(), 258);
    assert_eq!(entries[0], [0, 8, 0, 0, 1, 0, 0, 0]);
    assert_eq!(entries[254], [0, 8, 254, 254, 1, 0, 0, 0]);
    assert_eq!(entries[256], [9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]);
    let io_apic = entries[257];
    assert_eq!((io_apic[0], io_apic[1]), (1, 12));
    assert_eq!(u32_at(io_apic, 4), Some(IO_APIC_START as u32));
    assert_eq!(u32_at(io_apic, 8), Some(0));
}

#[test]
fn the_dsdt_has_the_devices_that_are_there_and_no_others() {
    let block = tables(&platform(1, 3)).unwrap();
    let [.., dsdt] = walk(&block);
    assert_eq!(dsdt.windows(8).filter(|text| text == b"LNRO0005").count(), 3);
    // Memory32Fixed, writable, then an extended interrupt: consumer, edge, high, exclusive.
    let mut resources = vec![0x86, 9, 0, 1];
    resources.extend((virtio_mmio(2) as u32).to_le_bytes());
    resources.extend(0x1000u32.to_le_bytes());
    resources.extend([0x89, 6, 0, 0b0011, 1, 7, 0, 0, 0]);
    assert!(position(dsdt, &resources).is_some());
    assert!(position(dsdt, b"QEMU0001").is_some());
    assert!(position(dsdt, &[0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8]).is_some(), "COM1's ports");

    let bare = Platform { vcpus: 1, virtio_devices: 0, serial: false, pvpanic: false };
    let block = tables(&bare).unwrap();
    let [.., dsdt] = walk(&block);
    for absent in [&b"LNRO0005"[..], b"QEMU0001", b"COM1"] {
        assert!(position(dsdt, absent).is_none());
    }
    assert!(position(dsdt, b"_S5_").is_some());
}

#[test]
fn the_largest_machine_fits_and_a_larger_one_is_refused() {
    assert!(tables(&platform(VCPUS_MAX, VIRTIO_MMIO_SLOTS)).unwrap().len() as u64 <= ACPI_SIZE);
    for (vcpus, virtio_devices) in [(0, 1), (VCPUS_MAX + 1, 1), (1, VIRTIO_MMIO_SLOTS + 1)] {
        let error = tables(&platform(vcpus, virtio_devices)).unwrap_err();
        assert!(matches!(error, BootError::Count { .. }), "{error}");
    }
}

/// The compiler of the ACPI reference implementation understands what we wrote.
#[test]
fn iasl_decompiles_and_recompiles_the_dsdt() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("SKIPPED: no iasl here; install the package acpica-tools to run this test");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let iasl = |arguments: &[&str]| {
        let run = Command::new("iasl").args(arguments).current_dir(&directory).output().unwrap();
        let text = [run.stdout, run.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(run.status.success(), "iasl {arguments:?}:\n{text}");
        text
    };
    let block = tables(&platform(4, VIRTIO_MMIO_SLOTS)).unwrap();
    for (name, table) in ["fadt", "madt", "dsdt"].iter().zip(walk(&block)) {
        std::fs::write(directory.path().join(format!("{name}.dat")), table).unwrap();
        let text = iasl(&["-d", &format!("{name}.dat")]);
        assert!(!text.contains("Error") && !text.contains("Warning"), "{text}");
    }
    let text = iasl(&["dsdt.dsl"]);
    assert!(text.contains("0 Errors, 0 Warnings"), "{text}");
    let source = std::fs::read_to_string(directory.path().join("dsdt.dsl")).unwrap();
    assert_eq!(source.matches("\"LNRO0005\"").count(), VIRTIO_MMIO_SLOTS as usize);
    assert!(source.contains("EisaId (\"PNP0501\")"), "{source}");
}
