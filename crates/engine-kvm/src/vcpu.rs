//! One vCPU: runs, answers, state.

use std::sync::Arc;

use engine::{Counters, DebugControl, DebugStop, EngineError, Exit, Vcpu};
use kvm_bindings::KVM_EXIT_DIRTY_RING_FULL;
use kvm_ioctls::VcpuFd;
use memory::Gpa;
use x86::model::{Difference, Processor, Topology, saved_msrs, state_components};
use x86::{VcpuState, efer, paging};

use crate::cpuid;
use crate::debug;
use crate::error::refused;
use crate::exits::{self, Pending, Turn};
use crate::kick::Kicker;
use crate::run_page::RunPage;
use crate::state;
use crate::userfault::Failure;
use crate::vm::Inner;

/// A vCPU of KVM.
pub(crate) struct KvmVcpu {
    fd: VcpuFd,
    id: u32,
    processor: Processor,
    /// Numbers of the MSRs that the guest has and a state holds.
    saved_msrs: Vec<u32>,
    kicker: Arc<Kicker>,
    vm: Arc<Inner>,
    /// What the guest still wants of the last exit.
    pending: Pending,
    /// The debugger's breakpoints, to tell which one stopped.
    debug: DebugControl,
    /// It has stopped for a step, and KVM wants to be asked for the next.
    stepped: bool,
}

impl KvmVcpu {
    pub(crate) fn new(vm: &Arc<Inner>, id: u32) -> Result<Self, EngineError> {
        let fd = vm.vm.create_vcpu(id.into()).map_err(refused(format!("create vcpu {id}")))?;
        let page = RunPage::map(&fd, vm.vm.run_size())?;
        vm.list_writes_of(&fd)?;
        let processor = cpuid::set(&fd, &vm.host, &vm.cpu, Topology { vcpus: vm.vcpus, id })?;
        state::start(&fd, id)?;
        let kicker = Arc::new(Kicker::new(page)?);
        let known = vm.kickers[id as usize].set(Arc::clone(&kicker));
        debug_assert!(known.is_ok(), "vcpu {id} is made twice");
        let (pending, debug) = (Pending::default(), DebugControl::default());
        let saved_msrs = saved_msrs(&processor.cpuid);
        Ok(Self {
            fd,
            id,
            processor,
            saved_msrs,
            kicker,
            vm: Arc::clone(vm),
            pending,
            debug,
            stepped: false,
        })
    }

    /// One KVM_RUN.
    fn enter(&mut self) -> Result<(), vmm_sys_util::errno::Error> {
        self.kicker.enter();
        let result = self.fd.run().map(drop);
        self.kicker.leave();
        result
    }

    /// What an interrupted or refused run means; `None`: go on.
    fn refused(&self, errno: i32, failures: u64) -> Result<Option<Exit>, EngineError> {
        match errno {
            libc::EINTR | libc::EAGAIN => Ok(self.kicker.take().then_some(Exit::Kicked)),
            libc::EFAULT => match self.vm.take_fault_failure(failures) {
                Some(Failure::Unavailable(frame)) => Ok(Some(Exit::Unavailable { frame })),
                Some(Failure::Lost(why)) => Err(EngineError::Memory(why)),
                Some(Failure::Told) => Ok(None),
                None => Err(EngineError::Bug("KVM cannot reach a page of guest memory".into())),
            },
            _ => Err(EngineError::Host {
                action: "run a vcpu".into(),
                source: std::io::Error::from_raw_os_error(errno),
            }),
        }
    }

    /// KVM steps by RFLAGS.TF, which instructions that it emulates leave clear, and sets it only when asked.
    fn step_again(&mut self) -> Result<(), EngineError> {
        if std::mem::take(&mut self.stepped) {
            self.set_debug(&self.debug.clone())?;
        }
        Ok(())
    }

