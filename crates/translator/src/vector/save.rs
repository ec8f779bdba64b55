//! FXSAVE, FXRSTOR and the XSAVE family (SDM volume 1, 10.5 and chapter 13), VZEROUPPER, VZEROALL.
//!
//! Every state component counts as in use, so that XSAVE saves whatever it is asked for: the optimisations
//! for initial and unmodified state are allowed, not demanded. The format of the image in memory is chosen
//! by XCR0 = x87, SSE, AVX: the AVX component stands at 576 in the standard and in the compacted format.

use iced_x86::{Instruction, Mnemonic};
use x86::Exception;

use super::handlers::{gate, open};
use super::image::{FCW_DEFAULT, HEADER, MXCSR, MXCSR_DEFAULT, MXCSR_MASK, XMM, YMM_HIGH};
use super::x87;
use crate::cpu::{Cpu, FpuState, Width};
use crate::decode::operands::blank;
use crate::insn::{Handler, Insn};
use crate::interp::Core;
use crate::machine::{Machine, Stop, VectorKind};

const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
/// XCOMP_BV: the image is compacted.
const COMPACTED: u64 = 1 << 63;
/// Offset of the AVX component as seen from the operand.
const AVX_OFFSET: u64 = 576;
/// Bytes of the legacy area in front of XMM0: x87 state, MXCSR and its mask.
const X87_SIZE: usize = XMM;

pub(super) fn select<M: Machine>(instr: &Instruction) -> Option<Insn<M>> {
    let (handler, kind): (Handler<M>, _) = match instr.mnemonic() {
        Mnemonic::Fxsave | Mnemonic::Fxsave64 => (fxsave, VectorKind::X87),
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => (fxrstor, VectorKind::X87),
        Mnemonic::Xsave | Mnemonic::Xsave64 | Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => {
            (xsave, VectorKind::Xsave)
        }
        Mnemonic::Xsavec | Mnemonic::Xsavec64 => (xsavec, VectorKind::Xsave),
        Mnemonic::Xrstor | Mnemonic::Xrstor64 => (xrstor, VectorKind::Xsave),
        Mnemonic::Vzeroupper => (vzeroupper, VectorKind::Avx),
        Mnemonic::Vzeroall => (vzeroall, VectorKind::Avx),
        _ => return None,
    };
    let mut insn = blank(instr, handler);
    insn.dst = kind as u8;
    Some(insn)
}

fn fxsave<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    open(core, insn)?;
    let va = aligned(core, insn, 16)?;
    core.machine.probe_store(va, HEADER)?;
    let area = legacy_area(&core.cpu.fpu);
    let len = XMM + 16 * registers(&core.cpu);
    core.machine.store_bytes(va, &area[..len])
}

fn fxrstor<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    open(core, insn)?;
    let va = aligned(core, insn, 16)?;
    let mut area = [0; HEADER];
    core.machine.load_bytes(va, &mut area)?;
    let mxcsr = word(&area, MXCSR);
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(core.machine.raise(Exception::GP0));
    }
    let len = XMM + 16 * registers(&core.cpu);
    core.cpu.fpu.set_mxcsr(mxcsr);
    core.cpu.fpu.image[XMM..len].copy_from_slice(&area[XMM..len]);
    load_x87(&mut core.cpu, &area);
    Ok(())
}

/// XSAVE and XSAVEOPT: standard format.
fn xsave<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    gate(core, VectorKind::Xsave)?;
    let va = aligned(core, insn, 64)?;
    let wanted = requested(&core.cpu);
    probe(core, va, wanted)?;
    let header = va.wrapping_add(HEADER as u64);
    let present: u64 = core.machine.load_for_store(header)?;
    store_components(core, va, wanted, wanted & (SSE | AVX) != 0)?;
    core.machine.store(header, present & !wanted | wanted)
}

