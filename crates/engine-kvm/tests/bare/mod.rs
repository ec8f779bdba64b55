//! QEMU's translator as an engine of its own, without KVM: a processor from its reset to the end of a
//! payload, in a guest that nothing intercepts.
//!
//! The lab's KVM runs on a processor that is QEMU's translator. What such a processor does wrong in a guest,
//! it does here too, and here nothing of ours and nothing of KVM's takes part.
//!
//! What it is *not*: complete. A run goes to the end of the payload in one piece, so that a case which
//! answers, asks or kicks cannot be run, and the processor has no x2APIC: accesses to it do nothing. Other
//! than of the log, it tells of writes to port 0x70 alone.

mod rom;
mod vmcb;

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;

use engine::conformance::layout::RAM;
use engine::conformance::payload::{DONE, LOG};
use engine::{
    Capabilities, Counters, DebugControl, Engine, EngineError, Exit, Tracking, Vcpu, Vm, VmSpec,
};
use memory::{DeviceView, Gpa};
use x86::model::{Difference, Processor};
use x86::{IoApicState, VcpuState};

/// Where PCs have no RAM: video memory and firmware.
const HOLE: Range<usize> = 0xa_0000..0x10_0000;
const QEMU: &str = "qemu-system-x86_64";
/// As in the lab (xtask).
const PROCESSOR: &str = "max,+svm,-xsave";
/// Seconds that a payload may take.
const PATIENCE: &str = "10";

/// The engine.
pub(crate) struct Bare;

impl Bare {
    /// Whether QEMU is here.
    pub(crate) fn is_there() -> bool {
        Command::new(QEMU).arg("--version").output().is_ok()
    }
}

impl Engine for Bare {
    fn name(&self) -> &'static str {
        "bare"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            counts_instructions: false,
            access_tracking: Tracking::None,
            write_tracking: Tracking::None,
            max_vcpus: 1,
        }
    }

    fn create_vm(&self, spec: VmSpec) -> Result<Arc<dyn Vm>, EngineError> {
        Ok(Arc::new(BareVm { view: DeviceView::new(spec.memory) }))
    }
}

struct BareVm {
    view: DeviceView,
}

impl Vm for BareVm {
    fn create_vcpu(&self, _: u32) -> Result<Box<dyn Vcpu>, EngineError> {
        let mut state = VcpuState::reset();
        state.apic.registers = vec![0; 64];
        Ok(Box::new(BareVcpu {
            view: self.view.clone(),
            state,
            processor: Processor::default(),
            exits: VecDeque::new(),
        }))
    }

    fn set_irq(&self, _: u32, _: bool) {}

    fn clock_ns(&self) -> Result<u64, EngineError> {
        Ok(0)
    }

    fn set_clock_ns(&self, _: u64) -> Result<(), EngineError> {
        Ok(())
    }

    fn io_apic(&self) -> Result<IoApicState, EngineError> {
        Err(EngineError::Unsupported("an IO-APIC of a bare processor".into()))
    }

    fn set_io_apic(&self, _: &IoApicState) -> Result<(), EngineError> {
        Err(EngineError::Unsupported("an IO-APIC of a bare processor".into()))
    }

    fn kick(&self, _: u32) {}
}

struct BareVcpu {
    view: DeviceView,
    state: VcpuState,
    processor: Processor,
    /// Of a run that has ended, those not told yet.
    exits: VecDeque<Exit>,
}

impl Vcpu for BareVcpu {
    fn run(&mut self) -> Result<Exit, EngineError> {
        if self.exits.is_empty() {
            self.exits = self
                .run_all()
                .map_err(|source| EngineError::Host { action: format!("run {QEMU}"), source })?;
        }
        Ok(self.exits.pop_front().expect("there is at least the last"))
    }

    fn complete_read(&mut self, _: u64) {}

    fn state(&self) -> Result<VcpuState, EngineError> {
        Ok(self.state.clone())
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        self.state = state.clone();
        Ok(())
    }

