//! Registers of an instruction that the host keeps elsewhere.

use iced_x86::{
    Instruction, InstructionInfoFactory, InstructionInfoOptions, OpAccess, OpKind, Register,
};

use super::fields::host;

pub(super) fn writes(access: OpAccess) -> bool {
    use OpAccess::{CondWrite, ReadCondWrite, ReadWrite, Write};
    matches!(access, Write | CondWrite | ReadWrite | ReadCondWrite)
}

/// Whether it may write its memory operand.
pub(super) fn writes_memory(instr: &Instruction, factory: &mut InstructionInfoFactory) -> bool {
    let info = factory.info_options(instr, InstructionInfoOptions::NO_REGISTER_USAGE);
    info.used_memory().iter().any(|used| writes(used.access()))
}

/// The guest's registers among an instruction's operands that are in none of the host's.
pub(super) struct Spilled {
    /// Slot, and the scratch register that stands for it.
    pub(super) pairs: Vec<(u8, u8)>,
    /// Bit by slot: an operand that is written.
    pub(super) written: u16,
}

impl Spilled {
    pub(super) fn of(instr: &Instruction, scratch: &[u8]) -> Option<Self> {
        let mut spilled = Self { pairs: Vec::new(), written: 0 };
        for op in 0..instr.op_count() {
            if instr.op_kind(op) != OpKind::Register || !instr.op_register(op).is_gpr() {
                continue;
            }
            let slot = instr.op_register(op).full_register().number() as u8;
            if host(slot).is_some() {
                continue;
            }
            if !spilled.pairs.iter().any(|&(known, _)| known == slot) {
                let &free = scratch.get(spilled.pairs.len())?;
                spilled.pairs.push((slot, free));
            }
            // Whether it really is written does not matter: it is loaded first.
            spilled.written |= 1 << slot;
        }
        Some(spilled)
    }

    /// Puts the host's registers in place of the guest's.
    pub(super) fn rename(&self, instr: &mut Instruction) {
        for op in 0..instr.op_count() {
            if instr.op_kind(op) != OpKind::Register || !instr.op_register(op).is_gpr() {
                continue;
            }
            let guest = instr.op_register(op);
            let slot = guest.full_register().number() as u8;
            if matches!(guest, Register::AH | Register::CH | Register::DH | Register::BH) {
                continue;
            }
            let stand_in = self.pairs.iter().find(|pair| pair.0 == slot).map(|pair| pair.1);
            if let Some(number) = stand_in.or(host(slot)).filter(|&number| number != slot) {
                instr.set_op_register(op, sized(number, guest.size()));
            }
        }
    }
}

/// The register with this number in so many bytes.
fn sized(number: u8, size: usize) -> Register {
    let first = match size {
        8 => Register::RAX,
        4 => Register::EAX,
        2 => Register::AX,
        // SPL.. and R8L.. follow AL..BL and AH..BH.
        _ if number >= 4 => return Register::SPL + (u32::from(number) - 4),
        _ => Register::AL,
    };
    first + u32::from(number)
}
