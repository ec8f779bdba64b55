//! Runs code in the interpreter, on a machine that is nothing but the arena.

use translator::decode::decode_block;
use translator::{
    Block, Core, Cpu, Insn, Machine, Mode, Outcome as Ended, Stop, SystemOp, VectorKind, Width,
    Word,
};
use x86::{Exception, Vector, XSTATE_SIZE};

use translator::native::View;

use crate::arena;
use crate::native::Bitness;
use crate::state::{Fault, Outcome, State};
use crate::translated::Tables;

/// The data pages, and nothing else.
#[derive(Debug)]
pub struct FlatMachine {
    /// Contents of [`arena::DATA`].
    pub data: Box<arena::Pages>,
    /// What was raised.
    pub exception: Option<Exception>,
    /// What vector and x87 instructions raise.
    pub closed: Option<Exception>,
    /// For generated code, where there is any.
    pub tables: Option<Tables>,
}

impl FlatMachine {
    /// A machine with these data.
    #[must_use]
    pub fn new(data: Box<arena::Pages>) -> Self {
        Self { data, exception: None, closed: None, tables: None }
    }

    /// The index of `len` accessible bytes at `va`; otherwise the fault.
    #[inline(always)]
    fn index(&mut self, va: u64, len: usize, write: bool) -> Result<usize, Stop> {
        let start = va.wrapping_sub(arena::DATA);
        if start < arena::DATA_LEN as u64 && start as usize + len <= arena::DATA_LEN {
            return Ok(start as usize);
        }
        Err(self.fault(va, len, write))
    }

    #[cold]
    fn fault(&mut self, va: u64, len: usize, write: bool) -> Stop {
        let last = va.wrapping_add(len as u64 - 1);
        if !x86::paging::is_canonical(va) || !x86::paging::is_canonical(last) {
            return self.raise(Exception::GP0);
        }
        let inside = va.wrapping_sub(arena::DATA) < arena::DATA_LEN as u64;
        // The first byte that cannot be accessed.
        let address = if inside { arena::DATA + arena::DATA_LEN as u64 } else { va };
        self.raise(Exception::page_fault(address, if write { 2 } else { 0 }))
    }
}

impl Machine for FlatMachine {
    #[inline(always)]
    fn load<T: Word>(&mut self, va: u64) -> Result<T, Stop> {
        let index = self.index(va, T::SIZE, false)?;
        Ok(read(&self.data[index..index + T::SIZE]))
    }

    #[inline(always)]
    fn store<T: Word>(&mut self, va: u64, value: T) -> Result<(), Stop> {
        let index = self.index(va, T::SIZE, true)?;
        write(&mut self.data[index..index + T::SIZE], value);
        Ok(())
    }

    #[inline(always)]
    fn load_for_store<T: Word>(&mut self, va: u64) -> Result<T, Stop> {
        let index = self.index(va, T::SIZE, true)?;
        Ok(read(&self.data[index..index + T::SIZE]))
    }

    fn update<T: Word>(&mut self, va: u64, update: impl Fn(T) -> T) -> Result<T, Stop> {
        let old = self.load_for_store(va)?;
        self.store(va, update(old))?;
        Ok(old)
    }

    fn compare_exchange_16(&mut self, va: u64, old: u128, new: u128) -> Result<u128, Stop> {
        let index = self.index(va, 16, true)?;
        let place = &mut self.data[index..index + 16];
        let found = u128::from_le_bytes(place.try_into().expect("16 bytes"));
        if found == old {
            place.copy_from_slice(&new.to_le_bytes());
        }
        Ok(found)
    }

    fn load_bytes(&mut self, va: u64, into: &mut [u8]) -> Result<(), Stop> {
        let index = self.index(va, into.len(), false)?;
        into.copy_from_slice(&self.data[index..index + into.len()]);
        Ok(())
    }

    fn store_bytes(&mut self, va: u64, from: &[u8]) -> Result<(), Stop> {
        let index = self.index(va, from.len(), true)?;
        self.data[index..index + from.len()].copy_from_slice(from);
        Ok(())
    }

    fn probe_store(&mut self, va: u64, len: usize) -> Result<(), Stop> {
        self.index(va, len, true).map(|_| ())
    }

    fn copy(&mut self, to: u64, from: u64, len: u64) -> Result<u64, Stop> {
        let len = len.min(4096 - from % 4096).min(4096 - to % 4096) as usize;
        let source = self.index(from, len, false)?;
        let target = self.index(to, len, true)?;
        for i in 0..len {
            self.data[target + i] = self.data[source + i];
        }
        Ok(len as u64)
    }

