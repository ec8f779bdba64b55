//! The machine that the interpreter's core is plugged into: privileged registers, the TLB, the local
//! APIC, and what waits to be told to the caller.

use std::collections::VecDeque;
use std::sync::Arc;

use engine::{EngineError, Exit};
use translator::native::View;
use translator::{Insn, Machine, Stop, SystemOp, VectorKind, Word};
use x86::cpuid::Table;
use x86::model::Processor;
use x86::{Event, Exception, Vector, cr0, cr4, rflags};

use crate::apic::LocalApic;
use crate::attention::Attention;
use crate::breakpoints::Breakpoints;
use crate::lockstep::Journal;
use crate::registers::Registers;
use crate::tlb::Tlb;
use crate::traced::Traced;
use crate::vm::Shared;
use crate::{clock, host, instructions};

/// A core of this engine.
pub(crate) type Core = translator::Core<System>;

/// Everything of a vCPU that is not an ordinary register.
pub(crate) struct System {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: u32,
    pub(crate) regs: Registers,
    pub(crate) tlb: Tlb,
    /// Of the TLB, what an inference wants back.
    pub(crate) traced: Traced,
    pub(crate) apic: LocalApic,
    pub(crate) cpuid: Table,
    /// A copy of the core's, for the gate.
    pub(crate) xcr0: u64,
    /// Privilege of ordinary accesses.
    pub(crate) user: bool,
    /// The block must end after this instruction.
    pub(crate) end: bool,
    /// The exception that was raised last.
    pub(crate) fault: Exception,
    /// It was a non-canonical address: #SS where the operand is in the stack segment.
    pub(crate) fault_is_address: bool,
    /// The access that failed was to the stack.
    pub(crate) fault_on_stack: bool,
    /// An interrupt or NMI that has arrived may be waiting for its window.
    pub(crate) held: bool,
    /// An interrupt that was held back may be delivered now, or the timer's time may have moved closer: look
    /// before the next block.
    pub(crate) look: bool,
    /// The instruction that ran last cleared RFLAGS.TF on its way into a handler: no single-step trap.
    pub(crate) no_trap: bool,
    pub(crate) nmi_blocked: bool,
    pub(crate) halted: bool,
    /// A triple fault, to be told to the caller.
    pub(crate) shutdown: bool,
    /// Alignment is checked: by the slow path, which every data access takes.
    pub(crate) align: bool,
    /// To be returned to the caller, in order. A read is last and waits in `answer`.
    pub(crate) exits: VecDeque<Exit>,
    pub(crate) answer: Answer,
    /// A failure that ends the vCPU, or what it comes back for without having done the instruction.
    pub(crate) broken: Option<Result<Exit, EngineError>>,
    /// An event that could not be delivered for want of memory: it is what the vCPU does first.
    pub(crate) undelivered: Option<Event>,
    /// The guest's and the debugger's.
    pub(crate) breakpoints: Breakpoints,
    /// While generated code is compared with the interpreter.
    pub(crate) journal: Journal,
    /// Times HLT was executed.
    pub(crate) halts: u64,
}

/// A device read on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    None,
    /// The exit was returned; the caller owes a value.
    Waiting(Exit),
    /// The value for the read that is repeated.
    Ready(Exit, u64),
}

impl System {
    pub(crate) fn new(shared: Arc<Shared>, id: u32, processor: Processor) -> Self {
        let peer = &shared.vcpus[id as usize];
        let apic = LocalApic::new(id, Arc::clone(&peer.inbox), clock::tsc_hz());
        let regs = Registers::new(shared.clock.tsc_offset(), &processor.msrs);
        Self {
            shared,
            id,
            regs,
            tlb: Tlb::new(),
            traced: Traced::default(),
            apic,
            cpuid: processor.cpuid,
            xcr0: 1,
            user: false,
            end: false,
            fault: Exception::UD,
            fault_is_address: false,
            fault_on_stack: false,
            held: true,
            look: false,
            no_trap: false,
            nmi_blocked: false,
            halted: false,
            shutdown: false,
            align: false,
            exits: VecDeque::new(),
            answer: Answer::None,
            broken: None,
            undelivered: None,
            breakpoints: Breakpoints::default(),
            journal: Journal::default(),
            halts: 0,
        }
    }

    pub(crate) fn attention_of(&self) -> &Attention {
        &self.shared.vcpus[self.id as usize].attention
    }

