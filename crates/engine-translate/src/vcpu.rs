//! One vCPU: the loop that runs blocks, and everything that happens between two of them.

use std::sync::{Arc, PoisonError};

use engine::{Counters, DebugControl, EngineError, Exit, Vcpu};
use translator::native::Left;
use translator::{Cpu, Insn, InsnFlags, Machine, Outcome};
use x86::model::{Difference, Processor};
use x86::{Event, Exception, Gpr, VcpuState, Vector, rflags};

use crate::attention::{Attention, Forget};
use crate::breakpoints::Begin;
use crate::fetch::{Found, JumpCache};
use crate::native::Native;
use crate::poll::Poll;
use crate::system::{Answer, Core, System};
use crate::vm::{Shared, Work};
use crate::{alarm, breakpoints, clock, cpuid, exceptions, hot, instructions, state};

/// A vCPU of this engine.
pub(crate) struct TranslateVcpu {
    pub(crate) core: Core,
    processor: Processor,
    jumps: JumpCache,
    native: Option<Native>,
    /// The next instruction is to be interpreted.
    interpret: bool,
    /// An application processor before its start-up IPI.
    pub(crate) waiting_for_sipi: bool,
    poll: Poll,
    counters: Counters,
}

impl TranslateVcpu {
    pub(crate) fn new(shared: Arc<Shared>, id: u32, processor: Processor) -> Self {
        let machine = System::new(shared, id, processor.clone());
        let core = Core { cpu: Cpu::new(), machine };
        let native = Native::new(&core);
        let mut vcpu = Self {
            core,
            processor,
            jumps: JumpCache::new(),
            native,
            interpret: false,
            waiting_for_sipi: false,
            poll: Poll::new(),
            counters: Counters::default(),
        };
        state::load(&mut vcpu.core, &VcpuState::reset());
        vcpu.waiting_for_sipi = id != 0;
        vcpu
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.core.machine.shared
    }

    /// Runs until there is an exit.
    fn run_inside(&mut self) -> Result<Exit, EngineError> {
        loop {
            if let Some(exit) = self.exit()? {
                return Ok(exit);
            }
            if let Some(event) = self.core.machine.undelivered.take() {
                exceptions::deliver(&mut self.core, event);
                continue;
            }
            if self.waiting_for_sipi || self.core.machine.halted {
                if self.wait()? {
                    return Ok(Exit::Kicked);
                }
                continue;
            }
            // From here to the blocks nothing moves the deadline.
            self.check_timer();
            self.set_alarm()?;
            if !self.deliver_events() {
                self.run_blocks();
            }
            if let Some(native) = &mut self.native {
                native.interrupt();
            }
        }
    }

    /// Goes inside, and gives up what was taken back meanwhile.
    fn enter(&mut self) {
        let shared = Arc::clone(self.shared());
        let attention = &shared.vcpus[self.core.machine.id as usize].attention;
        if shared.generation.enter(attention) {
            self.core.machine.flush_all();
            self.core.machine.end = false;
        }
        if attention.take_writes_wanted() {
            self.core.machine.tlb.drop_all_writes();
        }
    }

    /// What is to be told to the caller.
    fn exit(&mut self) -> Result<Option<Exit>, EngineError> {
        let machine = &mut self.core.machine;
        if let Some(broken) = machine.broken.take() {
            return broken.map(Some);
        }
        if std::mem::take(&mut machine.shutdown) {
            return Ok(Some(Exit::TripleFault));
        }
        if let Some(exit) = machine.exits.pop_front() {
            return Ok(Some(exit));
        }
        if let Answer::Waiting(exit) = machine.answer {
            return Ok(Some(exit));
        }
        // The instruction that has its device's answer completes before anybody looks at the state.
        let answered = matches!(machine.answer, Answer::Ready(..));
        Ok((!answered && self.look_around()).then_some(Exit::Kicked))
    }

