//! Stops for a debugger outside the guest, which the guest does not notice: INT3 and hardware breakpoints.

use super::prelude::*;
use crate::conformance::debugging::{INT3, STEP, logged, next, on, set, stops};
use crate::debug::{BreakOn, DebugControl, DebugStop};
use x86::{Event, Exception, Gpr, rflags};

cases!(
    "debugger_breakpoints": int3_stops, int3_replaced, guests_int3, execution, execution_resumed, writes,
    accesses, every_kind_of_write, four_at_once, linear_addresses, user_mode,
    guest_registers_are_the_guests, over,
);

fn int3_stops(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(ebx, 5)?; // 0
        a.int3()?; // 5
        a.nop()
    });
    set(&mut rig, &INT3);
    // It has not run, and so stops again.
    for _ in 0..2 {
        assert_eq!(next(&mut rig, &mut Vec::new()), Some((DebugStop::Int3, 5)));
    }
    let mut state = rig.vcpus[0].state().expect("state");
    assert_eq!(state.gpr[Gpr::Rbx as usize], 5);
    state.rip += 1;
    rig.vcpus[0].set_state(&state).expect("set state");
    assert_eq!(next(&mut rig, &mut Vec::new()), None);
    assert_eq!(rig.frames(), []);
}

/// As debuggers do it: INT3 goes over an instruction that runs already, and away again.
fn int3_replaced(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 10)?; // 0
        a.set_label(&mut again)?;
        a.inc(ebx)?; // 5
        a.dec(ecx)?; // 7
        a.jnz(again)?; // 9
        a.mov(eax, ebx)?;
        a.log_eax()
    });
    let at = CODE + 5;
    let original = rig.bytes(at, 1);
    for round in 0..5u64 {
        rig.write(at, &[0xcc]);
        set(&mut rig, &INT3);
        assert_eq!(next(&mut rig, &mut Vec::new()), Some((DebugStop::Int3, 5)));
        assert_eq!(rig.vcpus[0].state().expect("state").gpr[Gpr::Rbx as usize], round);
        rig.write(at, &original);
        set(&mut rig, &STEP);
        assert_eq!(next(&mut rig, &mut Vec::new()), Some((DebugStop::Step, 7)));
    }
    set(&mut rig, &INT3);
    let (stops, log) = stops(&mut rig);
    assert_eq!((stops, log), (vec![], vec![10]));
}

/// An INT3 of the guest's own is handed back as the event that it is.
fn guests_int3(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mark()?;
        a.int3()?;
        a.nop()?;
        a.user(|a| a.int3())?;
        a.log(1)
    });
    set(&mut rig, &INT3);
    let mut seen = Vec::new();
    let mut count = 0;
    while let Some((stop, _)) = next(&mut rig, &mut seen) {
        assert_eq!(stop, DebugStop::Int3);
        count += 1;
        let mut state = rig.vcpus[0].state().expect("state");
        state.event = Some(Event::Exception(Exception::new(Vector::BP)));
        rig.vcpus[0].set_state(&state).expect("set state");
    }
    assert_eq!((count, logged(&seen)), (2, vec![1]));
    // The second one left user mode, which leaves no frame.
    let frames = rig.frames();
    assert_eq!(
        frames.iter().map(|frame| (frame.vector, frame.rip)).collect::<Vec<_>>(),
        [(3, frames[0].mark + 1)]
    );
}

/// Before the instruction, each time; not elsewhere.
fn execution(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 2)?; // 0
        a.set_label(&mut again)?;
        a.nop()?; // 5
        a.inc(ebx)?; // 6
        a.dec(ecx)?; // 8
        a.jnz(again)?; // 10
        a.mov(eax, ebx)?;
        a.log_eax()
    });
    let control = on(&[(CODE + 6, BreakOn::Execute, 1)]);
    for round in 0..2 {
        set(&mut rig, &control);
        for _ in 0..2 {
            // It stops again where it stands.
            let stop = next(&mut rig, &mut Vec::new());
            assert_eq!(stop, Some((DebugStop::Breakpoint(0), 6)));
        }
        assert_eq!(rig.vcpus[0].state().expect("state").gpr[Gpr::Rbx as usize], round);
        set(&mut rig, &STEP);
        assert_eq!(next(&mut rig, &mut Vec::new()), Some((DebugStop::Step, 8)));
    }
    set(&mut rig, &control);
    assert_eq!(stops(&mut rig), (vec![], vec![2]));
}

