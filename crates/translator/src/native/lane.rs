//! One core's way through generated code.

use std::any::Any;
use std::arch::asm;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use x86::paging::is_canonical;

use super::cache::CodeCache;
use super::fields::{Fields, Tables};
use super::outside::{Decoded, Outside};
use super::thunks::Exit;
use super::{live, pairs, slot};
use crate::block::Block;
use crate::cpu::{Cpu, REG_RIP, RSP, Width};
use crate::insn::{Insn, InsnFlags};
use crate::interp::{Core, Outcome};
use crate::machine::{Machine, Stop};

/// Entries of the table that indirect branches look in.
const JUMPS: usize = 1 << 16;

/// What generated code looks at, by address. All stay where they are while it runs.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The table of [`super::tables::Translation`] in use.
    pub translations: usize,
    /// The second one.
    pub second: usize,
    /// The table of guards in use.
    pub guards: usize,
    /// A byte that is 1 when the core is wanted back, and 0 otherwise.
    pub pending: usize,
    /// An interrupt or NMI may be waiting for something else than that byte: setting RFLAGS.IF must be told.
    pub held: bool,
    /// RDTSC gives the host's TSC and this. `None`: it is executed outside.
    pub tsc_offset: Option<u64>,
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
    /// Whether there are RDFSBASE and its kin (CR4.FSGSBASE).
    pub base_instructions: bool,
    /// REP MOVS of a whole page within the upper half of addresses is executed outside ([`Machine::copy`]).
    pub copies_told: bool,
    /// Address of the [`Calls`] that SYSCALL and SYSRET use. 0: they are executed outside.
    pub calls: usize,
    /// The tables of the supervisor and of the user, as far as there are any. Where the level has changed in
    /// generated code the machine is told ([`Machine::privilege_changed`]) before anything is executed outside.
    pub of_privilege: [Option<Privilege>; 2],
}

/// The tables of one privilege level, in one address space.
#[derive(Clone, Copy, Debug)]
pub struct Privilege {
    /// As in [`View`].
    pub translations: usize,
    /// As in [`View`].
    pub second: usize,
    /// As in [`View`].
    pub guards: usize,
}

/// What SYSCALL and SYSRET load (SDM volume 2).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Calls {
    /// IA32_LSTAR.
    pub target: u64,
    /// RFLAGS that SYSCALL does not clear.
    pub kept: u64,
    /// CS and SS behind SYSCALL.
    pub inner: [x86::Segment; 2],
    /// CS and SS behind SYSRET to 64-bit code.
    pub outer: [x86::Segment; 2],
}

/// See the module.
pub struct Lane {
    cache: Arc<CodeCache>,
    /// Empty until the core first runs generated code: a core that stands takes no memory for it.
    jumps: Box<[usize]>,
    epoch: u32,
    came: Option<Came>,
    /// A [`Decoded`] of the machine's type, once there is a core. Its keys are addresses of code.
    decoded: Option<Box<dyn Any + Send>>,
}

/// A branch that came out although it could have led on.
#[derive(Clone, Copy)]
pub(super) struct Came {
    pub(super) target: u64,
    /// Where it is, or 0 for an indirect one.
    pub(super) site: u32,
    /// That `site` is of.
    pub(super) epoch: u32,
}

/// How it came out.
#[derive(Clone, Copy, Debug)]
pub struct Left {
    /// As of a block.
    pub outcome: Outcome,
    /// It faulted on an access to the stack.
    pub on_stack: bool,
    /// The instruction at RIP is to be interpreted next: it raises an exception, or may.
    pub interpret: bool,
}

/// [`super::thunks::Thunks::enter`], with what it works on.
type Enter<M> = extern "sysv64" fn(usize, *mut Core<M>) -> u64;

/// A panic of a handler, on its way over generated code.
struct Thrown(Option<Box<dyn Any + Send>>);

impl Lane {
    /// For one core, over the code of its VM.
    #[must_use]
    pub fn new(cache: Arc<CodeCache>) -> Self {
        let epoch = cache.epoch();
        Self { cache, jumps: Box::default(), epoch, came: None, decoded: None }
    }

    /// Whether this processor can run generated code: RORX, vector registers loaded by VEX encodings, and GS set
    /// without the kernel.
    #[must_use]
    pub fn is_supported() -> bool {
        const FSGSBASE: u64 = 1 << 1;
        let [_, more] = rustix::param::linux_hwcap().into();
        let instructions = is_x86_feature_detected!("bmi2") && is_x86_feature_detected!("avx");
        instructions && more as u64 & FSGSBASE != 0
    }

