//! The guest's own breakpoints in DR0 to DR3 (SDM volume 3, 18.2 and 18.3.1).

use super::prelude::*;
use x86::rflags;

cases!(
    "breakpoints": execution, execution_without_resume_flag, execution_in_a_loop, writes, accesses, lengths,
    every_kind_of_write, strings, two_at_once, with_single_step, linear_addresses, user_mode, per_vcpu,
    disabled, general_detect, saved_and_loaded,
);

/// Kinds and lengths as DR7 has them.
const WRITE: u32 = 1;
const ACCESS: u32 = 3;
const BYTES_1: u32 = 0;
const BYTES_2: u32 = 1;
const BYTES_4: u32 = 3;
const BYTES_8: u32 = 2;

/// DR6 of a single step.
const STEP: u32 = 1 << 14;

/// Sets breakpoint `index` on `address` and enables it. Changes RAX.
fn arm(a: &mut CodeAssembler, index: u32, address: u64, kind: u32, length: u32) -> Asm {
    a.mov(rax, address)?;
    a.mov([dr0, dr1, dr2, dr3][index as usize], rax)?;
    a.mov(rax, dr7)?;
    a.or(eax, 1u32 << (2 * index) | (kind | length << 2) << (16 + 4 * index))?;
    a.mov(dr7, rax)
}

/// The same on the instruction at a label.
fn arm_code(a: &mut CodeAssembler, index: u32, at: CodeLabel) -> Asm {
    a.lea(rax, ptr(at))?;
    a.mov([dr0, dr1, dr2, dr3][index as usize], rax)?;
    a.mov(rax, dr7)?;
    a.or(eax, 1u32 << (2 * index))?;
    a.mov(dr7, rax)
}

/// A machine whose #DB handler logs the offset from the mark and what DR6 says, clears DR6, and returns with
/// RFLAGS.RF set.
fn rig(engine: &dyn Engine, write: impl FnOnce(&mut CodeAssembler) -> Asm) -> Rig {
    let rig = Rig::with(engine, write);
    handle(&rig, true);
    rig
}

fn handle(rig: &Rig, resume: bool) {
    rig.load(HANDLER, |a| {
        a.push(rax)?;
        a.push(rdx)?;
        a.mov(rax, qword_ptr(rsp + 16))?;
        a.sub(rax, r13)?;
        a.log_eax()?;
        a.mov(rax, dr6)?;
        a.and(eax, 0xe00f)?;
        a.log_eax()?;
        a.mov(eax, 0xffff_0ff0u32)?;
        a.mov(dr6, rax)?;
        if resume {
            a.or(dword_ptr(rsp + 32), rflags::RF as i32)?;
        }
        a.pop(rdx)?;
        a.pop(rax)?;
        a.iretq()
    });
    rig.set_gate(1, Gate::to(HANDLER));
}

/// Pairs of offset and DR6.
fn met(rig: &mut Rig) -> Vec<(u32, u32)> {
    let record = rig.run();
    assert_eq!(record.faults(), [], "{record:x?}");
    record.log.chunks(2).map(|pair| (pair[0], pair[1])).collect()
}

/// Before the instruction, once: RFLAGS.RF lets it pass.
fn execution(engine: &dyn Engine) {
    let mut rig = rig(engine, |a| {
        let mut here = a.create_label();
        arm_code(a, 2, here)?;
        a.mark()?;
        a.nop()?; // 0
        a.mov(ebx, 1)?; // 1
        a.set_label(&mut here)?;
        a.inc(ebx)?; // 6
        a.nop()
    });
    assert_eq!(met(&mut rig), [(6, 1 << 2)]);
}