/// RFLAGS.RF lets one instruction pass.
fn execution_resumed(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 3)?; // 0
        a.set_label(&mut again)?;
        a.dec(ecx)?; // 5
        a.jnz(again)?; // 7
        a.log(9)
    });
    set(&mut rig, &on(&[(CODE + 5, BreakOn::Execute, 1)]));
    let mut seen = Vec::new();
    let mut counts = Vec::new();
    while let Some(stop) = next(&mut rig, &mut seen) {
        assert_eq!(stop, (DebugStop::Breakpoint(0), 5));
        let mut state = rig.vcpus[0].state().expect("state");
        counts.push(state.gpr[Gpr::Rcx as usize]);
        state.rflags |= rflags::RF;
        rig.vcpus[0].set_state(&state).expect("set state");
    }
    assert_eq!((counts, logged(&seen)), (vec![3, 2, 1], vec![9]));
}

/// Behind the instruction that wrote; reads do not stop, nor do neighbours.
fn writes(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(ebx, DATA as u32 + 8)?; // 0
        a.mov(eax, dword_ptr(rbx))?; // 5
        a.mov(dword_ptr(rbx - 4), eax)?; // 7
        a.mov(dword_ptr(rbx + 4), eax)?; // 10
        a.mov(dword_ptr(rbx), eax)?; // 13
        a.inc(byte_ptr(rbx + 3))?; // 15
        a.mov(qword_ptr(rbx - 7), rax)?; // 18
        a.nop() // 22
    });
    set(&mut rig, &on(&[(DATA + 8, BreakOn::Write, 4)]));
    let met = DebugStop::Breakpoint(0);
    assert_eq!(next(&mut rig, &mut Vec::new()), Some((met, 15)));
    assert_eq!(next(&mut rig, &mut Vec::new()), Some((met, 18)));
    assert_eq!(rig.bytes(DATA + 11, 1), [1]);
    assert_eq!(stops(&mut rig).0, [(met, 22)]);
}

fn accesses(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(ebx, DATA as u32 + 8)?; // 0
        a.mov(eax, dword_ptr(rbx))?; // 5
        a.mov(al, byte_ptr(rbx + 7))?; // 7
        a.mov(al, byte_ptr(rbx + 8))?; // 10
        a.lea(rcx, ptr(rbx))?; // 13
        a.mov(byte_ptr(rbx + 1), al)?; // 16
        a.nop() // 19
    });
    set(&mut rig, &on(&[(DATA + 8, BreakOn::Access, 8)]));
    let met = DebugStop::Breakpoint(0);
    assert_eq!(stops(&mut rig).0, [(met, 7), (met, 10), (met, 19)]);
}

/// Locked, on the stack, of a string, of a vector, over a page border.
fn every_kind_of_write(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(ebx, window(3) as u32)?; // 0
        a.mov(eax, 1)?; // 5
        a.lock().xadd(dword_ptr(rbx), eax)?; // 10
        a.lea(rsp, ptr(rbx + 8))?; // 14
        a.push(rax)?; // 18
        a.mov(esp, STACK as u32)?; // 19
        a.mov(edi, ebx)?; // 24
        a.stosd()?; // 26
        a.movups(xmmword_ptr(rbx), xmm0)?; // 27
        a.mov(dword_ptr(rbx - 2), eax)?; // 30
        a.nop() // 33
    });
    set(&mut rig, &on(&[(window(3), BreakOn::Write, 2)]));
    let met = DebugStop::Breakpoint(0);
    let offsets = [14, 19, 27, 30, 33];
    assert_eq!(stops(&mut rig).0, offsets.map(|offset| (met, offset)));
}

