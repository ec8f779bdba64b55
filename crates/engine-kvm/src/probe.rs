//! Whether /dev/kvm can run a kernel: by running a short guest.
//!
//! Opening the device says little. A KVM that runs inside another guest may have no virtualization
//! extensions and execute what it can by an emulator of instructions, which lacks most of them. The
//! payload uses a few that every kernel uses and such emulators don't have.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use engine::{Engine, EngineError, Exit, Vcpu, Vm, VmSpec};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use memory::{DeviceView, Gpa, GuestMemory};
use x86::model::Shown;
use x86::paging::{LARGE, PRESENT, WRITABLE};
use x86::{Gpr, VcpuState, cr4};

use crate::KvmEngine;

const RAM: u64 = 2 << 20;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const CODE: u64 = 0x8000;
const DATA: u64 = 0x9000;
const STACK: u64 = 0xb000;
const PORT: u16 = 0x80;
const ANSWER: u32 = 0x600d;

/// A guest that takes longer does not run but is emulated.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why KVM here cannot run guests.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The device, or a capability of it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// It is there and does not run what kernels consist of.
    #[error("/dev/kvm emulates instructions and cannot run a kernel: {0}")]
    Emulates(String),
}

impl ProbeError {
    /// What the user can do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        let source = match self {
            Self::Emulates(_) => {
                return "ask for nested virtualization where this machine is configured";
            }
            Self::Engine(EngineError::Host { source, .. }) => source.kind(),
            Self::Engine(_) => return "boot a newer kernel",
        };
        match source {
            io::ErrorKind::PermissionDenied => "join the group kvm: sudo usermod -aG kvm $USER",
            io::ErrorKind::NotFound => {
                "load kvm_intel or kvm_amd, or turn on virtualization in the firmware's settings"
            }
            _ => "see `fathom doctor`",
        }
    }
}

/// Runs a short guest. Takes some milliseconds.
///
/// # Errors
/// Why KVM cannot be used; nothing is left behind.
pub fn probe() -> Result<(), ProbeError> {
    let engine = KvmEngine::new()?;
    let memory =
        GuestMemory::with_bytes(RAM).map_err(|error| EngineError::Memory(error.to_string()))?;
    let memory = Arc::new(memory);
    load(&memory)?;
    let vm = engine.create_vm(VmSpec { memory, vcpus: 1, cpu: Shown::default() })?;
    let mut vcpu = vm.create_vcpu(0)?;
    let fresh = vcpu.state()?;
    let mut state = VcpuState { msrs: fresh.msrs, apic: fresh.apic, ..VcpuState::long_mode() };
    state.cr3 = PML4;
    state.cr4 |= cr4::OSFXSR | cr4::OSXMMEXCPT;
    state.rip = CODE;
    state.gpr[Gpr::Rsp as usize] = STACK;
    vcpu.set_state(&state)?;
    finish(&vm, &mut *vcpu)
}

/// Runs until the payload reports, and no longer than it may take.
fn finish(vm: &Arc<dyn Vm>, vcpu: &mut dyn Vcpu) -> Result<(), ProbeError> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (watched, vm) = (&done, Arc::clone(vm));
        let watchdog = scope.spawn(move || {
            thread::park_timeout(PATIENCE);
            if !watched.load(Ordering::SeqCst) {
                vm.kick(0);
            }
        });
        let exit = vcpu.run();
        done.store(true, Ordering::SeqCst);
        watchdog.thread().unpark();
        match exit {
            Ok(Exit::PortWrite { port: PORT, value: ANSWER, .. }) => Ok(()),
            Ok(Exit::Kicked) => Err(ProbeError::Emulates("a short guest takes seconds".into())),
            Ok(other) => Err(ProbeError::Emulates(format!("a short guest ends with {other:?}"))),
            // An instruction that is not in the emulator, and every kernel uses.
            Err(EngineError::Unsupported(_)) => Err(ProbeError::Emulates("lock cmpxchg16b".into())),
            Err(error) => Err(error.into()),
        }
    })
}

fn load(memory: &Arc<GuestMemory>) -> Result<(), EngineError> {
    let view = DeviceView::new(Arc::clone(memory));
    let write = |gpa: u64, bytes: &[u8]| {
        view.write(Gpa(gpa), bytes).map_err(|error| EngineError::Memory(error.to_string()))
    };
    let bits = PRESENT | WRITABLE;
    write(PML4, &(PDPT | bits).to_le_bytes())?;
    write(PDPT, &(DIRECTORY | bits).to_le_bytes())?;
    write(DIRECTORY, &(LARGE | bits).to_le_bytes())?;
    let code = payload().map_err(|error| EngineError::Bug(format!("probe: {error}")))?;
    write(CODE, &code)
}

/// A locked 16-byte exchange, SSE, a CPUID exit, and a report of what they came to.
fn payload() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut wrong = a.create_label();
    a.mov(rsi, DATA)?;
    a.xor(eax, eax)?;
    a.xor(edx, edx)?;
    a.mov(ebx, 0x1234)?;
    a.mov(ecx, 0x5678)?;
    a.lock().cmpxchg16b(xmmword_ptr(rsi))?;
    a.jne(wrong)?;
    a.movdqa(xmm1, xmmword_ptr(rsi))?;
    a.paddd(xmm1, xmm1)?;
    a.movd(ecx, xmm1)?;
    a.cmp(ecx, 0x2468)?;
    a.jne(wrong)?;
    a.xor(eax, eax)?;
    a.cpuid()?;
    a.fxsave(ptr(rsi + 0x200))?;
    a.fxrstor(ptr(rsi + 0x200))?;
    a.mov(eax, ANSWER)?;
    a.set_label(&mut wrong)?;
    a.mov(dx, u32::from(PORT))?;
    a.out(dx, eax)?;
    a.hlt()?;
    a.assemble(CODE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_fits_its_page() {
        assert!(payload().expect("assembles").len() < 0x1000);
    }
}
