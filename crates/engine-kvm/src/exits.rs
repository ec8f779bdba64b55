//! From `struct kvm_run` to [`Exit`].
//!
//! KVM can ask for several things at once: a string instruction for up to a page of port accesses, an
//! access across a border for an odd number of bytes. Each becomes exits of 1, 2, 4 or 8 bytes, one after
//! the other; KVM is entered again when all are answered.

use engine::{BreakOn, DebugControl, DebugStop, EngineError, Exit};
use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO,
    KVM_EXIT_IO_IN, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_SYSTEM_EVENT,
    KVM_SYSTEM_EVENT_RESET, kvm_run,
};

use crate::run_page::RunPage;

/// What came of a run.
pub(crate) enum Turn {
    /// This.
    Exit(Exit),
    /// Accesses, in the [`Pending`] that was passed.
    Pending,
    /// Nothing for us.
    Again,
}

/// Accesses that the guest waits for, taken one at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pending {
    kind: Kind,
    /// Port, or guest-physical address of the next access.
    address: u64,
    /// Where its bytes are in kvm_run.
    offset: usize,
    /// Bytes of one access, and how far each moves the address: ports stay, memory advances.
    size: usize,
    /// Bytes left.
    left: usize,
    /// Bytes of the access that was returned and awaits its answer; 0 for none.
    asked: usize,
    /// KVM has not been entered since.
    unfinished: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    PortRead,
    PortWrite,
    MmioRead,
    MmioWrite,
}

impl Pending {
    /// The next access; `None`: enter KVM.
    pub(crate) fn next(&mut self, page: &RunPage) -> Option<Exit> {
        self.skip_asked();
        if self.left == 0 {
            self.unfinished = false;
            return None;
        }
        let size = self.next_size();
        let mut bytes = [0; 8];
        if matches!(self.kind, Kind::PortWrite | Kind::MmioWrite) {
            page.copy_out(self.offset, &mut bytes[..size]);
        }
        let value = u64::from_le_bytes(bytes);
        let (gpa, port, bytes) = (self.address, self.address as u16, size as u8);
        let exit = match self.kind {
            Kind::PortRead => Exit::PortRead { port, size: bytes },
            Kind::PortWrite => Exit::PortWrite { port, size: bytes, value: value as u32 },
            Kind::MmioRead => Exit::MmioRead { gpa, size: bytes },
            Kind::MmioWrite => Exit::MmioWrite { gpa, size: bytes, value },
        };
        self.asked = size;
        Some(exit)
    }

    /// The answer to the access that was returned last.
    pub(crate) fn answer(&mut self, page: &RunPage, value: u64) {
        if matches!(self.kind, Kind::PortRead | Kind::MmioRead) {
            page.copy_in(self.offset, &value.to_le_bytes()[..self.asked]);
        }
    }

    /// Whether KVM waits for nothing.
    pub(crate) fn is_done(&self) -> bool {
        !self.unfinished
    }

    /// Whether the accesses were writes, and all have been returned.
    pub(crate) fn is_written(&self) -> bool {
        let writes = matches!(self.kind, Kind::PortWrite | Kind::MmioWrite);
        self.unfinished && writes && self.asked == self.left
    }

    fn skip_asked(&mut self) {
        let size = std::mem::take(&mut self.asked);
        self.offset += size;
        self.left -= size;
        if matches!(self.kind, Kind::MmioRead | Kind::MmioWrite) {
            self.address += size as u64;
        }
    }

    /// Ports have the size of their instruction; memory the largest power of two that is left.
    fn next_size(&self) -> usize {
        match self.kind {
            Kind::PortRead | Kind::PortWrite => self.size.min(self.left),
            Kind::MmioRead | Kind::MmioWrite => 1 << self.left.min(8).ilog2(),
        }
    }
}