    /// Looks at everything that others may have asked for. True: kicked.
    fn look_around(&mut self) -> bool {
        let shared = Arc::clone(self.shared());
        let peer = &shared.vcpus[self.core.machine.id as usize];
        if !peer.attention.take() {
            return false;
        }
        if shared.generation.acknowledge(&peer.attention) {
            self.core.machine.flush_all();
            self.core.machine.end = false;
        }
        let forget = peer.attention.take_forget();
        if forget.has(Forget::TRACED) {
            self.core.machine.forget_traced();
            self.core.machine.end = false;
        }
        if forget.has(Forget::WATCHED) {
            self.core.machine.forget_watched();
        }
        if peer.inbox.take_init() {
            self.init();
        }
        if self.waiting_for_sipi
            && let Some(vector) = peer.inbox.take_start_up()
        {
            self.start_up(vector);
        }
        if peer.attention.take_kick() {
            // There may be more to do than the kick: look again at the next run.
            peer.attention.raise();
            return true;
        }
        false
    }

    /// INIT: as after a reset, but for x87, SSE and the TSC; the bootstrap processor would go on at the
    /// reset vector.
    fn init(&mut self) {
        let old = state::save(&self.core, self.waiting_for_sipi);
        let mut fresh = VcpuState::reset();
        // MSRs are kept by not being loaded: reloading the TSC would put it behind the other vCPUs'.
        fresh.xstate = old.xstate;
        state::load(&mut self.core, &fresh);
        self.core.machine.apic.reset();
        self.core.machine.end = false;
        self.waiting_for_sipi = self.core.machine.id != 0;
    }

    /// A start-up IPI: real mode at `vector` * 4 KiB (SDM volume 3, 9.4.4.1).
    fn start_up(&mut self, vector: u8) {
        let mut fresh = state::save(&self.core, false);
        fresh.msrs.clear();
        fresh.cs = x86::Segment::real(u16::from(vector) << 8, true);
        fresh.rip = 0;
        state::load(&mut self.core, &fresh);
        self.core.machine.end = false;
        self.waiting_for_sipi = false;
    }

    /// Halted, or waiting to be started: sleeps until something happens. True: kicked.
    fn wait(&mut self) -> Result<bool, EngineError> {
        let shared = Arc::clone(self.shared());
        let peer = &shared.vcpus[self.core.machine.id as usize];
        self.check_timer();
        let machine = &self.core.machine;
        let interrupts = self.core.cpu.flag(rflags::IF);
        let wake = machine.halted
            && (interrupts && machine.apic.pending().is_some()
                || peer.inbox.has_nmi() && !machine.nmi_blocked);
        if wake {
            self.core.machine.halted = false;
            return Ok(false);
        }
        let since = clock::host_tsc();
        let left = match machine.apic.deadline() {
            deadline if machine.halted && deadline != u64::MAX => {
                Some(deadline.saturating_sub(machine.regs.guest_tsc(since)))
            }
            _ => None,
        };
        peer.attention.leave();
        let disturbed = peer.attention.wait(self.poll.window(), left);
        self.poll.learn(clock::host_tsc().wrapping_sub(since), disturbed);
        self.enter();
        Ok(self.look_around())
    }

    /// Fires the timer if its time has come.
    fn check_timer(&mut self) {
        let machine = &mut self.core.machine;
        if machine.apic.deadline() == u64::MAX {
            return;
        }
        let now = machine.regs.guest_tsc(clock::host_tsc());
        if now >= machine.apic.deadline() {
            machine.apic.fire(now);
        }
    }

    /// Has the blocks that are about to run left when the timer's time comes.
    fn set_alarm(&self) -> Result<(), EngineError> {
        let machine = &self.core.machine;
        let deadline = machine.apic.deadline();
        let sampled = machine.shared.code.take_sample(alarm::rang_at);
        if deadline == u64::MAX && !sampled {
            return Ok(());
        }
        let now = clock::host_tsc();
        let mut left = deadline.saturating_sub(machine.regs.guest_tsc(now));
        if sampled {
            left = left.min(clock::tsc_hz() / hot::RATE_HZ);
        }
        alarm::ring_at(now.saturating_add(left), now).map_err(alarm::refused("set a vcpu's alarm"))
    }

    /// Delivers an NMI or an interrupt if one may be. True if one was.
    fn deliver_events(&mut self) -> bool {
        let delivered = self.deliver_event();
        self.core.machine.note_held();
        delivered
    }