    /// Has KVM finish the instruction of the last exit, whose answer is given, and no other. EINTR: it has.
    fn enter_to_finish(&mut self) -> Result<(), vmm_sys_util::errno::Error> {
        self.kicker.page().set_immediate_exit(true);
        let result = self.enter();
        self.kicker.keep();
        result
    }

    fn finish_exit(&mut self) {
        if !self.pending.is_done() {
            self.pending = Pending::default();
            // It is interrupted, or exits for what the next run will exit for, too.
            let _ = self.enter_to_finish();
        }
    }

    /// Tells by which page tables the guest goes, in long mode.
    fn tell_root(&self) {
        let Some(events) = self.vm.memory.events() else { return };
        // An inference that is missing does not end a run.
        let Ok(sregs) = self.fd.get_sregs() else { return };
        if sregs.efer & efer::LMA != 0
            && let Some(root) = self.vm.memory.frame_of(Gpa(sregs.cr3 & paging::ADDRESS))
        {
            events.note_root(root, self.id);
        }
    }

    fn run_inside(&mut self) -> Result<Exit, EngineError> {
        loop {
            // KVM forgets to stop after a write that it has emulated.
            let stepped_over = self.debug.single_step && self.pending.is_written();
            if let Some(exit) = self.pending.next(self.kicker.page()) {
                return Ok(exit);
            }
            let failures = self.vm.fault_failures_taken();
            let entered = if stepped_over { self.enter_to_finish() } else { self.enter() };
            if self.kicker.take_question() {
                self.tell_root();
            }
            if let Err(errno) = entered {
                if stepped_over && errno.errno() == libc::EINTR {
                    return Ok(Exit::Debug(DebugStop::Step));
                }
                match self.refused(errno.errno(), failures)? {
                    Some(exit) => return Ok(exit),
                    None => continue,
                }
            }
            let run = self.kicker.page().read();
            if run.exit_reason == KVM_EXIT_DIRTY_RING_FULL {
                self.vm.empty_full_list()?;
                continue;
            }
            match exits::turn(&run, &self.debug, &mut self.pending)? {
                Turn::Exit(exit) => return Ok(exit),
                Turn::Pending => {}
                Turn::Again => {
                    if self.kicker.take() {
                        return Ok(Exit::Kicked);
                    }
                }
            }
        }
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Result<Exit, EngineError> {
        self.step_again()?;
        let exit = self.run_inside()?;
        self.stepped = self.debug.single_step && matches!(exit, Exit::Debug(_));
        Ok(exit)
    }

    fn complete_read(&mut self, value: u64) {
        self.pending.answer(self.kicker.page(), value);
    }

    fn state(&self) -> Result<VcpuState, EngineError> {
        state::save(&self.fd, state_components(&self.processor.cpuid), &self.saved_msrs)
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        self.finish_exit();
        state::load(&self.fd, self.id, state_components(&self.processor.cpuid), state)
    }

    fn processor(&self) -> &Processor {
        &self.processor
    }

    fn differences(&self, shown: &Processor) -> Result<Vec<Difference>, EngineError> {
        cpuid::differences(&self.fd, &self.vm.host, shown)
    }

    fn tsc_offset(&self) -> Option<u64> {
        state::tsc_offset(&self.fd)
    }

    fn set_tsc_offset(&mut self, offset: u64) -> Result<(), EngineError> {
        state::set_tsc_offset(&self.fd, offset)
    }

    fn tell_stopped(&mut self) -> Result<(), EngineError> {
        match self.fd.kvmclock_ctrl() {
            // The guest has no kvmclock.
            Err(errno) if errno.errno() == libc::EINVAL => Ok(()),
            told => told.map_err(refused("tell a vcpu's guest that it stood still")),
        }
    }

    fn set_debug(&mut self, control: &DebugControl) -> Result<(), EngineError> {
        let asked = debug::request(control)?;
        self.fd.set_guest_debug(&asked).map_err(refused("set the debugger's stops"))?;
        (self.debug, self.stepped) = (*control, false);
        Ok(())
    }

    fn counters(&self) -> Counters {
        Counters::default()
    }
}
