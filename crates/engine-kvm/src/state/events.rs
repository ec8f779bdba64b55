//! What is being delivered, and what blocks delivery.

use engine::EngineError;
use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_STI,
    kvm_vcpu_events,
};
use kvm_ioctls::VcpuFd;
use x86::{Event, Exception, VcpuState, Vector};

use crate::error::refused;

pub(super) fn save(fd: &VcpuFd, state: &mut VcpuState) -> Result<(), EngineError> {
    let events = read(fd)?;
    state.interrupt_shadow = events.interrupt.shadow != 0;
    state.nmi_blocked = events.nmi.masked != 0;
    state.event = event(&events, state.cr2);
    Ok(())
}

/// CR2 is set when a page fault is raised, before it is delivered.
fn event(events: &kvm_vcpu_events, cr2: u64) -> Option<Event> {
    let exception = &events.exception;
    if exception.injected != 0 {
        let error_code = if exception.has_error_code != 0 { exception.error_code } else { 0 };
        let vector = Vector(exception.nr);
        let address = if vector == Vector::PF { cr2 } else { 0 };
        return Some(Event::Exception(Exception { vector, error_code, address }));
    }
    if events.interrupt.injected != 0 {
        return Some(Event::Interrupt(events.interrupt.nr));
    }
    (events.nmi.injected != 0 || events.nmi.pending != 0).then_some(Event::Nmi)
}

pub(super) fn load(fd: &VcpuFd, state: &VcpuState) -> Result<(), EngineError> {
    let mut events = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    if state.interrupt_shadow {
        events.interrupt.shadow = KVM_X86_SHADOW_INT_STI as u8;
    }
    events.nmi.masked = state.nmi_blocked.into();
    match state.event {
        Some(Event::Exception(Exception { vector, error_code, .. })) => {
            events.exception.injected = 1;
            events.exception.nr = vector.0;
            events.exception.has_error_code = vector.has_error_code().into();
            events.exception.error_code = error_code;
        }
        Some(Event::Interrupt(vector)) => {
            events.interrupt.injected = 1;
            events.interrupt.nr = vector;
        }
        Some(Event::Nmi) => events.nmi.pending = 1,
        None => {}
    }
    fd.set_vcpu_events(&events).map_err(refused("set a vcpu's events"))
}

fn read(fd: &VcpuFd) -> Result<kvm_vcpu_events, EngineError> {
    fd.get_vcpu_events().map_err(refused("read a vcpu's events"))
}