    fn deliver_event(&mut self) -> bool {
        let machine = &mut self.core.machine;
        // An instruction that has its device's answer must consume it first: reads may have effects.
        // A debugger that steps wants the next instruction, not the next handler.
        let held = self.core.cpu.shadow || machine.breakpoints.steps();
        if held || machine.answer != Answer::None {
            return false;
        }
        let inbox = Arc::clone(&machine.shared.vcpus[machine.id as usize].inbox);
        if !machine.nmi_blocked && inbox.take_nmi() {
            machine.nmi_blocked = true;
            self.counters.interrupts += 1;
            exceptions::deliver(&mut self.core, Event::Nmi);
            return true;
        }
        if !self.core.cpu.flag(rflags::IF) {
            return false;
        }
        let machine = &mut self.core.machine;
        let Some(vector) = machine.apic.pending() else { return false };
        machine.apic.accept(vector);
        self.counters.interrupts += 1;
        exceptions::deliver(&mut self.core, Event::Interrupt(vector));
        true
    }

    /// Runs blocks until something wants to be looked at.
    fn run_blocks(&mut self) {
        loop {
            let active = self.core.machine.breakpoints.is_active();
            let alone = self.core.cpu.shadow || self.core.cpu.flag(rflags::TF);
            let single = alone || std::mem::take(&mut self.interpret);
            let outcome =
                if active { self.run_carefully(single) } else { self.run_block(single, !single) };
            if outcome == Outcome::Fault {
                if self.core.machine.broken.is_some() {
                    return;
                }
                self.counters.exceptions += 1;
                if let Some(native) = &mut self.native {
                    native.interrupt();
                }
                let exception = self.core.machine.fault;
                exceptions::deliver(&mut self.core, Event::Exception(exception));
                breakpoints::step_into_handler(&mut self.core);
            }
            let machine = &mut self.core.machine;
            let stop = single
                || std::mem::take(&mut machine.look)
                || machine.halted
                || machine.shutdown
                || !machine.exits.is_empty()
                || machine.answer != Answer::None
                || machine.attention_of().is_pending();
            if stop {
                machine.drop_unused_answer();
                return;
            }
        }
    }

    /// Runs the block at RIP, or its first instruction only; as generated code if that may be.
    fn run_block(&mut self, single: bool, may_be_native: bool) -> Outcome {
        let Self { core, jumps, native, .. } = self;
        let found = match jumps.block(core, native.as_ref()) {
            Ok(found) => found,
            Err(translator::Stop::Fault) => return Outcome::Fault,
            Err(_) => return Outcome::Retry,
        };
        core.machine.end = false;
        core.machine.no_trap = false;
        core.machine.fault_on_stack = false;
        let insns = match found {
            Found::Once(insns) => {
                if let Some(native) = native {
                    native.pass(core);
                }
                insns
            }
            Found::Block(block) => {
                if let Some(native) = native {
                    if !may_be_native {
                        native.interrupt();
                        // Behind an STI, say: the branch to here need not come out the next time.
                        native.connect(core, block);
                    } else if let Some(left) = native.run(core, block) {
                        self.interpret = left.interpret;
                        return after_native(core, left);
                    }
                }
                &block.insns
            }
        };
        let insns = if insns.is_empty() {
            match jumps.instructions(core) {
                Ok(insns) => insns,
                Err(translator::Stop::Fault) => return Outcome::Fault,
                Err(_) => return Outcome::Retry,
            }
        } else {
            insns
        };
        let start = core.cpu.rip();
        let shadow = std::mem::take(&mut core.cpu.shadow);
        let trap = core.cpu.flag(rflags::TF);
        let count = core.cpu.regs[Gpr::Rcx as usize];
        let outcome = core.run_block(insns, single);
        let on_stack =
            outcome == Outcome::Fault && uses_stack(insns, core.cpu.rip().wrapping_sub(start));
        let waits = matches!(core.machine.answer, Answer::Waiting(_));
        // It takes its answer as the first of its block, and is not compared.
        self.interpret |= waits && native.as_ref().is_some_and(Native::verifies);
        let care = trap || core.machine.breakpoints.is_active();
        match outcome {
            Outcome::Fault => settle_fault(core, on_stack),
            Outcome::Done if care => breakpoints::complete(core, trap && !core.machine.no_trap),
            // One repetition of a string instruction is a step too.
            Outcome::Retry if care && !waits && core.cpu.regs[Gpr::Rcx as usize] != count => {
                breakpoints::hold_resume(core, true);
                breakpoints::complete(core, trap);
            }
            Outcome::Retry => {
                core.cpu.shadow |= shadow;
                breakpoints::hold_resume(core, false);
            }
            Outcome::Done => {}
        }
        outcome
    }

