//! Interrupt lines: the IO-APIC's inputs, and eventfds that pulse them.

use std::sync::OnceLock;

use engine::EngineError;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_irqchip, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use x86::{IO_APIC_INPUTS as INPUTS, IoApicState};

use crate::error::{host, refused};

/// Bits of a redirection entry.
const DELIVERY_STATUS: u64 = 1 << 12;
const LEVEL: u64 = 1 << 15;

/// Wires every interrupt number to the IO-APIC's input of that number and to nothing else: the PIC that
/// comes with the in-kernel controllers gets none.
pub(crate) fn route(vm: &VmFd) -> Result<(), EngineError> {
    let entries: Vec<_> = (0..INPUTS as u32).map(entry).collect();
    let routing = KvmIrqRouting::from_entries(&entries)
        .map_err(|error| EngineError::Bug(format!("interrupt routing: {error:?}")))?;
    vm.set_gsi_routing(&routing).map_err(refused("route interrupts"))
}

fn entry(gsi: u32) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin: gsi };
    entry
}

/// The IO-APIC as KVM has it.
pub(crate) fn save(vm: &VmFd) -> Result<IoApicState, EngineError> {
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
    vm.get_irqchip(&mut chip).map_err(refused("read the IO-APIC"))?;
    // SAFETY: KVM has filled in the member that belongs to the chip that was asked for; any bytes are its values.
    let state = unsafe { chip.chip.ioapic };
    // SAFETY: both members are the same 64 bits.
    let entries = state.redirtbl.iter().map(|entry| unsafe { entry.bits }).collect();
    let (select, id) = (state.ioregsel as u8, state.id as u8 & 0xf);
    Ok(IoApicState { select, id, entries, high: state.irr & ((1 << INPUTS) - 1) })
}

/// Takes up a checked state.
pub(crate) fn load(vm: &VmFd, saved: &IoApicState) -> Result<(), EngineError> {
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
    // What is kept for nobody to see: the address.
    vm.get_irqchip(&mut chip).map_err(refused("read the IO-APIC"))?;
    // SAFETY: as in `save`.
    let mut state = unsafe { chip.chip.ioapic };
    (state.ioregsel, state.id, state.irr) = (saved.select.into(), saved.id.into(), 0);
    for (input, (entry, &bits)) in state.redirtbl.iter_mut().zip(&saved.entries).enumerate() {
        entry.bits = bits & !DELIVERY_STATUS;
        // KVM would send an edge again that has been sent; a level that is in service it keeps back itself.
        if bits & LEVEL != 0 {
            state.irr |= saved.high & 1 << input;
        }
    }
    chip.chip.ioapic = state;
    vm.set_irqchip(&chip).map_err(refused("set the IO-APIC"))
}

/// An eventfd for each input, made when first used. A write to it is an edge: one system call, where
/// setting the line takes two.
#[derive(Default)]
pub(crate) struct Edges([OnceLock<Result<EventFd, String>>; INPUTS]);

impl Edges {
    pub(crate) fn pulse(&self, vm: &VmFd, gsi: u32) {
        let Some(edge) = self.0.get(gsi as usize) else {
            tracing::error!("interrupt {gsi}: the IO-APIC has inputs 0 to {}", INPUTS - 1);
            return;
        };
        let result =
            match edge.get_or_init(|| edge_event(vm, gsi).map_err(|error| error.to_string())) {
                Ok(event) => event.write(1).map_err(|error| error.to_string()),
                Err(error) => Err(error.clone()),
            };
        if let Err(error) = result {
            tracing::error!("interrupt {gsi}: {error}: the guest misses it");
        }
    }
}

fn edge_event(vm: &VmFd, gsi: u32) -> Result<EventFd, EngineError> {
    let event =
        EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(host("create an eventfd"))?;
    vm.register_irqfd(&event, gsi).map_err(refused(format!("register irqfd {gsi}")))?;
    Ok(event)
}
