//! What a vCPU that failed on the host side was doing.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use engine::Vcpu;
use x86::VcpuState;

use crate::exit_ring::ExitRing;

/// Logs the vCPU's last exits and its state, one line each; never panics.
pub(crate) fn log(id: u32, vcpu: &dyn Vcpu, exits: &ExitRing) {
    for line in exits.lines() {
        tracing::error!("vcpu {id}: {line}");
    }
    for line in state(vcpu) {
        tracing::error!("vcpu {id}: {line}");
    }
}

/// Logs the state of a vCPU whose guest has failed, one line each; never panics.
pub(crate) fn log_state(id: u32, vcpu: &dyn Vcpu) {
    for line in state(vcpu) {
        tracing::warn!("vcpu {id}: {line}");
    }
}

/// An engine that has just failed may fail again when asked for the state.
fn state(vcpu: &dyn Vcpu) -> Vec<String> {
    match catch_unwind(AssertUnwindSafe(|| vcpu.state())) {
        Ok(Ok(state)) => registers(&state),
        Ok(Err(error)) => vec![format!("its state is not to be had: {error}")],
        Err(panic) => vec![format!("its state is not to be had: panic: {}", message(&*panic))],
    }
}

/// What a panic said.
pub(crate) fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// The registers of a vCPU, some lines.
pub(crate) fn registers(state: &VcpuState) -> Vec<String> {
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    let VcpuState { rip, rflags, cs, ss, fs, gs, tr, .. } = state;
    let mut lines = vec![format!(
        "rip {rip:#x} rflags {rflags:#x} cs {:#x} attributes {:#x} ss {:#x} fs {:#x} gs {:#x} tr {:#x}",
        cs.selector, cs.attributes, ss.selector, fs.base, gs.base, tr.base
    )];
    let named: Vec<_> =
        NAMES.iter().zip(state.gpr).map(|(name, value)| format!("{name} {value:#x}")).collect();
    lines.extend(named.chunks(4).map(|four| four.join(" ")));
    let VcpuState { cr0, cr2, cr3, cr4, cr8, efer, gdtr, idtr, .. } = state;
    lines.push(format!(
        "cr0 {cr0:#x} cr2 {cr2:#x} cr3 {cr3:#x} cr4 {cr4:#x} cr8 {cr8:#x} efer {efer:#x} \
         gdt {:#x} idt {:#x}",
        gdtr.base, idtr.base
    ));
    let VcpuState { halted, waiting_for_sipi, interrupt_shadow, nmi_blocked, event, .. } = state;
    lines.push(format!(
        "halted {halted} waiting for SIPI {waiting_for_sipi} interrupt shadow {interrupt_shadow} \
         NMI blocked {nmi_blocked} event {event:?}"
    ));
    lines
}
