//! Delivery of exceptions and interrupts through the IDT (SDM volume 3, chapter 6).

use translator::{Machine, RSP, Stop};
use x86::{Event, Exception, Segment, Vector, rflags};

use crate::breakpoints::{DR7, DR7_GENERAL_DETECT};
use crate::segments;
use crate::system::{Core, System};

/// How an event comes about, which decides on privilege checks and error-code bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// An exception or an interrupt.
    Hardware,
    /// INT n, INT3, INTO: the gate's privilege is checked.
    Software,
}

/// Delivers `event`, and what delivering it raises; a triple fault is left in `System::shutdown`, and what cannot be
/// delivered for want of memory in `System::undelivered`.
pub(crate) fn deliver(core: &mut Core, event: Event) {
    let mut event = event;
    loop {
        let Err(next) = attempt(core, event) else {
            core.machine.end = false;
            // What the delivery itself touched is not what the program did.
            core.machine.breakpoints.forget_met();
            return;
        };
        if core.machine.broken.is_some() {
            keep(&mut core.machine, event);
            return;
        }
        if next.vector == Vector::PF {
            // Also where a double fault comes of it.
            core.machine.regs.cr2 = next.address;
        }
        let Some(next) = combine(event, next) else {
            core.machine.shutdown = true;
            return;
        };
        event = Event::Exception(next);
    }
}

/// Keeps an event whose delivery has changed nothing, for the next run.
fn keep(machine: &mut System, event: Event) {
    if event == Event::Nmi {
        machine.nmi_blocked = false;
        machine.shared.vcpus[machine.id as usize].inbox.request_nmi();
    } else {
        machine.undelivered = Some(event);
    }
}

/// Has the INT3 at RIP do what it does in a guest without debugger.
pub(crate) fn deliver_int3(core: &mut Core) {
    let at = core.cpu.rip();
    core.cpu.set_rip(at.wrapping_add(1));
    if enter(core, Vector::BP.0, None, Source::Software, false).is_err() {
        core.cpu.set_rip(at);
        if core.machine.broken.is_some() {
            return;
        }
        let fault = core.machine.fault;
        deliver(core, Event::Exception(fault));
    }
}

/// What follows when `second` is raised during the delivery of `first`: itself, a double fault, or nothing
/// more (SDM volume 3, table 6-5).
fn combine(first: Event, second: Exception) -> Option<Exception> {
    let Event::Exception(first) = first else { return Some(second) };
    let contributory = |vector: Vector| matches!(vector.0, 0 | 10..=13);
    let double = match first.vector {
        Vector::DF => return None,
        Vector::PF => second.vector == Vector::PF || contributory(second.vector),
        vector => contributory(vector) && contributory(second.vector),
    };
    Some(if double { Exception::new(Vector::DF) } else { second })
}

fn attempt(core: &mut Core, event: Event) -> Result<(), Exception> {
    let (vector, code) = match event {
        Event::Interrupt(vector) => (vector, None),
        Event::Nmi => (Vector::NMI.0, None),
        Event::Exception(exception) => {
            let code = exception.vector.has_error_code().then_some(exception.error_code);
            (exception.vector.0, code)
        }
    };
    if let Event::Exception(exception) = event {
        match exception.vector {
            Vector::PF => core.machine.regs.cr2 = exception.address,
            // The handler may use the debug registers.
            Vector::DB => core.machine.regs.debug[DR7] &= !DR7_GENERAL_DETECT,
            _ => {}
        }
    }
    // The pushed RF keeps an instruction breakpoint from firing again at the same place.
    let fault = matches!(event, Event::Exception(e) if e.vector != Vector::DB);
    enter(core, vector, code, Source::Hardware, fault).map_err(|_| core.machine.fault)
}

