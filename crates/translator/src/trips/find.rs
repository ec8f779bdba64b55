//! Finding what a backward branch is decided by.

use iced_x86::{
    ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory,
    Mnemonic, OpAccess, OpKind, Register, RflagsBits,
};

use super::{Again, Bound, Limit, Place};
use crate::cpu::{REG_NONE, REG_RIP};
use crate::decode::operands::{segment_slot, slot};

/// Longer loops are not looked at.
const SPAN_MAX: u32 = 1024;

/// RBX, RSP, RBP, R12 to R15: what functions leave as it was (System V ABI, 3.2.1). A bit a slot.
const KEPT: u32 = 0xf038;

impl Bound {
    /// Whether code may end with a backward conditional branch: if not, [`Bound::of`] need not be asked. `last` are
    /// the bytes of the last instruction. Its length is given.
    #[must_use]
    pub fn may_be_in(last: &[u8]) -> bool {
        match *last {
            [.., 0x70..=0x7f | 0xe2, distance] if last.len() < 4 => distance >= 0x80,
            [.., 0x0f, 0x80..=0x8f, _, _, _, high] => high >= 0x80,
            _ => false,
        }
    }

    /// Bytes from the loop's head to the end of the branch `last`, as in [`Bound::may_be_in`].
    #[must_use]
    pub fn span(last: &[u8]) -> Option<u32> {
        let distance = match *last {
            [.., distance] if last.len() < 4 => i32::from(distance as i8),
            [.., a, b, c, d] => i32::from_le_bytes([a, b, c, d]),
            _ => return None,
        };
        Some(distance.unsigned_abs()).filter(|&span| distance < 0 && span <= SPAN_MAX)
    }

    /// What decides over another trip: `code` reaches from the loop's head to the end of its branch, in 64-bit mode;
    /// the last block of it begins at `block`. `None`: nothing is known of it.
    #[must_use]
    pub fn of(code: &[u8], block: usize) -> Option<Self> {
        Found::in_code(code, block)?.bound()
    }
}

/// What one pass over the loop's instructions gathers.
struct Found {
    span: u32,
    branch: Instruction,
    /// The last instruction before the branch that changes status flags, if it is in the branch's block.
    compare: Instruction,
    /// What each register changes by in a trip, and by the comparison since the branch's block began.
    steps: [u64; 16],
    before: [u64; 16],
    /// Registers that change otherwise, and all that change. A bit a slot.
    wild: u32,
    written: u32,
}

impl Found {
    fn in_code(code: &[u8], block: usize) -> Option<Self> {
        let mut decoder = Decoder::new(64, code, DecoderOptions::FORCE_RESERVED_NOP);
        let mut factory = InstructionInfoFactory::new();
        let mut found = Self {
            span: code.len() as u32,
            branch: Instruction::default(),
            compare: Instruction::default(),
            steps: [0; 16],
            before: [0; 16],
            wild: 0,
            written: 0,
        };
        // What was added until the last change of the flags: that change may turn out to be the last one.
        let mut since = [0; 16];
        while decoder.can_decode() {
            let at = decoder.position();
            let instr = decoder.decode();
            if instr.is_invalid() {
                return None;
            }
            if decoder.position() == code.len() {
                found.branch = instr;
                break;
            }
            let here = at >= block;
            if here && instr.rflags_modified() & STATUS != 0 {
                found.compare = instr;
                found.before = since;
            }
            if let Some((register, step)) = step(&instr) {
                found.written |= 1 << register;
                found.steps[register] = found.steps[register].wrapping_add(step);
                if here {
                    since[register] = since[register].wrapping_add(step);
                }
            } else {
                found.spoil(&instr, &mut factory);
            }
        }
        Some(found)
    }