    fn fill(&mut self, to: u64, value: u64, size: usize, count: u64) -> Result<u64, Stop> {
        let count = count.min((4096 - to % 4096) / size as u64);
        if count == 0 {
            return Ok(0);
        }
        let len = count as usize * size;
        let start = self.index(to, len, true)?;
        for element in self.data[start..start + len].chunks_exact_mut(size) {
            element.copy_from_slice(&value.to_le_bytes()[..size]);
        }
        Ok(count)
    }

    #[inline(always)]
    fn must_end(&mut self) -> bool {
        false
    }

    fn attention(&self) -> bool {
        false
    }

    fn view(&self) -> Option<View> {
        self.tables.as_ref().map(Tables::view)
    }

    fn vector_gate(&self, _kind: VectorKind) -> Option<Exception> {
        self.closed
    }

    fn raise(&mut self, exception: Exception) -> Stop {
        self.exception = Some(exception);
        Stop::Fault
    }

    fn system(core: &mut Core<Self>, op: SystemOp, _insn: &Insn<Self>) -> Result<(), Stop> {
        let exception = match op {
            SystemOp::Undefined => Exception::UD,
            // INT3 is what the code page is filled with.
            SystemOp::Int3 => Exception::new(Vector::BP),
            _ => Exception::GP0,
        };
        Err(core.machine.raise(exception))
    }
}

#[inline(always)]
fn read<T: Word>(bytes: &[u8]) -> T {
    let mut value = [0; 8];
    value[..T::SIZE].copy_from_slice(bytes);
    T::cut(u64::from_le_bytes(value))
}

#[inline(always)]
fn write<T: Word>(bytes: &mut [u8], value: T) {
    bytes.copy_from_slice(&value.zext().to_le_bytes()[..T::SIZE]);
}

/// A core in the state that [`crate::Host::run`] loads.
#[must_use]
pub fn core(state: &State, bitness: Bitness) -> Core<FlatMachine> {
    let mut cpu = Cpu::new();
    cpu.regs[..16].copy_from_slice(&state.gpr);
    cpu.rflags = state.rflags | 0x202;
    cpu.cpl = 3;
    cpu.segs[5].base = arena::GS_BASE;
    cpu.fpu.image[..XSTATE_SIZE].copy_from_slice(&state.xstate[..]);
    cpu.xcr0 = 7;
    if bitness == Bitness::Bits32 {
        cpu.width = Width::Bits32;
        cpu.stack_mask = 0xffff_ffff;
    }
    cpu.set_rip(arena::ENTRY);
    Core { cpu, machine: FlatMachine::new(state.data.clone()) }
}

/// Runs `code` at [`arena::ENTRY`] on `state`: block after block until it leaves the code or faults, at
/// most `limit` blocks.
#[must_use]
pub fn run(state: &State, code: &[u8], bitness: Bitness, limit: usize) -> Outcome {
    let mut core = core(state, bitness);
    let mode = Mode { width: core.cpu.width };
    let mut fault = None;
    for _ in 0..limit {
        let offset = core.cpu.rip().wrapping_sub(arena::ENTRY);
        if offset >= code.len() as u64 {
            break;
        }
        let decoded = decode_block(&code[offset as usize..], mode, 64);
        if decoded.insns.is_empty() {
            break;
        }
        let block = Block::new(decoded.insns, core.cpu.rip(), None);
        match core.run_block(&block.insns, false) {
            Ended::Done | Ended::Retry => {}
            Ended::Fault => {
                fault = raised(&core.machine);
                break;
            }
        }
    }
    outcome(core, state, fault)
}

pub(crate) fn raised(machine: &FlatMachine) -> Option<Fault> {
    machine.exception.map(|exception| {
        Fault::new(exception.vector.0, exception.error_code & 2 != 0, exception.address)
    })
}

/// What `core`, which began with `state`, has come to.
pub(crate) fn outcome(core: Core<FlatMachine>, state: &State, fault: Option<Fault>) -> Outcome {
    let mut after = State { data: core.machine.data, ..state.clone() };
    after.gpr.copy_from_slice(&core.cpu.regs[..16]);
    after.rflags = core.cpu.rflags;
    after.xstate.copy_from_slice(&core.cpu.fpu.image[..XSTATE_SIZE]);
    Outcome { state: after, rip: core.cpu.regs[translator::REG_RIP as usize], fault }
}
