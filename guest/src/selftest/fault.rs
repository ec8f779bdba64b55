//! Exceptions: the right signal, code, address, error code, and the state before the instruction.

use super::signal::{Seen, caught, fault};
use super::{Test, Verdict};
use crate::sys::{Mapping, PAGE};
use libc::{PROT_EXEC, PROT_NONE, PROT_READ, PROT_WRITE};

pub(super) const TESTS: &[Test] = &[
    ("divide-error", divide_error),
    ("undefined-instruction", undefined_instruction),
    ("page-fault", page_fault),
    ("page-crossing", page_crossing),
    ("string-fault", string_fault),
    ("stack-fault", stack_fault),
    ("non-canonical", non_canonical),
    ("no-execute", no_execute),
    ("privileged", privileged),
    ("breakpoint", breakpoint),
    ("software-interrupt", software_interrupt),
    ("alignment-check", alignment_check),
    ("x87-exception", x87_exception),
    ("sse-exception", sse_exception),
];

/// Vectors, Intel SDM vol. 3, table 6-1.
const DIVIDE: u64 = 0;
const BREAKPOINT: u64 = 3;
const UNDEFINED: u64 = 6;
const STACK: u64 = 12;
const PROTECTION: u64 = 13;
const PAGE_FAULT: u64 = 14;
const X87: u64 = 16;
const ALIGNMENT: u64 = 17;
const SIMD: u64 = 19;

/// `si_code` of what the kernel raises without more to say.
const SI_KERNEL: u64 = 0x80;
const SEGV_MAPERR: u64 = 1;
const SEGV_ACCERR: u64 = 2;

/// Page-fault error code bits, SDM vol. 3, 4.7.
const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;
const FETCH: u64 = 16;

/// Signal, code and vector, and that `rip` is still at the instruction.
fn raised(seen: Option<Seen>, signal: i32, code: u64, trap: u64) -> Verdict {
    let Some(seen) = seen else { return Verdict::Wrong("nothing was raised".into()) };
    Verdict::values(&[
        ("signal", seen.signal, signal as u64),
        ("vector", seen.trap(), trap),
        ("code", seen.code, code),
        ("bytes beyond the instruction", seen.beyond(), 0),
    ])
}

/// A page fault at `address`.
fn page_fault_at(seen: Option<Seen>, address: u64, code: u64, error: u64) -> Verdict {
    let Some(known) = seen else { return Verdict::Wrong("nothing was raised".into()) };
    let values = Verdict::values(&[
        ("address", known.address, address),
        ("error code", known.error(), error),
    ]);
    Verdict::all([raised(seen, libc::SIGSEGV, code, PAGE_FAULT), values])
}

fn divide_error() -> Verdict {
    const FPE_INTDIV: u64 = 1;
    let by_zero =
        caught(|| fault!("div ecx", in("ecx") 0, inout("eax") 5 => _, inout("edx") 0 => _));
    let overflow = caught(|| {
        fault!("idiv rcx", in("rcx") -1_i64, inout("rax") i64::MIN => _, inout("rdx") -1_i64 => _);
    });
    let byte = caught(|| fault!("div cl", in("ecx") 1, inout("eax") 0x100 => _));
    let registers = Verdict::values(&[
        ("rax kept", overflow.map_or(0, |s| s.register(libc::REG_RAX)), i64::MIN as u64),
        ("si_addr is rip", by_zero.map_or(1, |s| s.address - s.register(libc::REG_RIP)), 0),
    ]);
    Verdict::all([
        raised(by_zero, libc::SIGFPE, FPE_INTDIV, DIVIDE).named("by zero"),
        raised(overflow, libc::SIGFPE, FPE_INTDIV, DIVIDE).named("overflow"),
        raised(byte, libc::SIGFPE, FPE_INTDIV, DIVIDE).named("byte"),
        registers,
    ])
}

