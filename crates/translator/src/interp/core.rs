//! A processor core and its loop over a block.

use crate::cpu::{Cpu, REG_RIP};
use crate::insn::Insn;
use crate::machine::{Machine, Stop};

/// Registers together with what they are plugged into.
pub struct Core<M: Machine> {
    /// The registers.
    pub cpu: Cpu,
    /// Memory and privilege.
    pub machine: M,
}

/// How a block ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// All instructions completed (or the last one run ended the block early); RIP is where to go on.
    Done,
    /// An exception was raised; RIP points to the instruction that raised it.
    Fault,
    /// RIP points to an instruction that has to run again.
    Retry,
}

impl<M: Machine> Core<M> {
    /// Runs a block's instructions, to which RIP points, or the first only where `single` is set.
    #[inline]
    pub fn run_block(&mut self, insns: &[Insn<M>], single: bool) -> Outcome {
        let insns = if single { &insns[..1] } else { insns };
        let mask = self.cpu.width.mask();
        // Only a block's last instruction writes RIP itself, so it need not be read back between.
        let mut rip = self.cpu.rip();
        for (done, insn) in insns.iter().enumerate() {
            let start = rip;
            rip = start.wrapping_add(u64::from(insn.len)) & mask;
            self.cpu.regs[REG_RIP as usize] = rip;
            if let Err(stop) = (insn.handler)(self, insn) {
                return self.stopped(stop, start, done as u64);
            }
            if self.machine.must_end() {
                return self.stopped(Stop::End, start, done as u64);
            }
        }
        self.cpu.retired += insns.len() as u64;
        Outcome::Done
    }

    #[cold]
    fn stopped(&mut self, stop: Stop, start: u64, done: u64) -> Outcome {
        self.cpu.retired += done;
        match stop {
            Stop::End => {
                self.cpu.retired += 1;
                Outcome::Done
            }
            Stop::Fault => {
                self.cpu.set_rip(start);
                Outcome::Fault
            }
            Stop::Retry => {
                self.cpu.set_rip(start);
                Outcome::Retry
            }
        }
    }
}
