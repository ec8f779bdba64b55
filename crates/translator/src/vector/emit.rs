//! A thunk: the instruction between loads of the registers it uses and stores of those it changes.
//!
//! On entry RDI holds the XSAVE image, RSI the [`Cpu`], R8 the memory operand's buffer; RAX, RCX, RDX stand
//! for the guest's general registers and R9, R10 are free. All are the callee's in the System V ABI, as
//! are all vector registers.
//!
//! Legacy SSE code loads and stores XMM registers only: the upper halves stay in the image, which is what
//! the encoding promises. VEX code moves both halves.

use std::mem::offset_of;

use iced_x86::{
    Code, Encoder, EncodingKind, Instruction, InstructionInfoFactory, MemoryOperand, OpAccess,
    OpKind, Register, UsedRegister,
};
use x86::rflags;

use super::encoding::{Encoding, replace_memory};
use super::image::{MXCSR, MXCSR_DEFAULT, XMM, YMM_HIGH};
use super::plan::Plan;
use crate::cpu::Cpu;

const IMAGE: Register = Register::RDI;
const CPU: Register = Register::RSI;
const BUFFER: Register = Register::R8;
/// Stand for the guest's registers, in the order in which the instruction names them.
const GENERAL: [Register; 3] = [Register::RAX, Register::RCX, Register::RDX];

/// Plan and code for `encoding`; `None` where the instruction cannot run from a thunk.
pub(super) fn thunk(encoding: Encoding) -> Option<(Plan, Vec<u8>)> {
    let mut instr = encoding.decode();
    replace_memory(&mut instr, BUFFER);
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(&instr);
    let plan = Plan::of(&instr, info)?;
    let uses = info.used_registers();
    let general = General::of(&instr, uses)?;
    let vector = vector_uses(uses);
    let mut emitter = Emitter { encoder: Encoder::new(64) };
    emitter.thunk(&instr, plan, &general, &vector)?;
    Some((plan, emitter.encoder.take_buffer()))
}

struct Emitter {
    encoder: Encoder,
}

impl Emitter {
    fn thunk(
        &mut self,
        instr: &Instruction,
        plan: Plan,
        general: &General,
        vector: &[VectorUse],
    ) -> Option<()> {
        let vex = instr.encoding() == EncodingKind::VEX;
        if plan.legacy {
            self.one(Code::Fxrstor64_m512byte, field(IMAGE, 0))?;
        } else {
            self.load_vectors(vector, vex)?;
            if plan.mxcsr {
                self.one(Code::Ldmxcsr_m32, field(IMAGE, MXCSR))?;
            }
        }
        self.load_general(general)?;
        let modified = instr.rflags_modified() & FLAGS_ICED;
        if instr.rflags_read() != 0 || modified != 0 && modified != FLAGS_ICED {
            self.load_flags()?;
        }
        self.push(general.renamed(instr))?;
        if plan.disturbs_x87 {
            self.push(Instruction::with(Code::Fninit))?;
        }
        if modified != 0 {
            self.store_flags()?;
        }
        self.store_general(general)?;
        if plan.legacy {
            self.store_legacy()?;
        } else {
            if plan.mxcsr {
                self.one(Code::Stmxcsr_m32, field(IMAGE, MXCSR))?;
                self.restore_mxcsr()?;
            }
            self.store_vectors(vector, vex)?;
        }
        self.push(Instruction::with(Code::Retnq))
    }

    fn load_vectors(&mut self, uses: &[VectorUse], vex: bool) -> Option<()> {
        for used in uses.iter().filter(|used| used.read) {
            let low = field(IMAGE, XMM + 16 * used.index);
            if !vex {
                self.two(Code::Movups_xmm_xmmm128, xmm(used.index), low)?;
                continue;
            }
            self.two(Code::VEX_Vmovups_xmm_xmmm128, xmm(used.index), low)?;
            let high = field(IMAGE, YMM_HIGH + 16 * used.index);
            let code = Code::VEX_Vinsertf128_ymm_ymm_xmmm128_imm8;
            let ymm = ymm(used.index);
            self.push(Instruction::with4(code, ymm, ymm, high, 1).ok()?)?;
        }
        Some(())
    }