/// Compacted format.
fn xsavec<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    gate(core, VectorKind::Xsave)?;
    let va = aligned(core, insn, 64)?;
    let wanted = requested(&core.cpu);
    probe(core, va, wanted)?;
    store_components(core, va, wanted, wanted & SSE != 0)?;
    let mut header = [0; 16];
    header[..8].copy_from_slice(&wanted.to_le_bytes());
    header[8..].copy_from_slice(&(wanted | COMPACTED).to_le_bytes());
    core.machine.store_bytes(va.wrapping_add(HEADER as u64), &header)
}

/// Every byte that may be written can be, so that the stores that follow do not stop in between.
fn probe<M: Machine>(core: &mut Core<M>, va: u64, wanted: u64) -> Result<(), Stop> {
    let len = if wanted & AVX != 0 { image_size(&core.cpu) } else { HEADER + 64 };
    core.machine.probe_store(va, len)
}

fn image_size(cpu: &Cpu) -> usize {
    YMM_HIGH + 16 * registers(cpu)
}

fn store_components<M: Machine>(
    core: &mut Core<M>,
    va: u64,
    wanted: u64,
    mxcsr: bool,
) -> Result<(), Stop> {
    let area = legacy_area(&core.cpu.fpu);
    let count = registers(&core.cpu);
    let machine = &mut core.machine;
    if wanted & X87 != 0 {
        machine.store_bytes(va, &area[..MXCSR])?;
        machine.store_bytes(va.wrapping_add(32), &area[32..X87_SIZE])?;
    }
    if mxcsr {
        machine.store_bytes(va.wrapping_add(MXCSR as u64), &area[MXCSR..MXCSR + 8])?;
    }
    if wanted & SSE != 0 {
        machine.store_bytes(va.wrapping_add(XMM as u64), &area[XMM..XMM + 16 * count])?;
    }
    if wanted & AVX != 0 {
        let high = &core.cpu.fpu.image[YMM_HIGH..YMM_HIGH + 16 * count];
        machine.store_bytes(va.wrapping_add(AVX_OFFSET), high)?;
    }
    Ok(())
}

fn xrstor<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    gate(core, VectorKind::Xsave)?;
    let va = aligned(core, insn, 64)?;
    let wanted = requested(&core.cpu);
    let source = Source::read(core, va, wanted)?;
    source.apply(&mut core.cpu, wanted);
    Ok(())
}

/// What XRSTOR has read and found acceptable, before any register changes.
struct Source {
    present: u64,
    /// What MXCSR becomes, if anything.
    mxcsr: Option<u32>,
    legacy: [u8; HEADER],
    high: [u8; 256],
}

impl Source {
    fn read<M: Machine>(core: &mut Core<M>, va: u64, wanted: u64) -> Result<Self, Stop> {
        let mut header = [0; 64];
        core.machine.load_bytes(va.wrapping_add(HEADER as u64), &mut header)?;
        let present = long(&header, 0);
        let compaction = long(&header, 8);
        if !header_is_valid(&header, core.cpu.xcr0) {
            return Err(core.machine.raise(Exception::GP0));
        }
        let load = present & wanted;
        let mut source = Self { present, mxcsr: None, legacy: [0; HEADER], high: [0; 256] };
        let compacted = compaction & COMPACTED != 0;
        let mxcsr_wanted = if compacted { wanted & SSE } else { wanted & (SSE | AVX) };
        if load & (X87 | SSE) != 0 || mxcsr_wanted != 0 {
            core.machine.load_bytes(va, &mut source.legacy)?;
        }
        if load & AVX != 0 {
            let len = 16 * registers(&core.cpu);
            core.machine.load_bytes(va.wrapping_add(AVX_OFFSET), &mut source.high[..len])?;
        }
        if mxcsr_wanted != 0 {
            // The standard format loads MXCSR whatever XSTATE_BV says of SSE (SDM volume 1, 13.8.1).
            let initial = compacted && present & SSE == 0;
            let mxcsr = if initial { MXCSR_DEFAULT } else { word(&source.legacy, MXCSR) };
            if mxcsr & !MXCSR_MASK != 0 {
                return Err(core.machine.raise(Exception::GP0));
            }
            source.mxcsr = Some(mxcsr);
        }
        Ok(source)
    }

