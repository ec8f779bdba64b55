//! Runs one instruction natively on a state of choice.
//!
//! A page of code loads every register, falls into the instruction, and stores every register. A signal
//! raised by the instruction continues at the storing half, with the registers as the kernel saved them.

use std::cell::Cell;
use std::ptr;

use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};
use x86::{Vector, rflags};

use super::random::Random;
use crate::cpu::{Cpu, Width};
use crate::vector::features;
use crate::vector::image::{MXCSR, XMM, YMM_HIGH};

const PAGE: usize = 4096;
/// Code, state, guard, window (two pages), guard.
const PAGES: usize = 6;
/// Where the instruction stands, and where storing begins, in the code page.
const SLOT: usize = 1024;
const EXIT: usize = 1280;
/// Size of the image compared: everything up to the upper halves of the YMM registers.
pub(super) const IMAGE: usize = x86::XSTATE_SIZE;

/// Registers before and after.
#[repr(C, align(64))]
#[derive(Clone)]
pub(super) struct State {
    pub(super) image: [u8; IMAGE],
    pub(super) gpr: [u64; 16],
    pub(super) flags: u64,
}

pub(super) struct Outcome {
    pub(super) vector: Option<Vector>,
    pub(super) state: State,
}

/// In the state page.
#[repr(C)]
struct Exchange {
    before: State,
    after: State,
    host_rsp: u64,
    mxcsr: u32,
}

pub(super) struct Native {
    base: *mut u8,
}

thread_local! {
    /// Set while an instruction runs: where it and the storing half are, and what it raised.
    static RUNNING: Cell<Option<(u64, u64)>> = const { Cell::new(None) };
    static RAISED: Cell<Option<u8>> = const { Cell::new(None) };
}

