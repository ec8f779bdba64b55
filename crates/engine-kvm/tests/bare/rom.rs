//! What the processor executes after its reset: the way to VMRUN.

use engine::conformance::payload::DONE;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86::{VcpuState, cr0, cr4, efer, msr, paging};

use super::vmcb::{EXIT_CODE, EXIT_MSR, EXIT_SHUTDOWN, HOST_SAVE, RIP, SVME, VMCB};

/// Bytes, right below 4 GiB.
const SIZE: usize = 64 << 10;
const BASE: u32 = 0xffff_0000;
/// Where the processor starts.
const RESET: usize = 0xfff0;
const CODE32: usize = 0x100;
const CODE64: usize = 0x200;
const TABLE: usize = 0x80;
const DESCRIPTORS: usize = 0xa0;
/// One of each that maps 4 GiB onto themselves.
const PML4: usize = 0x1000;
const PDPT: usize = 0x2000;

const SELECTOR_CODE64: u16 = 8;
const SELECTOR_DATA: u16 = 16;
const SELECTOR_CODE32: u16 = 24;
const GDT: [u64; 4] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_9b00_0000_ffff];

/// What is written to [`DONE`] if VMRUN does not take the state.
pub(super) const REFUSED: u32 = 0x40;
/// What is written to [`DONE`] if the guest shuts down.
pub(super) const SHUTDOWN: u32 = 0x41;

pub(super) fn for_state(state: &VcpuState) -> Vec<u8> {
    let mut rom = vec![0; SIZE];
    let mut put = |at: usize, bytes: &[u8]| rom[at..at + bytes.len()].copy_from_slice(bytes);
    put(TABLE, &(GDT.len() as u16 * 8 - 1).to_le_bytes());
    put(TABLE + 2, &(BASE + DESCRIPTORS as u32).to_le_bytes());
    put(DESCRIPTORS, GDT.map(u64::to_le_bytes).as_flattened());
    let bits = paging::PRESENT | paging::WRITABLE | paging::ACCESSED | paging::DIRTY;
    put(PML4, &((u64::from(BASE) + PDPT as u64) | bits).to_le_bytes());
    for gib in 0..4 {
        put(PDPT + gib * 8, &((gib as u64) << 30 | bits | paging::LARGE).to_le_bytes());
    }
    put(0, &real_mode());
    put(CODE32, &assemble(32, CODE32, protected_mode));
    put(CODE64, &assemble(64, CODE64, |a| long_mode(a, state)));
    // JMP to the start of the segment.
    put(RESET, &[0xe9, 0x0d, 0x00]);
    rom
}

/// LGDT, CR0.PE, far jump: operands of 32 bits, in a segment whose base only the processor knows.
fn real_mode() -> Vec<u8> {
    let lgdt = [0x2e, 0x66, 0x0f, 0x01, 0x16, TABLE as u8, 0];
    let enable = [0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0];
    let target = BASE + CODE32 as u32;
    let jump = [&[0x66, 0xea], &target.to_le_bytes()[..], &SELECTOR_CODE32.to_le_bytes()].concat();
    [&lgdt[..], &enable, &jump].concat()
}

fn protected_mode(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(eax, u32::from(SELECTOR_DATA))?;
    for data in [ds, es, ss] {
        a.mov(data, eax)?;
    }
    a.mov(eax, (cr4::PAE | cr4::OSFXSR) as u32)?;
    a.mov(cr4, eax)?;
    a.mov(eax, BASE + PML4 as u32)?;
    a.mov(cr3, eax)?;
    write_msr(a, msr::EFER, (efer::LME | SVME) as u32)?;
    a.mov(eax, (cr0::PG | cr0::PE | cr0::NE | cr0::MP) as u32)?;
    a.mov(cr0, eax)?;
    a.db(&[0xea])?;
    a.db(&(BASE + CODE64 as u32).to_le_bytes())?;
    a.db(&SELECTOR_CODE64.to_le_bytes())
}

/// Starts the guest, passes over its accesses to the x2APIC, and reports a guest that went wrong.
fn long_mode(a: &mut CodeAssembler, state: &VcpuState) -> Result<(), IcedError> {
    const VM_HSAVE_PA: u32 = 0xc001_0117;
    let (mut again, mut out, mut refused) = (a.create_label(), a.create_label(), a.create_label());
    write_msr(a, VM_HSAVE_PA, HOST_SAVE as u32)?;
    a.fninit()?;
    let registers = [rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
    let encodings = [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    for (register, encoding) in registers.into_iter().zip(encodings) {
        a.mov(register, state.gpr[encoding])?;
    }
    a.mov(rax, VMCB)?;
    a.vmload()?;
    a.set_label(&mut again)?;
    a.vmrun()?;
    a.cmp(dword_ptr(rax + EXIT_CODE), EXIT_MSR as i32)?;
    a.jne(out)?;
    // RDMSR and WRMSR have two bytes.
    a.add(qword_ptr(rax + RIP), 2)?;
    a.jmp(again)?;
    a.set_label(&mut out)?;
    a.mov(edx, u32::from(DONE))?;
    a.cmp(dword_ptr(rax + EXIT_CODE), EXIT_SHUTDOWN as i32)?;
    a.mov(eax, REFUSED)?;
    a.jne(refused)?;
    a.mov(eax, SHUTDOWN)?;
    a.set_label(&mut refused)?;
    a.out(dx, eax)
}

fn write_msr(a: &mut CodeAssembler, index: u32, value: u32) -> Result<(), IcedError> {
    a.mov(ecx, index)?;
    a.mov(eax, value)?;
    a.xor(edx, edx)?;
    a.wrmsr()
}

fn assemble(
    bitness: u32,
    offset: usize,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(bitness).expect("32 or 64");
    write(&mut assembler).expect("instructions exist");
    assembler.assemble(u64::from(BASE) + offset as u64).expect("the ROM assembles")
}