    /// Ends with clean upper halves, as compiled code wants them.
    fn store_vectors(&mut self, uses: &[VectorUse], vex: bool) -> Option<()> {
        for used in uses.iter().filter(|used| used.written) {
            let low = field(IMAGE, XMM + 16 * used.index);
            if !vex {
                self.store(Code::Movups_xmmm128_xmm, low, xmm(used.index))?;
                continue;
            }
            self.store(Code::VEX_Vmovups_xmmm128_xmm, low, xmm(used.index))?;
            let high = field(IMAGE, YMM_HIGH + 16 * used.index);
            let code = Code::VEX_Vextractf128_xmmm128_ymm_imm8;
            self.push(Instruction::with3(code, high, ymm(used.index), 1).ok()?)?;
        }
        if vex {
            self.push(Instruction::with(Code::VEX_Vzeroupper))?;
        }
        Some(())
    }

    /// Stores x87 and SSE state without addresses of ours, and gives the host its defaults back.
    fn store_legacy(&mut self) -> Option<()> {
        self.one(Code::Fxsave64_m512byte, field(IMAGE, 0))?;
        self.zero(Code::Mov_rm16_imm16, field(IMAGE, 6))?;
        self.zero(Code::Mov_rm64_imm32, field(IMAGE, 8))?;
        self.zero(Code::Mov_rm64_imm32, field(IMAGE, 16))?;
        self.push(Instruction::with(Code::Fninit))?;
        self.restore_mxcsr()
    }

    fn restore_mxcsr(&mut self) -> Option<()> {
        // The red zone: a thunk calls nothing.
        let slot = MemoryOperand::with_base_displ(Register::RSP, -8);
        self.push(Instruction::with2(Code::Mov_rm32_imm32, slot, MXCSR_DEFAULT).ok()?)?;
        self.one(Code::Ldmxcsr_m32, slot)
    }

    fn load_general(&mut self, general: &General) -> Option<()> {
        for (&host, &guest) in GENERAL.iter().zip(&general.used) {
            self.two(Code::Mov_r64_rm64, host, register_field(guest))?;
        }
        Some(())
    }

    fn store_general(&mut self, general: &General) -> Option<()> {
        for (at, (&host, &guest)) in GENERAL.iter().zip(&general.used).enumerate() {
            if general.written & 1 << at != 0 {
                self.store(Code::Mov_rm64_r64, register_field(guest), host)?;
            }
        }
        Some(())
    }

    /// The guest's status flags, with nothing else of RFLAGS that means something here.
    fn load_flags(&mut self) -> Option<()> {
        self.two(Code::Mov_r64_rm64, Register::R9, field(CPU, offset_of!(Cpu, rflags)))?;
        self.immediate(Code::And_rm32_imm32, Register::R9D, rflags::STATUS as u32)?;
        self.push(Instruction::with1(Code::Push_r64, Register::R9).ok()?)?;
        self.push(Instruction::with(Code::Popfq))
    }

    fn store_flags(&mut self) -> Option<()> {
        let flags = field(CPU, offset_of!(Cpu, rflags));
        self.push(Instruction::with(Code::Pushfq))?;
        self.push(Instruction::with1(Code::Pop_r64, Register::R9).ok()?)?;
        self.immediate(Code::And_rm32_imm32, Register::R9D, rflags::STATUS as u32)?;
        self.two(Code::Mov_r64_rm64, Register::R10, flags)?;
        let others = !(rflags::STATUS as i32);
        self.push(Instruction::with2(Code::And_rm64_imm32, Register::R10, others).ok()?)?;
        let or = Instruction::with2(Code::Or_r64_rm64, Register::R10, Register::R9);
        self.push(or.ok()?)?;
        self.store(Code::Mov_rm64_r64, flags, Register::R10)
    }

    fn one(&mut self, code: Code, operand: MemoryOperand) -> Option<()> {
        self.push(Instruction::with1(code, operand).ok()?)
    }

    fn two(&mut self, code: Code, to: Register, from: MemoryOperand) -> Option<()> {
        self.push(Instruction::with2(code, to, from).ok()?)
    }

    fn store(&mut self, code: Code, to: MemoryOperand, from: Register) -> Option<()> {
        self.push(Instruction::with2(code, to, from).ok()?)
    }

    fn immediate(&mut self, code: Code, to: Register, value: u32) -> Option<()> {
        self.push(Instruction::with2(code, to, value).ok()?)
    }

    fn zero(&mut self, code: Code, to: MemoryOperand) -> Option<()> {
        self.push(Instruction::with2(code, to, 0).ok()?)
    }

    /// Nothing emitted depends on where it will be.
    fn push(&mut self, instr: Instruction) -> Option<()> {
        self.encoder.encode(&instr, 0).ok().map(|_| ())
    }
}

