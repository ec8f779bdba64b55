//! The thread of one vCPU: runs it and answers its exits.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use confine::Thread;
use devices::bus::Bus;
use engine::{Counters, DebugStop, EngineError, Exit, Vcpu};
use memory::DeviceView;
use rustix::time::{ClockId, clock_gettime};
use x86::{Event, Exception, Vector};

use crate::control::Control;
use crate::debug::{Desk, without_time};
use crate::exit_ring::ExitRing;
use crate::outcome::End;
use crate::post_mortem;
use crate::status::thread_cpu_seconds;

/// A vCPU, locked by its thread while it runs. Others may lock it while it is parked.
pub(crate) type SharedVcpu = Arc<Mutex<Box<dyn Vcpu>>>;

/// What all vCPU threads of a machine share.
pub(crate) struct VcpuShared {
    pub(crate) control: Arc<Control>,
    pub(crate) ports: Bus,
    pub(crate) mmio: Bus,
    /// Makes the other vCPUs come back, after [`Control::end`].
    pub(crate) kick_all: Box<dyn Fn() + Send + Sync>,
    /// Where a debugger is told of stops, and the memory that its breakpoints are in.
    pub(crate) debug: Option<(Arc<Desk>, DeviceView)>,
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
    begun: OnceLock<Instant>,
}

impl VcpuFacts {
    /// When it ran first.
    pub(crate) fn begun(&self) -> Option<Instant> {
        self.begun.get().copied()
    }

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
    vcpu: SharedVcpu,
    shared: Arc<VcpuShared>,
    facts: Arc<VcpuFacts>,
) -> std::io::Result<JoinHandle<()>> {
    let body = move || VcpuThread { id, vcpu, exits: ExitRing::new(), shared, facts }.live();
    confine::spawn(thread::Builder::new().name(format!("vcpu{id}")), Thread::Vcpu, body)
}

struct VcpuThread {
    id: u32,
    vcpu: SharedVcpu,
    exits: ExitRing,
    shared: Arc<VcpuShared>,
    facts: Arc<VcpuFacts>,
}

impl VcpuThread {
    fn live(mut self) {
        let _finish = Finish { shared: Arc::clone(&self.shared), facts: Arc::clone(&self.facts) };
        let tid = rustix::thread::gettid().as_raw_nonzero().get() as u64;
        self.facts.tid.store(tid, Ordering::Relaxed);
        memory::waits::i_am_vcpu(self.id);
        // A panic here is a defect of ours; the machine must still end and say so. Nothing that the
        // panic may have left half done is used again, but for what the report reads.
        match catch_unwind(AssertUnwindSafe(|| self.run())) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.fail(&error.to_string()),
            Err(panic) => {
                self.fail(&format!("bug: a panic: {}", post_mortem::message(&*panic)));
            }
        }
    }

    fn run(&mut self) -> Result<(), EngineError> {
        // It parks at instruction borders only: an exit in the middle of one is followed by another.
        while self.shared.control.may_run(self.id) {
            self.facts.begun.get_or_init(Instant::now);
            while !self.step()? {}
        }
        Ok(())
    }

    /// Ends the machine first: the others must not wait while this vCPU is described.
    fn fail(&self, what: &str) {
        self.shared.control.end(End::Failed(format!("vcpu {}: {what}", self.id)));
        (self.shared.kick_all)();
        let vcpu = self.vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        post_mortem::log(self.id, &**vcpu, &self.exits);
    }

    /// Runs to the next exit and answers it. True: the vCPU stands at an instruction border, where its state
    /// is exact.
    fn step(&mut self) -> Result<bool, EngineError> {
        // Poisoned by a panic of this thread only, which ends it.
        let mut vcpu = self.vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        let exit = vcpu.run()?;
        self.facts.count(&exit, vcpu.counters());
        self.exits.push(exit);
        let shared = &self.shared;
        match exit {
            Exit::PortRead { port, size } => {
                let value = read(&shared.ports, u64::from(port), size);
                self.exits.answered(value);
                vcpu.complete_read(value);
            }
            Exit::PortWrite { port, size, value } => {
                write(&shared.ports, u64::from(port), size, u64::from(value));
            }
            Exit::MmioRead { gpa, size } => {
                let value = read(&shared.mmio, gpa, size);
                self.exits.answered(value);
                vcpu.complete_read(value);
            }
            Exit::MmioWrite { gpa, size, value } => write(&shared.mmio, gpa, size, value),
            Exit::Kicked => return Ok(true),
            Exit::Debug(stop) => return shared.debug_stop(self.id, stop, &mut **vcpu),
            Exit::Unavailable { frame } => {
                shared.control.lack(frame);
                (shared.kick_all)();
                return Ok(true);
            }
            Exit::TripleFault => {
                shared.control.end(End::Reboot);
                (shared.kick_all)();
                tracing::warn!("triple fault on vcpu {}: resetting the machine", self.id);
                post_mortem::log_state(self.id, &**vcpu);
                return Ok(true);
            }
            other => return Err(EngineError::Bug(format!("unexpected exit {other:?}"))),
        }
        Ok(false)
    }
}

