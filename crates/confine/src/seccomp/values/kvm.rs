//! The requests of KVM that the engine makes.

use kvm_bindings::{
    kvm_clock_data, kvm_cpuid2, kvm_debugregs, kvm_device_attr, kvm_dirty_log, kvm_enable_cap,
    kvm_guest_debug, kvm_ioeventfd, kvm_irq_level, kvm_irq_routing, kvm_irqchip, kvm_irqfd,
    kvm_lapic_state, kvm_mp_state, kvm_msrs, kvm_regs, kvm_sregs, kvm_userspace_memory_region,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};

/// Directions of ioctl numbers: include/uapi/asm-generic/ioctl.h.
const NONE: u64 = 0;
const WRITE: u64 = 1;
const READ: u64 = 2;
/// KVMIO of include/uapi/linux/kvm.h.
const KVM: u64 = 0xae;

/// The number of a request.
pub(super) fn request(name: &str) -> Option<u64> {
    REQUESTS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// _IOC(direction, KVMIO, number, sizeof(T)).
const fn of<T>(direction: u64, number: u64) -> u64 {
    direction << 30 | (size_of::<T>() as u64) << 16 | KVM << 8 | number
}

#[rustfmt::skip]
const REQUESTS: &[(&str, u64)] = &[
    ("KVM_GET_API_VERSION", of::<()>(NONE, 0x00)),
    ("KVM_CREATE_VM", of::<()>(NONE, 0x01)),
    ("KVM_CHECK_EXTENSION", of::<()>(NONE, 0x03)),
    ("KVM_GET_VCPU_MMAP_SIZE", of::<()>(NONE, 0x04)),
    ("KVM_GET_SUPPORTED_CPUID", of::<kvm_cpuid2>(READ | WRITE, 0x05)),
    ("KVM_CREATE_VCPU", of::<()>(NONE, 0x41)),
    ("KVM_GET_DIRTY_LOG", of::<kvm_dirty_log>(WRITE, 0x42)),
    ("KVM_SET_USER_MEMORY_REGION", of::<kvm_userspace_memory_region>(WRITE, 0x46)),
    ("KVM_SET_TSS_ADDR", of::<()>(NONE, 0x47)),
    ("KVM_SET_IDENTITY_MAP_ADDR", of::<u64>(WRITE, 0x48)),
    ("KVM_CREATE_IRQCHIP", of::<()>(NONE, 0x60)),
    ("KVM_IRQ_LINE", of::<kvm_irq_level>(WRITE, 0x61)),
    ("KVM_GET_IRQCHIP", of::<kvm_irqchip>(READ | WRITE, 0x62)),
    ("KVM_SET_IRQCHIP", of::<kvm_irqchip>(READ, 0x63)),
    ("KVM_SET_GSI_ROUTING", of::<kvm_irq_routing>(WRITE, 0x6a)),
    ("KVM_IRQFD", of::<kvm_irqfd>(WRITE, 0x76)),
    ("KVM_IOEVENTFD", of::<kvm_ioeventfd>(WRITE, 0x79)),
    ("KVM_SET_CLOCK", of::<kvm_clock_data>(WRITE, 0x7b)),
    ("KVM_GET_CLOCK", of::<kvm_clock_data>(READ, 0x7c)),
    ("KVM_RUN", of::<()>(NONE, 0x80)),
    ("KVM_GET_REGS", of::<kvm_regs>(READ, 0x81)),
    ("KVM_SET_REGS", of::<kvm_regs>(WRITE, 0x82)),
    ("KVM_GET_SREGS", of::<kvm_sregs>(READ, 0x83)),
    ("KVM_SET_SREGS", of::<kvm_sregs>(WRITE, 0x84)),
    ("KVM_GET_MSRS", of::<kvm_msrs>(READ | WRITE, 0x88)),
    ("KVM_SET_MSRS", of::<kvm_msrs>(WRITE, 0x89)),
    ("KVM_GET_LAPIC", of::<kvm_lapic_state>(READ, 0x8e)),
    ("KVM_SET_LAPIC", of::<kvm_lapic_state>(WRITE, 0x8f)),
    ("KVM_SET_CPUID2", of::<kvm_cpuid2>(WRITE, 0x90)),
    ("KVM_GET_MP_STATE", of::<kvm_mp_state>(READ, 0x98)),
    ("KVM_SET_MP_STATE", of::<kvm_mp_state>(WRITE, 0x99)),
    ("KVM_SET_GUEST_DEBUG", of::<kvm_guest_debug>(WRITE, 0x9b)),
    ("KVM_GET_VCPU_EVENTS", of::<kvm_vcpu_events>(READ, 0x9f)),
    ("KVM_SET_VCPU_EVENTS", of::<kvm_vcpu_events>(WRITE, 0xa0)),
    ("KVM_GET_DEBUGREGS", of::<kvm_debugregs>(READ, 0xa1)),
    ("KVM_SET_DEBUGREGS", of::<kvm_debugregs>(WRITE, 0xa2)),
    ("KVM_SET_TSC_KHZ", of::<()>(NONE, 0xa2)),
    ("KVM_GET_TSC_KHZ", of::<()>(NONE, 0xa3)),
    ("KVM_ENABLE_CAP", of::<kvm_enable_cap>(WRITE, 0xa3)),
    ("KVM_GET_XSAVE", of::<kvm_xsave>(READ, 0xa4)),
    ("KVM_SET_XSAVE", of::<kvm_xsave>(WRITE, 0xa5)),
    ("KVM_GET_XCRS", of::<kvm_xcrs>(READ, 0xa6)),
    ("KVM_SET_XCRS", of::<kvm_xcrs>(WRITE, 0xa7)),
    ("KVM_KVMCLOCK_CTRL", of::<()>(NONE, 0xad)),
    ("KVM_RESET_DIRTY_RINGS", of::<()>(NONE, 0xc7)),
    ("KVM_GET_XSAVE2", of::<kvm_xsave>(READ, 0xcf)),
    ("KVM_SET_DEVICE_ATTR", of::<kvm_device_attr>(WRITE, 0xe1)),
    ("KVM_GET_DEVICE_ATTR", of::<kvm_device_attr>(WRITE, 0xe2)),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// As strace shows them.
    #[test]
    fn requests_have_the_kernels_numbers() {
        assert_eq!(request("KVM_RUN"), Some(0xae80));
        assert_eq!(request("KVM_SET_USER_MEMORY_REGION"), Some(0x4020_ae46));
        assert_eq!(request("KVM_GET_SUPPORTED_CPUID"), Some(0xc008_ae05));
        assert_eq!(request("KVM_GET_SREGS"), Some(0x8138_ae83));
        assert_eq!(request("KVM_WALK"), None);
    }

    #[test]
    fn no_two_requests_are_the_same() {
        let mut numbers: Vec<u64> = REQUESTS.iter().map(|(_, number)| *number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), REQUESTS.len());
    }
}