fn undefined_instruction() -> Verdict {
    const ILL_ILLOPN: u64 = 2;
    let cases = [
        ("ud2", caught(|| fault!("ud2"))),
        ("lock on a register", caught(|| fault!(".byte 0xf0, 0x89, 0xc0", out("eax") _))),
        ("push es, gone in 64-bit mode", caught(|| fault!(".byte 0x06"))),
        ("aaa, gone in 64-bit mode", caught(|| fault!(".byte 0x37"))),
    ];
    let told =
        cases.map(|(name, seen)| raised(seen, libc::SIGILL, ILL_ILLOPN, UNDEFINED).named(name));
    Verdict::all(told)
}

fn page_fault() -> Verdict {
    let (Ok(none), Ok(read_only)) = (Mapping::new(PAGE, PROT_NONE), Mapping::new(PAGE, PROT_READ))
    else {
        return Verdict::Wrong("no memory".into());
    };
    let (none, read_only) = (none.pointer() as u64 + 8, read_only.pointer() as u64 + 16);
    let load = |at: u64| caught(|| fault!("mov rax, [rcx]", in("rcx") at, out("rax") _));
    let store = |at: u64| caught(|| fault!("mov [rcx], rcx", in("rcx") at));
    let add = |at: u64| caught(|| fault!("lock add qword ptr [rcx], 1", in("rcx") at));
    // The zero page is mapped by the first read.
    let first_read = load(read_only).is_some();
    Verdict::all([
        page_fault_at(load(16), 16, SEGV_MAPERR, USER).named("load"),
        page_fault_at(store(24), 24, SEGV_MAPERR, USER | WRITE).named("store"),
        page_fault_at(load(none), none, SEGV_ACCERR, USER).named("load without access"),
        page_fault_at(store(read_only), read_only, SEGV_ACCERR, USER | WRITE | PRESENT)
            .named("store to read-only"),
        page_fault_at(add(read_only), read_only, SEGV_ACCERR, USER | WRITE | PRESENT)
            .named("locked add to read-only"),
        Verdict::of(!first_read, "reading a readable page faulted"),
    ])
}

/// Two pages of which the second cannot be accessed; and its address.
fn guarded_pair() -> Option<(Mapping, u64)> {
    let pair = Mapping::new(2 * PAGE, PROT_READ | PROT_WRITE).ok()?;
    // SAFETY: nothing uses the second page but the accesses under test.
    unsafe { pair.protect(PAGE, PAGE, PROT_NONE) }.ok()?;
    let second = pair.pointer() as u64 + PAGE as u64;
    Some((pair, second))
}

fn page_crossing() -> Verdict {
    let Some((pair, second)) = guarded_pair() else { return Verdict::Wrong("no memory".into()) };
    pair_fill(&pair);
    let at = second - 3;
    let load = caught(|| fault!("mov rax, [rcx]", in("rcx") at, out("rax") _));
    let store = caught(|| fault!("mov [rcx], rax", in("rcx") at, in("rax") -1_i64));
    let vector = caught(|| fault!("movups [rcx], xmm0", in("rcx") second - 9));
    // SAFETY: the last bytes of the first page.
    let left = unsafe { (at as *const u8).read() };
    // SAFETY: gives back the access taken by `guarded_pair`.
    let opened = unsafe { pair.protect(PAGE, PAGE, PROT_READ | PROT_WRITE) };
    let value: u64;
    // SAFETY: eight bytes over the border of two pages that are ours.
    unsafe {
        std::arch::asm!(
            "mov [rcx], rax",
            "lock xadd [rcx], rdx",
            "mov rax, [rcx]",
            in("rcx") at,
            inout("rax") 0x0102_0304_0506_0708_u64 => value,
            inout("rdx") 1_u64 => _,
        );
    }
    Verdict::all([
        page_fault_at(load, second, SEGV_ACCERR, USER).named("load"),
        page_fault_at(store, second, SEGV_ACCERR, USER | WRITE).named("store"),
        page_fault_at(vector, second, SEGV_ACCERR, USER | WRITE).named("vector store"),
        Verdict::of(left == FILL, "a store that faulted wrote its first half"),
        Verdict::of(opened.is_ok(), "mprotect failed"),
        Verdict::values(&[("over the border", value, 0x0102_0304_0506_0709)]),
    ])
}