    /// Runs a block while there are breakpoints or a debugger steps.
    #[cold]
    fn run_carefully(&mut self, single: bool) -> Outcome {
        let one = match breakpoints::begin(&mut self.core) {
            Begin::Met(outcome) => return outcome,
            Begin::Run { single } => single,
        };
        let outcome = self.run_block(single || one, false);
        breakpoints::end(&mut self.core);
        outcome
    }
}

/// Generated code was left.
fn after_native(core: &mut Core, left: Left) -> Outcome {
    if left.outcome == Outcome::Fault {
        settle_fault(core, left.on_stack);
    }
    left.outcome
}

/// A fault for an address that is none is #SS on the stack.
fn settle_fault(core: &mut Core, on_stack: bool) {
    if core.machine.fault_is_address && (core.machine.fault_on_stack || on_stack) {
        core.machine.raise(Exception::new(Vector::SS));
    }
}

/// Whether the instruction at `offset` of the block accesses the stack segment: a non-canonical address is
/// then #SS instead of #GP.
pub(crate) fn uses_stack(insns: &[Insn<System>], offset: u64) -> bool {
    let mut at = 0;
    for insn in insns {
        if at == offset {
            return insn.flags & InsnFlags::STACK != 0;
        }
        at += u64::from(insn.len);
    }
    false
}

/// Leaves when dropped, so that nobody waits for a vCPU whose thread has panicked.
struct Inside<'a>(&'a Attention);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Vcpu for TranslateVcpu {
    fn run(&mut self) -> Result<Exit, EngineError> {
        let shared = Arc::clone(self.shared());
        let attention = &shared.vcpus[self.core.machine.id as usize].attention;
        self.enter();
        let _inside = Inside(attention);
        let _watch = alarm::watch(attention).map_err(alarm::refused("make a vcpu's alarm"))?;
        if let Some(native) = &mut self.native {
            native.begin(&mut self.core);
        }
        let exit = self.run_inside();
        let cpu = &self.core.cpu;
        let verified = self.native.as_ref().and_then(Native::verified);
        let choosing = self.native.as_ref().map_or(0, Native::bytes);
        let (interpreted, native) = (cpu.retired, cpu.native.counts());
        let work = Work { interpreted, native, verified, choosing };
        *shared.vcpus[self.core.machine.id as usize]
            .work
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = work;
        exit
    }

    fn complete_read(&mut self, value: u64) {
        if let Answer::Waiting(exit) = self.core.machine.answer {
            self.core.machine.answer = Answer::Ready(exit, value);
        }
    }

    fn state(&self) -> Result<VcpuState, EngineError> {
        Ok(state::save(&self.core, self.waiting_for_sipi))
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        state::check(&self.core, state)?;
        state::load_msrs(&mut self.core, &state.msrs)?;
        state::load(&mut self.core, state);
        self.waiting_for_sipi = state.waiting_for_sipi;
        Ok(())
    }

    fn processor(&self) -> &Processor {
        &self.processor
    }

    fn differences(&self, shown: &Processor) -> Result<Vec<Difference>, EngineError> {
        Ok(cpuid::differences(shown))
    }

    fn tsc_offset(&self) -> Option<u64> {
        Some(self.core.machine.regs.tsc_offset)
    }

    fn set_tsc_offset(&mut self, offset: u64) -> Result<(), EngineError> {
        instructions::set_tsc_offset(&mut self.core, offset);
        Ok(())
    }

    fn tell_stopped(&mut self) -> Result<(), EngineError> {
        instructions::tell_stopped(&mut self.core);
        Ok(())
    }

    fn set_debug(&mut self, control: &DebugControl) -> Result<(), EngineError> {
        self.core.machine.set_debug(control)
    }

    fn counters(&self) -> Counters {
        Counters {
            // Generated code counts none.
            instructions: self.native.is_none().then_some(self.core.cpu.retired),
            halts: self.core.machine.halts,
            ..self.counters
        }
    }
}