impl VcpuShared {
    /// Tells the debugger, and has all vCPUs stand. An INT3 of the guest's own is the guest's: false.
    fn debug_stop(
        &self,
        id: u32,
        stop: DebugStop,
        vcpu: &mut dyn Vcpu,
    ) -> Result<bool, EngineError> {
        let Some((desk, view)) = &self.debug else {
            return Err(EngineError::Bug(format!("it stops by {stop:?} for no debugger")));
        };
        if stop == DebugStop::Int3 {
            let mut state = vcpu.state()?;
            if !desk.owns_int3(&state, view) {
                state.event = Some(Event::Exception(Exception::new(Vector::BP)));
                vcpu.set_state(&without_time(&state))?;
                return Ok(false);
            }
        }
        self.control.ask_to_stand();
        desk.stopped(id, stop);
        (self.kick_all)();
        Ok(true)
    }
}

/// The last act of the thread, come what may.
struct Finish {
    shared: Arc<VcpuShared>,
    facts: Arc<VcpuFacts>,
}

impl Drop for Finish {
    fn drop(&mut self) {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        let nanoseconds = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
        self.facts.final_cpu_ns.store(nanoseconds, Ordering::Release);
        self.shared.control.finished();
    }
}

fn read(bus: &Bus, address: u64, size: u8) -> u64 {
    let mut data = [0; 8];
    bus.read(address, &mut data[..usize::from(size.min(8))]);
    u64::from_le_bytes(data)
}

fn write(bus: &Bus, address: u64, size: u8, value: u64) {
    bus.write(address, &value.to_le_bytes()[..usize::from(size.min(8))]);
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

    use engine::DebugControl;
    use x86::VcpuState;
    use x86::model::{Difference, Processor};

    use super::*;

    /// Reads a port, then does what the test is about.
    struct Fake {
        runs: u32,
        then: fn() -> Result<Exit, EngineError>,
        state: fn() -> VcpuState,
    }

    impl Vcpu for Fake {
        fn run(&mut self) -> Result<Exit, EngineError> {
            self.runs += 1;
            if self.runs == 1 { Ok(Exit::PortRead { port: 0x71, size: 1 }) } else { (self.then)() }
        }

        fn complete_read(&mut self, value: u64) {
            assert_eq!(value, 0xff, "nobody is at that port");
        }

        fn state(&self) -> Result<VcpuState, EngineError> {
            Ok((self.state)())
        }

        fn set_state(&mut self, _: &VcpuState) -> Result<(), EngineError> {
            unreachable!("no test sets it")
        }

        fn processor(&self) -> &Processor {
            unreachable!("no test asks")
        }

        fn differences(&self, _: &Processor) -> Result<Vec<Difference>, EngineError> {
            unreachable!("no test asks")
        }

        fn tsc_offset(&self) -> Option<u64> {
            unreachable!("no test asks")
        }

        fn set_tsc_offset(&mut self, _: u64) -> Result<(), EngineError> {
            unreachable!("no test sets it")
        }

        fn tell_stopped(&mut self) -> Result<(), EngineError> {
            unreachable!("no test tells it")
        }

        fn set_debug(&mut self, _: &DebugControl) -> Result<(), EngineError> {
            unreachable!("no test sets it")
        }

        fn counters(&self) -> Counters {
            Counters::default()
        }
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("log").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Lets a vCPU live on this thread; how the machine ended, and the log.
    fn live(then: fn() -> Result<Exit, EngineError>, state: fn() -> VcpuState) -> (End, String) {
        let shared = Arc::new(VcpuShared {
            control: Arc::new(Control::new(1, 0)),
            ports: Bus::port(),
            mmio: Bus::mmio(),
            kick_all: Box::new(|| ()),
            debug: None,
        });
        let (log, facts) = (Log::default(), Arc::default());
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let vcpu: SharedVcpu = Arc::new(Mutex::new(Box::new(Fake { runs: 0, then, state })));
        let exits = ExitRing::new();
        let thread = VcpuThread { id: 3, vcpu, exits, shared: Arc::clone(&shared), facts };
        tracing::subscriber::with_default(subscriber, || thread.live());
        let log = String::from_utf8(log.0.lock().expect("log").clone()).expect("text");
        (shared.control.wait_ended(), log)
    }

    #[test]
    fn an_engine_that_fails_is_told_with_exits_and_state() {
        let fail = || Err(EngineError::Memory("disk gone".into()));
        let state = || VcpuState { rip: 0xabc, ..VcpuState::long_mode() };
        let (end, log) = live(fail, state);
        assert_eq!(end, End::Failed("vcpu 3: guest memory: disk gone".into()));
        let parts = ["exit 0: port_read port 0x71 size 1 answer 0xff", "rip 0xabc", "halted false"];
        for part in parts {
            assert!(log.lines().any(|line| line.contains(part)), "{part}: {log}");
        }
    }

    #[test]
    fn a_panic_is_told_even_where_another_follows() {
        let (end, log) = live(|| panic!("number {}", 1), || panic!("again"));
        assert_eq!(end, End::Failed("vcpu 3: bug: a panic: number 1".into()));
        assert!(log.contains("exit 0: port_read"), "{log}");
        assert!(log.contains("not to be had: panic: again"), "{log}");
    }

    #[test]
    fn a_triple_fault_is_a_reset_and_no_failure() {
        let state = || VcpuState { rip: 0xabc, ..VcpuState::long_mode() };
        let (end, log) = live(|| Ok(Exit::TripleFault), state);
        assert_eq!(end, End::Reboot);
        assert!(log.contains("triple fault on vcpu 3") && log.contains("rip 0xabc"), "{log}");
        assert!(!log.contains("exit 0") && !log.contains("ERROR"), "{log}");
    }
}
