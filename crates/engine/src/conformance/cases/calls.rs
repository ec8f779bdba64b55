//! Returns: to where their calls said, to elsewhere, and behind what changes where an address leads.
//!
//! Each is done several times without leaving the guest: engines that remember calls learn them at first.

use x86::msr;

use super::prelude::*;

cases!(
    "calls": deep, to_elsewhere, without_calls, unwound, between_stacks, flags_come_back, flags_go_along, frame_changed,
    space_changed, side_changed,
);

const TIMES: u32 = 100;
/// The bit of EBX that says what happens for some times on end.
const PHASE: u32 = 8;
const READY: u64 = paging::PRESENT | paging::WRITABLE | paging::USER;

/// Runs `body` [`TIMES`] times. Changes EBX.
fn again(a: &mut CodeAssembler, body: impl FnOnce(&mut CodeAssembler) -> Asm) -> Asm {
    let mut again = a.create_label();
    a.mov(ebx, TIMES)?;
    a.set_label(&mut again)?;
    body(a)?;
    a.dec(ebx)?;
    a.jnz(again)
}

/// Logs ESI, which is 0 before `body`.
fn count(a: &mut CodeAssembler, body: impl FnOnce(&mut CodeAssembler) -> Asm) -> Asm {
    a.xor(esi, esi)?;
    body(a)?;
    a.mov(eax, esi)?;
    a.log_eax()
}

/// Deeper than anybody remembers.
fn deep(engine: &dyn Engine) {
    const DEPTH: u32 = 140_000;
    let mut rig = Rig::with(engine, |a| {
        a.mov(rdi, rsp)?;
        a.mov(rsp, WINDOW)?;
        for _ in 0..2 {
            a.mov(ecx, DEPTH)?;
            a.mov(eax, HANDLER as u32)?;
            a.call(rax)?;
            a.mov(esi, eax)?;
        }
        a.mov(rsp, rdi)?;
        a.mov(eax, esi)?;
        a.log_eax()
    });
    rig.load(HANDLER, |a| {
        let (mut function, mut out) = (a.create_label(), a.create_label());
        a.set_label(&mut function)?;
        a.xor(eax, eax)?;
        a.test(ecx, ecx)?;
        a.jz(out)?;
        a.dec(ecx)?;
        a.call(function)?;
        a.inc(eax)?;
        a.set_label(&mut out)?;
        a.ret()
    });
    assert_eq!(rig.run().log, [DEPTH]);
}

/// What was called returns one instruction further on, and its caller where it was called.
fn to_elsewhere(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        count(a, |a| {
            again(a, |a| {
                let (mut outer, mut inner, mut over) =
                    (a.create_label(), a.create_label(), a.create_label());
                a.call(outer)?;
                a.add(esi, 1)?;
                a.jmp(over)?;
                a.set_label(&mut outer)?;
                a.call(inner)?;
                // Of two bytes.
                a.inc(esi)?;
                a.add(esi, 10)?;
                a.ret()?;
                a.set_label(&mut inner)?;
                a.add(qword_ptr(rsp), 2)?;
                a.ret()?;
                a.set_label(&mut over)?;
                a.zero_bytes()
            })
        })
    });
    assert_eq!(rig.run().log, [TIMES * 11]);
}

/// More returns than calls, also to address 0.
fn without_calls(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(edi, HANDLER as u32)?;
        count(a, |a| {
            again(a, |a| {
                let mut here = a.create_label();
                a.lea(rax, ptr(here))?;
                a.push(rax)?;
                for _ in 0..3 {
                    a.push(rdi)?;
                    a.push(0)?;
                }
                a.ret_1(16)?;
                a.nop()?;
                a.set_label(&mut here)?;
                a.add(esi, 1)
            })
        })
    });
    rig.load(HANDLER, |a| {
        a.add(esi, 10)?;
        a.ret()
    });
    rig.load(0, |a| {
        a.add(esi, 100)?;
        a.ret()
    });
    // The first one, to 0, skips two.
    assert_eq!(rig.run().log, [TIMES * (2 * 110 + 1)]);
}