const FILL: u8 = 0x5a;

fn pair_fill(pair: &Mapping) {
    // SAFETY: the first page of the pair is ours and writable.
    unsafe { pair.pointer().write_bytes(FILL, PAGE) };
}

/// A repeated string instruction stops at the fault with its registers there, to be restarted.
fn string_fault() -> Verdict {
    let Some((pair, second)) = guarded_pair() else { return Verdict::Wrong("no memory".into()) };
    let start = second - 24;
    let forward = caught(|| {
        fault!("rep stosq", inout("rdi") start => _, inout("rcx") 10_u64 => _, in("rax") 7_u64);
    });
    let source = [1_u8; 64];
    let copy = caught(|| {
        fault!("rep movsb", inout("rdi") second - 5 => _, inout("rsi") source.as_ptr() => _,
            inout("rcx") 64_u64 => _);
    });
    let register = |seen: Option<Seen>, number| seen.map_or(0, |seen| seen.register(number));
    // SAFETY: inside the first page.
    let last = unsafe { (start as *const u64).add(2).cast::<u8>().read() };
    drop(pair);
    Verdict::all([
        page_fault_at(forward, second, SEGV_ACCERR, USER | WRITE).named("rep stosq"),
        Verdict::values(&[
            ("rdi", register(forward, libc::REG_RDI), second),
            ("rcx", register(forward, libc::REG_RCX), 7),
            ("copy rdi", register(copy, libc::REG_RDI), second),
            ("copy rcx", register(copy, libc::REG_RCX), 59),
            ("copy rsi", register(copy, libc::REG_RSI), source.as_ptr() as u64 + 5),
            ("stored", last.into(), 7),
        ]),
    ])
}

/// A push that faults leaves the stack pointer alone.
fn stack_fault() -> Verdict {
    let Ok(page) = Mapping::new(PAGE, PROT_NONE) else { return Verdict::Wrong("no memory".into()) };
    let top = page.pointer() as u64 + 64;
    let push = caught(|| on_stack(top, false));
    let call = caught(|| on_stack(top, true));
    let kept = |seen: Option<Seen>| seen.map_or(0, |seen| seen.register(libc::REG_RSP));
    let hole = caught(|| on_stack(0x8000_0000_0040, false));
    Verdict::all([
        page_fault_at(push, top - 8, SEGV_ACCERR, USER | WRITE).named("push"),
        page_fault_at(call, top - 8, SEGV_ACCERR, USER | WRITE).named("call"),
        Verdict::values(&[("rsp after push", kept(push), top), ("after call", kept(call), top)]),
        // Through the stack pointer a non-canonical address raises #SS, which Linux tells so.
        Verdict::values(&[
            ("signal", hole.map_or(0, |seen| seen.signal), libc::SIGBUS as u64),
            ("vector", hole.map_or(0, |seen| seen.trap()), STACK),
        ]),
    ])
}

/// Push, or call, with the stack pointer at `top`.
fn on_stack(top: u64, call: bool) {
    // SAFETY: as for `fault`; both paths end at the label, where the stack pointer is restored.
    unsafe {
        std::arch::asm!(
            "lea r15, [rip + 2f]",
            "mov r13, rsp",
            "test {call}, {call}",
            "jnz 4f",
            "lea r14, [rip + 3f]",
            "mov rsp, rcx",
            "3:",
            "push rcx",
            "jmp 2f",
            "4:",
            "lea r14, [rip + 5f]",
            "mov rsp, rcx",
            "5:",
            "call 2f",
            "2:",
            "mov rsp, r13",
            call = in(reg) u64::from(call),
            in("rcx") top,
            out("r13") _,
            out("r14") _,
            out("r15") _,
        );
    }
}

