//! Runs code on the host processor.
//!
//! A stub in the arena loads all registers and jumps to the code under test; behind that code lies a jump to
//! the exit stub, which stores all registers to fixed addresses, for which it needs none. Exceptions
//! arrive as signals on an alternate stack; their context holds the registers.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use iced_x86::code_asm::{CodeAssembler, *};
use x86::XSTATE_SIZE;

use crate::arena;
use crate::state::{Fault, Outcome, State};

/// Width of the code under test.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bitness {
    /// A 32-bit code segment, which any Linux process may enter.
    Bits32,
    /// 64-bit code.
    Bits64,
}

/// The host processor. One at a time in a process, used on the thread that made it.
pub struct Host {
    entry: [extern "sysv64" fn(); 4],
    exit: u64,
    _alone: MutexGuard<'static, ()>,
    /// Signal stacks belong to a thread.
    _here: PhantomData<Cell<()>>,
}

static ALONE: Mutex<()> = Mutex::new(());
/// Code under test is running: signals are its.
static RUNNING: AtomicBool = AtomicBool::new(false);

/// 64-bit fields of the control page, by index.
mod field {
    /// General registers in.
    pub(super) const IN: usize = 0;
    /// RFLAGS in.
    pub(super) const FLAGS_IN: usize = 16;
    /// General registers out.
    pub(super) const OUT: usize = 32;
    /// RFLAGS out.
    pub(super) const FLAGS_OUT: usize = 48;
    /// RIP out.
    pub(super) const RIP: usize = 49;
    /// 1 + vector of an exception.
    pub(super) const VECTOR: usize = 50;
    /// Its error code.
    pub(super) const ERROR: usize = 51;
    /// CR2.
    pub(super) const CR2: usize = 52;
    /// The host's stack pointer.
    pub(super) const HOST_RSP: usize = 64;
    /// The host's MXCSR and x87 control word.
    pub(super) const HOST_CONTROL: usize = 65;
    /// Far pointer to 32-bit code under test.
    pub(super) const FAR: usize = 66;
    /// Where the signal handler continues.
    pub(super) const AFTER_FAULT: usize = 67;
}

const fn address(field: usize) -> u64 {
    arena::CONTROL + field as u64 * 8
}

/// Linux `__USER32_CS`, `__USER_DS` and `__USER_CS` (arch/x86/include/asm/segment.h).
const USER32_CS: u64 = 0x23;
const USER_DS: u64 = 0x2b;
const USER_CS: u64 = 0x33;

impl Host {
    /// Maps the arena, writes the stubs, installs the signal handlers.
    ///
    /// # Panics
    ///
    /// Where the host refuses: a test cannot go on.
    #[must_use]
    pub fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        map_arena();
        install_handlers();
        let (entry, exit) = write_stubs();
        Self { entry, exit, _alone: alone, _here: PhantomData }
    }

    /// Runs `code` (at [`arena::ENTRY`], at most 1000 bytes) on `state`. Vector registers are loaded and
    /// stored only where `vectors` is set.
    ///
    /// The code must be harmless to the process: no system calls, no stores outside the arena, no writes to
    /// FS, and every branch ends in the arena or at an address that cannot be fetched.
    #[must_use]
    pub fn run(&mut self, state: &State, code: &[u8], bitness: Bitness, vectors: bool) -> Outcome {
        assert!(code.len() <= 1000, "code under test is too long");
        write_code(code, bitness, self.exit);
        load(state, vectors);
        let entry = self.entry[usize::from(vectors) + 2 * usize::from(bitness == Bitness::Bits32)];
        RUNNING.store(true, Ordering::SeqCst);
        entry();
        RUNNING.store(false, Ordering::SeqCst);
        store(state, vectors, arena::ENTRY + code.len() as u64)
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

fn map_arena() {
    // SAFETY: a fixed mapping that replaces nothing, or (from an earlier `Host`) the arena itself, which
    // nobody uses: `ALONE` is held.
    unsafe {
        libc::munmap(arena::START as *mut _, arena::LEN);
        let got = libc::mmap(
            arena::START as *mut _,
            arena::LEN,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        );
        assert_eq!(got as u64, arena::START, "reserve the arena");
    }
    let data = libc::PROT_READ | libc::PROT_WRITE;
    protect(arena::STUB, 2 * 4096, data | libc::PROT_EXEC);
    protect(arena::CONTROL, 3 * 4096, data);
    protect(arena::DATA, arena::DATA_LEN, data);
}

fn protect(start: u64, len: usize, protection: i32) {
    // SAFETY: inside the arena, mapped above.
    let result = unsafe { libc::mprotect(start as *mut _, len, protection) };
    assert_eq!(result, 0, "make part of the arena accessible");
}

fn install_handlers() {
    // SAFETY: the stack is leaked, so it lives as long as the thread; the handler is async-signal-safe: it
    // touches only the arena, atomics and its arguments.
    unsafe {
        let stack = libc::stack_t {
            ss_sp: Box::leak(vec![0u8; 1 << 16].into_boxed_slice()).as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: 1 << 16,
        };
        assert_eq!(libc::sigaltstack(&raw const stack, ptr::null_mut()), 0, "set a signal stack");
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
            assert_eq!(
                libc::sigaction(signal, &raw const action, ptr::null_mut()),
                0,
                "handle a signal"
            );
        }
        // 32-bit code needs segments that are not null; for 64-bit code nothing changes.
        std::arch::asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) USER_DS, options(nostack));
        // ARCH_SET_GS
        let result = libc::syscall(libc::SYS_arch_prctl, 0x1001, arena::GS_BASE);
        assert_eq!(result, 0, "set the base of GS");
    }
}

