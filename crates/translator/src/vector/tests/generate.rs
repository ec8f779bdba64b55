//! Instructions to try: every code that is executed here, in all operand shapes, from iced's tables.

use crate::native::in_rflags;
use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind,
    OpKind, Register,
};

use super::native::State;
use super::random::Random;
use crate::vector::features;
use crate::vector::image::{MXCSR, XMM, YMM_HIGH};
use crate::vector::tests::machine::Flat;

pub(super) const WINDOW: usize = 8192;

/// An instruction, and where its memory operand has to be.
pub(super) struct Case {
    pub(super) instr: Instruction,
    /// Address of the memory operand.
    pub(super) address: Option<u64>,
    /// General registers that make it so.
    registers: Vec<(usize, u64)>,
}

/// Every code that [`crate::vector::select`] takes.
pub(super) fn accepted() -> Vec<Code> {
    Code::values().filter(|&code| exposed(code) && is_accepted(code)).collect()
}

/// Every code of an exposed instruction set that nobody executes.
pub(super) fn missing() -> Vec<Code> {
    Code::values().filter(|&code| exposed(code) && !is_accepted(code)).collect()
}

fn is_accepted(code: Code) -> bool {
    let mut random = Random::new(7);
    (0..32).any(|_| {
        let case = Case::new(&mut random, code, 0x10_0000..0x10_2000, 0x10_4000);
        let decoded = case.and_then(|case| decode(&case.encode(0x10_4000)?, 0x10_4000));
        decoded.is_some_and(|instr| crate::vector::select::<Flat>(&instr).is_some())
    })
}

/// Vector and x87 codes that exist in 64-bit mode and that a decoder yields.
fn exposed(code: Code) -> bool {
    let mut instr = Instruction::default();
    instr.set_code(code);
    matches!(instr.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && code.op_code().mode64()
        && code.op_code().decoder_option() == DecoderOptions::NONE
        && !code.op_code().fwait()
        && features::supports(&instr)
        && !is_integer(instr.mnemonic())
        && code.op_code().is_instruction()
        && !is_only_base(&instr)
}

/// Instructions of the base architecture, and CMOV.
fn is_only_base(instr: &Instruction) -> bool {
    use iced_x86::CpuidFeature::{CMOV, FPU287};
    instr.cpuid_features() == [CMOV]
        || instr.cpuid_features() == [FPU287] && instr.mnemonic() != Mnemonic::Fnstsw
}

/// Executed with the integer instructions, or by the machine, though CPUID counts them to SSE or XSAVE.
fn is_integer(mnemonic: Mnemonic) -> bool {
    use Mnemonic::{
        Crc32, Lfence, Mfence, Movnti, Prefetchnta, Prefetcht0, Prefetcht1, Prefetcht2, Sfence,
        Xgetbv, Xsetbv,
    };
    matches!(
        mnemonic,
        Crc32
            | Lfence
            | Mfence
            | Movnti
            | Prefetchnta
            | Prefetcht0
            | Prefetcht1
            | Prefetcht2
            | Sfence
            | Xgetbv
            | Xsetbv
    )
}

fn decode(bytes: &[u8], ip: u64) -> Option<Instruction> {
    let instr = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE).decode();
    (!instr.is_invalid()).then_some(instr)
}

impl Case {
    /// `None` where random operands made no encoding.
    pub(super) fn new(
        random: &mut Random,
        code: Code,
        window: std::ops::Range<u64>,
        ip: u64,
    ) -> Option<Self> {
        let mut case = Self { instr: Instruction::default(), address: None, registers: Vec::new() };
        case.instr.set_code(code);
        let size = code.op_code().memory_size().size().max(1);
        for (op, &kind) in code.op_code().op_kinds().iter().enumerate() {
            case.operand(random, op as u32, kind, size, &window)?;
        }
        if is_xsave(case.instr.mnemonic()) && case.registers.iter().any(|&(slot, _)| slot & !2 == 0)
        {
            // EDX:EAX say which components are meant.
            return None;
        }
        let bytes = case.encode(ip)?;
        case.instr = decode(&bytes, ip)?;
        (case.instr.code() == code).then_some(case)
    }