fn non_canonical() -> Verdict {
    let hole = 0x8000_0000_0000_u64;
    let load = caught(|| fault!("mov rax, [rcx]", in("rcx") hole, out("rax") _));
    let crossing = caught(|| fault!("mov rax, [rcx]", in("rcx") u64::MAX / 2, out("rax") _));
    let jump = caught(|| fault!("jmp rcx", in("rcx") hole));
    let code = load.map_or(1, |seen| seen.error() | seen.address);
    Verdict::all([
        raised(load, libc::SIGSEGV, SI_KERNEL, PROTECTION).named("load"),
        raised(crossing, libc::SIGSEGV, SI_KERNEL, PROTECTION).named("far in the hole"),
        raised(jump, libc::SIGSEGV, SI_KERNEL, PROTECTION).named("jump"),
        Verdict::values(&[("error code and address", code, 0)]),
    ])
}

fn no_execute() -> Verdict {
    const RET: u8 = 0xc3;
    let Ok(page) = Mapping::new(PAGE, PROT_READ | PROT_WRITE) else {
        return Verdict::Wrong("no memory".into());
    };
    // SAFETY: our page.
    unsafe { page.pointer().write(RET) };
    let address = page.pointer() as u64;
    let seen = caught(|| fault!("jmp rcx", in("rcx") address));
    // SAFETY: nobody runs or uses the page meanwhile.
    let opened = unsafe { page.protect(0, PAGE, PROT_READ | PROT_EXEC) };
    // SAFETY: the page holds a return and may be executed now.
    unsafe { std::arch::asm!("call {}", in(reg) address) };
    let Some(seen) = seen else { return Verdict::Wrong("nothing was raised".into()) };
    Verdict::all([
        Verdict::values(&[
            ("signal", seen.signal, libc::SIGSEGV as u64),
            ("code", seen.code, SEGV_ACCERR),
            ("address", seen.address, address),
            ("rip", seen.register(libc::REG_RIP), address),
            ("error code", seen.error(), USER | FETCH | PRESENT),
        ]),
        Verdict::of(opened.is_ok(), "mprotect failed"),
    ])
}

fn privileged() -> Verdict {
    let cases = [
        ("hlt", caught(|| fault!("hlt"))),
        ("cli", caught(|| fault!("cli"))),
        ("mov cr0", caught(|| fault!("mov rax, cr0", out("rax") _))),
        ("mov dr7", caught(|| fault!("mov rax, dr7", out("rax") _))),
        ("rdmsr", caught(|| fault!("rdmsr", in("ecx") 0x1b, out("eax") _, out("edx") _))),
        ("in", caught(|| fault!("in al, dx", in("dx") 0x3f8_u16, out("al") _))),
        ("invlpg", caught(|| fault!("invlpg [rcx]", in("rcx") 0))),
        ("lgdt", caught(|| fault!("lgdt [rsp]"))),
        ("too long", caught(|| fault!(".fill 15, 1, 0x66; nop"))),
        ("mov to es of a kernel selector", caught(|| fault!("mov es, ecx", in("ecx") 0x10))),
    ];
    let told =
        cases.map(|(name, seen)| raised(seen, libc::SIGSEGV, SI_KERNEL, PROTECTION).named(name));
    Verdict::all(told)
}

/// A trap: `rip` is behind the instruction.
fn breakpoint() -> Verdict {
    let cases =
        [("int3", caught(|| fault!("int3")), 1), ("int 3", caught(|| fault!(".byte 0xcd, 3")), 2)];
    Verdict::all(cases.map(|(name, seen, length)| {
        let Some(seen) = seen else { return Verdict::Wrong("nothing was raised".into()) };
        Verdict::values(&[
            ("signal", seen.signal, libc::SIGTRAP as u64),
            ("vector", seen.trap(), BREAKPOINT),
            ("bytes beyond", seen.beyond(), length),
        ])
        .named(name)
    }))
}

