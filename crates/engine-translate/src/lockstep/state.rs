//! What of a core an innocuous instruction changes.

use translator::Cpu;
use x86::{Segment, XSTATE_SIZE};

/// See the module. Kept and put back for every piece: without memory of its own.
pub(super) struct State {
    pub(super) regs: [u64; 32],
    pub(super) rflags: u64,
    pub(super) segs: [Segment; 8],
    pub(super) image: [u8; XSTATE_SIZE],
    pub(super) retired: u64,
}

impl State {
    pub(super) fn of(cpu: &Cpu) -> Self {
        let Cpu { regs, rflags, segs, retired, .. } = *cpu;
        Self { regs, rflags, segs, image: cpu.fpu.image, retired }
    }

    pub(super) fn keep(&mut self, cpu: &Cpu) {
        self.regs = cpu.regs;
        self.rflags = cpu.rflags;
        self.segs = cpu.segs;
        self.image.copy_from_slice(&cpu.fpu.image);
        self.retired = cpu.retired;
    }

    pub(super) fn put_back(&self, cpu: &mut Cpu) {
        cpu.regs = self.regs;
        cpu.rflags = self.rflags;
        cpu.segs = self.segs;
        cpu.fpu.image.copy_from_slice(&self.image);
        cpu.retired = self.retired;
    }

    /// Whether `cpu` has the same, as for RFLAGS the bits in `flags`. Generated code does not count instructions.
    pub(super) fn is_in(&self, cpu: &Cpu, flags: u64) -> bool {
        self.regs == cpu.regs
            && (self.rflags ^ cpu.rflags) & flags == 0
            && self.segs == cpu.segs
            && self.image == cpu.fpu.image
    }

    pub(super) fn rip(&self) -> u64 {
        self.regs[translator::REG_RIP as usize]
    }
}