/// The pushed RF is clear, so that a handler that does not set it comes back here.
fn execution_without_resume_flag(engine: &dyn Engine) {
    let mut rig = rig(engine, |a| {
        let mut here = a.create_label();
        a.xor(ebx, ebx)?;
        arm_code(a, 0, here)?;
        a.mark()?;
        a.nop()?; // 0
        a.set_label(&mut here)?;
        a.inc(ebp)?; // 1
        a.mov(eax, ebp)?;
        a.log_eax()?;
        a.log(0)
    });
    rig.load(HANDLER, |a| {
        let mut first = a.create_label();
        a.push(rax)?;
        a.push(rdx)?;
        a.mov(eax, dword_ptr(rsp + 32))?;
        a.and(eax, rflags::RF as u32)?;
        a.log_eax()?;
        a.log(7)?;
        a.inc(ebx)?;
        a.cmp(ebx, 3)?;
        a.jb(first)?;
        a.xor(eax, eax)?;
        a.mov(dr7, rax)?;
        a.set_label(&mut first)?;
        a.pop(rdx)?;
        a.pop(rax)?;
        a.iretq()
    });
    rig.set_gate(1, Gate::to(HANDLER));
    assert_eq!(met(&mut rig), [(0, 7), (0, 7), (0, 7), (1, 0)]);
}

/// RF holds for one instruction: the next round meets it again.
fn execution_in_a_loop(engine: &dyn Engine) {
    let mut rig = rig(engine, |a| {
        let (mut again, mut first) = (a.create_label(), a.create_label());
        a.mov(ecx, 3)?;
        arm_code(a, 0, first)?;
        arm_code(a, 3, again)?;
        a.lea(r13, ptr(again))?;
        a.set_label(&mut first)?;
        a.nop()?;
        a.set_label(&mut again)?;
        a.dec(ecx)?; // 0
        a.jnz(again)
    });
    let last = u32::MAX;
    assert_eq!(met(&mut rig), [(last, 1), (0, 8), (0, 8), (0, 8)]);
}

/// Behind the instruction that wrote; not for reads, nor beside it.
fn writes(engine: &dyn Engine) {
    let mut rig = rig(engine, |a| {
        a.mov(ebx, DATA as u32 + 8)?;
        arm(a, 1, DATA + 8, WRITE, BYTES_4)?;
        a.mark()?;
        a.mov(eax, dword_ptr(rbx))?; // 0
        a.mov(dword_ptr(rbx - 4), eax)?; // 2
        a.mov(dword_ptr(rbx + 4), eax)?; // 5
        a.mov(dword_ptr(rbx), eax)?; // 8
        a.inc(byte_ptr(rbx + 3))?; // 10
        a.mov(qword_ptr(rbx - 7), rax)?; // 13
        a.mov(eax, dword_ptr(rbx)) // 17
    });
    assert_eq!(met(&mut rig), [(10, 2), (13, 2), (17, 2)]);
}

fn accesses(engine: &dyn Engine) {
    let mut rig = rig(engine, |a| {
        a.mov(ebx, DATA as u32 + 8)?;
        arm(a, 0, DATA + 8, ACCESS, BYTES_4)?;
        a.mark()?;
        a.mov(eax, dword_ptr(rbx))?; // 0
        a.mov(al, byte_ptr(rbx + 4))?; // 2
        a.mov(al, byte_ptr(rbx + 3))?; // 5
        a.lea(rcx, ptr(rbx))?; // 8
        a.mov(byte_ptr(rbx + 1), al)?; // 11
        a.nop() // 14
    });
    assert_eq!(met(&mut rig), [(2, 1), (8, 1), (14, 1)]);
}

/// The address bits below the length do not count.
fn lengths(engine: &dyn Engine) {
    for (length, bytes) in [(BYTES_1, 1u64), (BYTES_2, 2), (BYTES_4, 4), (BYTES_8, 8)] {
        let mut rig = rig(engine, |a| {
            a.mov(ebx, DATA as u32 + 0x40)?;
            arm(a, 0, DATA + 0x40 + bytes - 1, WRITE, length)?;
            a.mark()?;
            a.mov(byte_ptr(rbx - 1), al)?; // 0
            a.mov(byte_ptr(rbx), al)?; // 3
            a.mov(byte_ptr(rbx + (bytes - 1)), al)?; // 5
            a.mov(byte_ptr(rbx + bytes), al)
        });
        // The assembler leaves out a displacement of zero.
        let second = if bytes == 1 { 7 } else { 8 };
        assert_eq!(met(&mut rig), [(5, 1), (second, 1)], "{bytes} bytes");
    }
}

