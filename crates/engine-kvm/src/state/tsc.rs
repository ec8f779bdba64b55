//! The time-stamp counter, exactly.
//!
//! A TSC written as an MSR is taken for an attempt to synchronise vCPUs where it is less than a second away
//! from the others', and then not taken up (Linux `kvm_synchronize_tsc`). The offset to the host's TSC is
//! (Linux 5.16, `Documentation/virt/kvm/devices/vcpu.rst`).

use engine::EngineError;
use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;
use x86::{Msr, msr};

use super::msrs;

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

pub(super) fn load(fd: &VcpuFd, id: u32, value: u64) -> Result<(), EngineError> {
    let now = msrs::read(fd, msr::TSC)?.unwrap_or(0);
    let moved =
        offset(fd).and_then(|offset| set_offset(fd, offset.wrapping_add(value.wrapping_sub(now))));
    match moved {
        Some(()) => Ok(()),
        None => msrs::load(fd, id, &[Msr { index: msr::TSC, value }]),
    }
}

/// `None` where this KVM does not tell.
pub(super) fn offset(fd: &VcpuFd) -> Option<u64> {
    let mut offset = 0u64;
    let attribute = attribute((&raw mut offset).addr() as u64);
    // SAFETY: KVM writes the eight bytes of `offset`, which lives on.
    let done = unsafe { ioctl_with_ref(fd, KVM_GET_DEVICE_ATTR(), &attribute) };
    (done == 0).then_some(offset)
}

pub(super) fn set_offset(fd: &VcpuFd, offset: u64) -> Option<()> {
    let attribute = attribute((&raw const offset).addr() as u64);
    // SAFETY: KVM reads the eight bytes of `offset`, which lives on.
    let done = unsafe { ioctl_with_ref(fd, KVM_SET_DEVICE_ATTR(), &attribute) };
    (done == 0).then_some(())
}

fn attribute(addr: u64) -> kvm_device_attr {
    kvm_device_attr { group: KVM_VCPU_TSC_CTRL, attr: KVM_VCPU_TSC_OFFSET.into(), addr, flags: 0 }
}
