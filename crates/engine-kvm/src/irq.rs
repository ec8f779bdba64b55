//! Interrupt lines: the IO-APIC's inputs, and eventfds that pulse them.

use std::sync::OnceLock;

use engine::EngineError;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_irqchip,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::error::{host, refused};

/// Inputs of the IO-APIC.
const INPUTS: usize = 24;

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