    /// Takes account of an instruction that gives registers other values.
    fn spoil(&mut self, instr: &Instruction, factory: &mut InstructionInfoFactory) {
        let mut wild = 0;
        for used in factory.info(instr).used_registers() {
            let register = used.register();
            let reads =
                matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None);
            if register.is_gpr() && !reads {
                wild |= 1 << (slot(register) & 15);
            }
        }
        match instr.flow_control() {
            // What it pushes, its RET pops.
            FlowControl::Call | FlowControl::IndirectCall => wild = !KEPT & 0xffff,
            FlowControl::Next => {}
            _ => wild &= !(1 << 4),
        }
        self.wild |= wild;
        self.written |= wild;
    }

    fn bound(&self) -> Option<Bound> {
        if self.branch.mnemonic() == Mnemonic::Loop {
            return self.counted_in_rcx();
        }
        let again = again(self.branch.condition_code())?;
        match self.compare.mnemonic() {
            Mnemonic::Cmp => self.compared(again),
            Mnemonic::Test | Mnemonic::And | Mnemonic::Or if is_alone(&self.compare) => {
                self.by_register(self.compare.op0_register(), Limit::Constant(0), again)
            }
            Mnemonic::Sub => self.by_result(immediate(&self.compare)?, again),
            // As a subtraction but for the carry.
            Mnemonic::Dec => self.by_result(1, without_carry(again)?),
            Mnemonic::Add => self.by_result(self.negated()?, turned(again)?),
            Mnemonic::Inc => self.by_result(u64::MAX, without_carry(again)?),
            _ => None,
        }
    }

    /// LOOP: RCX is one less, and there is another trip if it is not 0.
    fn counted_in_rcx(&self) -> Option<Bound> {
        let (rcx, step) = (1, u64::MAX);
        let bits = if self.branch.code() == iced_x86::Code::Loop_rel8_64_RCX { 64 } else { 32 };
        (self.written & 1 << rcx == 0).then_some(Bound {
            span: self.span,
            counter: rcx,
            bits,
            step,
            before: step,
            limit: Limit::Constant(0),
            again: Again::NotEqual,
        })
    }

    /// CMP: one operand changes by the same in every trip, the other stays.
    fn compared(&self, again: Again) -> Option<Bound> {
        let (left, right) = (self.compare.op0_kind(), self.compare.op1_kind());
        match (left, right) {
            (OpKind::Register, OpKind::Register) => {
                let (left, right) = (self.compare.op0_register(), self.compare.op1_register());
                let straight = self.by_register(left, Limit::Register(plain(right)?), again);
                straight.or_else(|| {
                    self.by_register(right, Limit::Register(plain(left)?), swapped(again)?)
                })
            }
            (OpKind::Register, OpKind::Memory) => {
                self.by_register(self.compare.op0_register(), self.place()?, again)
            }
            (OpKind::Memory, OpKind::Register) => {
                self.by_register(self.compare.op1_register(), self.place()?, swapped(again)?)
            }
            (OpKind::Register, _) => {
                let limit = Limit::Constant(immediate(&self.compare)?);
                self.by_register(self.compare.op0_register(), limit, again)
            }
            _ => None,
        }
    }

    fn by_register(&self, counter: Register, limit: Limit, again: Again) -> Option<Bound> {
        let counter_slot = plain(counter)?;
        let step = self.steps[counter_slot as usize];
        let stays = match limit {
            Limit::Constant(_) => true,
            Limit::Register(slot) => self.written & 1 << slot == 0,
            Limit::Memory(place) => place.stays(self.written),
        };
        (stays && step != 0 && self.wild & 1 << counter_slot == 0).then_some(Bound {
            span: self.span,
            counter: counter_slot,
            bits: counter.size() as u32 * 8,
            step,
            before: self.before[counter_slot as usize],
            limit,
            again,
        })
    }

    /// The comparison is made by what changes the counter: as if the old value were compared with `limit`.
    fn by_result(&self, limit: u64, again: Again) -> Option<Bound> {
        if self.compare.op0_kind() != OpKind::Register || self.compare.has_lock_prefix() {
            return None;
        }
        self.by_register(self.compare.op0_register(), Limit::Constant(limit), again)
    }

    /// What an addition adds, as what a subtraction would take away.
    fn negated(&self) -> Option<u64> {
        let bits = self.compare.op0_register().size() * 8;
        let negated = immediate(&self.compare)?.wrapping_neg();
        // The least number has no opposite.
        (negated << (64 - bits) != 1 << 63).then_some(negated)
    }

    fn place(&self) -> Option<Limit> {
        let instr = &self.compare;
        let (base, index) = (instr.memory_base(), instr.memory_index());
        let wide = |register: Register| register == Register::None || register.size() == 8;
        if !wide(base) || !wide(index) || index.is_vector_register() {
            return None;
        }
        // Of the instruction, whose address began at 0; the branch's end is what callers know.
        let behind = u64::from(self.span).wrapping_sub(instr.next_ip());
        let disp = instr.memory_displacement64();
        let (base, disp) = match base {
            Register::RIP => (REG_RIP, disp.wrapping_sub(instr.next_ip()).wrapping_sub(behind)),
            Register::None => (REG_NONE, disp),
            _ => (base.number() as u8, disp),
        };
        let index = if index == Register::None { REG_NONE } else { index.number() as u8 };
        let scale = instr.memory_index_scale().trailing_zeros() as u8;
        let seg = segment_slot(instr, instr.memory_segment());
        Some(Limit::Memory(Place { base, index, scale, seg, disp }))
    }
}