/// Locked, on the stack, of a vector, over a page border.
fn every_kind_of_write(engine: &dyn Engine) {
    let mut rig = rig(engine, |a| {
        a.mov(ebx, window(3) as u32)?;
        arm(a, 0, window(3), WRITE, BYTES_2)?;
        a.mark()?;
        a.lock().xadd(dword_ptr(rbx), eax)?; // 0
        a.lea(rsp, ptr(rbx + 8))?; // 4
        a.push(rax)?; // 8
        a.mov(esp, STACK as u32)?; // 9
        a.movups(xmmword_ptr(rbx), xmm0)?; // 14
        a.mov(dword_ptr(rbx - 2), eax)?; // 17
        a.nop() // 20
    });
    // The handler of the push uses the same stack, below.
    assert_eq!(met(&mut rig), [(4, 1), (9, 1), (17, 1), (20, 1)]);
}

/// A repeated string instruction traps on the way, and is finished.
fn strings(engine: &dyn Engine) {
    let mut rig = rig(engine, |a| {
        arm(a, 0, DATA + 0x20, WRITE, BYTES_1)?;
        a.mov(edi, DATA as u32)?;
        a.mov(ecx, 0x40)?;
        a.mov(al, 0x77)?;
        a.mark()?;
        a.rep().stosb()?; // 0
        a.nop() // 2
    });
    let met = met(&mut rig);
    // Where exactly is for the processor.
    assert!(matches!(met[..], [(0 | 2, 1)]), "{met:x?}");
    assert_eq!(rig.bytes(DATA, 0x41), [[0x77; 0x40].as_slice(), &[0]].concat());
}

fn two_at_once(engine: &dyn Engine) {
    let mut rig = rig(engine, |a| {
        a.mov(ebx, DATA as u32)?;
        arm(a, 1, DATA, WRITE, BYTES_4)?;
        arm(a, 3, DATA + 4, ACCESS, BYTES_1)?;
        a.mark()?;
        a.mov(qword_ptr(rbx), rax)?; // 0
        a.mov(dword_ptr(rbx), eax)?; // 3
        a.mov(al, byte_ptr(rbx + 4))?; // 5
        a.nop() // 8
    });
    assert_eq!(met(&mut rig), [(3, 0b1010), (5, 0b0010), (8, 0b1000)]);
}

/// Both reasons in one exception.
fn with_single_step(engine: &dyn Engine) {
    let mut rig = rig(engine, |a| {
        let mut here = a.create_label();
        a.mov(ebx, DATA as u32)?;
        arm(a, 0, DATA, WRITE, BYTES_4)?;
        a.lea(r13, ptr(here))?;
        a.set_flags(rflags::TF as u32)?;
        a.set_label(&mut here)?;
        a.mov(dword_ptr(rbx), eax)?; // 0
        a.nop()?; // 2
        a.pushfq()?; // 3
        a.and(dword_ptr(rsp), !(rflags::TF as u32))?; // 4
        a.popfq()?; // 11
        a.nop() // 12
    });
    let expected = [(2, STEP | 1), (3, STEP), (4, STEP), (11, STEP), (12, STEP)];
    assert_eq!(met(&mut rig), expected);
}

fn linear_addresses(engine: &dyn Engine) {
    let mut rig = rig(engine, |a| {
        a.mov(ebx, window(4) as u32)?;
        // Both are in the TLB already.
        a.mov(byte_ptr(rbx), al)?;
        a.mov(byte_ptr(rbx + 0x1000), al)?;
        arm(a, 0, window(5), WRITE, BYTES_1)?;
        a.mark()?;
        a.mov(byte_ptr(rbx), al)?; // 0
        a.mov(byte_ptr(rbx + 0x1000), al)?; // 2
        a.nop() // 8
    });
    rig.map_window(4, window(5), paging::PRESENT | paging::WRITABLE);
    assert_eq!(met(&mut rig), [(8, 1)]);
}

