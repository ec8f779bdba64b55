//! The engine-neutral state of a vCPU, to and from KVM.

mod apic;
mod events;
mod msrs;
mod registers;
mod tsc;
mod xstate;

use engine::EngineError;
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_UNINITIALIZED, kvm_mp_state,
};
use kvm_ioctls::VcpuFd;
use x86::{Msr, VcpuState, XSTATE_SIZE, msr};

use crate::error::refused;

/// What makes the guest's TSC from the host's.
pub(crate) fn tsc_offset(fd: &VcpuFd) -> Option<u64> {
    tsc::offset(fd)
}

pub(crate) fn set_tsc_offset(fd: &VcpuFd, offset: u64) -> Result<(), EngineError> {
    tsc::set_offset(fd, offset).ok_or_else(|| EngineError::Host {
        action: "set a vcpu's TSC offset".into(),
        source: std::io::Error::last_os_error(),
    })
}

/// IA32_APIC_BASE: global enable and x2APIC mode (SDM volume 3, 11.12.1).
const X2APIC: u64 = 1 << 11 | 1 << 10;

/// Brings a new vCPU to where vCPUs of every engine start: in x2APIC mode, and all but the first waiting
/// for a start-up IPI.
pub(crate) fn start(fd: &VcpuFd, id: u32) -> Result<(), EngineError> {
    let mut sregs = fd.get_sregs().map_err(refused(format!("read the registers of vcpu {id}")))?;
    sregs.apic_base |= X2APIC;
    fd.set_sregs(&sregs).map_err(refused(format!("switch the APIC of vcpu {id} to x2APIC")))?;
    if id != 0 {
        set_mp_state(fd, KVM_MP_STATE_INIT_RECEIVED)?;
    }
    Ok(())
}

/// Everything, as of now. The vCPU does not run and KVM waits for no answer.
pub(crate) fn save(
    fd: &VcpuFd,
    components: u64,
    saved_msrs: &[u32],
) -> Result<VcpuState, EngineError> {
    let mut state = VcpuState::reset();
    let mp_state = fd.get_mp_state().map_err(refused("read a vcpu's run state"))?.mp_state;
    state.halted = mp_state == KVM_MP_STATE_HALTED;
    state.waiting_for_sipi =
        matches!(mp_state, KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED);
    registers::save(fd, &mut state)?;
    state.xstate = xstate::save(fd, components)?;
    state.xcr0 = xstate::xcr0(fd)?;
    state.msrs = msrs::save(fd, saved_msrs)?;
    state.apic = apic::save(fd)?;
    events::save(fd, &mut state)?;
    Ok(state)
}

/// Takes up a state of vCPU `id`, whose processor has these components of vector state.
pub(crate) fn load(
    fd: &VcpuFd,
    id: u32,
    components: u64,
    state: &VcpuState,
) -> Result<(), EngineError> {
    if state.xstate.len() != XSTATE_SIZE {
        let found = state.xstate.len();
        return Err(EngineError::State(format!(
            "xstate has {found} bytes, expected {XSTATE_SIZE}"
        )));
    }
    // Runnable first: KVM takes no events into a vCPU that waits for its start-up IPI.
    set_mp_state(fd, KVM_MP_STATE_RUNNABLE)?;
    // The APIC after the mode that it is in, before CR8, which is part of it, and before the deadline, which
    // it would forget.
    let value =
        |index| state.msrs.iter().find(|entry| entry.index == index).map(|entry| entry.value);
    if let Some(value) = value(msr::APIC_BASE) {
        msrs::load(fd, id, &[Msr { index: msr::APIC_BASE, value }])?;
    }
    apic::load(fd, &state.apic)?;
    registers::load(fd, state)?;
    xstate::load(fd, components, state.xcr0, &state.xstate)?;
    if let Some(value) = value(msr::TSC) {
        tsc::load(fd, id, value)?;
    }
    let apart = |entry: &&Msr| !matches!(entry.index, msr::APIC_BASE | msr::TSC);
    let rest: Vec<_> = state.msrs.iter().filter(apart).copied().collect();
    msrs::load(fd, id, &rest)?;
    apic::load_deadline(fd, id, &state.apic)?;
    events::load(fd, state)?;
    set_mp_state(
        fd,
        match (state.waiting_for_sipi, state.halted) {
            (true, _) => KVM_MP_STATE_INIT_RECEIVED,
            (false, true) => KVM_MP_STATE_HALTED,
            (false, false) => KVM_MP_STATE_RUNNABLE,
        },
    )
}

fn set_mp_state(fd: &VcpuFd, mp_state: u32) -> Result<(), EngineError> {
    fd.set_mp_state(kvm_mp_state { mp_state }).map_err(refused("set a vcpu's run state"))
}