    fn processor(&self) -> &Processor {
        &self.processor
    }

    fn differences(&self, _: &Processor) -> Result<Vec<Difference>, EngineError> {
        Ok(Vec::new())
    }

    fn tsc_offset(&self) -> Option<u64> {
        None
    }

    fn set_tsc_offset(&mut self, _: u64) -> Result<(), EngineError> {
        Err(EngineError::Unsupported("the TSC of a bare processor".into()))
    }

    fn tell_stopped(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn set_debug(&mut self, _: &DebugControl) -> Result<(), EngineError> {
        Err(EngineError::Unsupported("a debugger of a bare processor".into()))
    }

    fn counters(&self) -> Counters {
        Counters::default()
    }
}

impl BareVcpu {
    /// Runs the payload to its end, which is the last exit, and takes over what it left in RAM.
    fn run_all(&self) -> io::Result<VecDeque<Exit>> {
        let folder = tempfile::tempdir()?;
        let (ram, rom) = (folder.path().join("ram"), folder.path().join("rom"));
        let mut bytes = vec![0; RAM as usize];
        self.view.read(Gpa(0), &mut bytes).map_err(io::Error::other)?;
        bytes[vmcb::START as usize..].copy_from_slice(&vmcb::for_state(&self.state));
        std::fs::write(&ram, &bytes)?;
        std::fs::write(&rom, rom::for_state(&self.state))?;
        let output = qemu(&ram, &rom).stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let last = last_exit(output.status)
            .ok_or_else(|| io::Error::other(format!("{}: {said}", output.status)))?;
        let after = std::fs::read(&ram)?;
        for part in [0..HOLE.start, HOLE.end..vmcb::START as usize] {
            self.view.write(Gpa(part.start as u64), &after[part]).map_err(io::Error::other)?;
        }
        Ok(said.lines().filter_map(port_write).chain([last]).collect())
    }
}

/// QEMU's exit device ends it with what was written, doubled, and one.
fn last_exit(status: ExitStatus) -> Option<Exit> {
    let code = status.code().filter(|code| code & 1 != 0)? as u32;
    match code >> 1 {
        rom::REFUSED => None,
        rom::SHUTDOWN => Some(Exit::TripleFault),
        _ => Some(Exit::PortWrite { port: DONE, size: 4, value: 0 }),
    }
}

fn qemu(ram: &Path, rom: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.args([PATIENCE, QEMU, "-cpu", PROCESSOR, "-accel", "tcg,thread=multi", "-smp", "2"]);
    command.args(["-machine", "pc,memory-backend=ram,usb=off", "-nodefaults", "-no-user-config"]);
    command.args(["-display", "none", "-no-reboot"]);
    let ram = ram.display();
    let backend = format!("memory-backend-file,id=ram,size={RAM},share=on,mem-path={ram}");
    command.args(["-object", &backend]).arg("-bios").arg(rom);
    // A device at LOG, whose accesses can be traced, and one that ends QEMU.
    command.args(["-device", "pc-testdev", "-trace", "memory_region_ops_write"]);
    command.args(["-device", &format!("isa-debug-exit,iobase={DONE:#x},iosize=4")]);
    command
}

/// From a line of the trace: `... addr 0xe0 value 0x1 size 4 name 'pc-testdev-ioport'`.
fn port_write(line: &str) -> Option<Exit> {
    let mut words = line.split_whitespace();
    let mut number = |name: &str| {
        words.find(|word| *word == name)?;
        let word = words.next()?;
        match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => word.parse().ok(),
        }
    };
    let (port, value, size) = (number("addr")?, number("value")?, number("size")?);
    let told = line.ends_with("'pc-testdev-ioport'") && port == u64::from(LOG)
        || line.ends_with("'rtc'") && port == 0x70;
    told.then_some(Exit::PortWrite { port: port as u16, size: size as u8, value: value as u32 })
}