fn user_mode(engine: &dyn Engine) {
    let mut rig = rig(engine, |a| {
        let mut here = a.create_label();
        arm(a, 0, DATA, WRITE, BYTES_4)?;
        arm_code(a, 1, here)?;
        a.user(|a| {
            a.lea(r13, ptr(here))?;
            a.mov(dword_ptr(DATA), ecx)?; // -7
            a.set_label(&mut here)?;
            a.nop() // 0
        })
    });
    // The trap of the instruction before comes first; its handler returns with RF, which passes the other.
    let trap_then_maybe_fault = met(&mut rig);
    assert_eq!(trap_then_maybe_fault, [(0, 1)]);
    handle(&rig, false);
    let mut again = self::rig(engine, |a| {
        let mut here = a.create_label();
        arm_code(a, 1, here)?;
        a.user(|a| {
            a.lea(r13, ptr(here))?;
            a.nop()?;
            a.set_label(&mut here)?;
            a.nop()
        })
    });
    assert_eq!(met(&mut again), [(0, 2)]);
}

/// Debug registers are the vCPU's own.
fn per_vcpu(engine: &dyn Engine) {
    const FLAG: u64 = DATA + 0x100;
    let mut rig = Rig::with_two(
        engine,
        |a| {
            arm(a, 0, DATA, WRITE, BYTES_4)?;
            a.inc(qword_ptr(FLAG))?;
            a.wait_for(FLAG, 2)?;
            a.mark()?;
            a.mov(dword_ptr(DATA), ecx)?; // 0
            a.nop()
        },
        |a| {
            a.wait_for(FLAG, 1)?;
            a.mov(dword_ptr(DATA), ecx)?;
            a.lock().inc(qword_ptr(FLAG))
        },
    );
    handle(&rig, true);
    let records = rig.run_all();
    assert_eq!((&records[0].log, &records[1].log), (&vec![7, 1], &vec![]));
}

fn disabled(engine: &dyn Engine) {
    let mut rig = rig(engine, |a| {
        arm(a, 0, DATA, WRITE, BYTES_4)?;
        a.mov(rax, dr7)?;
        a.mov(ebx, eax)?;
        a.and(eax, !3)?;
        a.mov(dr7, rax)?;
        a.mark()?;
        a.mov(dword_ptr(DATA), ecx)?; // 0
        // The global enable bit does as well as the local one.
        a.or(eax, 2)?; // 7
        a.mov(dr7, rax)?; // 12
        a.mov(dword_ptr(DATA), ecx)?; // 15
        a.mov(rax, dr7)?; // 22
        a.xor(eax, ebx)?;
        a.log_eax()?;
        a.log(0)
    });
    assert_eq!(met(&mut rig), [(22, 1), (3, 0)]);
}

/// DR7.GD: the handler may use the registers, since the exception clears it.
fn general_detect(engine: &dyn Engine) {
    let mut rig = rig(engine, |a| {
        a.mov(eax, 0x2400)?;
        a.mov(dr7, rax)?;
        a.mark()?;
        a.mov(rbx, dr0)?; // 0
        a.mov(rax, dr7)?;
        a.log_eax()?;
        a.log(0)
    });
    assert_eq!(met(&mut rig), [(0, 1 << 13), (0x400, 0)]);
}

/// They move with the state of a vCPU.
fn saved_and_loaded(engine: &dyn Engine) {
    let mut rig = rig(engine, |a| {
        a.mark()?;
        a.mov(dword_ptr(DATA), ecx)?; // 0
        a.nop() // 7
    });
    let mut state = rig.vcpus[0].state().expect("state");
    state.debug =
        [0, DATA, 0, 0, 0xffff_0ff0, 0x400 | 1 << 2 | u64::from(WRITE | BYTES_4 << 2) << 20];
    rig.vcpus[0].set_state(&state).expect("set state");
    assert_eq!(met(&mut rig), [(7, 2)]);
    assert_eq!(rig.vcpus[0].state().expect("state").debug[1], DATA);
}
