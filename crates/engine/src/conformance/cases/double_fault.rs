//! Exceptions during the delivery of exceptions (SDM volume 3, table 6-5), and shutdown.

use super::prelude::*;

cases!(
    "double_fault": contributory, page_fault_twice, page_fault_then_contributory, benign_first,
    bad_stack, triple, no_handlers,
);

const DOUBLE: Fault = Fault::new(Vector::DF);

/// A gate that is not present.
const ABSENT: Gate = Gate { present: false, ..Gate::to(0) };

/// #GP whose gate raises #NP, and #DE whose gate raises #NP.
fn contributory(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.xor(ecx, ecx)?;
        a.fault(|a| a.div(ecx))?;
        a.mov(rbx, 1u64 << 63)?;
        a.fault(|a| a.mov(eax, dword_ptr(rbx)))
    });
    rig.set_gate(0, ABSENT);
    rig.set_gate(13, ABSENT);
    assert_eq!(rig.run().faults(), [DOUBLE; 2]);
}

/// #PF whose handler has a stack that is not there.
fn page_fault_twice(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(rsp, window(6))?;
        a.fault(|a| a.mov(al, byte_ptr(window(7))))?;
        a.mov(rsp, STACK)?;
        a.mov(rax, cr2)?;
        a.log_eax()
    });
    rig.map_window(5, 0, 0);
    rig.map_window(7, 0, 0);
    rig.set_gate(8, Gate { ist: 1, ..Gate::stub(8) });
    let record = rig.run();
    assert_eq!(record.faults(), [DOUBLE]);
    // CR2 is that of the second one.
    assert_eq!(u64::from(record.log[0]) & !0xfff, window(5));
    assert_eq!(record.frames[0].rsp, window(6));
}

fn page_fault_then_contributory(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| a.fault(|a| a.mov(al, byte_ptr(window(7)))));
    rig.map_window(7, 0, 0);
    rig.set_gate(14, ABSENT);
    assert_eq!(rig.run().faults(), [DOUBLE]);
}

/// #UD is benign: the second exception is delivered alone. Bit 0 of its error code says that the
/// event was not a software interrupt.
fn benign_first(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| a.fault(iced_x86::code_asm::CodeAssembler::ud2));
    rig.set_gate(6, ABSENT);
    assert_eq!(rig.run().faults(), [Fault::with_code(Vector::NP, 6 * 8 + 3)]);
}

/// #GP that finds RSP not canonical.
fn bad_stack(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.mov(rsp, 1u64 << 63)?;
        a.mov(rbx, rsp)?;
        a.fault(|a| a.mov(eax, dword_ptr(rbx)))?;
        a.mov(rsp, STACK)
    });
    rig.set_gate(8, Gate { ist: 1, ..Gate::stub(8) });
    assert_eq!(rig.run().faults(), [DOUBLE]);
}

fn triple(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.log(1)?;
        a.mov(rbx, 1u64 << 63)?;
        a.mov(eax, dword_ptr(rbx))?;
        a.log(2)
    });
    rig.set_gate(13, ABSENT);
    rig.set_gate(8, ABSENT);
    let record = rig.run();
    assert_eq!(record.log, [1]);
    assert_eq!(record.exits, [Exit::TripleFault]);
}

/// The way in which a kernel resets a board that has nothing else.
fn no_handlers(engine: &dyn Engine) {
    let mut rig = Rig::with(engine, |a| {
        a.lidt(ptr(DATA))?;
        a.int3()
    });
    assert_eq!(rig.run().exits, [Exit::TripleFault]);
}
