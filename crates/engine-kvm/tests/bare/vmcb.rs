//! A virtual machine control block and what belongs to it, at the end of RAM (APM volume 2, 15.5 and
//! appendix B).

use engine::conformance::layout::RAM;
use x86::{DescriptorTable, Event, Segment, VcpuState, msr};

/// Where VMRUN puts the host's state.
pub(super) const HOST_SAVE: u64 = RAM - 0x1000;
pub(super) const VMCB: u64 = RAM - 0x2000;
const MSR_MAP: u64 = RAM - 0x4000;
const PORT_MAP: u64 = RAM - 0x8000;
/// All of it.
pub(super) const START: u64 = PORT_MAP;

/// EFER: there is VMRUN.
pub(super) const SVME: u64 = 1 << 12;
pub(super) const EXIT_CODE: u32 = 0x70;
pub(super) const RIP: u32 = 0x578;
pub(super) const EXIT_MSR: u32 = 0x7c;
pub(super) const EXIT_SHUTDOWN: u32 = 0x7f;

const INTERCEPT_MSRS: u32 = 1 << 28;
const INTERCEPT_SHUTDOWN: u32 = 1 << 31;
const INTERCEPT_VMRUN: u32 = 1;
const VIRTUAL_IRQ: u32 = 1 << 8;
const IGNORE_PRIORITY: u32 = 1 << 20;
const INJECT_EXCEPTION: u32 = 1 << 31 | 3 << 8;
/// x2APIC registers in the map of intercepted MSRs, which has two bits for each.
const X2APIC: std::ops::Range<usize> = 0x800 / 4..0x900 / 4;
/// Where in the local APIC's state the first word of requests is.
const REQUESTS: usize = 0x20;

/// The bytes from [`START`] to the end of RAM with which VMLOAD and VMRUN start `state`.
///
/// Its x2APIC's registers are intercepted, as the processor has none. The highest interrupt that is
/// requested there is requested.
pub(super) fn for_state(state: &VcpuState) -> Vec<u8> {
    let mut bytes = vec![0; (RAM - START) as usize];
    bytes[(MSR_MAP - START) as usize..][X2APIC].fill(0xff);
    let block = Block(&mut bytes[(VMCB - START) as usize..][..0x1000]);
    control(block, state);
    let block = Block(&mut bytes[(VMCB - START) as usize..][..0x1000]);
    save(block, state);
    bytes
}

struct Block<'a>(&'a mut [u8]);

impl Block<'_> {
    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&bytes);
    }

    fn segment(&mut self, at: usize, from: &Segment) {
        let attributes = from.attributes & 0xff | from.attributes >> 4 & 0xf00;
        self.put(at, from.selector.to_le_bytes());
        self.put(at + 2, attributes.to_le_bytes());
        self.put(at + 4, from.limit.to_le_bytes());
        self.put(at + 8, from.base.to_le_bytes());
    }

    fn table(&mut self, at: usize, from: &DescriptorTable) {
        self.put(at + 4, u32::from(from.limit).to_le_bytes());
        self.put(at + 8, from.base.to_le_bytes());
    }
}

fn control(mut block: Block<'_>, state: &VcpuState) {
    block.put(0x00c, (INTERCEPT_MSRS | INTERCEPT_SHUTDOWN).to_le_bytes());
    block.put(0x010, INTERCEPT_VMRUN.to_le_bytes());
    block.put(0x040, PORT_MAP.to_le_bytes());
    block.put(0x048, MSR_MAP.to_le_bytes());
    // An address space of its own.
    block.put(0x058, 1u32.to_le_bytes());
    if let Some(vector) = requested(state) {
        block.put(0x060, (VIRTUAL_IRQ | IGNORE_PRIORITY).to_le_bytes());
        block.put(0x064, vector.to_le_bytes());
    }
    if let Some(Event::Exception(exception)) = state.event {
        let code = u32::from(exception.vector.has_error_code()) << 11;
        block.put(0x0a8, (INJECT_EXCEPTION | code | u32::from(exception.vector.0)).to_le_bytes());
        block.put(0x0ac, exception.error_code.to_le_bytes());
    }
    block.put(0x068, u64::from(state.interrupt_shadow).to_le_bytes());
}

fn requested(state: &VcpuState) -> Option<u32> {
    let words = state.apic.registers.iter().skip(REQUESTS).take(8);
    let vector =
        |(index, word): (usize, &u32)| word.checked_ilog2().map(|bit| index as u32 * 32 + bit);
    words.enumerate().filter_map(vector).max()
}

fn save(mut block: Block<'_>, state: &VcpuState) {
    for (at, segment) in [
        (0x400, &state.es),
        (0x410, &state.cs),
        (0x420, &state.ss),
        (0x430, &state.ds),
        (0x440, &state.fs),
        (0x450, &state.gs),
        (0x470, &state.ldtr),
        (0x490, &state.tr),
    ] {
        block.segment(at, segment);
    }
    block.table(0x460, &state.gdtr);
    block.table(0x480, &state.idtr);
    let [.., dr6, dr7] = state.debug;
    let named = |index| state.msrs.iter().find(|msr| msr.index == index).map_or(0, |msr| msr.value);
    for (at, value) in [
        (0x4d0, state.efer | SVME),
        (0x548, state.cr4),
        (0x550, state.cr3),
        (0x558, state.cr0),
        (0x560, dr7),
        (0x568, dr6),
        (0x570, state.rflags),
        (RIP as usize, state.rip),
        (0x5d8, state.gpr[x86::Gpr::Rsp as usize]),
        (0x5f8, state.gpr[x86::Gpr::Rax as usize]),
        (0x600, named(msr::STAR)),
        (0x608, named(msr::LSTAR)),
        (0x610, named(msr::CSTAR)),
        (0x618, named(msr::SFMASK)),
        (0x640, state.cr2),
    ] {
        block.put(at, value.to_le_bytes());
    }
}