    /// Raises #GP(`code`).
    pub(crate) fn gp(&mut self, code: u32) -> Stop {
        self.raise(Exception::with_code(Vector::GP, code))
    }

    /// Raises #UD.
    pub(crate) fn ud(&mut self) -> Stop {
        self.raise(Exception::UD)
    }

    /// Forgets all translations, data and instruction.
    pub(crate) fn flush_all(&mut self) {
        self.tlb.flush();
        self.traced.clear();
        self.end = true;
    }

    /// Forgets the translations to frames that are traced: the next access to each is walked for.
    pub(crate) fn forget_traced(&mut self) {
        if self.traced.is_incomplete() {
            self.flush_all();
            return;
        }
        for va in self.traced.drain() {
            self.tlb.forget_page(va);
        }
    }

    /// Forgets what would let an access to a watched frame go untold.
    pub(crate) fn forget_watched(&mut self) {
        let memory = &self.shared.memory;
        let Some(events) = memory.events() else { return };
        self.tlb.forget_watched(|host_page, user| {
            memory.frame_at(host_page).is_some_and(|frame| events.is_watched(frame, user))
        });
    }

    /// Takes up a change of CR3 or CR4 in the TLB.
    pub(crate) fn switch_space(&mut self) {
        self.tlb.set_asid(self.regs.asid());
        self.end = true;
    }

    /// Takes up a change of privilege level or of RFLAGS.AC.
    pub(crate) fn set_privilege(&mut self, cpl: u8, rflags: u64) {
        self.user = cpl == 3;
        self.align = self.user && rflags & rflags::AC != 0 && self.regs.cr0 & cr0::AM != 0;
        self.tlb.set_user(self.user);
        self.tlb.set_slow(self.align);
    }

    /// Something that holds interrupts back has gone or changed (RFLAGS.IF, a priority, an NMI's IRET): one
    /// that waits is considered before the next instruction. The instruction must end its block.
    pub(crate) fn open_window(&mut self) {
        self.note_held();
        self.look |= self.held;
    }

    /// Looks whether something waits now. Whatever comes later asks for attention.
    pub(crate) fn note_held(&mut self) {
        let inbox = &self.shared.vcpus[self.id as usize].inbox;
        self.held = inbox.has_nmi() || self.apic.pending().is_some();
    }

    /// Notes an exit; the block ends after this instruction.
    pub(crate) fn report(&mut self, exit: Exit) {
        self.exits.push_back(exit);
        self.end = true;
    }

    /// The value of a device read: `Err(Retry)` the first time, when the caller is asked.
    pub(crate) fn ask(&mut self, exit: Exit) -> Result<u64, Stop> {
        match self.answer {
            Answer::Ready(asked, value) if asked == exit => {
                self.answer = Answer::None;
                Ok(value)
            }
            _ => {
                self.answer = Answer::Waiting(exit);
                Err(Stop::Retry)
            }
        }
    }

    /// After the instruction that asked had its chance: it did something else this time, since another vCPU
    /// changed its code, its operands or its translation.
    pub(crate) fn drop_unused_answer(&mut self) {
        if matches!(self.answer, Answer::Ready(..)) {
            self.answer = Answer::None;
        }
    }
}

impl Machine for System {
    #[inline(always)]
    fn load<T: Word>(&mut self, va: u64) -> Result<T, Stop> {
        if let Some(host) = self.tlb.read(va, T::SIZE) {
            // SAFETY: the TLB says that all of the access lies in one page and that this vCPU may read it;
            // the translation is dropped before a revocation is acknowledged.
            return Ok(unsafe { host::load(host) });
        }
        self.load_slow(va)
    }

    #[inline(always)]
    fn store<T: Word>(&mut self, va: u64, value: T) -> Result<(), Stop> {
        if let Some(host) = self.tlb.write(va, T::SIZE) {
            // SAFETY: as in `load`; a page may be written if its frame was resolved for writing.
            unsafe { host::store(host, value) };
            return Ok(());
        }
        self.store_slow(va, value)
    }

    #[inline(always)]
    fn load_for_store<T: Word>(&mut self, va: u64) -> Result<T, Stop> {
        if let Some(host) = self.tlb.write(va, T::SIZE) {
            // SAFETY: as in `load`: what may be written may be read.
            return Ok(unsafe { host::load(host) });
        }
        self.load_for_store_slow(va)
    }

    fn update<T: Word>(&mut self, va: u64, update: impl Fn(T) -> T) -> Result<T, Stop> {
        self.update_locked(va, update)
    }