    pub(super) fn encode(&self, ip: u64) -> Option<Vec<u8>> {
        let mut encoder = Encoder::new(64);
        encoder.encode(&self.instr, ip).ok()?;
        Some(encoder.take_buffer())
    }

    fn operand(
        &mut self,
        random: &mut Random,
        op: u32,
        kind: OpCodeOperandKind,
        size: usize,
        window: &std::ops::Range<u64>,
    ) -> Option<()> {
        use OpCodeOperandKind as Kind;
        let either = random.one_in(2);
        let register = match kind {
            Kind::mem => return self.memory(random, op, size, window),
            Kind::mem_vsib32x | Kind::mem_vsib64x => {
                return self.vsib(random, op, Register::XMM0, window);
            }
            Kind::mem_vsib32y | Kind::mem_vsib64y => {
                return self.vsib(random, op, Register::YMM0, window);
            }
            Kind::r32_or_mem
            | Kind::r64_or_mem
            | Kind::mm_or_mem
            | Kind::xmm_or_mem
            | Kind::ymm_or_mem
                if either =>
            {
                return self.memory(random, op, size, window);
            }
            Kind::r32_or_mem | Kind::r32_reg | Kind::r32_rm | Kind::r32_vvvv => {
                Register::EAX + random.below(16) as u32
            }
            Kind::r64_or_mem | Kind::r64_reg | Kind::r64_rm | Kind::r64_vvvv => {
                Register::RAX + random.below(16) as u32
            }
            Kind::mm_or_mem | Kind::mm_reg | Kind::mm_rm => Register::MM0 + random.below(8) as u32,
            Kind::xmm_or_mem | Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_vvvv | Kind::xmm_is4 => {
                Register::XMM0 + random.below(16) as u32
            }
            Kind::ymm_or_mem | Kind::ymm_reg | Kind::ymm_rm | Kind::ymm_vvvv | Kind::ymm_is4 => {
                Register::YMM0 + random.below(16) as u32
            }
            Kind::st0 => Register::ST0,
            Kind::sti_opcode => Register::ST0 + random.below(8) as u32,
            Kind::ax => Register::AX,
            Kind::imm8 => {
                self.instr.set_op_kind(op, OpKind::Immediate8);
                self.instr.set_immediate8(random.next() as u8);
                return Some(());
            }
            Kind::seg_rDI => {
                self.instr.set_op_kind(op, OpKind::MemorySegRDI);
                let address = window.start + random.below(WINDOW as u64 - 16);
                self.address = Some(address);
                self.registers.push((7, address));
                return Some(());
            }
            _ => return None,
        };
        self.instr.set_op_kind(op, OpKind::Register);
        self.instr.set_op_register(op, register);
        Some(())
    }