/// Past five frames at once.
fn unwound(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        count(a, |a| {
            again(a, |a| {
                let (mut outer, mut deeper, mut over) =
                    (a.create_label(), a.create_label(), a.create_label());
                let mut landing = a.create_label();
                a.call(outer)?;
                a.inc(esi)?;
                a.jmp(over)?;
                a.set_label(&mut outer)?;
                a.mov(rbp, rsp)?;
                a.mov(ecx, 5)?;
                a.call(deeper)?;
                a.add(esi, 10_000)?;
                a.set_label(&mut landing)?;
                a.add(esi, 100)?;
                a.ret()?;
                a.set_label(&mut deeper)?;
                a.dec(ecx)?;
                let mut further = a.create_label();
                a.jz(further)?;
                a.call(deeper)?;
                a.add(esi, 10_000)?;
                a.ret()?;
                a.set_label(&mut further)?;
                a.mov(rsp, rbp)?;
                a.jmp(landing)?;
                a.set_label(&mut over)?;
                a.zero_bytes()
            })
        })
    });
    assert_eq!(rig.run().log, [TIMES * 101]);
}

/// Two that run by turns, each on its stack and some calls deep.
fn between_stacks(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        let (mut other, mut switch, mut over) =
            (a.create_label(), a.create_label(), a.create_label());
        a.mov(edi, (DATA + 0x1000) as u32)?;
        a.lea(rax, ptr(other))?;
        a.mov(qword_ptr(rdi), rax)?;
        count(a, |a| {
            again(a, |a| {
                a.call(switch)?;
                a.lea(esi, ptr(rsi + rsi * 2 + 1))
            })
        })?;
        a.jmp(over)?;
        a.set_label(&mut other)?;
        let mut inner = a.create_label();
        a.call(inner)?;
        a.jmp(other)?;
        a.set_label(&mut inner)?;
        a.lea(esi, ptr(rsi + rsi * 4 + 2))?;
        a.call(switch)?;
        a.ret()?;
        a.set_label(&mut switch)?;
        a.xchg(rsp, rdi)?;
        a.ret()?;
        a.set_label(&mut over)?;
        a.zero_bytes()
    });
    let turn = |last: u32| last.wrapping_mul(5).wrapping_add(2).wrapping_mul(3).wrapping_add(1);
    assert_eq!(rig.run().log, [(0..TIMES).fold(0, |last, _| turn(last))]);
}

/// A callee's flags are its caller's, also where that has no call to remember.
fn flags_come_back(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(edi, HANDLER as u32)?;
        count(a, |a| {
            again(a, |a| {
                let mut here = a.create_label();
                // Carry and overflow, for ADC and SETO.
                a.call(rdi)?;
                a.adc(esi, 0)?;
                a.call(rdi)?;
                a.seto(al)?;
                a.movzx(eax, al)?;
                a.add(esi, eax)?;
                // Nobody looks.
                a.call(rdi)?;
                a.add(esi, 0)?;
                a.lea(rax, ptr(here))?;
                a.push(rax)?;
                a.jmp(rdi)?;
                a.set_label(&mut here)?;
                a.adc(esi, 0)
            })
        })
    });
    rig.load(HANDLER, |a| {
        a.mov(eax, 0x8000_0000u32)?;
        // Zero with carry and overflow.
        a.add(eax, eax)?;
        a.ret()
    });
    assert_eq!(rig.run().log, [TIMES * 3]);
}

/// A function that looks at no flags becomes one that does, and back.
fn flags_go_along(engine: &dyn Engine) {
    // XOR EAX, EAX, and SBB EAX, EAX.
    const WITHOUT: u8 = 0x31;
    const WITH: u8 = 0x19;
    let mut rig = Rig::with(engine, |a| {
        a.mov(edi, HANDLER as u32)?;
        count(a, |a| {
            again(a, |a| {
                let mut out = a.create_label();
                // Carry.
                a.stc()?;
                a.call(rdi)?;
                a.sub(esi, eax)?;
                a.test(ebx, PHASE as i32)?;
                a.jz(out)?;
                a.xor(byte_ptr(HANDLER), u32::from(WITHOUT ^ WITH))?;
                a.set_label(&mut out)?;
                a.zero_bytes()
            })
        })
    });
    rig.write(HANDLER, &[WITHOUT, 0xc0, 0xc3]);
    let mut with = false;
    let carries = (1..=TIMES).rev().filter(|turn| {
        let now = with;
        with ^= turn & PHASE != 0;
        now
    });
    assert_eq!(rig.run().log, [carries.count() as u32]);
}

/// `call r12; imul esi, esi, 3; add esi, value; ret`
fn caller(rig: &Rig, page: u64, value: i32) {
    rig.load(window(page), |a| {
        a.call(r12)?;
        a.imul_3(esi, esi, 3)?;
        a.add(esi, value)?;
        a.ret()
    });
}

