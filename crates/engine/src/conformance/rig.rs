//! The machine that payloads run on, and how they are driven.

use std::collections::VecDeque;
use std::ops::Deref;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use iced_x86::code_asm::CodeAssembler;
use memory::{DeviceView, Gpa, GuestMemory};
use x86::model::Shown;
use x86::{DescriptorTable, Gpr, Segment, VcpuState, cr0, cr4, efer, msr};

use super::layout::{self, Gate};
use super::layout::{
    CODE, CODE1, GDT, GDT_LIMIT, IDT, PML4, RAM, STACK, STACK1, TSS, TSS_SIZE, selector,
};
use super::payload::{ASK, Asm, DONE, LOG, Payload};
use super::record::{self, Frame, Record};
use super::{skip, stubs};
use crate::exit::Exit;
use crate::traits::{Engine, Vcpu, Vm, VmSpec};

/// How long a payload may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a payload's ASK calls.
pub type Answer<'a> = &'a (dyn Fn(u32) + Sync);

/// A machine with its payload.
pub struct Rig {
    /// All but the vCPUs.
    pub board: Board,
    /// The vCPUs.
    pub vcpus: Vec<Box<dyn Vcpu>>,
}

/// What the vCPUs of a machine share.
pub struct Board {
    /// RAM.
    pub memory: Arc<GuestMemory>,
    /// Device view of RAM.
    pub view: DeviceView,
    /// The VM.
    pub vm: Arc<dyn Vm>,
    /// Answers to port and memory-mapped reads, in order; 0 when used up.
    answers: Mutex<VecDeque<u64>>,
}

impl Deref for Rig {
    type Target = Board;

    fn deref(&self) -> &Board {
        &self.board
    }
}

impl Rig {
    /// A machine with `vcpus` vCPUs; the first will start at [`CODE`], the others wait.
    pub fn new(engine: &dyn Engine, vcpus: u32) -> Self {
        Self::showing(Shown::default(), engine, vcpus)
    }

    /// As [`Rig::new`], with a choice of the processor.
    pub fn showing(cpu: impl Into<Shown>, engine: &dyn Engine, vcpus: u32) -> Self {
        let memory = GuestMemory::with_bytes(RAM).expect("reserve 16 MiB");
        Self::on(memory, cpu.into(), engine, vcpus)
    }

    /// A machine with one vCPU on anonymous memory, and the payload that `write` assembles.
    pub fn anonymous(engine: &dyn Engine, write: impl FnOnce(&mut CodeAssembler) -> Asm) -> Self {
        let memory = GuestMemory::anonymous(RAM).expect("reserve 16 MiB");
        Self::with_memory(memory, engine, write)
    }

    /// A machine with one vCPU on this memory, of [`RAM`] or more, and the payload that `write` assembles.
    pub fn with_memory(
        memory: GuestMemory,
        engine: &dyn Engine,
        write: impl FnOnce(&mut CodeAssembler) -> Asm,
    ) -> Self {
        let rig = Self::on(memory, Shown::default(), engine, 1);
        rig.load_payload(CODE, write);
        rig
    }

    fn on(memory: GuestMemory, cpu: Shown, engine: &dyn Engine, vcpus: u32) -> Self {
        if vcpus > engine.capabilities().max_vcpus {
            skip("not that many vCPUs");
        }
        let memory = Arc::new(memory);
        let vm = engine
            .create_vm(VmSpec { memory: Arc::clone(&memory), vcpus, cpu })
            .expect("create vm");
        let view = DeviceView::new(Arc::clone(&memory));
        let board = Board { memory, view, vm, answers: Mutex::default() };
        layout::write_tables(&board.view);
        stubs::write(&board);
        let mut rig = Self { board, vcpus: Vec::new() };
        for id in 0..vcpus {
            let vcpu = rig.vm.create_vcpu(id).expect("create vcpu");
            rig.vcpus.push(vcpu);
        }
        rig.start(0);
        rig
    }

    /// A machine with one vCPU and the payload that `write` assembles.
    pub fn with(engine: &dyn Engine, write: impl FnOnce(&mut CodeAssembler) -> Asm) -> Self {
        let rig = Self::new(engine, 1);
        rig.load_payload(CODE, write);
        rig
    }

    /// A machine with two vCPUs, both running, and their payloads.
    pub fn with_two(
        engine: &dyn Engine,
        first: impl FnOnce(&mut CodeAssembler) -> Asm,
        second: impl FnOnce(&mut CodeAssembler) -> Asm,
    ) -> Self {
        let mut rig = Self::new(engine, 2);
        rig.load_payload(CODE, first);
        rig.load_payload(CODE1, second);
        rig.start(1);
        rig
    }

