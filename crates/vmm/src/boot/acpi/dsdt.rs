//! The DSDT: the devices that the guest cannot find by itself, in AML.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path,
    ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::Platform;
use crate::boot::layout::{
    EVENT_GSI, GENERATION_ID, PVPANIC_PORT, SERIAL_GSI, SERIAL_PORT, SLEEP_TYPE_S5,
    VIRTIO_MMIO_GSI, VIRTIO_MMIO_SIZE, virtio_mmio,
};

/// 2 and above: AML integers have 64 bits.
const REVISION: u8 = 2;

/// The DSDT of `platform`, whose counts have been checked.
pub(super) fn table(platform: &Platform) -> Sdt {
    let mut devices = Vec::new();
    if platform.serial {
        serial(&mut devices);
    }
    if platform.pvpanic {
        pvpanic(&mut devices);
    }
    generation(&mut devices);
    events(&mut devices);
    for slot in 0..platform.virtio_devices {
        virtio(&mut devices, slot);
    }
    let mut aml = Vec::new();
    soft_off(&mut aml);
    aml.extend(Scope::raw("\\_SB_".into(), devices));
    let mut dsdt = super::table(*b"DSDT", REVISION);
    dsdt.append_slice(&aml);
    dsdt
}

/// `\_S5`: what to write into the sleep control register for power-off.
fn soft_off(aml: &mut Vec<u8>) {
    let package = Package::new(vec![&SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]);
    Name::new("_S5_".into(), &package).to_aml_bytes(aml);
}

/// COM1, a 16550A. The interrupt is given in the extended form: Linux then takes its trigger from here
/// and not from a table of legacy overrides, which this machine does not have.
fn serial(aml: &mut Vec<u8>) {
    let ports = IO::new(SERIAL_PORT, SERIAL_PORT, 1, 8);
    let interrupt = edge(SERIAL_GSI);
    let resources = ResourceTemplate::new(vec![&ports, &interrupt]);
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &resources),
        ],
    )
    .to_aml_bytes(aml);
}

/// The pvpanic device, by the identifier that Linux's pvpanic-mmio driver binds to (since 5.12).
fn pvpanic(aml: &mut Vec<u8>) {
    let ports = IO::new(PVPANIC_PORT, PVPANIC_PORT, 1, 1);
    Device::new(
        "PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports])),
        ],
    )
    .to_aml_bytes(aml);
}

/// The VM's generation, by the identifier that Linux's vmgenid driver binds to (since 5.18). Its bytes are in memory that
/// the guest was told to leave alone.
fn generation(aml: &mut Vec<u8>) {
    let (low, high) = (GENERATION_ID as u32, (GENERATION_ID >> 32) as u32);
    Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"VMGENCTR"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
    )
    .to_aml_bytes(aml);
}

/// The Generic Event Device: its interrupt says that the generation is a new one.
fn events(aml: &mut Vec<u8>) {
    let interrupt = edge(EVENT_GSI);
    let resources = ResourceTemplate::new(vec![&interrupt]);
    let generation = Path::new("VGEN");
    let changed = Notify::new(&generation, &0x80u8);
    Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &resources),
            &Method::new("_EVT".into(), 1, true, vec![&changed]),
        ],
    )
    .to_aml_bytes(aml);
}

/// A virtio-mmio transport, by the identifier that Linux's virtio_mmio driver binds to.
fn virtio(aml: &mut Vec<u8>, slot: u32) {
    let registers = Memory32Fixed::new(true, virtio_mmio(slot) as u32, VIRTIO_MMIO_SIZE as u32);
    let interrupt = edge(VIRTIO_MMIO_GSI + slot);
    let resources = ResourceTemplate::new(vec![&registers, &interrupt]);
    Device::new(
        format!("VR{slot:02X}").as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &slot),
            &Name::new("_CCA".into(), &1u8), // its DMA is coherent with the processors' caches
            &Name::new("_CRS".into(), &resources),
        ],
    )
    .to_aml_bytes(aml);
}

/// An edge-triggered, active-high interrupt that belongs to one device.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}
