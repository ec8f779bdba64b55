//! The exception and interrupt handlers that every payload has.
//!
//! A stub writes a [`Frame`](super::record::Frame). Then a fault goes on at the address in R15; a trap
//! (1 to 4) and an interrupt return to where they came from, the latter logged and acknowledged.
//! INT3 in user mode, and INT [`LEAVE`], go on in the kernel at the address in R14 with an empty stack.

use iced_x86::code_asm::*;

use super::layout::{FRAME_SIZE, FRAMES, FRAMES_MAX, Gate, STACK, STUB_SIZE, STUBS};
use super::payload::{Asm, LOG};
use super::record::IRQ;
use super::rig::Board;

/// INT of this number ends user mode, as INT3 does.
pub const LEAVE: u8 = 0x80;
/// Vector of spurious interrupts, which are not acknowledged.
pub const SPURIOUS: u8 = 0xff;

const EOI: u32 = 0x80b;
const COMMON: u64 = STUBS + 256 * STUB_SIZE;
const LEAVE_STUB: u64 = COMMON + 0x200;

pub(super) fn write(board: &Board) {
    for vector in 0..=255 {
        let at = STUBS + u64::from(vector) * STUB_SIZE;
        board.load(at, |a| stub(a, vector));
        board.set_gate(vector, Gate::stub(vector));
    }
    board.load(COMMON, common);
    board.load(LEAVE_STUB, |a| {
        a.test(byte_ptr(rsp + 8), 3)?;
        a.jz(STUBS + 3 * STUB_SIZE)?;
        a.mov(rsp, STACK)?;
        a.jmp(r14)
    });
    board.set_gate(3, Gate::to(LEAVE_STUB));
    board.set_gate(LEAVE, Gate::to(LEAVE_STUB));
}

/// Pushes a zero where the processor pushes no error code, then the vector.
fn stub(a: &mut CodeAssembler, vector: u8) -> Asm {
    if !x86::Vector(vector).has_error_code() {
        a.push(0)?;
    }
    a.push(i32::from(vector))?;
    a.jmp(COMMON)
}

fn common(a: &mut CodeAssembler) -> Asm {
    // Up from RSP: vector, error code, RIP, CS, RFLAGS, RSP, SS.
    for register in [rax, rcx, rdx, rbx] {
        a.push(register)?;
    }
    a.mov(eax, 1)?;
    a.lock().xadd(qword_ptr(FRAMES), rax)?;
    a.mov(ecx, FRAMES_MAX as u32 - 1)?;
    a.cmp(rax, rcx)?;
    a.cmova(rax, rcx)?;
    a.shl(eax, 7)?;
    a.lea(rbx, ptr(rax + FRAMES + FRAME_SIZE))?;
    for word in 0..7 {
        a.mov(rax, qword_ptr(rsp + 32 + word * 8))?;
        a.mov(qword_ptr(rbx + word * 8), rax)?;
    }
    a.mov(rax, cr2)?;
    a.mov(qword_ptr(rbx + 56), rax)?;
    a.mov(qword_ptr(rbx + 64), r13)?;
    a.lea(rax, ptr(rsp + 48))?;
    a.mov(qword_ptr(rbx + 72), rax)?;
    resume(a)?;
    for register in [rbx, rdx, rcx, rax] {
        a.pop(register)?;
    }
    a.add(rsp, 16)?;
    a.iretq()
}

fn resume(a: &mut CodeAssembler) -> Asm {
    let (mut interrupt, mut fault, mut out) =
        (a.create_label(), a.create_label(), a.create_label());
    a.mov(ebx, dword_ptr(rsp + 32))?;
    a.cmp(ebx, 2)?;
    a.je(interrupt)?;
    a.cmp(ebx, 32)?;
    a.jae(interrupt)?;
    a.lea(eax, dword_ptr(rbx - 1))?;
    a.cmp(eax, 3)?;
    a.jbe(out)?;
    a.set_label(&mut fault)?;
    a.mov(qword_ptr(rsp + 48), r15)?;
    a.jmp(out)?;
    a.set_label(&mut interrupt)?;
    a.mov(eax, ebx)?;
    a.or(eax, IRQ)?;
    a.mov(edx, u32::from(LOG))?;
    a.out(dx, eax)?;
    a.cmp(ebx, 2)?;
    a.je(out)?;
    a.cmp(ebx, u32::from(SPURIOUS))?;
    a.je(out)?;
    a.mov(ecx, EOI)?;
    a.xor(eax, eax)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    a.set_label(&mut out)?;
    a.nop()
}