    /// Any addressing form whose registers and displacement make an address in or near the window.
    fn memory(
        &mut self,
        random: &mut Random,
        op: u32,
        size: usize,
        window: &std::ops::Range<u64>,
    ) -> Option<()> {
        let address = place(random, size, window);
        let index = (0..16).filter(|&slot| slot != 4).nth(random.below(15) as usize)?;
        let base = (0..16).filter(|&slot| slot != index).nth(random.below(15) as usize)?;
        let scale = random.below(4) as u32;
        let displacement = match random.below(3) {
            0 => 0,
            1 => random.below(256) as i64 - 128,
            _ => random.next() as i32 as i64,
        };
        let instr = &mut self.instr;
        instr.set_op_kind(op, OpKind::Memory);
        instr.set_memory_index_scale(1);
        instr.set_memory_displ_size(1);
        let narrow = random.one_in(8);
        let first = if narrow { Register::EAX } else { Register::RAX };
        let set = |registers: &mut Vec<(usize, u64)>, slot: usize, value: u64| {
            // Upper halves do not count where the address has 32 bits.
            registers.push((slot, if narrow { value & 0xffff_ffff | 0xdead << 32 } else { value }));
        };
        match random.below(6) {
            0 => {
                instr.set_memory_base(Register::RIP);
                instr.set_memory_displ_size(8);
                instr.set_memory_displacement64(address);
            }
            1 => {
                instr.set_memory_displ_size(8);
                instr.set_memory_displacement64(address);
            }
            2 => {
                let value = random.below(64);
                instr.set_memory_index(first + index as u32);
                instr.set_memory_index_scale(1 << scale);
                instr.set_memory_displ_size(if narrow { 4 } else { 8 });
                instr.set_memory_displacement64(address - (value << scale));
                set(&mut self.registers, index, value);
            }
            3 => {
                let value = random.next() >> 8;
                instr.set_memory_base(first + base as u32);
                instr.set_memory_index(first + index as u32);
                instr.set_memory_index_scale(1 << scale);
                instr.set_memory_displacement64(cut(displacement, narrow));
                set(&mut self.registers, index, value);
                let rest = address.wrapping_sub(value << scale);
                set(&mut self.registers, base, rest.wrapping_sub(displacement as u64));
            }
            _ => {
                instr.set_memory_base(first + base as u32);
                instr.set_memory_displacement64(cut(displacement, narrow));
                set(&mut self.registers, base, address.wrapping_sub(displacement as u64));
            }
        }
        self.address = Some(address);
        Some(())
    }

    fn vsib(
        &mut self,
        random: &mut Random,
        op: u32,
        first: Register,
        window: &std::ops::Range<u64>,
    ) -> Option<()> {
        let base = random.below(16) as usize;
        let displacement = random.below(256) as i64 - 128;
        self.instr.set_op_kind(op, OpKind::Memory);
        self.instr.set_memory_base(Register::RAX + base as u32);
        self.instr.set_memory_index(first + random.below(16) as u32);
        self.instr.set_memory_index_scale(1 << random.below(4));
        self.instr.set_memory_displ_size(1);
        self.instr.set_memory_displacement64(displacement as u64);
        let address = window.start + WINDOW as u64 / 2;
        self.registers.push((base, address.wrapping_sub(displacement as u64)));
        self.address = Some(address);
        Some(())
    }

    /// Puts into `state` and `window` what the instruction needs to get anywhere.
    pub(super) fn prepare(
        &self,
        random: &mut Random,
        state: &mut State,
        window: &mut [u8; WINDOW],
        start: u64,
    ) {
        for &(slot, value) in &self.registers {
            state.gpr[slot] = value;
        }
        if self.instr.is_vsib() {
            self.indices(random, state);
        }
        let Some(at) = self.address.map(|address| address.wrapping_sub(start) as usize) else {
            return;
        };
        match self.instr.mnemonic() {
            Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr if !random.one_in(4) => {
                overwrite(window, at, &State::random(random).image[MXCSR..MXCSR + 4]);
            }
            Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr => {
                // AMD's processors have MM at bit 17, which the guest is not shown.
                if let Some(byte) = window.get_mut(at + 2) {
                    *byte &= !2;
                }
            }
            Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => saved_image(random, window, at),
            Mnemonic::Xrstor | Mnemonic::Xrstor64 => {
                saved_image(random, window, at);
                saved_header(random, window, at);
            }
            _ => {}
        }
        if is_xsave(self.instr.mnemonic()) {
            // The host may have more components than the guest.
            state.gpr[0] = state.gpr[0] & !0xffff_ffff | random.below(8);
            state.gpr[2] &= !0xffff_ffff;
        }
    }

    /// Small indices, so that elements are in the window, mostly.
    fn indices(&self, random: &mut Random, state: &mut State) {
        let number = self.instr.memory_index().number();
        let reach = (WINDOW as u64 / 2 - 16) >> self.instr.memory_index_scale().trailing_zeros();
        for lane in 0..8 {
            let index = random.below(2 * reach) as i64 - reach as i64;
            let index = if random.one_in(200) { random.next() as i64 } else { index };
            let wide = self.instr.is_vsib64();
            if wide && lane >= 4 {
                break;
            }
            let size = if wide { 8 } else { 4 };
            let at = lane * size;
            let area = if at < 16 { XMM } else { YMM_HIGH - 16 };
            let to = area + 16 * number + at;
            state.image[to..to + size].copy_from_slice(&index.to_le_bytes()[..size]);
        }
    }

