//! The engine-neutral state of a vCPU, to and from.

use engine::EngineError;
use x86::model;
use x86::{Event, Msr, Segment, VcpuState, Vector, XSTATE_SIZE, cr0, cr4, efer, rflags};

use crate::instructions::{CR4_KNOWN, EFER_KNOWN, msr_load, msr_read};
use crate::system::{Answer, Core};
use crate::{clock, exceptions, segments};

/// Offset of XSTATE_BV in an XSAVE image.
const HEADER: usize = 512;

/// Everything, as of now.
pub(crate) fn save(core: &Core, waiting_for_sipi: bool) -> VcpuState {
    let (cpu, machine) = (&core.cpu, &core.machine);
    let regs = &machine.regs;
    let now = regs.guest_tsc(clock::host_tsc());
    let mut gpr = [0; 16];
    gpr.copy_from_slice(&cpu.regs[..16]);
    let [es, cs, ss, ds, fs, gs, ..] = cpu.segs;
    let value = |index: u32| msr_read(core, index).map(|value| Msr { index, value });
    let inbox = &machine.shared.vcpus[machine.id as usize].inbox;
    VcpuState {
        gpr,
        rip: cpu.rip(),
        rflags: cpu.rflags,
        es,
        cs,
        ss,
        ds,
        fs,
        gs,
        ldtr: regs.ldtr,
        tr: regs.tr,
        gdtr: regs.gdtr,
        idtr: regs.idtr,
        cr0: regs.cr0,
        cr2: regs.cr2,
        cr3: regs.cr3,
        cr4: regs.cr4,
        cr8: machine.apic.cr8(),
        xcr0: cpu.xcr0,
        efer: regs.efer,
        debug: regs.debug,
        xstate: image(core),
        msrs: model::saved_msrs(&machine.cpuid).into_iter().filter_map(value).collect(),
        apic: machine.apic.state(now),
        halted: machine.halted,
        waiting_for_sipi,
        interrupt_shadow: cpu.shadow,
        nmi_blocked: machine.nmi_blocked,
        event: machine.undelivered.or_else(|| inbox.has_nmi().then_some(Event::Nmi)),
    }
}

/// Whether `state` is one that this processor can be in.
pub(crate) fn check(core: &Core, state: &VcpuState) -> Result<(), EngineError> {
    let refuse = |what: String| Err(EngineError::State(what));
    for (name, value, known) in [
        ("cr4", state.cr4, CR4_KNOWN),
        ("efer", state.efer, EFER_KNOWN),
        ("xcr0", state.xcr0, xcr0_known(core)),
        ("xstate components", components(state), model::state_components(&core.machine.cpuid)),
    ] {
        if value & !known != 0 {
            let unknown = value & !known;
            return refuse(format!("{name} {value:#x}: this processor does not have {unknown:#x}"));
        }
    }
    if !matches!(state.apic.registers.len(), 0 | 64) {
        return refuse(format!(
            "the apic has {} registers, expected 64",
            state.apic.registers.len()
        ));
    }
    if state.xstate.len() != XSTATE_SIZE {
        return refuse(format!("xstate has {} bytes, expected {XSTATE_SIZE}", state.xstate.len()));
    }
    let long = state.efer & efer::LMA != 0;
    let paging = state.cr0 & cr0::PG != 0;
    if long != (paging && state.efer & efer::LME != 0) || long && state.cr4 & cr4::PAE == 0 {
        return refuse(format!(
            "cr0 {:#x}, cr4 {:#x} and efer {:#x} contradict each other",
            state.cr0, state.cr4, state.efer
        ));
    }
    if paging && !long {
        return refuse("32-bit paging: the interpreter has 4-level paging only".into());
    }
    if state.rflags & rflags::VM != 0 {
        return refuse("virtual-8086 mode: the interpreter does not have it".into());
    }
    Ok(())
}