/// An interrupt gate that user code may not use: the error code names the gate (SDM 6.13).
fn software_interrupt() -> Verdict {
    const IN_IDT: u64 = 2;
    let seen = caught(|| fault!("int 0x81"));
    let error = seen.map_or(0, |seen| seen.error());
    Verdict::all([
        raised(seen, libc::SIGSEGV, SI_KERNEL, PROTECTION),
        Verdict::values(&[("error code", error, (0x81 << 3) | IN_IDT)]),
    ])
}

fn alignment_check() -> Verdict {
    const BUS_ADRALN: u64 = 1;
    let words = [0_u64; 2];
    let at = words.as_ptr() as u64 + 1;
    let seen = caught(|| {
        fault!(["pushfq", "or dword ptr [rsp], 0x40000", "popfq"], "mov eax, [rcx]",
            in("rcx") at, out("eax") _);
    });
    // Without a fault the flag is still set: take it away.
    // SAFETY: the stack is left as it was.
    unsafe { std::arch::asm!("pushfq", "and dword ptr [rsp], 0xfffbffff", "popfq") };
    raised(seen, libc::SIGBUS, BUS_ADRALN, ALIGNMENT)
}

const FPE_FLTDIV: u64 = 3;
const FPE_FLTOVF: u64 = 4;
const FPE_FLTRES: u64 = 6;
const FPE_FLTINV: u64 = 7;

/// Raised not by the operation but by the next waiting instruction.
fn x87_exception() -> Verdict {
    let run = |control: u16, divide: bool| {
        let control = [control];
        let seen = if divide {
            caught(|| {
                fault!(["fninit", "fldcw [rcx]", "fld1", "fldz", "fdivp st(1), st"], "fwait",
                    in("rcx") control.as_ptr());
            })
        } else {
            caught(|| {
                fault!(["fninit", "fldcw [rcx]", "fldz", "fldz", "fdivp st(1), st"], "fwait",
                    in("rcx") control.as_ptr());
            })
        };
        // SAFETY: x87 state only.
        unsafe { std::arch::asm!("fninit") };
        seen
    };
    let masked = run(0x37f, true).is_some();
    Verdict::all([
        raised(run(0x37b, true), libc::SIGFPE, FPE_FLTDIV, X87).named("by zero"),
        raised(run(0x37e, false), libc::SIGFPE, FPE_FLTINV, X87).named("invalid"),
        Verdict::of(!masked, "a masked exception was raised"),
    ])
}

fn sse_exception() -> Verdict {
    const MASKED: u32 = 0x1f80;
    let run = |unmask: u32, a: f32, b: f32| {
        let (mxcsr, normal) = ([MASKED & !unmask], [MASKED]);
        let seen = caught(|| {
            fault!(["ldmxcsr [rcx]"], "divss xmm0, xmm1", in("rcx") mxcsr.as_ptr(),
                inout("xmm0") a => _, in("xmm1") b);
            // SAFETY: as it was when the process began.
            unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) normal.as_ptr()) };
        });
        // SAFETY: as above, if the fault skipped it.
        unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) normal.as_ptr()) };
        seen
    };
    let masked = run(0, 1.0, 0.0).is_some();
    Verdict::all([
        raised(run(1 << 9, 1.0, 0.0), libc::SIGFPE, FPE_FLTDIV, SIMD).named("by zero"),
        raised(run(1 << 7, 0.0, 0.0), libc::SIGFPE, FPE_FLTINV, SIMD).named("invalid"),
        raised(run(1 << 10, f32::MAX, 1e-9), libc::SIGFPE, FPE_FLTOVF, SIMD).named("overflow"),
        raised(run(1 << 12, 1.0, 3.0), libc::SIGFPE, FPE_FLTRES, SIMD).named("inexact"),
        Verdict::of(!masked, "a masked exception was raised"),
    ])
}
