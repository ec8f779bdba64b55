//! The canonical encoding of an instruction: what a thunk is made from, and its name.

use iced_x86::{Decoder, DecoderOptions, Encoder, Instruction, OpKind, Register};

/// At most eight bytes of 64-bit code, zero-padded: the instruction with its own registers, its memory
/// operand replaced by `[rax]`, and all idle prefixes dropped. No vector instruction needs more: a
/// mandatory prefix, REX, three opcode bytes, ModRM and an immediate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Encoding(pub(super) u64);

impl Encoding {
    /// `None` where the instruction has no such form.
    pub(super) fn of(instr: &Instruction) -> Option<Self> {
        let mut canonical = *instr;
        canonical.set_has_repe_prefix(false);
        canonical.set_has_repne_prefix(false);
        canonical.set_has_lock_prefix(false);
        replace_memory(&mut canonical, Register::RAX);
        let mut encoder = Encoder::new(64);
        let len = encoder.encode(&canonical, 0).ok()?;
        let mut bytes = [0; 8];
        bytes.get_mut(..len)?.copy_from_slice(&encoder.take_buffer());
        let encoding = Self(u64::from_le_bytes(bytes));
        // The encoder is trusted to invert the decoder; this makes sure of it.
        (encoding.decode().code() == instr.code()).then_some(encoding)
    }

    /// The instruction again.
    pub(super) fn decode(self) -> Instruction {
        let bytes = self.0.to_le_bytes();
        Decoder::new(64, &bytes, DecoderOptions::NONE).decode()
    }
}

/// Makes `[base]` of the memory operand, if there is one.
pub(crate) fn replace_memory(instr: &mut Instruction, base: Register) {
    if !(0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Memory) {
        return;
    }
    instr.set_segment_prefix(Register::None);
    instr.set_memory_base(base);
    instr.set_memory_index(Register::None);
    instr.set_memory_index_scale(1);
    instr.set_memory_displ_size(0);
    instr.set_memory_displacement64(0);
}
