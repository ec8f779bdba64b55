//! Catching what the processor raises, as the kernel passes it on.
//!
//! A convention between [`fault`] and the handler: `r15` holds where to go on, `r14` where the
//! instruction under test lies. The handler notes what it is told and resumes at `r15`; traps
//! that come after an instruction (single steps) just return.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

/// What the handler was told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) signal: u64,
    pub(super) code: u64,
    pub(super) address: u64,
    registers: [u64; REGISTERS],
}

const REGISTERS: usize = 23;
/// Linux's selectors for 64-bit programs.
pub(super) const USER_CS: u64 = 0x33;
pub(super) const USER_SS: u64 = 0x2b;
const FLAG_TRAP: i64 = 1 << 8;
const FLAG_ALIGNMENT: i64 = 1 << 18;

impl Seen {
    /// A register by the kernel's number for it (`libc::REG_RIP` and so on).
    pub(super) fn register(&self, number: libc::c_int) -> u64 {
        self.registers[number as usize]
    }

    pub(super) fn trap(&self) -> u64 {
        self.register(libc::REG_TRAPNO)
    }

    pub(super) fn error(&self) -> u64 {
        self.register(libc::REG_ERR)
    }

    /// How far `rip` was beyond the start of the instruction under test.
    pub(super) fn beyond(&self) -> u64 {
        self.register(libc::REG_RIP).wrapping_sub(self.register(libc::REG_R14))
    }
}

static COUNT: AtomicU64 = AtomicU64::new(0);
static RESUME: AtomicBool = AtomicBool::new(true);
static SIGNAL: AtomicU64 = AtomicU64::new(0);
static CODE: AtomicU64 = AtomicU64::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);
static REGISTER: [AtomicU64; REGISTERS] = [const { AtomicU64::new(0) }; REGISTERS];

/// The first places at which single steps were seen.
pub(super) const STEPS: usize = 64;
static STEP: [AtomicU64; STEPS] = [const { AtomicU64::new(0) }; STEPS];

/// Run `body`, which is made of [`fault`]s; what the last one raised.
pub(super) fn caught(body: impl FnOnce()) -> Option<Seen> {
    RESUME.store(true, SeqCst);
    listen();
    body();
    seen()
}

/// Run `body` and note every trap and where it was, without going elsewhere.
pub(super) fn steps(body: impl FnOnce()) -> Vec<u64> {
    RESUME.store(false, SeqCst);
    listen();
    body();
    let count = (COUNT.load(SeqCst) as usize).min(STEPS);
    STEP[..count].iter().map(|step| step.load(SeqCst)).collect()
}

fn seen() -> Option<Seen> {
    if COUNT.load(SeqCst) == 0 {
        return None;
    }
    Some(Seen {
        signal: SIGNAL.load(SeqCst),
        code: CODE.load(SeqCst),
        address: ADDRESS.load(SeqCst),
        registers: std::array::from_fn(|n| REGISTER[n].load(SeqCst)),
    })
}

/// Install the handler, on a stack of its own: the stack pointer may be what is under test.
fn listen() {
    COUNT.store(0, SeqCst);
    let stack = Box::leak(vec![0_u8; 64 << 10].into_boxed_slice());
    let stack =
        libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
    // SAFETY: the stack is leaked, so it lives as long as the process.
    unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) };
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP] {
        set_handler(signal, handler);
    }
}

pub(super) type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::ucontext_t);

pub(super) fn set_handler(signal: libc::c_int, handler: Handler) {
    // SAFETY: an all-zero sigaction is a valid one.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    // SAFETY: the action is whole, and its handler has the signature that SA_SIGINFO asks for.
    unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
}

extern "C" fn handler(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::ucontext_t,
) {
    // The interrupted program's alignment checks are not for us.
    // SAFETY: one flag; the stack is left as it was.
    unsafe { std::arch::asm!("pushfq", "and dword ptr [rsp], 0xfffbffff", "popfq") };
    // SAFETY: the kernel passes both, valid and ours until we return.
    let (info, context) = unsafe { (&*info, &mut *context) };
    let registers = &mut context.uc_mcontext.gregs;
    let count = COUNT.fetch_add(1, SeqCst) as usize;
    if let Some(step) = STEP.get(count) {
        step.store(registers[libc::REG_RIP as usize] as u64, SeqCst);
    }
    SIGNAL.store(signal as u64, SeqCst);
    CODE.store(info.si_code as u64, SeqCst);
    // SAFETY: for these signals the kernel fills the address.
    ADDRESS.store(unsafe { info.si_addr() } as u64, SeqCst);
    for (note, register) in REGISTER.iter().zip(registers.iter()) {
        note.store(*register as u64, SeqCst);
    }
    if RESUME.load(SeqCst) {
        registers[libc::REG_RIP as usize] = registers[libc::REG_R15 as usize];
        registers[libc::REG_EFL as usize] &= !(FLAG_TRAP | FLAG_ALIGNMENT);
        // cs, gs, fs and ss, 16 bits each: the segments of every 64-bit program.
        let segments = &mut registers[libc::REG_CSGSFS as usize];
        *segments = (*segments as u64 & 0x0000_ffff_ffff_0000 | USER_CS | USER_SS << 48) as i64;
    }
}

/// One instruction that should raise something, after others that prepare it:
/// `fault!(["xor edx, edx"], "div ecx", in("ecx") 0)`. Registers used must be named as operands.
macro_rules! fault {
    ([$($before:literal),*], $instruction:literal $(, $($operand:tt)*)?) => {
        // SAFETY: either the instruction does nothing but what the operands say, or the handler
        // (see the head of this file) goes on right behind it.
        unsafe {
            std::arch::asm!(
                "lea r15, [rip + 2f]",
                "lea r14, [rip + 3f]",
                $($before,)*
                "3:",
                $instruction,
                "2:",
                out("r14") _,
                out("r15") _,
                $($($operand)*)?
            )
        }
    };
    ($instruction:literal $(, $($operand:tt)*)?) => {
        fault!([], $instruction $(, $($operand)*)?)
    };
}
pub(super) use fault;