    fn follow_resets(&mut self) {
        if self.epoch != self.cache.epoch() {
            self.epoch = self.cache.epoch();
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.came = None;
        self.decoded = None;
        self.jumps.fill(unknown(&self.cache));
    }

    /// Makes `core`, which must not move, the one that this thread runs code for.
    pub fn begin<M: Machine + 'static>(&mut self, core: &mut Core<M>) {
        core.cpu.native.call_out = call_out::<M> as *const () as usize;
        live::begin(&mut core.cpu);
        self.decoded = None;
        let base = std::ptr::from_mut(&mut core.cpu) as usize;
        // SAFETY: `is_supported` was asked; nothing else in this process uses GS.
        unsafe { asm!("wrgsbase {}", in(reg) base, options(nomem, nostack, preserves_flags)) };
    }

    /// Runs `block`, to which RIP points, and whatever follows it. `None`: it has no code.
    pub fn run<M: Machine + 'static>(
        &mut self,
        core: &mut Core<M>,
        block: &Block<M>,
    ) -> Option<Left> {
        let native = block.native()?;
        self.follow_resets();
        if self.decoded.is_none() {
            if self.jumps.is_empty() {
                self.jumps = vec![unknown(&self.cache); JUMPS].into_boxed_slice();
            }
            core.cpu.native.jumps = self.jumps.as_ptr() as usize;
            let mut decoded = Box::new(Decoded::<M>::new());
            core.cpu.native.decoded = std::ptr::from_mut(&mut *decoded) as usize;
            self.decoded = Some(decoded);
        }
        debug_assert_eq!(core.cpu.width, Width::Bits64);
        let va = core.cpu.rip();
        let fields = &mut core.cpu.native;
        fields.page = va & !0xfff;
        fields.from = 0;
        refresh(core);
        let enter = self.cache.address(self.cache.thunks().enter);
        // SAFETY: the thunk is at its place for as long as the cache, which we hold.
        let enter: Enter<M> = unsafe { std::mem::transmute(enter) };
        // Generated code works on the core through this pointer, and hands it to `call_out`.
        let this = std::ptr::from_mut(core);
        core.cpu.native.core = this as usize;
        let exit = enter(self.cache.address(native.inner), this);
        settle(core);
        THROWN.with_borrow_mut(Thrown::go_on);
        count(&mut core.cpu.native, exit);
        let fields = &mut core.cpu.native;
        let on_stack = fields.stopped & u64::from(InsnFlags::STACK) != 0;
        let outcome = match exit {
            Exit::FAULT => Outcome::Fault,
            Exit::RETRY => Outcome::Retry,
            _ => Outcome::Done,
        };
        let site = std::mem::take(&mut fields.site) as u32;
        let branched = exit == Exit::DONE && (site != 0 || fields.from != 0);
        let target = core.cpu.rip();
        self.came = branched.then_some(Came { target, site, epoch: self.epoch });
        let beyond = exit == Exit::DONE && !is_canonical(target);
        let interpret = exit == Exit::INTERPRET || beyond && undo_branch(&mut core.cpu);
        Some(Left { outcome, on_stack, interpret })
    }

    /// The branch that came out last, if it is one that can be linked: offset in its page of the head of its path.
    #[must_use]
    pub fn came_from(&self) -> Option<u32> {
        let came = self.came.filter(|came| came.site != 0 && came.epoch == self.cache.epoch())?;
        self.cache.head_of(came)
    }

    /// The branch that came out last, if it was to `va`, goes straight to `block` from now on. It may have been
    /// long ago: what it leads to is checked here or by a guard.
    pub fn connect<M: Machine>(&mut self, va: u64, block: &Block<M>) {
        self.follow_resets();
        let Some(came) = self.came.take().filter(|came| came.target == va) else { return };
        if came.site != 0 {
            return self.cache.link(came, block);
        }
        if !self.cache.options().indirect {
            return;
        }
        if let Some(guard) = self.cache.guard(block) {
            self.jumps[va as usize & (JUMPS - 1)] = self.cache.address(guard);
        }
    }
}

/// Where indirect branches go of which nothing is known. Flags are aside: as at a guard that does not hold.
fn unknown(cache: &CodeCache) -> usize {
    cache.address(cache.thunks().guard_miss)
}

fn count(fields: &mut Fields, exit: u64) {
    // SAFETY: the machine said where the byte is, which outlives the run.
    let wanted = || unsafe { &*(fields.pending as *const AtomicU8) }.load(Ordering::Relaxed) != 0;
    let wanted = exit == Exit::DONE && fields.site == 0 && wanted();
    let counts = &mut fields.counts;
    counts.entered += 1;
    let reason = match exit {
        Exit::FAULT => &mut counts.faults,
        Exit::RETRY => &mut counts.retries,
        Exit::ENDED => &mut counts.ended,
        _ if fields.site != 0 => &mut counts.unlinked,
        _ if wanted => &mut counts.polls,
        _ => &mut counts.guard_misses,
    };
    *reason += 1;
}