impl Native {
    pub(super) fn new() -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
        let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        // SAFETY: a new mapping; the guards in it are made inaccessible before anyone knows of it.
        let base = unsafe {
            let base = libc::mmap(ptr::null_mut(), PAGES * PAGE, all, flags, -1, 0);
            assert_ne!(base, libc::MAP_FAILED, "map the test window");
            for guard in [2, 5] {
                assert_eq!(libc::mprotect(base.add(guard * PAGE), PAGE, libc::PROT_NONE), 0);
            }
            base.cast::<u8>()
        };
        let native = Self { base };
        native.write_code();
        catch_signals();
        native
    }

    pub(super) fn window(&self) -> std::ops::Range<u64> {
        let start = self.base as u64 + 3 * PAGE as u64;
        start..start + 2 * PAGE as u64
    }

    pub(super) fn slot(&self) -> u64 {
        self.base as u64 + SLOT as u64
    }

    pub(super) fn set_window(&mut self, bytes: &[u8; 2 * PAGE]) {
        // SAFETY: the window is two mapped pages that nobody borrows.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), self.window().start as *mut u8, 2 * PAGE);
        };
    }

    pub(super) fn window_bytes(&self) -> [u8; 2 * PAGE] {
        // SAFETY: as above.
        unsafe { ptr::read(self.window().start as *const [u8; 2 * PAGE]) }
    }

    pub(super) fn run(&mut self, instruction: &[u8], before: &State) -> Outcome {
        let (slot, exit) = (self.slot(), self.base as u64 + EXIT as u64);
        let mut bytes = instruction.to_vec();
        bytes.push(0xe9);
        let displacement = exit as i64 - (slot as i64 + bytes.len() as i64 + 4);
        bytes.extend_from_slice(&(displacement as i32).to_le_bytes());
        // SAFETY: slot and state page are ours; the code saves and restores what the ABI demands and
        // touches nothing else, whatever the instruction does: it has been chosen so.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), slot as *mut u8, bytes.len());
            (*self.exchange()).before = before.clone();
            RUNNING.set(Some((slot, exit)));
            RAISED.set(None);
            let enter: unsafe extern "sysv64" fn() = std::mem::transmute(self.base);
            enter();
            RUNNING.set(None);
            let state = (*self.exchange()).after.clone();
            Outcome { vector: RAISED.get().map(Vector), state }
        }
    }

    fn exchange(&self) -> *mut Exchange {
        self.base.wrapping_add(PAGE).cast()
    }

    fn write_code(&self) {
        let (enter, exit) = (self.enter_code(), self.exit_code());
        assert!(enter.len() <= SLOT && exit.len() <= PAGE - EXIT && size_of::<Exchange>() <= PAGE);
        let nop = [0x90; SLOT];
        // SAFETY: all inside the code page; the exchange page is mapped and zero.
        unsafe {
            ptr::copy_nonoverlapping(nop.as_ptr(), self.base, SLOT);
            ptr::copy_nonoverlapping(enter.as_ptr(), self.base, enter.len());
            ptr::copy_nonoverlapping(exit.as_ptr(), self.base.add(EXIT), exit.len());
            (*self.exchange()).mxcsr = 0x1f80;
        }
    }

    /// Loads `before` and goes on, through NOPs, to the slot.
    fn enter_code(&self) -> Vec<u8> {
        let mut code = Assembly::new(self.base as u64);
        let before = self.field(std::mem::offset_of!(Exchange, before));
        let at = |offset: usize| absolute(before + offset as u64);
        for register in SAVED {
            code.push(Instruction::with1(Code::Push_r64, register));
        }
        let host_rsp = absolute(self.field(std::mem::offset_of!(Exchange, host_rsp)));
        code.push(Instruction::with2(Code::Mov_rm64_r64, host_rsp, Register::RSP));
        code.mask();
        let image = at(std::mem::offset_of!(State, image));
        code.push(Instruction::with1(Code::Xrstor64_mem, image));
        let flags = at(std::mem::offset_of!(State, flags));
        code.push(Instruction::with2(Code::Lea_r64_m, Register::RSP, flags));
        code.push(Ok(Instruction::with(Code::Popfq)));
        for number in 0..16 {
            let from = at(std::mem::offset_of!(State, gpr) + 8 * number);
            let register = Register::RAX + number as u32;
            code.push(Instruction::with2(Code::Mov_r64_rm64, register, from));
        }
        code.bytes()
    }

    /// Stores `after`, gives the host its own back, and returns.
    fn exit_code(&self) -> Vec<u8> {
        let mut code = Assembly::new(self.base as u64 + EXIT as u64);
        let after = self.field(std::mem::offset_of!(Exchange, after));
        let at = |offset: usize| absolute(after + offset as u64);
        for number in 0..16 {
            let to = at(std::mem::offset_of!(State, gpr) + 8 * number);
            let register = Register::RAX + number as u32;
            code.push(Instruction::with2(Code::Mov_rm64_r64, to, register));
        }
        let host_rsp = absolute(self.field(std::mem::offset_of!(Exchange, host_rsp)));
        code.push(Instruction::with2(Code::Mov_r64_rm64, Register::RSP, host_rsp));
        code.push(Ok(Instruction::with(Code::Pushfq)));
        code.push(Instruction::with1(Code::Pop_r64, Register::RAX));
        let flags = at(std::mem::offset_of!(State, flags));
        code.push(Instruction::with2(Code::Mov_rm64_r64, flags, Register::RAX));
        code.mask();
        let image = at(std::mem::offset_of!(State, image));
        code.push(Instruction::with1(Code::Xsave64_mem, image));
        code.push(Ok(Instruction::with(Code::Fninit)));
        let mxcsr = absolute(self.field(std::mem::offset_of!(Exchange, mxcsr)));
        code.push(Instruction::with1(Code::Ldmxcsr_m32, mxcsr));
        if features::host_features().xcr0 & 4 != 0 {
            code.push(Ok(Instruction::with(Code::VEX_Vzeroupper)));
        }
        for register in SAVED.into_iter().rev() {
            code.push(Instruction::with1(Code::Pop_r64, register));
        }
        code.push(Ok(Instruction::with(Code::Retnq)));
        code.bytes()
    }

    fn field(&self, offset: usize) -> u64 {
        self.exchange() as u64 + offset as u64
    }
}

const SAVED: [Register; 6] =
    [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];

struct Assembly {
    encoder: Encoder,
    at: u64,
}

impl Assembly {
    fn new(at: u64) -> Self {
        Self { encoder: Encoder::new(64), at }
    }

    fn push(&mut self, instr: Result<Instruction, iced_x86::IcedError>) {
        let instr = instr.expect("a valid instruction");
        self.at += self.encoder.encode(&instr, self.at).expect("encodable") as u64;
    }

    /// EDX:EAX = x87, SSE and AVX, as far as the host has it.
    fn mask(&mut self) {
        let mask = features::host_features().xcr0 as i32;
        self.push(Instruction::with2(Code::Mov_r32_imm32, Register::EAX, mask));
        self.push(Instruction::with2(Code::Mov_r32_imm32, Register::EDX, 0));
    }

    fn bytes(mut self) -> Vec<u8> {
        self.encoder.take_buffer()
    }
}

fn absolute(address: u64) -> MemoryOperand {
    MemoryOperand::with_base_displ_size(Register::RIP, address as i64, 8)
}

fn catch_signals() {
    let stack = Box::leak(vec![0u8; 256 << 10].into_boxed_slice());
    let stack =
        libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
    // SAFETY: the stack lives for ever; the action is completely initialised; the handler only uses
    // thread-locals without destructors and the context it is given.
    unsafe {
        assert_eq!(libc::sigaltstack(&raw const stack, ptr::null_mut()), 0);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE] {
            assert_eq!(libc::sigaction(signal, &raw const action, ptr::null_mut()), 0);
        }
    }
}

