//! Operations that the host's kernel does not let this process do: each is a signal, whose handler goes on behind
//! it. What a translator would pay that lets guest code run as it is and waits for what traps.

use std::ptr;
use std::sync::atomic::{AtomicI64, AtomicPtr, AtomicU8, Ordering};

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::Cost;
use crate::native::{Function, PASSES, map, middle};
use crate::operation::{Operation, Places};

/// What the handler of SIGSEGV adds to RIP.
static LENGTH: AtomicI64 = AtomicI64::new(0);
/// While it is 1, system calls are signals.
static BLOCK: AtomicPtr<AtomicU8> = AtomicPtr::new(ptr::null_mut());

// Of Linux's prctl(2); the crate libc does not have all of them.
const SET_TSC: i32 = 26;
const TSC_ENABLE: u64 = 1;
const TSC_SIGSEGV: u64 = 2;
const SET_DISPATCH: i32 = 59;

pub(crate) fn cost(operation: Operation, rounds: u64) -> Option<Cost> {
    let length = length(operation)?;
    let protection = match operation {
        Operation::PageTable => libc::PROT_READ,
        Operation::PageFault => libc::PROT_NONE,
        _ => libc::PROT_READ | libc::PROT_WRITE,
    };
    let own = map(4096, protection);
    LENGTH.store(length, Ordering::Relaxed);
    let before = handle(libc::SIGSEGV, on_fault as *const () as usize);
    let calls_before = handle(libc::SIGSYS, on_call as *const () as usize);
    let function = Function::new(|a| body(a, operation).map(|()| true)).expect("a body");
    let mut data = [0_u64; 8];
    let places = Places { data: data.as_mut_ptr() as u64, own: own as u64 };
    let cost = arm(operation, own).then(|| {
        let cost = if operation == Operation::Rdtsc {
            by_other_clock(&function, rounds, places)
        } else {
            function.cost(rounds, places)
        };
        disarm(operation);
        cost
    });
    // SAFETY: what was there before; the page is ours.
    unsafe {
        libc::sigaction(libc::SIGSEGV, &raw const before, ptr::null_mut());
        libc::sigaction(libc::SIGSYS, &raw const calls_before, ptr::null_mut());
        libc::munmap(own, 4096);
    }
    cost
}

/// Bytes of the instruction that traps.
fn length(operation: Operation) -> Option<i64> {
    Some(match operation {
        Operation::CliSti | Operation::Port => 1,
        Operation::Rdtsc => 2,
        Operation::PageTable | Operation::PageFault | Operation::Switch => 3,
        // Goes on where it is by itself.
        Operation::Syscall => 0,
        _ => return None,
    })
}

fn body(a: &mut CodeAssembler, operation: Operation) -> Result<(), IcedError> {
    for _ in 0..Operation::UNROLLED {
        match operation {
            Operation::Rdtsc => a.rdtsc()?,
            Operation::CliSti => {
                a.cli()?;
                a.sti()?;
            }
            Operation::Port => a.in_(al, dx)?,
            Operation::PageTable => a.mov(ptr(rdi), rax)?,
            Operation::PageFault => a.mov(rcx, ptr(rdi))?,
            Operation::Switch => a.mov(cr3, rax)?,
            _ => {
                a.mov(byte_ptr(rdi), 1)?;
                a.mov(eax, libc::SYS_getppid as u32)?;
                a.syscall()?;
            }
        }
    }
    Ok(())
}

/// Has it trap. False: this host cannot.
fn arm(operation: Operation, own: *mut libc::c_void) -> bool {
    match operation {
        // SAFETY: handled by `on_fault` from here to `disarm`.
        Operation::Rdtsc => unsafe { libc::prctl(SET_TSC, TSC_SIGSEGV) == 0 },
        Operation::Syscall => {
            BLOCK.store(own.cast(), Ordering::Relaxed);
            // SAFETY: the byte stays until `disarm`; nothing is blocked before it is 1.
            unsafe { libc::prctl(SET_DISPATCH, 1_u64, 0_u64, 0_u64, own) == 0 }
        }
        _ => true,
    }
}

fn disarm(operation: Operation) {
    // SAFETY: both only undo what `arm` did.
    unsafe {
        match operation {
            Operation::Rdtsc => libc::prctl(SET_TSC, TSC_ENABLE),
            Operation::Syscall => libc::prctl(SET_DISPATCH, 0_u64, 0_u64, 0_u64, 0_u64),
            _ => 0,
        };
    }
}

/// Where the function's own clock traps too: the kernel's, which reads the counter for us before and after.
fn by_other_clock(function: &Function, rounds: u64, places: Places) -> Cost {
    let (clock_ticks, clock_ns) = *RATE.get_or_init(|| (1, 1));
    middle((0..PASSES).map(|_| {
        let start = raw_ns();
        let cost = function.once(rounds, places);
        let ns = raw_ns() - start;
        let ticks = (ns as f64 * clock_ticks as f64 / clock_ns as f64) as u64;
        Cost { ticks, host_ticks: ticks, ..cost }
    }))
}

/// Ticks, and the nanoseconds that they took.
pub(crate) static RATE: std::sync::OnceLock<(u64, u64)> = std::sync::OnceLock::new();

/// By a system call: the fast way would read the TSC in this process.
fn raw_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: room for the answer.
    unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC_RAW, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn handle(signal: i32, handler: usize) -> libc::sigaction {
    // SAFETY: both handlers have the type that SA_SIGINFO asks for, and touch nothing but their context.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut before: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        libc::sigaction(signal, &raw const action, &raw mut before);
        before
    }
}

extern "C" fn on_fault(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a context of this type to handlers with SA_SIGINFO.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let registers = &mut context.uc_mcontext.gregs;
    registers[libc::REG_RIP as usize] += LENGTH.load(Ordering::Relaxed);
    // What RDTSC, IN and the load give.
    for register in [libc::REG_RAX, libc::REG_RDX, libc::REG_RCX] {
        registers[register as usize] = 0;
    }
}

extern "C" fn on_call(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: `arm` stored a byte of ours before there were any such signals.
    unsafe { (*BLOCK.load(Ordering::Relaxed)).store(0, Ordering::Relaxed) };
    // SAFETY: as in `on_fault`.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    context.uc_mcontext.gregs[libc::REG_RAX as usize] = 1;
}