/// The status flags in iced's numbering ([`iced_x86::RflagsBits`]); the x87 condition codes are elsewhere.
const FLAGS_ICED: u32 = {
    use iced_x86::RflagsBits as Bits;
    Bits::OF | Bits::SF | Bits::ZF | Bits::AF | Bits::CF | Bits::PF
};

/// The general registers that the instruction uses.
struct General {
    /// Guest slots, at most as many as [`GENERAL`].
    used: Vec<usize>,
    /// Bit by index in `used`.
    written: u32,
    /// Operands can be renamed; implicit registers cannot, and stand for themselves.
    explicit: bool,
}

impl General {
    fn of(instr: &Instruction, uses: &[UsedRegister]) -> Option<Self> {
        let operands = |op| match instr.op_kind(op) {
            OpKind::Register if instr.op_register(op).is_gpr() => Some(instr.op_register(op)),
            _ => None,
        };
        let mut used: Vec<usize> = Vec::new();
        for slot in (0..instr.op_count()).filter_map(operands).map(Register::number) {
            if !used.contains(&slot) {
                used.push(slot);
            }
        }
        let explicit = !used.is_empty();
        let mut general = Self { used, written: 0, explicit };
        // Implicit are only RAX, RDX and RCX of the string comparisons.
        if !explicit && (0..3).any(|slot| uses_of(uses, slot).next().is_some()) {
            general.used = vec![0, 1, 2];
        }
        for at in 0..general.used.len() {
            let written = |used: &UsedRegister| is_write(used.access());
            if uses_of(uses, general.used[at]).any(written) {
                general.written |= 1 << at;
            }
        }
        (general.used.len() <= GENERAL.len()).then_some(general)
    }

    /// The instruction on the stand-ins.
    fn renamed(&self, instr: &Instruction) -> Instruction {
        let mut renamed = *instr;
        if !self.explicit {
            return renamed;
        }
        for op in 0..instr.op_count() {
            if instr.op_kind(op) == OpKind::Register && instr.op_register(op).is_gpr() {
                let register = instr.op_register(op);
                let at = self.used.iter().position(|&slot| slot == register.number());
                let host = at.map_or(GENERAL[0], |at| GENERAL[at]);
                renamed.set_op_register(op, resized(host, register));
            }
        }
        renamed
    }
}

/// Uses of the general register `slot`.
fn uses_of(uses: &[UsedRegister], slot: usize) -> impl Iterator<Item = &UsedRegister> {
    uses.iter().filter(move |used| used.register().is_gpr() && used.register().number() == slot)
}

/// `host` in the width of `like`.
fn resized(host: Register, like: Register) -> Register {
    match like.size() {
        8 => host,
        4 => host.full_register32(),
        2 => Register::AX + host.number() as u32,
        _ => Register::AL + host.number() as u32,
    }
}

struct VectorUse {
    index: usize,
    read: bool,
    written: bool,
}

/// One entry a register, whatever its names. A register that is only perhaps written is also read, so that
/// storing it is right either way.
fn vector_uses(uses: &[UsedRegister]) -> Vec<VectorUse> {
    let mut merged: Vec<VectorUse> = Vec::new();
    for used in uses.iter().filter(|used| used.register().is_vector_register()) {
        let index = used.register().number();
        let access = used.access();
        let read = is_read(access) || access == OpAccess::CondWrite;
        let written = is_write(access);
        match merged.iter_mut().find(|known| known.index == index) {
            Some(known) => {
                known.read |= read;
                known.written |= written;
            }
            None => merged.push(VectorUse { index, read, written }),
        }
    }
    merged
}

fn is_read(access: OpAccess) -> bool {
    use OpAccess::{CondRead, Read, ReadCondWrite, ReadWrite};
    matches!(access, Read | CondRead | ReadWrite | ReadCondWrite)
}

fn is_write(access: OpAccess) -> bool {
    use OpAccess::{CondWrite, ReadCondWrite, ReadWrite, Write};
    matches!(access, Write | CondWrite | ReadWrite | ReadCondWrite)
}

fn field(base: Register, offset: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ(base, offset as i64)
}

fn register_field(slot: usize) -> MemoryOperand {
    field(CPU, offset_of!(Cpu, regs) + 8 * slot)
}

fn xmm(index: usize) -> Register {
    Register::XMM0 + index as u32
}

fn ymm(index: usize) -> Register {
    Register::YMM0 + index as u32
}
