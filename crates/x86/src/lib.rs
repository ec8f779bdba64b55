//! The x86-64 architecture as data: registers, CPUID, MSRs, descriptors, page tables.