/// Takes the registers of the faulting code and continues behind it.
extern "C" fn on_signal(signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if !RUNNING.load(Ordering::SeqCst) {
        // Not ours: let it happen again with the default action.
        // SAFETY: async-signal-safe.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the kernel passes a valid context, which is ours to change.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let registers = &mut context.uc_mcontext.gregs;
    for (slot, name) in GREGS.into_iter().enumerate() {
        set(field::OUT + slot, registers[name as usize] as u64);
    }
    set(field::FLAGS_OUT, registers[libc::REG_EFL as usize] as u64);
    set(field::RIP, registers[libc::REG_RIP as usize] as u64);
    set(field::VECTOR, registers[libc::REG_TRAPNO as usize] as u64 + 1);
    set(field::ERROR, registers[libc::REG_ERR as usize] as u64);
    set(field::CR2, registers[libc::REG_CR2 as usize] as u64);
    // SAFETY: the frame holds at least the legacy area, and the extended one where the processor has it.
    unsafe {
        let image = context.uc_mcontext.fpregs.cast::<u8>();
        ptr::copy_nonoverlapping(image, arena::XSTATE_OUT as *mut u8, XSTATE_SIZE);
    }
    registers[libc::REG_RIP as usize] = control(field::AFTER_FAULT) as i64;
    registers[libc::REG_EFL as usize] = 0x202;
    let selectors = registers[libc::REG_CSGSFS as usize];
    registers[libc::REG_CSGSFS as usize] = selectors & !0xffff | USER_CS as i64;
}

/// The kernel's register numbers in encoding order.
const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

const GPRS: [AsmRegister64; 16] =
    [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];

/// Writes the four entry stubs and the exit stub.
fn write_stubs() -> ([extern "sysv64" fn(); 4], u64) {
    let mut offset = 0;
    let mut place = |bytes: Vec<u8>| {
        let at = arena::STUB + offset;
        assert!(offset as usize + bytes.len() <= 4096, "the stubs fit their page");
        // SAFETY: inside the stub page, see the assertion.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
        offset += (bytes.len() as u64).next_multiple_of(16);
        at
    };
    let entries = [
        place(assemble(|asm| entry_stub(asm, false, Bitness::Bits64))),
        place(assemble(|asm| entry_stub(asm, true, Bitness::Bits64))),
        place(assemble(|asm| entry_stub(asm, false, Bitness::Bits32))),
        place(assemble(|asm| entry_stub(asm, true, Bitness::Bits32))),
    ];
    let after_fault = place(assemble(restore_host));
    set(field::AFTER_FAULT, after_fault);
    set(field::FAR, USER32_CS << 32 | arena::ENTRY);
    let exit = place(assemble(exit_stub));
    // SAFETY: each is the address of a complete function of this signature, written above.
    let entries = entries.map(|at| unsafe { std::mem::transmute::<u64, extern "sysv64" fn()>(at) });
    (entries, exit)
}

/// Code without relative operands, so that it may be placed anywhere.
fn assemble(body: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Vec<u8> {
    let mut asm = CodeAssembler::new(64).expect("64 is a bitness");
    body(&mut asm).expect("the stubs are encodable");
    asm.assemble(arena::STUB).expect("the stubs are encodable")
}

fn entry_stub(
    asm: &mut CodeAssembler,
    vectors: bool,
    bitness: Bitness,
) -> Result<(), iced_x86::IcedError> {
    for register in [rbx, rbp, r12, r13, r14, r15] {
        asm.push(register)?;
    }
    asm.mov(qword_ptr(address(field::HOST_RSP)), rsp)?;
    asm.stmxcsr(dword_ptr(address(field::HOST_CONTROL)))?;
    asm.fnstcw(word_ptr(address(field::HOST_CONTROL) + 4))?;
    if vectors {
        asm.mov(eax, 7)?;
        asm.xor(edx, edx)?;
        asm.xrstor(ptr(arena::XSTATE_IN))?;
    }
    asm.push(qword_ptr(address(field::FLAGS_IN)))?;
    asm.popfq()?;
    for (slot, register) in GPRS.into_iter().enumerate() {
        asm.mov(register, qword_ptr(address(field::IN + slot)))?;
    }
    match bitness {
        Bitness::Bits64 => asm.jmp(qword_ptr(address(field::RIP))),
        Bitness::Bits32 => asm.jmp(fword_ptr(address(field::FAR))),
    }
}

fn exit_stub(asm: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    for (slot, register) in GPRS.into_iter().enumerate() {
        asm.mov(qword_ptr(address(field::OUT + slot)), register)?;
    }
    asm.mov(rsp, qword_ptr(address(field::HOST_RSP)))?;
    asm.pushfq()?;
    asm.pop(qword_ptr(address(field::FLAGS_OUT)))?;
    asm.mov(eax, 7)?;
    asm.xor(edx, edx)?;
    let mut quick = asm.create_label();
    asm.cmp(dword_ptr(address(field::VECTOR)), 0)?;
    asm.jne(quick)?;
    asm.xsave(ptr(arena::XSTATE_OUT))?;
    asm.set_label(&mut quick)?;
    restore_host(asm)
}

fn restore_host(asm: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    asm.mov(rsp, qword_ptr(address(field::HOST_RSP)))?;
    asm.push(0x202)?;
    asm.popfq()?;
    asm.fninit()?;
    asm.ldmxcsr(dword_ptr(address(field::HOST_CONTROL)))?;
    asm.fldcw(word_ptr(address(field::HOST_CONTROL) + 4))?;
    asm.vzeroupper()?;
    for register in [r15, r14, r13, r12, rbp, rbx] {
        asm.pop(register)?;
    }
    asm.ret()
}

/// Code under test, then a jump to the exit; INT3 everywhere else.
fn write_code(code: &[u8], bitness: Bitness, exit: u64) {
    // SAFETY: the code page is mapped, and `code` with its tail fits behind ENTRY (asserted by `run`).
    unsafe {
        ptr::write_bytes(arena::CODE as *mut u8, 0xcc, 4096);
        let entry = arena::ENTRY as *mut u8;
        ptr::copy_nonoverlapping(code.as_ptr(), entry, code.len());
        let tail = entry.add(code.len());
        match bitness {
            Bitness::Bits64 => {
                let distance = exit.wrapping_sub(tail as u64 + 5) as u32;
                tail.write(0xe9);
                tail.add(1).cast::<u32>().write_unaligned(distance);
            }
            Bitness::Bits32 => {
                tail.write(0xea);
                tail.add(1).cast::<u32>().write_unaligned(exit as u32);
                tail.add(5).cast::<u16>().write_unaligned(USER_CS as u16);
            }
        }
    }
}

fn load(state: &State, vectors: bool) {
    for (slot, value) in state.gpr.iter().enumerate() {
        set(field::IN + slot, *value);
    }
    set(field::FLAGS_IN, state.rflags | 0x202);
    set(field::RIP, arena::ENTRY);
    // Non-zero: the exit stub leaves the vector registers alone.
    set(field::VECTOR, if vectors { 0 } else { u64::from(u32::MAX) });
    // SAFETY: both areas are mapped and nobody else uses them.
    unsafe {
        ptr::copy_nonoverlapping(state.data.as_ptr(), arena::DATA as *mut u8, arena::DATA_LEN);
        if vectors {
            let image = arena::XSTATE_IN as *mut u8;
            ptr::copy_nonoverlapping(state.xstate.as_ptr(), image, XSTATE_SIZE);
        }
    }
}

fn store(before: &State, vectors: bool, end: u64) -> Outcome {
    let mut state = before.clone();
    for (slot, value) in state.gpr.iter_mut().enumerate() {
        *value = control(field::OUT + slot);
    }
    state.rflags = control(field::FLAGS_OUT);
    // SAFETY: both areas are mapped and nobody writes them now.
    unsafe {
        let data = arena::DATA as *const u8;
        ptr::copy_nonoverlapping(data, state.data.as_mut_ptr(), arena::DATA_LEN);
        if vectors {
            let image = arena::XSTATE_OUT as *const u8;
            ptr::copy_nonoverlapping(image, state.xstate.as_mut_ptr(), XSTATE_SIZE);
        }
    }
    let faulted = !matches!(control(field::VECTOR), 0 | 0xffff_ffff);
    let fault = faulted.then(|| {
        Fault::new(
            (control(field::VECTOR) - 1) as u8,
            control(field::ERROR) & 2 != 0,
            control(field::CR2),
        )
    });
    Outcome { state, rip: if faulted { control(field::RIP) } else { end }, fault }
}

fn set(field: usize, value: u64) {
    // SAFETY: an aligned word of the control page, mapped for as long as anybody can call this.
    unsafe { ptr::write_volatile(address(field) as *mut u64, value) }
}

fn control(field: usize) -> u64 {
    // SAFETY: as for `set`.
    unsafe { ptr::read_volatile(address(field) as *const u64) }
}