/// What a run that returned came to; accesses go into `pending`.
pub(crate) fn turn(
    run: &kvm_run,
    debug: &DebugControl,
    pending: &mut Pending,
) -> Result<Turn, EngineError> {
    match run.exit_reason {
        KVM_EXIT_IO => {
            *pending = port_accesses(run);
            Ok(Turn::Pending)
        }
        KVM_EXIT_MMIO => {
            *pending = memory_accesses(run);
            Ok(Turn::Pending)
        }
        KVM_EXIT_INTR => Ok(Turn::Again),
        KVM_EXIT_SHUTDOWN => Ok(Turn::Exit(Exit::TripleFault)),
        KVM_EXIT_DEBUG => Ok(Turn::Exit(Exit::Debug(stop(run, debug)))),
        KVM_EXIT_SYSTEM_EVENT => system_event(run),
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: the exit reason says which field of the union is set.
            let reason = unsafe { run.__bindgen_anon_1.fail_entry }.hardware_entry_failure_reason;
            Err(EngineError::Bug(format!("the processor refuses the guest's state: {reason:#x}")))
        }
        KVM_EXIT_INTERNAL_ERROR => Err(internal_error(run)),
        other => {
            Err(EngineError::Bug(format!("KVM exits for reason {other}, which nobody asked for")))
        }
    }
}

fn port_accesses(run: &kvm_run) -> Pending {
    // SAFETY: the exit reason says which field of the union is set.
    let io = unsafe { run.__bindgen_anon_1.io };
    let read = u32::from(io.direction) == KVM_EXIT_IO_IN;
    Pending {
        kind: if read { Kind::PortRead } else { Kind::PortWrite },
        address: io.port.into(),
        offset: io.data_offset as usize,
        size: io.size.into(),
        left: usize::from(io.size) * io.count as usize,
        asked: 0,
        unfinished: true,
    }
}

fn memory_accesses(run: &kvm_run) -> Pending {
    // SAFETY: the exit reason says which field of the union is set.
    let mmio = unsafe { run.__bindgen_anon_1.mmio };
    let data = std::mem::offset_of!(kvm_run, __bindgen_anon_1.mmio.data);
    let length = mmio.len.min(8) as usize;
    Pending {
        kind: if mmio.is_write == 0 { Kind::MmioRead } else { Kind::MmioWrite },
        address: mmio.phys_addr,
        offset: data,
        size: length,
        left: length,
        asked: 0,
        unfinished: true,
    }
}

fn system_event(run: &kvm_run) -> Result<Turn, EngineError> {
    // SAFETY: the exit reason says which field of the union is set.
    let event = unsafe { run.__bindgen_anon_1.system_event }.type_;
    match event {
        KVM_SYSTEM_EVENT_RESET => Ok(Turn::Exit(Exit::TripleFault)),
        other => Err(EngineError::Bug(format!("KVM reports system event {other}"))),
    }
}

/// DR6 says which breakpoint or that it was a step (SDM volume 3, 18.2.3); vector 3 is INT3.
fn stop(run: &kvm_run, debug: &DebugControl) -> DebugStop {
    const INT3: u32 = 3;
    // SAFETY: the exit reason says which field of the union is set.
    let arch = unsafe { run.__bindgen_anon_1.debug }.arch;
    if arch.exception == INT3 {
        return DebugStop::Int3;
    }
    let set =
        |index: &u8| arch.dr6 & 1 << index != 0 && debug.breakpoints[usize::from(*index)].is_some();
    // A write is told before a step that ends at the same time, an execution at the stop's address.
    let here = |index: &u8| {
        debug.breakpoints[usize::from(*index)]
            .is_some_and(|at| at.on != BreakOn::Execute || at.address == arch.pc)
    };
    (0..4).filter(set).find(here).map_or(DebugStop::Step, DebugStop::Breakpoint)
}

/// KVM_INTERNAL_ERROR_EMULATION: an instruction that KVM cannot emulate.
const EMULATION: u32 = 1;

fn internal_error(run: &kvm_run) -> EngineError {
    // SAFETY: the exit reason says which field of the union is set.
    let suberror = unsafe { run.__bindgen_anon_1.internal }.suberror;
    if suberror != EMULATION {
        return EngineError::Bug(format!("KVM fails internally: suberror {suberror}"));
    }
    // SAFETY: as above; this layout is that of the suberror, and zeroed where the kernel has no bytes.
    let failure =
        unsafe { run.__bindgen_anon_1.emulation_failure.__bindgen_anon_1.__bindgen_anon_1 };
    let bytes = &failure.insn_bytes[..usize::from(failure.insn_size.min(15))];
    EngineError::Unsupported(format!(
        "KVM cannot emulate the guest's instruction {bytes:02x?}: use --engine translate"
    ))
}