const STATUS: u32 = RflagsBits::CF | RflagsBits::ZF | RflagsBits::SF | RflagsBits::OF;

/// A register that an instruction adds a constant to, and that constant.
fn step(instr: &Instruction) -> Option<(usize, u64)> {
    if instr.op_count() == 0 || instr.op0_kind() != OpKind::Register {
        return None;
    }
    let register = instr.op0_register();
    // Writing a part may leave the rest as it was or not: only what is compared in the same size is right.
    let slot = plain(register)? as usize;
    let step = match instr.mnemonic() {
        Mnemonic::Inc => 1,
        Mnemonic::Dec => u64::MAX,
        Mnemonic::Add => immediate(instr)?,
        Mnemonic::Sub => immediate(instr)?.wrapping_neg(),
        Mnemonic::Lea => {
            let (base, index) = (instr.memory_base(), instr.memory_index());
            let same = base.full_register() == register.full_register();
            (same && index == Register::None).then(|| instr.memory_displacement64())?
        }
        _ => return None,
    };
    Some((slot, step))
}

/// The slot of a register whose value begins at bit 0.
fn plain(register: Register) -> Option<u8> {
    let slot = register.is_gpr().then(|| slot(register))?;
    (slot < REG_NONE).then_some(slot)
}

fn immediate(instr: &Instruction) -> Option<u64> {
    let kind = instr.op1_kind();
    let given = matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
    );
    (instr.op_count() == 2 && given).then(|| instr.immediate(1))
}

/// TEST, AND, OR of a register with itself.
fn is_alone(instr: &Instruction) -> bool {
    let registers = instr.op0_kind() == OpKind::Register && instr.op1_kind() == OpKind::Register;
    registers && instr.op0_register() == instr.op1_register()
}

fn again(condition: ConditionCode) -> Option<Again> {
    use ConditionCode as C;
    Some(match condition {
        C::e => Again::Equal,
        C::ne => Again::NotEqual,
        C::b => Again::Below,
        C::be => Again::BelowOrEqual,
        C::a => Again::Above,
        C::ae => Again::AboveOrEqual,
        C::l => Again::Less,
        C::le => Again::LessOrEqual,
        C::g => Again::Greater,
        C::ge => Again::GreaterOrEqual,
        C::s => Again::Negative,
        C::ns => Again::NotNegative,
        _ => return None,
    })
}

/// The same with the operands the other way around.
fn swapped(again: Again) -> Option<Again> {
    Some(match again {
        Again::Equal | Again::NotEqual => again,
        Again::Below => Again::Above,
        Again::BelowOrEqual => Again::AboveOrEqual,
        Again::Above => Again::Below,
        Again::AboveOrEqual => Again::BelowOrEqual,
        Again::Less => Again::Greater,
        Again::LessOrEqual => Again::GreaterOrEqual,
        Again::Greater => Again::Less,
        Again::GreaterOrEqual => Again::LessOrEqual,
        Again::Negative | Again::NotNegative => return None,
    })
}

/// Where the carry has no part.
fn without_carry(again: Again) -> Option<Again> {
    use Again::{Above, AboveOrEqual, Below, BelowOrEqual};
    (!matches!(again, Above | AboveOrEqual | Below | BelowOrEqual)).then_some(again)
}

/// After an addition, as after a subtraction of what makes the same sum: the carry is the other way around, and
/// is there too where the sum is 0.
fn turned(again: Again) -> Option<Again> {
    Some(match again {
        Again::Below | Again::BelowOrEqual => Again::AboveOrEqual,
        Again::Above | Again::AboveOrEqual => Again::Below,
        _ => again,
    })
}