    /// Puts vCPU `id` (0 or 1) at the start of its payload.
    pub fn start(&mut self, id: usize) {
        let state = Self::state(id, self.vcpus[id].state().expect("state"));
        self.vcpus[id].set_state(&state).expect("set state");
    }

    /// The state in which the payload of vCPU `id` starts; what the rig does not care about is as in
    /// `fresh`.
    pub fn state(id: usize, fresh: VcpuState) -> VcpuState {
        let mut state = VcpuState { apic: fresh.apic, msrs: fresh.msrs, ..VcpuState::long_mode() };
        // Written back, it would be late by the time in between, on each vCPU by another.
        state.msrs.retain(|entry| entry.index != msr::TSC);
        state.rip = [CODE, CODE1][id];
        state.gpr[Gpr::Rsp as usize] = [STACK, STACK1][id];
        state.cr3 = PML4;
        state.cr0 |= cr0::WP;
        state.cr4 |= cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::PGE;
        state.efer |= efer::NXE | efer::SCE;
        state.gdtr = DescriptorTable { base: GDT, limit: GDT_LIMIT };
        state.idtr = DescriptorTable { base: IDT, limit: 0xfff };
        state.tr = Segment {
            selector: [selector::TSS, selector::TSS1][id],
            base: TSS + id as u64 * TSS_SIZE,
            limit: 0x67,
            attributes: 0x8b,
        };
        state
    }

    /// Runs vCPU 0 until the payload says that it is done.
    pub fn run(&mut self) -> Record {
        self.run_asking(&|value| panic!("payload asks {value:#x}"))
    }

    /// As [`Rig::run`]; `answer` is called at every ASK of the payload.
    pub fn run_asking(&mut self, answer: Answer<'_>) -> Record {
        let mut vcpu = self.vcpus.remove(0);
        let stop = AtomicBool::new(false);
        let record = self.board.drive(&mut *vcpu, 0, answer, &stop);
        self.vcpus.insert(0, vcpu);
        record
    }

    /// Runs all vCPUs, each on its thread, until vCPU 0 is done; then stops the others.
    pub fn run_all(&mut self) -> Vec<Record> {
        self.run_all_asking(&|value| panic!("payload asks {value:#x}"))
    }

    /// As [`Rig::run_all`]; `answer` is called at every ASK of a payload.
    pub fn run_all_asking(&mut self, answer: Answer<'_>) -> Vec<Record> {
        let mut vcpus = std::mem::take(&mut self.vcpus);
        let stop = AtomicBool::new(false);
        let board = &self.board;
        let records = thread::scope(|scope| {
            let mut threads = Vec::new();
            for (id, vcpu) in vcpus.iter_mut().enumerate() {
                let stop = &stop;
                threads.push(scope.spawn(move || {
                    let _stops = StopOthers { board, stop, only: id == 0 };
                    board.drive(&mut **vcpu, id, answer, stop)
                }));
            }
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
                .collect()
        });
        self.vcpus = vcpus;
        records
    }

    /// Sets the answers to reads.
    pub fn answer(mut self, answers: impl IntoIterator<Item = u64>) -> Self {
        self.board.answers = Mutex::new(answers.into_iter().collect());
        self
    }
}

impl Board {
    /// Runs vCPU `id` until DONE, a triple fault (recorded), a kick after `stop`, or patience ends (a
    /// panic).
    fn drive(
        &self,
        vcpu: &mut dyn Vcpu,
        id: usize,
        answer: Answer<'_>,
        stop: &AtomicBool,
    ) -> Record {
        let watchdog = Watchdog::start(Arc::clone(&self.vm), id as u32);
        let mut record = Record::default();
        loop {
            let exit = vcpu.run().expect("the engine runs");
            match exit {
                Exit::PortWrite { port: LOG, value, .. } => {
                    record.log.push(value);
                    continue;
                }
                Exit::PortWrite { port: ASK, value, .. } => {
                    answer(value);
                    continue;
                }
                Exit::PortWrite { port: DONE, .. } => break,
                Exit::PortRead { .. } | Exit::MmioRead { .. } => {
                    vcpu.complete_read(self.next_answer());
                }
                Exit::Kicked if stop.load(Ordering::SeqCst) => break,
                Exit::Kicked if watchdog.bit() => {
                    record.frames = self.frames();
                    record.frames.truncate(8);
                    panic!(
                        "payload hangs at {:#x}; so far {record:x?}",
                        vcpu.state().expect("state").rip
                    );
                }
                _ => {}
            }
            record.exits.push(exit);
            if exit == Exit::TripleFault {
                break;
            }
        }
        record.frames = self.frames();
        record
    }