fn xcr0_known(core: &Core) -> u64 {
    let [low, _, _, high] = core.machine.cpuid.registers(0xd, 0);
    (u64::from(low) | u64::from(high) << 32).max(1)
}

/// With all components that this processor has, for none is known to be in its initial state: without its bit in XSTATE_BV
/// a processor takes a component for that, whatever the image has (SDM volume 1, 13.8).
fn image(core: &Core) -> Vec<u8> {
    let mut image = core.cpu.fpu.image.to_vec();
    let components = model::state_components(&core.machine.cpuid);
    image[HEADER..HEADER + 8].copy_from_slice(&components.to_le_bytes());
    image
}

/// Those of the image that are not in their initial state: XSTATE_BV (SDM volume 1, 13.4.2).
fn components(state: &VcpuState) -> u64 {
    let field = state.xstate.get(HEADER..).and_then(|header| header.first_chunk());
    field.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Takes up the MSRs of a state. One that this processor does not have may hold only what it would after a
/// reset: then nothing is lost.
pub(crate) fn load_msrs(core: &mut Core, msrs: &[Msr]) -> Result<(), EngineError> {
    let id = core.machine.id;
    for msr in msrs {
        if !msr_load(core, msr.index, msr.value) && !model::is_reset(msr, id) {
            let Msr { index, value } = msr;
            return Err(EngineError::State(format!(
                "msr {index:#x} = {value:#x}: this processor does not have it, or not the value"
            )));
        }
    }
    Ok(())
}

/// Takes up a checked state but for its MSRs.
pub(crate) fn load(core: &mut Core, state: &VcpuState) {
    core.cpu.regs[..16].copy_from_slice(&state.gpr);
    core.cpu.rflags = state.rflags | rflags::FIXED;
    let all = [state.es, state.cs, state.ss, state.ds, state.fs, state.gs];
    core.cpu.segs[..6].copy_from_slice(&all);
    core.cpu.segs[6..].fill(Segment::default());
    core.cpu.fpu.image.copy_from_slice(&state.xstate);
    core.cpu.fpu.sanitize();
    core.cpu.xcr0 = state.xcr0;
    core.machine.xcr0 = state.xcr0;

    let regs = &mut core.machine.regs;
    (regs.ldtr, regs.tr) = (state.ldtr, state.tr);
    (regs.gdtr, regs.idtr) = (state.gdtr, state.idtr);
    (regs.cr0, regs.cr2, regs.cr3, regs.cr4) = (state.cr0, state.cr2, state.cr3, state.cr4);
    regs.efer = state.efer;
    regs.debug = state.debug;
    let now = core.machine.regs.guest_tsc(clock::host_tsc());
    if !state.apic.registers.is_empty() {
        core.machine.apic.set_state(&state.apic, now);
    }
    core.machine.apic.set_cr8(state.cr8);

    core.machine.flush_all();
    core.machine.switch_space();
    core.machine.update_breakpoints(true);
    // Privilege is that of SS in protected mode: CS may be conforming.
    let cpl = if segments::real_mode(core) { 0 } else { state.ss.dpl() };
    segments::enter_code(core, state.cs, cpl);
    core.cpu.set_rip(state.rip);
    let machine = &mut core.machine;
    machine.halted = state.halted;
    machine.shutdown = false;
    core.cpu.shadow = state.interrupt_shadow;
    machine.nmi_blocked = state.nmi_blocked;
    machine.exits.clear();
    machine.answer = Answer::None;
    machine.end = false;
    machine.undelivered = None;
    match state.event {
        Some(Event::Nmi) => machine.shared.vcpus[machine.id as usize].inbox.request_nmi(),
        Some(Event::Exception(exception)) if exception.vector == Vector::BP => {
            exceptions::deliver_int3(core);
        }
        // An event in mid-delivery is delivered now.
        Some(event) => exceptions::deliver(core, event),
        None => {}
    }
}
