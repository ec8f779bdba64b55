//! Operations of a guest at privilege level 0, run by this engine on the machine of the conformance suite.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use engine::conformance::layout::Gate;
use engine::conformance::layout::{
    CODE, DATA, HANDLER, PML4, WINDOW_TABLE, selector, window, window_entry,
};
use engine::conformance::payload::{Asm, Payload};
use engine::conformance::rig::Rig;
use engine_translate::{Options, TranslateEngine};
use iced_x86::code_asm::*;
use translator::native;
use x86::paging::{ACCESSED, DIRTY, PRESENT, USER, WRITABLE};
use x86::{Vector, msr};

use crate::Cost;
use crate::native::{PASSES, middle, ticks};
use crate::operation::{Operation, Way, timed};

/// What the payload asks with: the loop begins; it has ended.
const BEGIN: u32 = 1;
const END: u32 = 2;
/// Rounds until everything is translated and linked.
const WARM: u64 = 200;
/// A copy of the PML4.
const OTHER_PML4: u64 = DATA + 0x4000;
/// A page of the window that is there, and one that is not.
const THERE: u64 = 3;
const ABSENT: u64 = 5;
/// No device is here; the rig answers.
const PORT: u32 = 0x80;
const READY: u64 = PRESENT | WRITABLE | USER | ACCESSED | DIRTY;

pub(crate) fn cost(operation: Operation, way: Way, rounds: u64) -> Option<Cost> {
    if way == Way::CallOut && operation.is_innocuous() {
        return None;
    }
    let engine = TranslateEngine::with(options(way)).expect("the engine starts");
    let mut rig = Rig::new(&engine, 1);
    prepare(&rig, operation);
    let own = own_place(operation, way);
    rig.load_payload(CODE, |a| payload(a, operation, own, rounds));
    let vm = Arc::clone(&rig.vm);
    // When each pass began and ended, and what had been called out for by then.
    let seen = Mutex::new(Vec::new());
    let record = rig.run_asking(&|_| {
        // As of when the vCPU came out last: just now.
        let mut seen = seen.lock().expect("nobody else");
        seen.push((ticks(), calls(&vm.translation())));
    });
    let seen = seen.into_inner().expect("nobody else");
    assert_eq!(record.log.len(), 2 * (PASSES + 1), "{operation:?}: {record:x?}");
    let passes = record.log.chunks(2).zip(seen.chunks(2)).skip(1).map(|(log, seen)| Cost {
        count: rounds * Operation::UNROLLED,
        ticks: u64::from(log[1]) << 32 | u64::from(log[0]),
        host_ticks: seen[1].0 - seen[0].0,
        outside: seen[1].1 - seen[0].1,
    });
    Some(middle(passes))
}

/// How often generated code called out, or came out other than at a branch.
fn calls(made: &BTreeMap<&str, u64>) -> u64 {
    let kinds = [
        "called_for_instruction",
        "called_for_access",
        "left_after_instruction",
        "left_for_fault",
        "left_for_retry",
    ];
    kinds.iter().map(|kind| made[kind]).sum()
}

/// All is translated when it runs for the first time.
fn options(way: Way) -> Options {
    let in_line = way != Way::CallOut;
    let native = native::Options {
        time: in_line,
        interrupts: in_line,
        bases: in_line,
        calls: in_line,
        strings: in_line,
        ..native::Options::default()
    };
    Options { translate: way != Way::Interpreted, hot: 1, native, ..Options::default() }
}

/// Where RDI points.
fn own_place(operation: Operation, way: Way) -> u64 {
    match (operation, way) {
        // On a page with code the engine sees each store: what VMware calls a trace.
        (Operation::PageTable, Way::CallOut) => HANDLER + 0x800,
        (Operation::PageTable | Operation::Remap, _) => window_entry(THERE),
        (Operation::PageFault, _) => window(ABSENT),
        _ => DATA + 0x1000,
    }
}

fn prepare(rig: &Rig, operation: Operation) {
    rig.write(OTHER_PML4, &rig.bytes(PML4, 4096));
    rig.set_word(window_entry(ABSENT), 0);
    rig.load(HANDLER, |a| match operation {
        Operation::Syscall => a.sysretq(),
        Operation::PageFault => {
            a.mov(ptr(rsp + 8), r15)?;
            a.add(rsp, 8)?;
            a.iretq()
        }
        _ => a.ret(),
    });
    if operation == Operation::PageFault {
        rig.set_gate(Vector::PF.0, Gate::to(HANDLER));
    }
    debug_assert_eq!(window_entry(0), WINDOW_TABLE);
}

/// The loop once to warm up, then [`PASSES`] times.
fn payload(a: &mut CodeAssembler, operation: Operation, own: u64, rounds: u64) -> Asm {
    let mut pass = a.create_label();
    if operation == Operation::Syscall {
        let (kernel, user) = (selector::KERNEL_CODE, selector::USER_CODE32);
        a.write_msr(msr::STAR, u64::from(user) << 48 | u64::from(kernel) << 32)?;
        a.write_msr(msr::LSTAR, HANDLER)?;
        a.write_msr(msr::SFMASK, 0)?;
    } else if operation != Operation::PageFault {
        // Makes its page one with code.
        a.call(HANDLER)?;
    }
    a.mov(r12, WARM)?;
    a.mov(rbp, 0_u64)?;
    a.set_label(&mut pass)?;
    a.mov(rsi, DATA)?;
    a.mov(rdi, own)?;
    a.ask(BEGIN)?;
    if operation == Operation::Syscall {
        // No exits from in there.
        a.user(|a| timed(a, |a| body(a, operation)))?;
    } else {
        timed(a, |a| body(a, operation))?;
    }
    a.ask(END)?;
    a.mov(rax, r8)?;
    a.log_rax()?;
    a.mov(r12, rounds)?;
    a.inc(rbp)?;
    a.cmp(rbp, PASSES as i32 + 1)?;
    a.jb(pass)
}

fn body(a: &mut CodeAssembler, operation: Operation) -> Asm {
    if operation.is_innocuous() {
        return operation.innocuous(a);
    }
    match operation {
        Operation::PageTable | Operation::Remap => a.mov(rax, window(THERE) | READY)?,
        Operation::Port => a.mov(edx, PORT)?,
        _ => {}
    }
    (0..Operation::UNROLLED).try_for_each(|n| one(a, operation, n))
}

fn one(a: &mut CodeAssembler, operation: Operation, n: u64) -> Asm {
    match operation {
        Operation::Rdtsc => a.rdtsc(),
        Operation::CliSti => {
            a.cli()?;
            a.sti()
        }
        Operation::Syscall => a.syscall(),
        Operation::PageTable => a.mov(ptr(rdi), rax),
        Operation::Remap => {
            a.mov(ptr(rdi), rax)?;
            a.invlpg(byte_ptr(window(THERE)))?;
            a.mov(rcx, qword_ptr(window(THERE)))
        }
        Operation::PageFault => {
            let mut after = a.create_label();
            a.lea(r15, ptr(after))?;
            a.mov(rcx, ptr(rdi))?;
            a.set_label(&mut after)?;
            a.nop()
        }
        Operation::Port => a.in_(al, dx),
        Operation::Switch => {
            a.mov(rax, [PML4, OTHER_PML4][n as usize % 2])?;
            a.mov(cr3, rax)?;
            a.mov(rcx, ptr(rsi))
        }
        _ => Ok(()),
    }
}