    fn next_answer(&self) -> u64 {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).pop_front().unwrap_or(0)
    }

    /// Assembles at `address`.
    pub fn load(&self, address: u64, write: impl FnOnce(&mut CodeAssembler) -> Asm) {
        let bytes = assemble(64, address, write);
        self.write(address, &bytes);
    }

    /// Assembles at `address`, with the end of a payload after it.
    pub fn load_payload(&self, address: u64, write: impl FnOnce(&mut CodeAssembler) -> Asm) {
        self.load(address, |a| {
            write(a)?;
            a.done()
        });
    }

    /// Writes guest memory.
    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        self.view.write(Gpa(gpa), bytes).expect("inside RAM");
    }

    /// Reads guest memory.
    pub fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.view.read(Gpa(gpa), &mut bytes).expect("inside RAM");
        bytes
    }

    /// Reads a 64-bit word of guest memory.
    pub fn word(&self, gpa: u64) -> u64 {
        let mut bytes = [0; 8];
        self.view.read(Gpa(gpa), &mut bytes).expect("inside RAM");
        u64::from_le_bytes(bytes)
    }

    /// Writes a 64-bit word of guest memory.
    pub fn set_word(&self, gpa: u64, value: u64) {
        layout::set_word(&self.view, gpa, value);
    }

    /// Maps page `page` of the window to `gpa` with `bits`.
    pub fn map_window(&self, page: u64, gpa: u64, bits: u64) {
        self.set_word(layout::window_entry(page), gpa | bits);
    }

    /// What exceptions and interrupts pushed so far.
    pub fn frames(&self) -> Vec<Frame> {
        record::frames(&self.view)
    }

    /// Writes a gate.
    pub fn set_gate(&self, vector: u8, gate: Gate) {
        gate.write(&self.view, vector);
    }
}

/// Machine code at `address`.
pub fn assemble(
    bitness: u32,
    address: u64,
    write: impl FnOnce(&mut CodeAssembler) -> Asm,
) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(bitness).expect("16, 32 or 64");
    write(&mut assembler).expect("instructions exist");
    assembler.assemble(address).expect("payload assembles")
}

/// EAX, EBX, ECX, EDX of CPUID, as a payload sees them.
pub fn cpuid(engine: &dyn Engine, leaf: u32, subleaf: u32) -> [u32; 4] {
    use iced_x86::code_asm::*;
    let mut rig = Rig::with(engine, |a| {
        a.mov(eax, leaf)?;
        a.mov(ecx, subleaf)?;
        a.cpuid()?;
        a.mov(esi, edx)?;
        for register in [eax, ebx, ecx, esi] {
            a.mov(eax, register)?;
            a.log_eax()?;
        }
        Ok(())
    });
    rig.run().log.try_into().expect("four values")
}

/// Stops all vCPUs when vCPU 0 ends, also by a panic.
struct StopOthers<'a> {
    board: &'a Board,
    stop: &'a AtomicBool,
    only: bool,
}

impl Drop for StopOthers<'_> {
    fn drop(&mut self) {
        if self.only || thread::panicking() {
            self.stop.store(true, Ordering::SeqCst);
            (0..2).for_each(|id| self.board.vm.kick(id));
        }
    }
}

/// Kicks a payload that takes too long, so that the suite reports it instead of hanging.
struct Watchdog {
    done: Arc<AtomicBool>,
    bitten: Arc<AtomicBool>,
}

impl Watchdog {
    fn start(vm: Arc<dyn Vm>, id: u32) -> Self {
        let (done, bitten) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let watchdog = Self { done: Arc::clone(&done), bitten: Arc::clone(&bitten) };
        thread::spawn(move || {
            let deadline = Instant::now() + PATIENCE;
            while Instant::now() < deadline {
                thread::park_timeout(Duration::from_millis(20));
                if done.load(Ordering::Relaxed) {
                    return;
                }
            }
            bitten.store(true, Ordering::SeqCst);
            vm.kick(id);
        });
        watchdog
    }

    fn bit(&self) -> bool {
        self.bitten.load(Ordering::SeqCst)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}
