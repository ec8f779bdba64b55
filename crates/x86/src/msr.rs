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
/// Ratios and what can be changed of the platform.
pub const PLATFORM_INFO: u32 = 0xce;
/// MTRR capabilities.
pub const MTRR_CAP: u32 = 0xfe;
/// What the processor is not vulnerable to.
pub const ARCH_CAPABILITIES: u32 = 0x10a;
/// Cache flush command.
pub const FLUSH_CMD: u32 = 0x10b;
/// CPUID faulting and the like.
pub const MISC_FEATURES_ENABLES: u32 = 0x140;
/// SYSENTER code segment.
pub const SYSENTER_CS: u32 = 0x174;
/// SYSENTER stack pointer.
pub const SYSENTER_ESP: u32 = 0x175;
/// SYSENTER instruction pointer.
pub const SYSENTER_EIP: u32 = 0x176;
/// Miscellaneous feature enables.
pub const MISC_ENABLE: u32 = 0x1a0;
/// Branch tracing and single-stepping by branch.
pub const DEBUGCTL: u32 = 0x1d9;
/// First of the variable MTRRs: base and mask by turns.
pub const MTRR_VARIABLE: u32 = 0x200;
/// Fixed MTRR of eight times 64 KiB from 0.
pub const MTRR_FIX64K: u32 = 0x250;
/// First of two fixed MTRRs of eight times 16 KiB from 0x80000.
pub const MTRR_FIX16K: u32 = 0x258;
/// First of eight fixed MTRRs of eight times 4 KiB from 0xc0000.
pub const MTRR_FIX4K: u32 = 0x268;
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
/// Supervisor state components that XSAVES handles.
pub const XSS: u32 = 0xda0;
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
/// AMD: hardware configuration.
pub const HWCR: u32 = 0xc001_0015;
/// AMD: speculative store bypass, for guests.
pub const VIRT_SPEC_CTRL: u32 = 0xc001_011f;
/// AMD: whether LFENCE waits.
pub const DE_CFG: u32 = 0xc001_1029;
/// KVM: wall clock, new numbering.
pub const KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
/// KVM: per-vCPU system time page, new numbering.
pub const KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
/// KVM: end of interrupt without an exit.
pub const KVM_PV_EOI: u32 = 0x4b56_4d04;
