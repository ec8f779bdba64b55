//! The local APIC: KVM's register page has a word every 16 bytes, as the neutral state counts them.

use engine::EngineError;
use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::VcpuFd;
use x86::{ApicState, Msr, msr};

use super::msrs;
use crate::error::refused;

const WORDS: usize = 64;
const STRIDE: usize = 16;

pub(super) fn save(fd: &VcpuFd) -> Result<ApicState, EngineError> {
    let page = fd.get_lapic().map_err(refused("read a vcpu's APIC"))?;
    let word = |index: usize| {
        let at = index * STRIDE;
        let byte = |offset: usize| page.regs[at + offset] as u8;
        u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
    };
    let tsc_deadline = msrs::read(fd, msr::TSC_DEADLINE)?.unwrap_or(0);
    Ok(ApicState { registers: (0..WORDS).map(word).collect(), tsc_deadline })
}

/// A state without registers leaves the APIC as it is after a reset.
pub(super) fn load(fd: &VcpuFd, state: &ApicState) -> Result<(), EngineError> {
    if state.registers.is_empty() {
        return Ok(());
    }
    if state.registers.len() != WORDS {
        let found = state.registers.len();
        return Err(EngineError::State(format!(
            "the APIC has {found} registers, expected {WORDS}"
        )));
    }
    let mut page = kvm_lapic_state::default();
    for (index, word) in state.registers.iter().enumerate() {
        for (offset, byte) in word.to_le_bytes().into_iter().enumerate() {
            page.regs[index * STRIDE + offset] = byte.cast_signed();
        }
    }
    fd.set_lapic(&page)
        .map_err(|errno| EngineError::State(format!("the APIC: KVM refuses it: {errno}")))
}

/// The deadline, once the TSC and the timer's mode are there.
pub(super) fn load_deadline(fd: &VcpuFd, id: u32, state: &ApicState) -> Result<(), EngineError> {
    if state.registers.is_empty() {
        return Ok(());
    }
    msrs::load(fd, id, &[Msr { index: msr::TSC_DEADLINE, value: state.tsc_deadline }])
}

/// `kvm_lapic_state` holds C characters.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_words_have_their_place() {
        assert_eq!(size_of::<kvm_lapic_state>(), WORDS * STRIDE);
    }
}
