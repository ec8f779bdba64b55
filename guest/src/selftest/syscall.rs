//! Entering and leaving the kernel: system calls, returns from signals.

use super::signal::{USER_CS, USER_SS, caught, fault, set_handler};
use super::{Test, Verdict};
use std::arch::asm;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

pub(super) const TESTS: &[Test] = &[
    ("syscall-numbers", syscall_numbers),
    ("syscall-registers", syscall_registers),
    ("syscall-flags", syscall_flags),
    ("int80", int80),
    ("vsyscall", vsyscall),
    ("sigreturn-registers", sigreturn_registers),
    ("sigreturn-rip", sigreturn_rip),
    ("sigreturn-segments", sigreturn_segments),
];

fn raw(number: i64) -> i64 {
    let result;
    // SAFETY: only used with calls that take nothing and touch no memory.
    unsafe {
        asm!("syscall", inout("rax") number => result, out("rcx") _, out("r11") _, options(nostack));
    }
    result
}

fn syscall_numbers() -> Verdict {
    let none = -i64::from(libc::ENOSYS);
    let numbers = [9999, -1, i64::MIN, 0x7fff_ffff, 1 << 40];
    // The kernel looks at 32 bits: 2^40 is call 0, a read from descriptor "rdi", which fails in
    // ways of its own; so is it for i64::MIN. What matters is that both come back.
    let told = numbers.map(raw_without_arguments);
    Verdict::values(&[
        ("9999", told[0] as u64, none as u64),
        ("-1", told[1] as u64, none as u64),
        ("int max", told[3] as u64, none as u64),
        ("high bits", told[4] as u64, -i64::from(libc::EBADF) as u64),
        ("getpid", raw(libc::SYS_getpid) as u64, u64::from(std::process::id())),
    ])
}

/// With a descriptor that is none, in case the number turns out to be one.
fn raw_without_arguments(number: i64) -> i64 {
    let result;
    // SAFETY: whatever call it is, descriptor -1, address 0 and length 0 do no harm.
    unsafe {
        asm!("syscall", inout("rax") number => result, in("rdi") -1_i64, in("rsi") 0, in("rdx") 0,
            out("rcx") _, out("r11") _, options(nostack));
    }
    result
}

/// `rcx` and `r11` hold the return address and the flags (SDM, SYSCALL); all else is kept.
fn syscall_registers() -> Verdict {
    let (rcx, r11, back, flags): (u64, u64, u64, u64);
    let mut kept = [0_u64; 10];
    // SAFETY: the stack is left as it was; rbx and rbp are put back; the ten words are ours.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "push {kept}",
            "mov rbx, 11",
            "mov rbp, 12",
            "mov r8, 13",
            "mov r9, 14",
            "mov r10, 15",
            "mov r12, 16",
            "mov r13, 17",
            "mov r14, 18",
            "mov rdi, 19",
            "mov rsi, 20",
            "syscall",
            "2:",
            "pushfq",
            "pop r15",
            "pop rax",
            "mov [rax], rbx",
            "mov [rax + 8], rbp",
            "mov [rax + 16], r8",
            "mov [rax + 24], r9",
            "mov [rax + 32], r10",
            "mov [rax + 40], r12",
            "mov [rax + 48], r13",
            "mov [rax + 56], r14",
            "mov [rax + 64], rdi",
            "mov [rax + 72], rsi",
            "pop rbp",
            "pop rbx",
            "lea rax, [rip + 2b]",
            kept = in(reg) kept.as_mut_ptr(),
            inout("rax") libc::SYS_getppid => back,
            out("rcx") rcx,
            out("r11") r11,
            out("r15") flags,
            out("r8") _, out("r9") _, out("r10") _, out("r12") _, out("r13") _, out("r14") _,
            out("rdi") _, out("rsi") _,
        );
    }
    Verdict::all([
        Verdict::values(&[("rcx", rcx, back), ("r11", r11, flags)]),
        Verdict::of(kept == std::array::from_fn(|n| n as u64 + 11), "a register was changed"),
    ])
}

/// Carry, sign, direction and identification flags come back as they went.
fn syscall_flags() -> Verdict {
    const SET: u64 = 0x0020_0cd5;
    let (before, after): (u64, u64);
    // SAFETY: the stack is left as it was and the direction flag cleared again.
    unsafe {
        asm!(
            "pushfq",
            "or qword ptr [rsp], 0x200cd5",
            "popfq",
            "pushfq",
            "pop {before}",
            "syscall",
            "pushfq",
            "pop {after}",
            "cld",
            before = out(reg) before,
            after = out(reg) after,
            inout("rax") libc::SYS_getppid => _,
            out("rcx") _,
            out("r11") _,
        );
        asm!("pushfq", "and dword ptr [rsp], 0xffdfffff", "popfq");
    }
    Verdict::values(&[("flags", after, before), ("set", after & SET, SET)])
}

/// The 32-bit call gate, usable from 64-bit code if the kernel has it.
fn int80() -> Verdict {
    const GETPID_32: u64 = 20;
    let result = AtomicU64::new(0);
    let (kept, r8, r12) = (0x1111_2222_3333_4444_u64, AtomicU64::new(0), AtomicU64::new(0));
    let seen = caught(|| {
        let (value, low, high): (u64, u64, u64);
        fault!("int 0x80", inout("rax") GETPID_32 => value, inout("r8") kept => low,
            inout("r12") kept => high);
        result.store(value, SeqCst);
        r8.store(low, SeqCst);
        r12.store(high, SeqCst);
    });
    if seen.is_some() {
        return Verdict::Skipped("the kernel has no 32-bit system calls");
    }
    Verdict::values(&[
        ("getpid", result.into_inner(), std::process::id().into()),
        ("r8", r8.into_inner(), kept),
        ("r12", r12.into_inner(), kept),
    ])
}