    fn compare_exchange_16(&mut self, va: u64, old: u128, new: u128) -> Result<u128, Stop> {
        self.exchange_16(va, old, new)
    }

    fn load_bytes(&mut self, va: u64, into: &mut [u8]) -> Result<(), Stop> {
        self.read_bytes(va, into)
    }

    fn store_bytes(&mut self, va: u64, from: &[u8]) -> Result<(), Stop> {
        self.write_bytes(va, from)
    }

    fn probe_store(&mut self, va: u64, len: usize) -> Result<(), Stop> {
        self.probe(va, len)
    }

    fn copy(&mut self, to: u64, from: u64, len: u64) -> Result<u64, Stop> {
        self.copy_chunk(to, from, len)
    }

    fn fill(&mut self, to: u64, value: u64, size: usize, count: u64) -> Result<u64, Stop> {
        self.fill_chunk(to, value, size, count)
    }

    #[inline(always)]
    fn must_end(&mut self) -> bool {
        if self.end {
            self.end = false;
            return true;
        }
        false
    }

    #[inline(always)]
    fn attention(&self) -> bool {
        // Both of those that are compared must stop at the same repetition.
        self.attention_of().is_pending() && !self.journal.is_on()
    }

    fn steps(&self) -> bool {
        self.breakpoints.steps()
    }

    #[inline(always)]
    fn vector_gate(&self, kind: VectorKind) -> Option<Exception> {
        let (cr0, cr4) = (self.regs.cr0, self.regs.cr4);
        const READY: u64 = cr4::OSFXSR | cr4::OSXSAVE;
        if cr0 & (cr0::EM | cr0::TS) == 0 && cr4 & READY == READY && kind != VectorKind::Avx {
            return None;
        }
        gate(kind, cr0, cr4, self.xcr0)
    }

    fn view(&self) -> Option<View> {
        Some(View {
            translations: self.tlb.data_table() as usize,
            second: self.tlb.second_table() as usize,
            guards: self.tlb.guard_table() as usize,
            pending: self.attention_of().pending_address() as usize,
            held: self.held,
            tsc_offset: (self.regs.cr4 & cr4::TSD == 0).then_some(self.regs.tsc_offset),
            tsc_aux: self.regs.tsc_aux,
            base_instructions: self.regs.cr4 & cr4::FSGSBASE != 0,
            copies_told: self.shared.memory.events().is_some(),
            calls: self.regs.calls().map_or(0, |calls| std::ptr::from_ref(calls) as usize),
            of_privilege: [false, true].map(|user| self.tlb.tables(user)),
        })
    }

    fn privilege_changed(&mut self, cpl: u8, rflags: u64) {
        self.set_privilege(cpl, rflags);
    }

    fn raise(&mut self, exception: Exception) -> Stop {
        // Without the operating system's word that it knows SIMD exceptions they are #UD.
        let unknown = exception.vector == Vector::XM && self.regs.cr4 & cr4::OSXMMEXCPT == 0;
        self.fault = if unknown { Exception::UD } else { exception };
        self.fault_is_address = false;
        Stop::Fault
    }

    fn system(
        core: &mut translator::Core<Self>,
        op: SystemOp,
        insn: &Insn<Self>,
    ) -> Result<(), Stop> {
        if core.machine.journal.is_on() && !Self::is_repeatable(op) {
            return Err(core.machine.refuse());
        }
        instructions::execute(core, op, insn)
    }
}

/// See [`VectorKind`].
fn gate(kind: VectorKind, cr0: u64, cr4: u64, xcr0: u64) -> Option<Exception> {
    let (em, ts) = (cr0 & cr0::EM != 0, cr0 & cr0::TS != 0);
    let undefined = match kind {
        VectorKind::X87 | VectorKind::Wait => false,
        VectorKind::Mmx => em,
        VectorKind::Sse => em || cr4 & cr4::OSFXSR == 0,
        VectorKind::Avx => cr4 & cr4::OSXSAVE == 0 || xcr0 & 6 != 6,
        VectorKind::Xsave => cr4 & cr4::OSXSAVE == 0,
    };
    let unavailable = match kind {
        VectorKind::X87 => em || ts,
        VectorKind::Wait => ts && cr0 & cr0::MP != 0,
        _ => ts,
    };
    match (undefined, unavailable) {
        (true, _) => Some(Exception::UD),
        (_, true) => Some(Exception::new(Vector::NM)),
        _ => None,
    }
}
