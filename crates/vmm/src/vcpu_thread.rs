//! The thread of one vCPU: runs it and answers its exits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use devices::bus::Bus;
use engine::{Counters, EngineError, Exit, Vcpu};
use rustix::time::{ClockId, clock_gettime};

use crate::control::Control;
use crate::outcome::End;
use crate::status::thread_cpu_seconds;

/// What all vCPU threads of a machine share.
pub(crate) struct VcpuShared {
    pub(crate) control: Arc<Control>,
    pub(crate) ports: Bus,
    pub(crate) mmio: Bus,
    /// Makes the other vCPUs come back, after [`Control::end`].
    pub(crate) kick_all: Box<dyn Fn() + Send + Sync>,
}

/// What is known of a vCPU from outside its thread.
#[derive(Debug, Default)]
pub(crate) struct VcpuFacts {
    /// Kernel thread id; 0 before the thread runs.
    tid: AtomicU64,
    /// CPU time of the whole thread; 0 before it has ended.
    final_cpu_ns: AtomicU64,
    exits: Mutex<BTreeMap<&'static str, u64>>,
    counters: Mutex<Counters>,
}

impl VcpuFacts {
    /// CPU time that the thread took.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        // The kernel forgets an ended thread's time.
        match (self.final_cpu_ns.load(Ordering::Acquire), self.tid.load(Ordering::Relaxed)) {
            (0, 0) => 0.0,
            (0, tid) => thread_cpu_seconds(tid),
            (nanoseconds, _) => nanoseconds as f64 / 1e9,
        }
    }

    /// Exits so far by kind.
    pub(crate) fn exits(&self) -> BTreeMap<&'static str, u64> {
        self.exits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The vCPU's counters as of its last exit.
    pub(crate) fn counters(&self) -> Counters {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, exit: &Exit, counters: Counters) {
        *self
            .exits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(exit.kind())
            .or_default() += 1;
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }
}

/// Starts the thread. It ends when the machine does.
pub(crate) fn spawn(
    id: u32,
    mut vcpu: Box<dyn Vcpu>,
    shared: Arc<VcpuShared>,
    facts: Arc<VcpuFacts>,
) -> std::io::Result<JoinHandle<()>> {
    thread::Builder::new().name(format!("vcpu{id}")).spawn(move || {
        // A panic here is a defect of ours; the machine must still end and say so.
        let _finished = Finish { shared: &shared, facts: &facts };
        facts.tid.store(rustix::thread::gettid().as_raw_nonzero().get() as u64, Ordering::Relaxed);
        while shared.control.may_run() {
            if let Err(error) = step(&mut *vcpu, &shared, &facts) {
                shared.control.end(End::Failed(format!("vcpu {id}: {error}")));
                (shared.kick_all)();
            }
        }
    })
}

struct Finish<'a> {
    shared: &'a VcpuShared,
    facts: &'a VcpuFacts,
}

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        let nanoseconds = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
        self.facts.final_cpu_ns.store(nanoseconds, Ordering::Release);
        if thread::panicking() {
            self.shared.control.end(End::Failed("a vcpu thread panicked: this is a bug".into()));
            (self.shared.kick_all)();
        }
        self.shared.control.finished();
    }
}

fn step(vcpu: &mut dyn Vcpu, shared: &VcpuShared, facts: &VcpuFacts) -> Result<(), EngineError> {
    let exit = vcpu.run()?;
    facts.count(&exit, vcpu.counters());
    match exit {
        Exit::PortRead { port, size } => {
            vcpu.complete_read(read(&shared.ports, u64::from(port), size));
        }
        Exit::PortWrite { port, size, value } => {
            write(&shared.ports, u64::from(port), size, u64::from(value));
        }
        Exit::MmioRead { gpa, size } => vcpu.complete_read(read(&shared.mmio, gpa, size)),
        Exit::MmioWrite { gpa, size, value } => write(&shared.mmio, gpa, size, value),
        Exit::Kicked => {}
        Exit::TripleFault => {
            tracing::warn!("triple fault: resetting the machine");
            shared.control.end(End::Reboot);
            (shared.kick_all)();
        }
        other => return Err(EngineError::Bug(format!("unexpected exit {other:?}"))),
    }
    Ok(())
}

fn read(bus: &Bus, address: u64, size: u8) -> u64 {
    let mut data = [0; 8];
    bus.read(address, &mut data[..usize::from(size.min(8))]);
    u64::from_le_bytes(data)
}

fn write(bus: &Bus, address: u64, size: u8, value: u64) {
    bus.write(address, &value.to_le_bytes()[..usize::from(size.min(8))]);
}