/// Calls to fixed addresses that the kernel emulates when the fetch faults.
fn vsyscall() -> Verdict {
    const TIME: u64 = 0xffff_ffff_ff60_0400;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    if !maps.contains("[vsyscall]") {
        return Verdict::Skipped("the kernel has no vsyscall page");
    }
    let before = crate::sys::clock(libc::CLOCK_REALTIME_COARSE) / 1_000_000_000;
    let time: u64;
    // SAFETY: time(NULL) in the ABI of C, emulated by the kernel.
    unsafe { asm!("call {}", in(reg) TIME, out("rax") time, in("rdi") 0, clobber_abi("C")) };
    let after = crate::sys::clock(libc::CLOCK_REALTIME) / 1_000_000_000;
    Verdict::of((before..=after).contains(&time), &format!("time {time}, not {before}..{after}"))
}

extern "C" fn change_registers(
    _signal: libc::c_int,
    _info: *mut libc::siginfo_t,
    context: *mut libc::ucontext_t,
) {
    // SAFETY: the kernel passes the context, ours until we return.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    for (number, register) in [libc::REG_R8, libc::REG_R9, libc::REG_R12, libc::REG_RDX]
        .into_iter()
        .zip([0x11, -0x22, 0x33 << 40, 0x44])
    {
        registers[number as usize] = register;
    }
    // Carry on, zero off.
    registers[libc::REG_EFL as usize] = (registers[libc::REG_EFL as usize] | 1) & !0x40;
}

/// What a handler writes into its context is what the program has afterwards.
fn sigreturn_registers() -> Verdict {
    set_handler(libc::SIGUSR1, change_registers);
    let (r8, r9, r12, rdx): (u64, u64, u64, u64);
    let (carry, zero): (u8, u8);
    // SAFETY: kill(self, SIGUSR1); the handler changes what is declared as changed.
    unsafe {
        asm!(
            "xor ecx, ecx",
            "syscall",
            "setc r10b",
            "setz r13b",
            inout("rax") libc::SYS_kill => _,
            in("rdi") u64::from(std::process::id()),
            in("rsi") libc::SIGUSR1 as u64,
            out("rcx") _, out("r11") _,
            out("r8") r8, out("r9") r9, out("r12") r12, out("rdx") rdx,
            out("r10b") carry, out("r13b") zero,
        );
    }
    Verdict::values(&[
        ("r8", r8, 0x11),
        ("r9", r9, -0x22_i64 as u64),
        ("r12", r12, 0x33 << 40),
        ("rdx", rdx, 0x44),
        ("carry", carry.into(), 1),
        ("zero", zero.into(), 0),
    ])
}

static TO_RIP: AtomicU64 = AtomicU64::new(0);
static TO_CS: AtomicU64 = AtomicU64::new(0);
static TO_SS: AtomicU64 = AtomicU64::new(0);

/// Go where the test says. The kernel's `csgsfs` word holds cs, gs, fs and ss, 16 bits each.
extern "C" fn go(
    _signal: libc::c_int,
    _info: *mut libc::siginfo_t,
    context: *mut libc::ucontext_t,
) {
    // SAFETY: the kernel passes the context, ours until we return.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    registers[libc::REG_RIP as usize] = TO_RIP.load(SeqCst) as i64;
    let word = &mut registers[libc::REG_CSGSFS as usize];
    let (cs, ss) = (TO_CS.load(SeqCst), TO_SS.load(SeqCst));
    *word = (*word as u64 & 0x0000_ffff_ffff_0000 | cs | ss << 48) as i64;
}

/// Return from a signal to an address no program can have; the handler for what that raises
/// goes on at `r15` with segments as they were.
fn return_to(rip: u64, cs: u64, ss: u64) -> Option<super::signal::Seen> {
    TO_RIP.store(rip, SeqCst);
    TO_CS.store(cs, SeqCst);
    TO_SS.store(ss, SeqCst);
    set_handler(libc::SIGUSR1, go);
    caught(|| {
        fault!("syscall", inout("rax") libc::SYS_kill => _,
            in("rdi") u64::from(std::process::id()), in("rsi") libc::SIGUSR1 as u64,
            out("rcx") _, out("r11") _);
    })
}

fn sigreturn_rip() -> Verdict {
    let hole = return_to(0x8000_0000_0000, USER_CS, USER_SS);
    let kernel = return_to(0xffff_ffff_8100_0000, USER_CS, USER_SS);
    let signal = libc::SIGSEGV as u64;
    Verdict::values(&[
        ("signal for the hole", hole.map_or(0, |seen| seen.signal), signal),
        ("signal for the kernel", kernel.map_or(0, |seen| seen.signal), signal),
        ("address", kernel.map_or(0, |seen| seen.register(libc::REG_RIP)), 0xffff_ffff_8100_0000),
        // Present or not, it is not told: the kernel's half always looks like a protection fault.
        ("error", kernel.map_or(0, |seen| seen.error() & 4), 4),
    ])
}

/// Selectors that name no usable segment: the return itself faults and tells which.
fn sigreturn_segments() -> Verdict {
    let here = sigreturn_segments as fn() -> Verdict as usize as u64;
    let bad_ss = return_to(here, USER_CS, 0x1f3);
    let bad_cs = return_to(here, 0x1f3, USER_SS);
    let error = |seen: Option<super::signal::Seen>| seen.map_or(0, |seen| seen.error() & !7);
    Verdict::values(&[
        ("selector of a bad cs", error(bad_cs), 0x1f0),
        ("selector of a bad ss", error(bad_ss), 0x1f0),
    ])
}
