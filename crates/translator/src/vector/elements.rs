//! Instructions that touch memory element by element, and only where a mask says so: masked moves and
//! gathers. A masked-off element cannot fault, so the host's instruction on a buffer will not do.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::handlers::{deliver, fetch, open, wait};
use super::x87;
use crate::cpu::{Cpu, REG_NONE};
use crate::decode::operands::{address_size_flag, blank, segment_slot};
use crate::insn::{Handler, Insn};
use crate::interp::Core;
use crate::machine::{Machine, Stop, VectorKind};

/// `Insn::aux` of the instructions here, unpacked.
#[derive(Clone, Copy)]
struct Shape {
    /// Bytes of an element: 1, 4, 8.
    element: u8,
    /// Elements.
    count: u8,
    /// Gathers: bytes of an index.
    index_size: u8,
    /// Gathers: the vector register of the indices.
    index: u8,
}

impl Shape {
    fn pack(self) -> u32 {
        u32::from_le_bytes([self.element, self.count, self.index_size, self.index])
    }

    fn unpack(aux: u32) -> Self {
        let [element, count, index_size, index] = aux.to_le_bytes();
        Self { element, count, index_size, index }
    }
}

pub(super) fn select<M: Machine>(instr: &Instruction) -> Option<Insn<M>> {
    masked_bytes(instr).or_else(|| masked_move(instr)).or_else(|| gather(instr))
}

fn is_masked_move(mnemonic: Mnemonic) -> bool {
    use Mnemonic::{Vmaskmovpd, Vmaskmovps, Vpmaskmovd, Vpmaskmovq};
    matches!(mnemonic, Vmaskmovpd | Vmaskmovps | Vpmaskmovd | Vpmaskmovq)
}

/// Whether the instruction is one of these.
pub(super) fn takes(instr: &Instruction) -> bool {
    use Mnemonic::{Maskmovdqu, Maskmovq, Vmaskmovdqu};
    let bytes = matches!(instr.mnemonic(), Maskmovq | Maskmovdqu | Vmaskmovdqu);
    bytes || instr.is_vsib() || is_masked_move(instr.mnemonic())
}

/// MASKMOVQ, MASKMOVDQU, VMASKMOVDQU: `dst` gate, `src` data, `aux` mask register; address in rDI.
fn masked_bytes<M: Machine>(instr: &Instruction) -> Option<Insn<M>> {
    let (handler, kind): (Handler<M>, _) = match instr.mnemonic() {
        Mnemonic::Maskmovq => (maskmovq, VectorKind::Mmx),
        Mnemonic::Maskmovdqu => (maskmovdqu, VectorKind::Sse),
        Mnemonic::Vmaskmovdqu => (maskmovdqu, VectorKind::Avx),
        _ => return None,
    };
    let mut insn = blank(instr, handler);
    insn.dst = kind as u8;
    insn.src = vector(instr.op1_register());
    insn.aux = u32::from(vector(instr.op2_register()));
    insn.base = 7;
    insn.seg = segment_slot(instr, instr.memory_segment());
    let address_size = match instr.op0_kind() {
        OpKind::MemorySegDI => 2,
        OpKind::MemorySegEDI => 4,
        _ => 8,
    };
    insn.flags |= address_size_flag(instr, address_size);
    Some(insn)
}

/// VMASKMOVPS, VMASKMOVPD, VPMASKMOVD, VPMASKMOVQ: `imm` mask register, `src` data or destination.
fn masked_move<M: Machine>(instr: &Instruction) -> Option<Insn<M>> {
    let element = match instr.mnemonic() {
        Mnemonic::Vmaskmovps | Mnemonic::Vpmaskmovd => 4,
        Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovq => 8,
        _ => return None,
    };
    let stores = instr.op0_kind() == OpKind::Memory;
    let handler: Handler<M> = if stores { masked_store } else { masked_load };
    let mut insn = blank(instr, handler);
    insn.dst = VectorKind::Avx as u8;
    insn.imm = u64::from(vector(instr.op1_register()));
    let data = if stores { instr.op2_register() } else { instr.op0_register() };
    insn.src = vector(data);
    insn.aux = shape(element, data.size()).pack();
    Some(insn)
}

/// VGATHERxxx, VPGATHERxx: `src` destination, `imm` mask register.
fn gather<M: Machine>(instr: &Instruction) -> Option<Insn<M>> {
    let (index_size, element) = match instr.mnemonic() {
        Mnemonic::Vpgatherdd | Mnemonic::Vgatherdps => (4, 4),
        Mnemonic::Vpgatherdq | Mnemonic::Vgatherdpd => (4, 8),
        Mnemonic::Vpgatherqd | Mnemonic::Vgatherqps => (8, 4),
        Mnemonic::Vpgatherqq | Mnemonic::Vgatherqpd => (8, 8),
        _ => return None,
    };
    let index = instr.memory_index();
    let registers = [instr.op0_register(), instr.op2_register(), index].map(vector);
    if registers[0] == registers[1] || registers[0] == registers[2] || registers[1] == registers[2]
    {
        return None;
    }
    let mut insn = blank(instr, gather_elements);
    insn.dst = VectorKind::Avx as u8;
    insn.src = registers[0];
    insn.imm = u64::from(registers[1]);
    insn.index = REG_NONE;
    insn.scale = instr.memory_index_scale().trailing_zeros() as u8;
    let count = match instr.code() {
        // Two indices, two elements, whatever the size of the destination.
        Code::VEX_Vpgatherqd_xmm_vm64x_xmm | Code::VEX_Vgatherqps_xmm_vm64x_xmm => 2,
        _ => instr.op0_register().size() as u8 / element,
    };
    let shape = Shape { element, count, index_size, index: registers[2] };
    insn.aux = shape.pack();
    Some(insn)
}