extern "C" fn on_signal(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid context for as long as the handler runs.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let rip = registers[libc::REG_RIP as usize] as u64;
    match RUNNING.get() {
        Some((slot, exit)) if (slot..slot + 16).contains(&rip) => {
            RAISED.set(Some(registers[libc::REG_TRAPNO as usize] as u8));
            registers[libc::REG_RIP as usize] = exit as i64;
        }
        // Not ours: let it happen again with the default action.
        // SAFETY: resetting a signal's action has no requirements.
        _ => unsafe {
            libc::signal(signal, libc::SIG_DFL);
        },
    }
}

impl State {
    pub(super) fn random(random: &mut Random) -> Self {
        let mut state = Self { image: [0; IMAGE], gpr: [0; 16], flags: 0 };
        state.random_x87(random);
        let vectors = random.bytes::<256>();
        state.image[XMM..XMM + 256].copy_from_slice(&vectors);
        // Never all zero, which the host would save as "not in use".
        let high = random.bytes::<256>();
        state.image[YMM_HIGH..YMM_HIGH + 256].copy_from_slice(&high);
        state.image[YMM_HIGH] |= 1;
        state.image[512] = features::host_features().xcr0 as u8;
        let mxcsr = random_mxcsr(random);
        state.image[MXCSR..MXCSR + 4].copy_from_slice(&mxcsr.to_le_bytes());
        state.gpr = std::array::from_fn(|_| u64::from_le_bytes(random.bytes::<8>()));
        state.flags = random.next() & rflags::STATUS | rflags::FIXED;
        state
    }

    fn random_x87(&mut self, random: &mut Random) {
        let masks = if random.one_in(4) { random.below(64) } else { 0x3f };
        let control = 0x40 | masks | random.pick(&[0, 2, 3]) << 8 | random.below(4) << 10;
        let mut flags = if random.one_in(2) { random.below(64) } else { 0 };
        if !random.one_in(16) {
            flags &= masks;
        }
        let mut pending = u64::from(flags & !masks != 0);
        if random.one_in(32) {
            // A summary bit that contradicts the flags, as a hostile image may have it.
            pending ^= 1;
        }
        let stack_fault = u64::from(flags & 1 != 0 && random.one_in(2)) << 6;
        let conditions = random.next() & 0x4700;
        let top = if random.one_in(2) { 0 } else { random.below(8) << 11 };
        let status = flags | stack_fault | conditions | top | pending << 7 | pending << 15;
        self.image[0..2].copy_from_slice(&(control as u16).to_le_bytes());
        self.image[2..4].copy_from_slice(&(status as u16).to_le_bytes());
        let tags = random.next() as u8;
        self.image[4] = random.pick(&[0, 0xff, 0xff, 0xff, tags]);
        for register in 0..8 {
            let at = 32 + 16 * register;
            self.image[at..at + 10].copy_from_slice(&random.extended());
        }
    }

    pub(super) fn enter(&self, cpu: &mut Cpu) {
        cpu.regs[..16].copy_from_slice(&self.gpr);
        cpu.rflags = self.flags;
        cpu.fpu.image = self.image;
        cpu.fpu.sanitize();
        cpu.width = Width::Bits64;
        cpu.xcr0 = features::host_features().xcr0;
    }

    pub(super) fn leave(cpu: &Cpu) -> Self {
        let mut state = Self { image: cpu.fpu.image, gpr: [0; 16], flags: cpu.rflags };
        state.gpr.copy_from_slice(&cpu.regs[..16]);
        state
    }

    /// What differs, flags in `ignored` and the x87 pointers aside.
    pub(super) fn difference(&self, other: &Self, before: &Self, ignored: u64) -> Option<String> {
        for (number, (a, b)) in self.gpr.iter().zip(&other.gpr).enumerate() {
            if a != b {
                return Some(format!("register {number} is {b:#x}, natively {a:#x}"));
            }
        }
        let compared = rflags::STATUS & !ignored;
        if (self.flags ^ other.flags) & compared != 0 {
            return Some(format!("flags are {:#x}, natively {:#x}", other.flags, self.flags));
        }
        let skipped = |at: &usize| {
            (6..24).contains(at) || (28..32).contains(at) || (416..YMM_HIGH).contains(at)
        };
        let at = (0..IMAGE).find(|at| !skipped(at) && self.image[*at] != other.image[*at])?;
        let range = at & !15..(at & !15) + 16;
        Some(format!(
            "image at {at} is {:02x?}, natively {:02x?}; before {:02x?}, all {:02x?}",
            &other.image[range.clone()],
            &self.image[range.clone()],
            &before.image[range],
            &before.image[..32],
        ))
    }
}

fn random_mxcsr(random: &mut Random) -> u32 {
    let masks = if random.one_in(3) { random.below(64) } else { 0x3f };
    let flags = if random.one_in(2) { random.below(64) } else { 0 };
    let control = (random.below(4) << 13) | (random.below(2) << 15) | (random.below(2) << 6);
    (masks << 7 | flags | control) as u32
}