/// Enters the handler of `vector`. On an error nothing has changed but memory below the new stack.
pub(crate) fn enter(
    core: &mut Core,
    vector: u8,
    code: Option<u32>,
    source: Source,
    resume_flag: bool,
) -> Result<(), Stop> {
    if !core.machine.regs.long_mode() {
        // Protected- and real-mode handlers are not needed by anything that boots here; the kernel's
        // start-up code runs with interrupts off and must not fault.
        return Err(core.machine.raise(Exception::new(Vector::DF)));
    }
    // EXT is set where the cause was not the program itself.
    let ext = u32::from(source == Source::Hardware);
    let idt_code = u32::from(vector) << 3 | 2 | ext;
    let gate = read_gate(core, vector, idt_code)?;
    if source == Source::Software && gate.dpl < core.cpu.cpl {
        return Err(core.machine.gp(idt_code & !1));
    }
    if !gate.present {
        return Err(core.machine.raise(Exception::with_code(Vector::NP, idt_code)));
    }
    let cs = segments::code_for_gate(core, gate.selector, ext)?;
    let conforming = cs.attributes & 4 != 0;
    let cpl = if conforming { core.cpu.cpl } else { cs.dpl() };
    let top = if gate.ist != 0 {
        tss_word(core, 0x24 + u64::from(gate.ist - 1) * 8)?
    } else if cpl < core.cpu.cpl {
        tss_word(core, 4 + u64::from(cpl) * 8)?
    } else {
        core.cpu.regs[RSP as usize]
    };
    push_frame(core, top & !0xf, code, cpl, resume_flag)?;
    // Nothing can fail any more.
    if cpl < core.cpu.cpl {
        core.cpu.segs[2] = Segment { selector: u16::from(cpl), ..segments::null_stack(cpl) };
    }
    let frame = 5 + u64::from(code.is_some());
    core.cpu.regs[RSP as usize] = (top & !0xf).wrapping_sub(frame * 8);
    segments::enter_code(
        core,
        Segment { selector: gate.selector & !3 | u16::from(cpl), ..cs },
        cpl,
    );
    core.cpu.set_rip(gate.offset);
    let cleared = rflags::TF | rflags::NT | rflags::VM | rflags::RF;
    core.cpu.set_flags(cleared | if gate.trap { 0 } else { rflags::IF }, 0);
    core.machine.set_privilege(cpl, core.cpu.rflags);
    core.cpu.shadow = false;
    Ok(())
}

/// Pushes SS, RSP, RFLAGS, CS, RIP and the error code with the privilege of the handler.
fn push_frame(
    core: &mut Core,
    top: u64,
    code: Option<u32>,
    cpl: u8,
    resume_flag: bool,
) -> Result<(), Stop> {
    let rf = if resume_flag { rflags::RF } else { 0 };
    let words = [
        u64::from(code.unwrap_or(0)),
        core.cpu.rip(),
        u64::from(core.cpu.segs[1].selector),
        core.cpu.rflags | rf,
        core.cpu.regs[RSP as usize],
        u64::from(core.cpu.segs[2].selector),
    ];
    let words = if code.is_some() { &words[..] } else { &words[1..] };
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let at = top.wrapping_sub(bytes.len() as u64);
    let pushed = core.machine.write_bytes_as(at, &bytes, cpl == 3);
    if pushed.is_err() && core.machine.fault_is_address {
        core.machine.raise(Exception::new(Vector::SS));
    }
    pushed
}

struct Gate {
    offset: u64,
    selector: u16,
    ist: u8,
    dpl: u8,
    present: bool,
    trap: bool,
}

fn read_gate(core: &mut Core, vector: u8, code: u32) -> Result<Gate, Stop> {
    let idtr = core.machine.regs.idtr;
    let at = u64::from(vector) * 16;
    if at + 15 > u64::from(idtr.limit) {
        return Err(core.machine.gp(code));
    }
    let mut bytes = [0; 16];
    core.machine.read_bytes_as(idtr.base.wrapping_add(at), &mut bytes, false)?;
    let word = |at: usize| u64::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let access = bytes[5];
    // Type 14 is an interrupt gate, 15 a trap gate; nothing else exists in long mode.
    if access & 0x1f != 0xe && access & 0x1f != 0xf {
        return Err(core.machine.gp(code));
    }
    Ok(Gate {
        offset: word(0) | word(6) << 16 | word(8) << 32 | word(10) << 48,
        selector: word(2) as u16,
        ist: bytes[4] & 7,
        dpl: access >> 5 & 3,
        present: access & 0x80 != 0,
        trap: access & 1 != 0,
    })
}

/// A stack pointer in the 64-bit TSS.
fn tss_word(core: &mut Core, offset: u64) -> Result<u64, Stop> {
    let tr = core.machine.regs.tr;
    if offset + 7 > u64::from(tr.limit) {
        let code = u32::from(tr.selector & !3);
        return Err(core.machine.raise(Exception::with_code(Vector::TS, code)));
    }
    let mut bytes = [0; 8];
    core.machine.read_bytes_as(tr.base.wrapping_add(offset), &mut bytes, false)?;
    Ok(u64::from_le_bytes(bytes))
}