/// An indirect branch whose target is no address faults itself: it is executed again, by the interpreter.
/// After anything else RIP is as it is.
fn undo_branch(cpu: &mut Cpu) -> bool {
    let from = std::mem::take(&mut cpu.native.from);
    if from == 0 {
        return false;
    }
    let moved = i64::from((from >> 16) as u16 as i16);
    cpu.regs[RSP as usize] = cpu.regs[RSP as usize].wrapping_sub(moved as u64);
    cpu.regs[REG_RIP as usize] = cpu.native.page | from & 0xfff;
    true
}

fn refresh<M: Machine>(core: &mut Core<M>) {
    live::refresh(core);
    let fields = &mut core.cpu.native;
    slot::empty(fields);
    let Some(view) = core.machine.view() else { return };
    fields.translations = view.translations;
    fields.second = view.second;
    fields.guards = view.guards;
    fields.pending = view.pending;
    fields.system.held = view.held.into();
    fields.system.tsc_refused = view.tsc_offset.is_none().into();
    fields.system.tsc_offset = view.tsc_offset.unwrap_or_default();
    fields.system.tsc_aux = view.tsc_aux;
    fields.system.bases_refused = (!view.base_instructions).into();
    fields.system.copies_told = view.copies_told.into();
    fields.system.calls = view.calls;
    let [supervisor, user] = view.of_privilege.map(tables);
    (fields.system.supervisor, fields.system.user) = (supervisor, user);
}

fn tables(of: Option<Privilege>) -> Tables {
    let tables =
        |Privilege { translations, second, guards }| Tables { translations, second, guards };
    of.map_or_else(Tables::default, tables)
}

/// Tells the machine what generated code did without it.
#[inline(always)]
fn settle<M: Machine>(core: &mut Core<M>) {
    if std::mem::take(&mut core.cpu.native.system.moved) != 0 {
        core.machine.privilege_changed(core.cpu.cpl, core.cpu.rflags);
    }
}

/// Executes what `head` stands before. Returns where it goes on, or how it comes out: see [`Exit`].
extern "sysv64" fn call_out<M: Machine>(core: *mut Core<M>, head: usize) -> u64 {
    // SAFETY: generated code passes what `Lane::begin` was given, to which nobody else has a reference now.
    let core = unsafe { &mut *core };
    // SAFETY: `Lane::run` has put it there, of this type; nothing else refers to it while generated code runs.
    let decoded = unsafe { &mut *(core.cpu.native.decoded as *mut Decoded<M>) };
    // SAFETY: generated code passes the place behind its call.
    let (outside, insn) = unsafe { decoded.at(head) };
    let stopped = catch_unwind(AssertUnwindSafe(|| step(core, insn, outside)));
    match stopped {
        Ok(Some(exit)) => exit,
        // SAFETY: as above.
        Ok(None) => unsafe { outside.behind(head) as u64 },
        Err(panic) => {
            THROWN.with_borrow_mut(|thrown| thrown.0 = Some(panic));
            Exit::DONE
        }
    }
}

/// Returns how it comes out, unless it goes on.
fn step<M: Machine>(core: &mut Core<M>, insn: &Insn<M>, outside: Outside) -> Option<u64> {
    settle(core);
    let start = core.cpu.native.page + u64::from(outside.offset);
    let counts = &mut core.cpu.native.counts;
    if outside.access {
        counts.accesses += 1;
    } else {
        counts.instructions += 1;
    }
    core.cpu.regs[REG_RIP as usize] = start.wrapping_add(u64::from(insn.len));
    let shadow = std::mem::take(&mut core.cpu.shadow);
    let stop = match (insn.handler)(core, insn) {
        Ok(()) if core.machine.must_end() => Stop::End,
        Ok(()) => {
            let guards = core.cpu.native.guards;
            refresh(core);
            if !outside.access || core.cpu.native.guards != guards {
                pairs::drop_all(&mut core.cpu.native);
            }
            return None;
        }
        Err(stop) => stop,
    };
    core.cpu.native.stopped = insn.flags.into();
    core.cpu.native.from = 0;
    Some(match stop {
        Stop::End => Exit::ENDED,
        Stop::Fault => {
            core.cpu.set_rip(start);
            Exit::FAULT
        }
        Stop::Retry => {
            core.cpu.set_rip(start);
            core.cpu.shadow |= shadow;
            Exit::RETRY
        }
    })
}

impl Thrown {
    fn go_on(&mut self) {
        if let Some(panic) = self.0.take() {
            resume_unwind(panic);
        }
    }
}

thread_local! {
    static THROWN: std::cell::RefCell<Thrown> = const { std::cell::RefCell::new(Thrown(None)) };
}