    /// Components that are wanted and not present get their initial values.
    fn apply(&self, cpu: &mut Cpu, wanted: u64) {
        let count = registers(cpu);
        let present = |component| self.present & component != 0;
        if let Some(mxcsr) = self.mxcsr {
            cpu.fpu.set_mxcsr(mxcsr);
        }
        if wanted & SSE != 0 {
            let xmm = &mut cpu.fpu.image[XMM..XMM + 16 * count];
            xmm.fill(0);
            if present(SSE) {
                xmm.copy_from_slice(&self.legacy[XMM..XMM + 16 * count]);
            }
        }
        if wanted & AVX != 0 {
            let high = &mut cpu.fpu.image[YMM_HIGH..YMM_HIGH + 16 * count];
            high.fill(0);
            if present(AVX) {
                high.copy_from_slice(&self.high[..16 * count]);
            }
        }
        if wanted & X87 != 0 {
            if present(X87) {
                load_x87(cpu, &self.legacy);
            } else {
                let mut initial = [0; HEADER];
                initial[..2].copy_from_slice(&FCW_DEFAULT.to_le_bytes());
                load_x87(cpu, &initial);
            }
        }
    }
}

/// SDM volume 1, 13.8.1 and 13.8.2.
fn header_is_valid(header: &[u8; 64], xcr0: u64) -> bool {
    let present = long(header, 0);
    let compaction = long(header, 8);
    if compaction & COMPACTED == 0 {
        return present & !xcr0 == 0 && header[8..24].iter().all(|&byte| byte == 0);
    }
    let components = compaction & !COMPACTED;
    components & !xcr0 == 0
        && present & !components == 0
        && header[16..].iter().all(|&byte| byte == 0)
}

/// XCR0 and the mask in EDX:EAX.
fn requested(cpu: &Cpu) -> u64 {
    let mask = cpu.regs[2] << 32 | cpu.regs[0] & 0xffff_ffff;
    cpu.xcr0 & mask & (X87 | SSE | AVX)
}

/// Outside 64-bit mode registers 8 to 15 do not exist and are left alone.
fn registers(cpu: &Cpu) -> usize {
    if cpu.width == Width::Bits64 { 16 } else { 8 }
}

/// The legacy area as it is stored.
fn legacy_area(fpu: &FpuState) -> [u8; HEADER] {
    let mut area: [u8; HEADER] = fpu.bytes(0);
    area[MXCSR + 4..MXCSR + 8].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    area
}

/// Takes the x87 part of `area`, without its instruction and data pointers.
fn load_x87(cpu: &mut Cpu, area: &[u8; HEADER]) {
    cpu.fpu.image[..5].copy_from_slice(&area[..5]);
    cpu.fpu.image[5..MXCSR].fill(0);
    cpu.fpu.image[32..XMM].copy_from_slice(&area[32..XMM]);
    cpu.fpu.sanitize();
    x87::normalise(cpu);
}

fn vzeroupper<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    open(core, insn)?;
    let len = 16 * registers(&core.cpu);
    core.cpu.fpu.image[YMM_HIGH..YMM_HIGH + len].fill(0);
    Ok(())
}

fn vzeroall<M: Machine>(core: &mut Core<M>, insn: &Insn<M>) -> Result<(), Stop> {
    open(core, insn)?;
    let len = 16 * registers(&core.cpu);
    core.cpu.fpu.image[XMM..XMM + len].fill(0);
    core.cpu.fpu.image[YMM_HIGH..YMM_HIGH + len].fill(0);
    Ok(())
}

fn aligned<M: Machine>(core: &mut Core<M>, insn: &Insn<M>, to: u64) -> Result<u64, Stop> {
    let va = core.address(insn);
    if va & (to - 1) != 0 {
        return Err(core.machine.raise(Exception::GP0));
    }
    Ok(va)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}