fn four_at_once(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(ebx, DATA as u32)?; // 0
        a.mov(byte_ptr(rbx), al)?; // 5
        a.mov(al, byte_ptr(rbx + 0x1000))?; // 7
        a.nop()?; // 13
        a.nop()?; // 14
        a.mov(word_ptr(rbx + 0x2002), ax) // 15
    });
    set(
        &mut rig,
        &on(&[
            (DATA + 0x2002, BreakOn::Write, 2),
            (CODE + 14, BreakOn::Execute, 1),
            (DATA + 0x1000, BreakOn::Access, 1),
            (DATA, BreakOn::Write, 8),
        ]),
    );
    let mut stops = Vec::new();
    while let Some(stop) = next(&mut rig, &mut Vec::new()) {
        stops.push(stop);
        if stop.0 == DebugStop::Breakpoint(1) {
            let mut state = rig.vcpus[0].state().expect("state");
            state.rflags |= rflags::RF;
            rig.vcpus[0].set_state(&state).expect("set state");
        }
    }
    let met = DebugStop::Breakpoint;
    assert_eq!(stops, [(met(3), 7), (met(2), 13), (met(1), 14), (met(0), 22)]);
}

/// One frame at two addresses: the address counts.
fn linear_addresses(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(ebx, window(4) as u32)?; // 0
        a.mov(byte_ptr(rbx), al)?; // 5
        a.mov(byte_ptr(rbx + 0x1000), al)?; // 7
        a.nop() // 13
    });
    const ALL: u64 = paging::PRESENT | paging::WRITABLE;
    rig.map_window(4, window(5), ALL);
    set(&mut rig, &on(&[(window(5), BreakOn::Write, 1)]));
    assert_eq!(stops(&mut rig).0, [(DebugStop::Breakpoint(0), 13)]);
}

fn user_mode(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.user(|a| {
            let mut here = a.create_label();
            a.set_label(&mut here)?;
            a.lea(r13, ptr(here))?; // 0
            a.mov(dword_ptr(DATA), ecx)?; // 7
            a.nop()?; // 14
            a.nop() // 15
        })
    });
    set(&mut rig, &on(&[(DATA, BreakOn::Write, 1)]));
    let mut seen = Vec::new();
    assert!(matches!(next(&mut rig, &mut seen), Some((DebugStop::Breakpoint(0), _))));
    let state = rig.vcpus[0].state().expect("state");
    assert_eq!((state.cs.selector & 3, state.rip), (3, state.gpr[Gpr::R13 as usize] + 14));
    set(&mut rig, &on(&[(state.rip + 1, BreakOn::Execute, 1)]));
    let stop = next(&mut rig, &mut seen);
    assert_eq!(stop, Some((DebugStop::Breakpoint(0), (state.rip + 1 - CODE) as i64)));
}

/// The guest sees its own debug registers and no exception.
fn guest_registers_are_the_guests(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(rax, 0x1234u64)?;
        a.mov(dr1, rax)?;
        a.mov(dword_ptr(DATA), ecx)?;
        for register in [dr0, dr1, dr6, dr7] {
            a.mov(rax, register)?;
            a.log_eax()?;
        }
        Ok(())
    });
    set(&mut rig, &on(&[(DATA, BreakOn::Write, 4)]));
    let (stops, log) = stops(&mut rig);
    assert_eq!(stops.len(), 1);
    assert_eq!(log, [0, 0x1234, 0xffff_0ff0, 0x400]);
    let state = rig.vcpus[0].state().expect("state");
    assert_eq!(state.debug, [0, 0x1234, 0, 0, 0xffff_0ff0, 0x400]);
    assert_eq!(rig.frames(), []);
}

/// Nothing stops once the debugger has gone.
fn over(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.nop()?; // 0
        a.mov(dword_ptr(DATA), ecx)?; // 1
        a.mov(dword_ptr(DATA), ecx)?; // 8
        a.log(1)
    });
    let mut control = on(&[(DATA, BreakOn::Write, 4), (CODE + 8, BreakOn::Execute, 1)]);
    control.single_step = true;
    control.int3_stops = true;
    set(&mut rig, &control);
    assert_eq!(next(&mut rig, &mut Vec::new()), Some((DebugStop::Step, 1)));
    assert_eq!(next(&mut rig, &mut Vec::new()), Some((DebugStop::Breakpoint(0), 8)));
    set(&mut rig, &DebugControl::default());
    assert_eq!(stops(&mut rig), (vec![], vec![1]));
}