/// A callee that changes which frame its caller's page leads to, in some phases.
fn changes(a: &mut CodeAssembler, change: impl FnOnce(&mut CodeAssembler) -> Asm) -> Asm {
    let mut out = a.create_label();
    a.test(ebx, PHASE as i32)?;
    a.jz(out)?;
    change(a)?;
    a.set_label(&mut out)?;
    a.ret()
}

/// What ESI becomes.
fn by_turns() -> u32 {
    let mut frame = 5;
    (1..=TIMES).rev().fold(0, |last: u32, turn| {
        if turn & PHASE != 0 {
            frame = 11 - frame;
        }
        last.wrapping_mul(3).wrapping_add(frame)
    })
}

/// Another frame is behind the caller's address when its callee returns.
fn frame_changed(engine: &dyn Engine) {
    let base = 1u64 << 39;
    let mut rig = Rig::with(engine, |a| {
        a.mov(rdi, base + 5 * 4096)?;
        a.mov(r12d, window(7) as u32)?;
        count(a, |a| again(a, |a| a.call(rdi)))
    });
    caller(&rig, 5, 5);
    caller(&rig, 6, 6);
    rig.load(window(7), |a| {
        changes(a, |a| {
            a.xor(dword_ptr(window_entry(5)), (window(5) ^ window(6)) as u32)?;
            a.invlpg(ptr(rdi))
        })
    });
    rig.set_word(PML4 + 8, DATA | READY);
    rig.set_word(DATA, (DATA + 0x1000) | READY);
    rig.set_word(DATA + 0x1000, WINDOW_TABLE | READY);
    assert_eq!(rig.run().log, [by_turns()]);
}

/// The same by another address space, in which the callee is where it was.
fn space_changed(engine: &dyn Engine) {
    const OTHER: u64 = DATA;
    let mut rig = Rig::with(engine, |a| {
        a.mov(edi, window(5) as u32)?;
        a.mov(r12d, window(7) as u32)?;
        count(a, |a| again(a, |a| a.call(rdi)))
    });
    caller(&rig, 5, 5);
    caller(&rig, 6, 6);
    rig.load(window(7), |a| {
        changes(a, |a| {
            a.mov(rax, cr3)?;
            a.xor(rax, (OTHER ^ PML4) as i32)?;
            a.mov(cr3, rax)
        })
    });
    let [pointers, directory, table] = [1, 2, 3].map(|page| OTHER + page * 0x1000);
    rig.set_word(OTHER, pointers | READY);
    rig.set_word(pointers, directory | READY);
    rig.set_word(directory, READY | paging::LARGE);
    rig.set_word(directory + 8, table | READY);
    for page in 0..512 {
        let frame = if page == 5 { 6 } else { page };
        rig.set_word(table + page * 8, window(frame) | READY);
    }
    assert_eq!(rig.run().log, [by_turns()]);
}

/// A call that the kernel made is nothing that its user can return from.
fn side_changed(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        let kernel = u64::from(selector::KERNEL_CODE);
        let user = u64::from(selector::USER_CODE32);
        a.write_msr(msr::STAR, user << 48 | kernel << 32)?;
        a.write_msr(msr::LSTAR, window(8))?;
        a.write_msr(msr::SFMASK, 0)?;
        a.user(|a| {
            a.fault(|a| {
                again(a, |a| {
                    let mut here = a.create_label();
                    a.syscall()?;
                    a.lea(rax, ptr(here))?;
                    a.cmp(ebx, 1)?;
                    a.cmove(rax, r9)?;
                    a.push(rax)?;
                    a.ret()?;
                    a.set_label(&mut here)?;
                    a.zero_bytes()
                })
            })
        })
    });
    rig.load(window(8), |a| {
        let (mut inner, mut astray) = (a.create_label(), a.create_label());
        a.call(inner)?;
        a.sysretq()?;
        a.set_label(&mut inner)?;
        a.test(ebx, PHASE as i32)?;
        a.jz(astray)?;
        a.ret()?;
        a.set_label(&mut astray)?;
        a.pop(r9)?;
        a.sysretq()
    });
    rig.map_window(8, window(8), paging::PRESENT);
    let record = rig.run();
    let behind = window(8) + 5;
    let faults: Vec<_> = record.faults().iter().map(|fault| (fault.vector, fault.cr2)).collect();
    assert_eq!(faults, [(Vector::PF.0, behind)]);
}
