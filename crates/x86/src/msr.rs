//! Model-specific registers by number (SDM volume 4; Linux `Documentation/virt/kvm/x86/msr.rst`).

/// Time-stamp counter.
pub const TSC: u32 = 0x10;
/// Local APIC base, enable and x2APIC bits.
pub const APIC_BASE: u32 = 0x1b;
/// Adds to the time-stamp counter.
pub const TSC_ADJUST: u32 = 0x3b;
/// Speculation control.
pub const SPEC_CTRL: u32 = 0x48;
/// Prediction command (IBPB).
pub const PRED_CMD: u32 = 0x49;
/// Microcode revision.
pub const BIOS_SIGN_ID: u32 = 0x8b;
/// MTRR capabilities.
pub const MTRR_CAP: u32 = 0xfe;
/// What the processor is not vulnerable to.
pub const ARCH_CAPABILITIES: u32 = 0x10a;
/// Cache flush command.
pub const FLUSH_CMD: u32 = 0x10b;
/// SYSENTER code segment.
pub const SYSENTER_CS: u32 = 0x174;
/// SYSENTER stack pointer.
pub const SYSENTER_ESP: u32 = 0x175;
/// SYSENTER instruction pointer.
pub const SYSENTER_EIP: u32 = 0x176;
/// Machine-check capabilities.
pub const MCG_CAP: u32 = 0x179;
/// Machine-check status.
pub const MCG_STATUS: u32 = 0x17a;
/// Miscellaneous feature enables.
pub const MISC_ENABLE: u32 = 0x1a0;
/// Page attribute table.
pub const PAT: u32 = 0x277;
/// MTRR default type.
pub const MTRR_DEF_TYPE: u32 = 0x2ff;
/// TSC deadline of the local APIC timer.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// First MSR of the x2APIC register space.
pub const X2APIC_FIRST: u32 = 0x800;
/// Last MSR of the x2APIC register space.
pub const X2APIC_LAST: u32 = 0x8ff;
/// Extended feature enables.
pub const EFER: u32 = 0xc000_0080;
/// SYSCALL/SYSRET selectors, legacy EIP.
pub const STAR: u32 = 0xc000_0081;
/// SYSCALL target in 64-bit mode.
pub const LSTAR: u32 = 0xc000_0082;
/// SYSCALL target in compatibility mode.
pub const CSTAR: u32 = 0xc000_0083;
/// RFLAGS cleared by SYSCALL.
pub const SFMASK: u32 = 0xc000_0084;
/// Base of FS.
pub const FS_BASE: u32 = 0xc000_0100;
/// Base of GS.
pub const GS_BASE: u32 = 0xc000_0101;
/// Exchanged with GS base by SWAPGS.
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// Read by RDTSCP and RDPID.
pub const TSC_AUX: u32 = 0xc000_0103;
/// KVM: wall clock, new numbering.
pub const KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
/// KVM: per-vCPU system time page, new numbering.
pub const KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