fn shape(element: u8, bytes: usize) -> Shape {
    Shape { element, count: (bytes / element as usize) as u8, index_size: 0, index: 0 }
}

fn vector(register: Register) -> u8 {
    register.number() as u8 & 15
}

fn maskmovq<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    open(core, insn)?;
    wait(core)?;
    let before = core.cpu.fpu.clone();
    // Then register 0 is on top, and the registers stand in the image by number.
    x87::enter_mmx(&mut core.cpu);
    let register = |index: usize| core.cpu.fpu.bytes::<8>(32 + 16 * (index & 7));
    let (data, mask) = (register(insn.src.into()), register(insn.aux as usize));
    let stored = store_masked_bytes(core, insn, &data, &mask);
    if stored.is_err() {
        core.cpu.fpu = before;
    }
    stored
}

fn maskmovdqu<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    open(core, insn)?;
    let register = |index: usize| core.cpu.fpu.xmm(index & 15).to_le_bytes();
    let (data, mask) = (register(insn.src.into()), register(insn.aux as usize));
    store_masked_bytes(core, insn, &data, &mask)
}

/// Only bytes that are written can fault, which the manual leaves open.
fn store_masked_bytes<M: Machine>(
    core: &mut Core<M>,
    insn: &Insn<M>,
    data: &[u8],
    mask: &[u8],
) -> Result<(), Stop> {
    let va = core.address(insn);
    let chosen = || (0..data.len()).filter(|&at| mask[at] >> 7 != 0);
    for at in chosen() {
        core.machine.probe_store(va.wrapping_add(at as u64), 1)?;
    }
    for at in chosen() {
        core.machine.store(va.wrapping_add(at as u64), data[at])?;
    }
    Ok(())
}

fn masked_load<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    open(core, insn)?;
    let shape = Shape::unpack(insn.aux);
    let va = core.address(insn);
    let mask = ymm(&core.cpu, insn.imm as usize);
    let mut value = [0; 32];
    for at in shape.chosen(&mask) {
        let address = va.wrapping_add(at as u64);
        fetch(&mut core.machine, address, &mut value[shape.range(at)])?;
    }
    set_ymm(&mut core.cpu, insn.src.into(), &value);
    Ok(())
}

fn masked_store<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    open(core, insn)?;
    let shape = Shape::unpack(insn.aux);
    let va = core.address(insn);
    let mask = ymm(&core.cpu, insn.imm as usize);
    let value = ymm(&core.cpu, insn.src.into());
    for at in shape.chosen(&mask) {
        core.machine.probe_store(va.wrapping_add(at as u64), shape.element.into())?;
    }
    for at in shape.chosen(&mask) {
        deliver(&mut core.machine, va.wrapping_add(at as u64), &value[shape.range(at)])?;
    }
    Ok(())
}

/// Element by element from the lowest; each clears its mask, so that an instruction that faults goes on
/// where it was (SDM volume 2, VPGATHERDD).
fn gather_elements<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    open(core, insn)?;
    let shape = Shape::unpack(insn.aux);
    let (to, mask_register) = (insn.src as usize, insn.imm as usize);
    let indices = ymm(&core.cpu, shape.index.into());
    let mut mask = ymm(&core.cpu, mask_register);
    let mut value = ymm(&core.cpu, to);
    for at in shape.chosen(&mask.clone()) {
        let index = shape.index_at(&indices, at / shape.element as usize);
        let address = core.address_at(insn, index << insn.scale);
        let mut element = [0; 8];
        let element = &mut element[..shape.element.into()];
        let loaded = fetch(&mut core.machine, address, element);
        if let Err(stop) = loaded {
            set_ymm(&mut core.cpu, to, &value);
            set_ymm(&mut core.cpu, mask_register, &mask);
            return Err(stop);
        }
        value[shape.range(at)].copy_from_slice(element);
        mask[shape.range(at)].fill(0);
    }
    value[shape.bytes()..].fill(0);
    set_ymm(&mut core.cpu, to, &value);
    set_ymm(&mut core.cpu, mask_register, &[0; 32]);
    Ok(())
}

impl Shape {
    fn bytes(self) -> usize {
        self.element as usize * self.count as usize
    }

    /// Offsets of the elements whose mask has its highest bit set.
    fn chosen(self, mask: &[u8; 32]) -> impl Iterator<Item = usize> {
        let size = self.element as usize;
        (0..self.bytes()).step_by(size).filter(move |at| mask[at + size - 1] >> 7 != 0)
    }

    fn range(self, at: usize) -> std::ops::Range<usize> {
        at..at + self.element as usize
    }

    fn index_at(self, indices: &[u8; 32], number: usize) -> u64 {
        let mut wide = [0; 8];
        let size = self.index_size as usize;
        wide[..size].copy_from_slice(&indices[number * size..][..size]);
        let value = u64::from_le_bytes(wide);
        if size == 4 { value as u32 as i32 as i64 as u64 } else { value }
    }
}

fn ymm(cpu: &Cpu, index: usize) -> [u8; 32] {
    let mut value = [0; 32];
    value[..16].copy_from_slice(&cpu.fpu.xmm(index & 15).to_le_bytes());
    value[16..].copy_from_slice(&cpu.fpu.ymm_high(index & 15).to_le_bytes());
    value
}

fn set_ymm(cpu: &mut Cpu, index: usize, value: &[u8; 32]) {
    let half = |at: usize| {
        let mut half = [0; 16];
        half.copy_from_slice(&value[at..at + 16]);
        u128::from_le_bytes(half)
    };
    cpu.fpu.set_xmm(index & 15, half(0));
    cpu.fpu.set_ymm_high(index & 15, half(16));
}
