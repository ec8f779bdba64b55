//! Privileged registers of a vCPU.

use translator::native::Calls;
use x86::{DescriptorTable, Msr, Segment, cr0, cr4, efer, msr, rflags};

use crate::mtrr::Mtrrs;
use crate::segments;
use crate::walk::Paging;

/// What instructions of privilege level 0 read and write.
#[derive(Clone, Debug)]
pub(crate) struct Registers {
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) efer: u64,
    pub(crate) gdtr: DescriptorTable,
    pub(crate) idtr: DescriptorTable,
    pub(crate) ldtr: Segment,
    pub(crate) tr: Segment,
    /// DR0 to DR3, DR6, DR7.
    pub(crate) debug: [u64; 6],
    pub(crate) star: u64,
    pub(crate) lstar: u64,
    /// What follows from these for generated code: see [`Registers::update_calls`].
    calls: Calls,
    pub(crate) cstar: u64,
    pub(crate) sfmask: u64,
    pub(crate) tsc_aux: u64,
    pub(crate) sysenter_cs: u64,
    pub(crate) sysenter_esp: u64,
    pub(crate) sysenter_eip: u64,
    pub(crate) pat: u64,
    pub(crate) misc_enable: u64,
    pub(crate) arch_capabilities: u64,
    pub(crate) mtrrs: Mtrrs,
    pub(crate) spec_ctrl: u64,
    pub(crate) system_time: u64,
    /// Of the record that was written last; even.
    pub(crate) system_time_version: u32,
    pub(crate) wall_clock: u64,
    /// Added to the host's TSC.
    pub(crate) tsc_offset: u64,
    pub(crate) tsc_adjust: u64,
}

impl Registers {
    /// As after a reset; `tsc_offset` makes the guest's TSC, `msrs` are the model's.
    pub(crate) fn new(tsc_offset: u64, msrs: &[Msr]) -> Self {
        let of_model =
            |index| msrs.iter().find(|msr| msr.index == index).map_or(0, |msr| msr.value);
        let none = DescriptorTable { base: 0, limit: 0xffff };
        let mut regs = Self {
            cr0: cr0::ET | cr0::NW | cr0::CD,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            gdtr: none,
            idtr: none,
            ldtr: Segment::default(),
            tr: Segment::default(),
            debug: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
            star: 0,
            lstar: 0,
            calls: Calls::default(),
            cstar: 0,
            sfmask: 0,
            tsc_aux: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            // WB, WT, UC-, UC, twice (SDM volume 3, 12.12.4).
            pat: 0x0007_0406_0007_0406,
            misc_enable: of_model(msr::MISC_ENABLE),
            arch_capabilities: of_model(msr::ARCH_CAPABILITIES),
            mtrrs: Mtrrs::new(),
            spec_ctrl: 0,
            system_time: 0,
            system_time_version: 0,
            wall_clock: 0,
            tsc_offset,
            tsc_adjust: 0,
        };
        regs.update_calls();
        regs
    }

    /// After a change of STAR, LSTAR or SFMASK.
    pub(crate) fn update_calls(&mut self) {
        let (inner, outer) = (segments::call(self.star), segments::call_return(self.star, true));
        let kept = !(self.sfmask | rflags::RF);
        self.calls = Calls { target: self.lstar, kept, inner, outer };
    }

    /// What SYSCALL and SYSRET load, if there are such instructions.
    pub(crate) fn calls(&self) -> Option<&Calls> {
        (self.efer & efer::SCE != 0).then_some(&self.calls)
    }

    /// What a page walk depends on.
    pub(crate) fn paging(&self) -> Paging {
        Paging {
            cr3: self.cr3,
            enabled: self.cr0 & cr0::PG != 0,
            write_protect: self.cr0 & cr0::WP != 0,
            no_execute: self.efer & efer::NXE != 0,
            smep: self.cr4 & cr4::SMEP != 0,
            global: self.cr4 & cr4::PGE != 0,
        }
    }

    /// Whether 64-bit mode or compatibility mode is active.
    pub(crate) fn long_mode(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// The number of this address space in the TLB: its process-context identifier.
    pub(crate) fn asid(&self) -> u64 {
        if self.cr4 & cr4::PCIDE == 0 { 0 } else { self.cr3 & 0xfff }
    }

    /// The guest's TSC for a host TSC.
    pub(crate) fn guest_tsc(&self, host: u64) -> u64 {
        host.wrapping_add(self.tsc_offset)
    }
}