    /// RFLAGS bits that the manual leaves undefined.
    pub(super) fn undefined_flags(&self) -> u64 {
        in_rflags(self.instr.rflags_undefined())
    }

    /// Several operations one after the other.
    pub(super) fn is_dot_product(&self) -> bool {
        use Mnemonic::{Dppd, Dpps, Vdppd, Vdpps};
        matches!(self.instr.mnemonic(), Dppd | Dpps | Vdppd | Vdpps)
    }

    pub(super) fn is_sha(&self) -> bool {
        self.instr.cpuid_features() == [iced_x86::CpuidFeature::SHA]
    }

    /// Bytes of the operand that are not compared: addresses of this process, and what the manual leaves
    /// open; from and to.
    pub(super) fn uncompared(&self) -> &'static [[usize; 2]] {
        match self.instr.mnemonic() {
            Mnemonic::Fxsave | Mnemonic::Fxsave64 => &[[6, 24], [28, 32], [416, 512]],
            mnemonic if is_xsave(mnemonic) => &[[5, 24], [28, 32]],
            Mnemonic::Fnstenv | Mnemonic::Fnsave => match self.instr.memory_size().size() {
                14 | 94 => &[[6, 14]],
                _ => &[[12, 28]],
            },
            _ => &[],
        }
    }
}

pub(super) fn is_xsave(mnemonic: Mnemonic) -> bool {
    use Mnemonic::{Xrstor, Xrstor64, Xsave, Xsave64, Xsavec, Xsavec64, Xsaveopt, Xsaveopt64};
    matches!(
        mnemonic,
        Xrstor | Xrstor64 | Xsave | Xsave64 | Xsavec | Xsavec64 | Xsaveopt | Xsaveopt64
    )
}

/// Aligned mostly, else anywhere, across the border of the pages, or out of the window.
fn place(random: &mut Random, size: usize, window: &std::ops::Range<u64>) -> u64 {
    let size = size as u64;
    let room = WINDOW as u64 - 1024;
    window.start
        + match random.below(12) {
            0..6 => random.below(room) & !63,
            6 | 7 => random.below(room) & !(size.next_power_of_two() - 1),
            8 | 9 => random.below(room),
            10 => WINDOW as u64 / 2 - random.below(size + 1),
            _ => WINDOW as u64 - random.below(size + 1),
        }
}

fn cut(displacement: i64, narrow: bool) -> u64 {
    if narrow { displacement as u32 as u64 } else { displacement as u64 }
}

fn overwrite(window: &mut [u8; WINDOW], at: usize, bytes: &[u8]) {
    if let Some(to) = window.get_mut(at..at + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}

fn saved_image(random: &mut Random, window: &mut [u8; WINDOW], at: usize) {
    let mut saved = State::random(random).image;
    if random.one_in(8) {
        saved[MXCSR + 3] = 1;
    }
    if random.one_in(8) {
        saved[..4].copy_from_slice(&random.bytes::<4>());
    }
    overwrite(window, at, &saved);
}

fn saved_header(random: &mut Random, window: &mut [u8; WINDOW], at: usize) {
    let mut header = [0u8; 64];
    header[0] = random.below(8) as u8;
    if random.one_in(2) {
        header[8] = header[0] | random.below(8) as u8;
        header[15] = 0x80;
    }
    if random.one_in(4) {
        let byte = random.pick(&[3, 6, 11, 13, 16, 20, 24, 31, 40, 63]);
        header[byte] ^= 1 << random.below(8);
    }
    if random.one_in(8) {
        header[0] = random.below(8) as u8;
    }
    overwrite(window, at + 512, &header);
}
