//! A running VM as its owner holds it: across reboots of the guest, until it ends.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use confine::Thread;
use engine::Engine;
use engine_translate::TranslateEngine;
use insight::WorkingSetSample;
use insight::kernel::Kernel;
use insight::picture::Picture;
use memory::{EventStream, ReadView};

use crate::config::{EngineKind, VmPlan};
use crate::console::Console;
use crate::debug::{Debugger, Finish};
use crate::error::{RequestError, VmError};
use crate::host_cache::HostCacheReport;
use crate::machine::{Beginning, Machine, Threads};
use crate::observer::{self, ClassCheck, Observer, Task};
use crate::outcome::{End, Outcome};
use crate::outside::Outside;
use crate::restore::RestoreOptions;
use crate::saved::{
    CloneFiles, CloneReport, Cloned, Origin, SaveLanes, SaveOptions, SaveReport, Saved,
};
use crate::share::{ShareReport, ShareRequest, share};
use crate::shortage;
use crate::status::{
    RunReport, VmStatus, WorkingSet, WorkingSetPoint, process_cpu_seconds, process_private_bytes,
};
use crate::swap::{ReclaimRequest, ask_to_reclaim};

/// An epoch where frames are classified for an experiment: what programs get and give back meanwhile is not known yet.
const SHORT_EPOCH: Duration = Duration::from_millis(250);

/// A running VM. Clones are the same VM; methods may be called from any thread.
#[derive(Clone)]
pub struct VmHandle(Arc<Shared>);

struct Shared {
    plan: VmPlan,
    engine: Box<dyn Engine>,
    console: Mutex<Option<Console>>,
    outside: Mutex<Option<Outside>>,
    /// Where what the host takes of the guest's memory is written, in this life and the next. Locked while it is asked to.
    store: Mutex<Option<File>>,
    debugger: Mutex<Option<Debugger>>,
    started: Instant,
    pauses: AtomicU64,
    state: Mutex<State>,
    /// A life began, or the VM ended.
    changed: Condvar,
}

struct State {
    life: Life,
    /// Of the lives before this one.
    before: Totals,
    balloon_target_bytes: u64,
    /// Somebody said stop: no further life begins.
    stopping: bool,
    /// The user wants it to stand, in this life and those that follow.
    paused: bool,
    outcome: Option<Result<Outcome, String>>,
    report: Option<RunReport>,
}

/// The machine between two reboots, with what measures it.
#[derive(Clone)]
struct Life {
    machine: Arc<Machine>,
    observer: Arc<Observer>,
}

impl Life {
    /// Disk blocks that came into memory and left it, where somebody listened.
    fn cache(&self) -> BTreeMap<&'static str, u64> {
        let Some(counts) = self.observer.counts() else { return BTreeMap::new() };
        let lost = self.machine.memory.events().map_or(0, EventStream::lost);
        BTreeMap::from([
            ("inserted", counts.inserted),
            ("evicted", counts.evicted),
            ("dropped", counts.dropped),
            ("cached_at_end", u64::from(counts.cached)),
            ("events_lost", lost),
        ])
    }
}

/// What adds up over the lives of a VM.
#[derive(Clone, Default)]
struct Totals {
    guest_cpu_seconds: f64,
    instructions: Option<u64>,
    exits: BTreeMap<&'static str, u64>,
    translation: BTreeMap<&'static str, u64>,
    cache: BTreeMap<&'static str, u64>,
    host_cache: Option<HostCacheReport>,
    working_set: Vec<WorkingSetPoint>,
}

impl Totals {
    /// These and those of `life`.
    fn with(mut self, life: &Life) -> Self {
        let machine = &life.machine;
        self.guest_cpu_seconds += machine.guest_cpu_seconds();
        if let Some(instructions) = machine.instructions() {
            self.instructions = Some(self.instructions.unwrap_or(0) + instructions);
        }
        add(&mut self.exits, machine.exits());
        add(&mut self.translation, machine.translation());
        add(&mut self.cache, life.cache());
        let of_life = machine.host_cache();
        self.host_cache = of_life.map(|cache| cache.after(self.host_cache.as_ref()));
        self.working_set.extend(life.observer.samples().iter().map(point));
        self
    }
}

fn add(sums: &mut BTreeMap<&'static str, u64>, counts: BTreeMap<&'static str, u64>) {
    for (kind, count) in counts {
        *sums.entry(kind).or_default() += count;
    }
}

/// Starts a VM: the guest runs when this returns.
///
/// The console's terminal is in raw mode from here until [`VmHandle::wait`] returns.
pub fn start(plan: VmPlan) -> Result<VmHandle, VmError> {
    let outside = plan.open_outside()?;
    start_with(plan, outside)
}

/// The same with what [`VmPlan::open_outside`] has opened, which a process that is confined since could not.
pub fn start_with(plan: VmPlan, outside: Outside) -> Result<VmHandle, VmError> {
    start_from(plan, outside, None, false)
}

/// The same from a saved machine: the guest goes on, or stands until it is resumed. `plan` is of the saved configuration,
/// but for what a restore may choose: name, engine, console, report.
pub fn restore_with(
    plan: VmPlan,
    outside: Outside,
    saved: Saved,
    options: RestoreOptions,
    paused: bool,
) -> Result<VmHandle, VmError> {
    start_from(plan, outside, Some(Origin::Saved(&saved, options)), paused)
}

/// The same for a clone, whose `plan` is of the configuration in its state.
pub fn clone_with(
    plan: VmPlan,
    outside: Outside,
    cloned: Cloned,
    paused: bool,
) -> Result<VmHandle, VmError> {
    start_from(plan, outside, Some(Origin::Cloned(&cloned)), paused)
}

fn start_from(
    plan: VmPlan,
    outside: Outside,
    origin: Option<Origin<'_>>,
    paused: bool,
) -> Result<VmHandle, VmError> {
    let engine: Box<dyn Engine> = match plan.engine.kind {
        EngineKind::Kvm => Box::new(engine_kvm::KvmEngine::new()?),
        EngineKind::Translate => Box::new(translator(&plan, &outside)?),
    };
    let console = Console::open(&plan.console)?;
    let started = Instant::now();
    // Its socket is the last that is opened before threads start.
    let debugger = plan.gdb.as_ref().map(Debugger::start).transpose()?;
    let desk = debugger.as_ref();
    let balloon_target_bytes =
        origin.as_ref().map_or(0, |origin| origin.state().balloon_target_bytes());
    let beginning = Beginning { paused, origin };
    let (life, threads) = begin(&plan, &*engine, &console, &outside, desk, started, beginning)?;
    let before = Totals::default();
    let state = State {
        life,
        before,
        balloon_target_bytes,
        stopping: false,
        paused,
        outcome: None,
        report: None,
    };
    let handle = VmHandle(Arc::new(Shared {
        plan,
        engine,
        console: Mutex::new(Some(console)),
        outside: Mutex::new(Some(outside)),
        store: Mutex::default(),
        debugger: Mutex::new(debugger),
        started,
        pauses: AtomicU64::new(0),
        state: Mutex::new(state),
        changed: Condvar::new(),
    }));
    let supervisor = handle.clone();
    let builder = thread::Builder::new().name("supervisor".into());
    confine::spawn(builder, Thread::Supervisor, move || supervisor.0.supervise(threads))
        .map_err(VmError::host("start the supervisor thread"))?;
    Ok(handle)
}

fn translator(plan: &VmPlan, outside: &Outside) -> Result<TranslateEngine, VmError> {
    let mut engine = TranslateEngine::with(plan.translation)?;
    if let Some(map) = &outside.perf_map {
        engine = engine.with_perf_map(Arc::clone(map));
    }
    if let Some(profile) = &outside.profile {
        engine = engine.with_profile(profile.clone());
    }
    if let Some(file) = &outside.profile_out {
        engine = engine.with_profile_out(Arc::clone(file));
    }
    Ok(engine)
}

fn begin(
    plan: &VmPlan,
    engine: &dyn Engine,
    console: &Console,
    outside: &Outside,
    debugger: Option<&Debugger>,
    started: Instant,
    beginning: Beginning<'_>,
) -> Result<(Life, Threads), VmError> {
    let desk = debugger.map(Debugger::desk);
    let (machine, threads) = Machine::start(plan, engine, console, outside, desk, beginning)?;
    let measured = Arc::clone(&machine);
    let task = Task {
        zero: started,
        always: plan.report.is_some() || plan.classes,
        log: outside.cache_log.clone(),
        host_cache: machine.takes_evictions(),
        first_blocks: machine.take_first_blocks(),
        // What the kernel shares would have to be copied, and be shared no more.
        prepare: Box::new(move || {
            measured.memory.marked_frames() == 0 && measured.can_be_watched()
        }),
        tells_accesses: machine.tells_accesses(),
        epoch: if plan.classes { SHORT_EPOCH } else { observer::EPOCH },
    };
    let observer = Observer::start(Arc::clone(&machine.memory), task)
        .map_err(VmError::host("start the observer's thread"));
    let observer = match observer {
        Ok(observer) => Arc::new(observer),
        Err(error) => {
            machine.end(End::Stopped);
            machine.wait(threads);
            return Err(error);
        }
    };
    if let Some(desk) = desk {
        desk.begin(&machine);
    }
    Ok((Life { machine, observer }, threads))
}

impl VmHandle {
    /// What it is doing. Asking keeps the working-set measurement going for a minute.
    #[must_use]
    pub fn status(&self) -> VmStatus {
        self.0.status()
    }

    /// Looks for the guest's kernel in its memory, on the calling thread, while the guest runs: `pause` before for
    /// a still picture. Leaves no trace in the facts about the guest's memory.
    pub fn kernel(&self) -> Result<Kernel, RequestError> {
        let machine = Arc::clone(&self.0.lock().life.machine);
        machine.memory.catch_up();
        Ok(Kernel::find(&ReadView::new(Arc::clone(&machine.memory)))?)
    }

    /// What frames are for against what the guest's kernel says, for experiments; `None` where they are not
    /// classified. `pause` before.
    pub fn classes(&self) -> Result<Option<ClassCheck>, RequestError> {
        let life = self.0.lock().life.clone();
        life.machine.memory.catch_up();
        Ok(life.observer.check_classes().transpose()?)
    }

    /// Has the working set measured for the next minute, see [`VmStatus::working_set`].
    pub fn watch(&self) {
        let life = self.0.lock().life.clone();
        life.observer.watch();
    }

    /// What is known of its memory now. Waits for the observer, 2 s at most.
    #[must_use]
    pub fn picture(&self) -> Arc<Picture> {
        let life = self.0.lock().life.clone();
        life.observer.picture()
    }

    /// Stops all vCPUs at an instruction border; returns when they stand. Pausing twice is once. In the
    /// instant of a reboot it is the next life that is paused.
    pub fn pause(&self) -> Result<(), RequestError> {
        self.0.pauses.fetch_add(1, Ordering::Relaxed);
        // Before anything else: a guest that does nothing but reboot ends each life sooner than it is met.
        self.0.lock().paused = true;
        self.0.in_some_life(|machine| machine.control.pause(|| machine.kick()))
    }

    /// Lets a paused VM go on.
    pub fn resume(&self) -> Result<(), RequestError> {
        self.0.lock().paused = false;
        self.0.in_some_life(|machine| machine.control.resume())
    }

    /// Sends the machine on `lanes` while all of it stands. If it is to stop, it ends once it is kept; else it goes on
    /// as it was, standing or running. In the instant of a reboot it is the next life that is saved.
    ///
    /// # Errors
    /// The VM has ended; or who keeps it does not take it, or does not say that it is kept: the guest goes on.
    pub fn save(
        &self,
        lanes: &SaveLanes,
        options: SaveOptions,
    ) -> Result<SaveReport, RequestError> {
        let mut saved = None;
        let watched = self.0.lock().life.observer.latest().is_some();
        self.0.in_some_life(|machine| {
            saved = machine.save(lanes, options, watched);
            saved.is_some()
        })?;
        let saved = saved.ok_or(RequestError::Ended)?;
        saved.map_err(|error| RequestError::Save(chain(&error)))
    }

    /// Has the VM's memory become what clones lie over, and writes the state that they go on from. It stands for that,
    /// and goes on as it was. See [`memory::GuestMemory::become_image`] for what it costs.
    ///
    /// # Errors
    /// It has what clones cannot have; it has ended, or the host refused: the guest goes on.
    pub fn make_clonable(&self, files: CloneFiles) -> Result<CloneReport, RequestError> {
        self.0.plan.check_clonable(false).map_err(RequestError::Clone)?;
        let mut files = Some(files);
        let mut made = None;
        // Until who asked resumes it: it is to have the disks of the same moment.
        let stands = self.0.plan.has_overlays() && !self.0.lock().paused;
        self.0.in_some_life(|machine| {
            // In the instant of a reboot they have been used for a life that has ended.
            let Some(files) = files.take() else { return true };
            made = machine.make_clonable(files, stands);
            made.is_some()
        })?;
        let rebooted = || RequestError::Clone("the guest rebooted meanwhile: try again".to_owned());
        let made = made.ok_or_else(rebooted)?;
        let made = made.map_err(|error| RequestError::Clone(chain(&error)));
        match &made {
            Ok(_) if stands => self.0.lock().paused = true,
            Err(_) if stands => self.resume()?,
            _ => {}
        }
        made
    }

    /// Ends the VM at once, as if the power were cut.
    pub fn stop(&self) {
        let machine = {
            let mut state = self.0.lock();
            state.stopping = true;
            Arc::clone(&state.life.machine)
        };
        machine.end(End::Stopped);
    }

    /// Asks the guest's balloon driver to hold `target` bytes of guest memory.
    pub fn set_balloon(&self, target_bytes: u64) -> Result<(), RequestError> {
        let memory = self.0.plan.memory.0;
        if target_bytes > memory {
            return Err(RequestError::BalloonTarget { target: target_bytes, memory });
        }
        let mut state = self.0.lock();
        if state.outcome.is_some() {
            return Err(RequestError::Ended);
        }
        state.balloon_target_bytes = target_bytes;
        state.life.machine.set_balloon(target_bytes);
        Ok(())
    }

    /// Has memory of the guest taken that it does not give, the coldest first; it comes back when the guest touches it.
    /// Returns at once: the status tells how far it is. What is nowhere else is written to `store`, an empty file that only the VM
    /// uses from now on; it is given once, and without it only that is taken which can be had again elsewhere.
    ///
    /// # Errors
    /// It has a store already; it has ended, or the host refuses a thread.
    pub fn reclaim(
        &self,
        request: ReclaimRequest,
        store: Option<File>,
    ) -> Result<(), RequestError> {
        let refused = |why: &dyn std::error::Error| RequestError::Reclaim(chain(why));
        let mut kept = self.0.store.lock().unwrap_or_else(PoisonError::into_inner);
        if store.is_some() && kept.is_some() {
            return Err(RequestError::Reclaim("it has a store already".to_owned()));
        }
        let outside = self.0.outside().clone().ok_or(RequestError::Ended)?;
        let life = self.0.lock().life.clone();
        let is_new = store.is_some();
        *kept = store.or(kept.take());
        let file = kept.as_ref().map(File::try_clone).transpose();
        let file = file.map_err(|error| refused(&error))?;
        match (life.machine.reclaim.swap(), file) {
            (None, file) => life
                .machine
                .begin_to_reclaim(Arc::clone(&outside.images), file)
                .map_err(|error| refused(&error))?,
            (Some(swap), Some(file)) if is_new => swap.give_store(file),
            _ => {}
        }
        if let Some((swap, bytes)) = life.machine.reclaim.swap().zip(request.store_limit_bytes) {
            swap.set_store_limit(bytes);
        }
        ask_to_reclaim(&life.machine, &life.observer, request).map_err(|error| refused(&error))
    }

    /// Does what another process asks so that guests can share frames (docs/decisions/0016).
    ///
    /// # Errors
    /// It has ended; it is not a pool, or nothing can be shared here.
    pub fn share(&self, request: ShareRequest) -> Result<ShareReport, RequestError> {
        self.0.outside().as_ref().ok_or(RequestError::Ended)?;
        let life = self.0.lock().life.clone();
        share(&life.machine, request).map_err(|error| RequestError::Share(chain(&error)))
    }

    /// Waits for the end; restores the terminal. An error is a failure of the host side.
    pub fn wait(&self) -> Result<Outcome, String> {
        let mut state = self.0.lock();
        loop {
            match &state.outcome {
                Some(outcome) => return outcome.clone(),
                None => state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// What the run came to; `None` until it has ended.
    #[must_use]
    pub fn report(&self) -> Option<RunReport> {
        self.0.lock().report.clone()
    }

    /// Whether somebody types into the guest, so that Ctrl-A x leaves.
    #[must_use]
    pub fn has_terminal(&self) -> bool {
        self.0.console().as_ref().is_some_and(Console::is_terminal)
    }
}

impl Shared {
    /// Waits for the end of each life and begins the next after a reboot.
    fn supervise(&self, mut threads: Threads) {
        loop {
            let life = self.lock().life.clone();
            let end = life.machine.wait(threads);
            let outcome = match end {
                End::Reboot => match self.reboot(&life) {
                    Ok(next) => {
                        threads = next;
                        continue;
                    }
                    Err(error) => Err(format!("reboot: {}", chain(&error))),
                },
                End::Poweroff => Ok(Outcome::Poweroff),
                End::Panic => Ok(Outcome::Panic),
                End::Stopped => Ok(Outcome::Stopped),
                End::Failed(message) => Err(message),
            };
            return self.finish(&life, outcome);
        }
    }

    fn reboot(&self, ended: &Life) -> Result<Threads, VmError> {
        let console = self.console();
        let console = console.as_ref().ok_or_else(|| gone("console"))?;
        let outside = self.outside();
        let outside = outside.as_ref().ok_or_else(|| gone("sockets"))?;
        let debugger = self.debugger();
        let debugger = debugger.as_ref();
        let paused = self.lock().paused;
        // The next life writes to the same cache log.
        ended.observer.end();
        let (life, threads) = begin(
            &self.plan,
            &*self.engine,
            console,
            outside,
            debugger,
            self.started,
            Beginning { paused, origin: None },
        )?;
        let mut state = self.lock();
        if paused && !state.paused {
            // Resumed meanwhile, which reached only the life that had ended already.
            life.machine.control.resume();
        }
        state.before = std::mem::take(&mut state.before).with(ended);
        if state.stopping {
            // The stop reached only the life that had ended already.
            life.machine.end(End::Stopped);
        }
        state.life = life;
        // A new balloon is empty.
        state.balloon_target_bytes = 0;
        self.changed.notify_all();
        Ok(threads)
    }

    fn finish(&self, life: &Life, outcome: Result<Outcome, String>) {
        if let Some(debugger) = self.debugger().take() {
            debugger.end(finish_of(&outcome));
        }
        let report = self.report(life);
        drop(self.outside().take());
        // Restores the terminal before anybody prints what happened.
        drop(self.console().take());
        let mut state = self.lock();
        state.report = Some(report);
        state.outcome = Some(outcome);
        self.changed.notify_all();
    }

    fn status(&self) -> VmStatus {
        let (life, before, balloon_target_bytes) = {
            let state = self.lock();
            (state.life.clone(), state.before.clone(), state.balloon_target_bytes)
        };
        let totals = before.with(&life);
        life.machine.memory.catch_up();
        let counts = life.machine.memory.counts();
        let sample = life.observer.latest();
        let merged = life.machine.memory.merged_frames();
        VmStatus {
            name: self.plan.name.clone(),
            pid: std::process::id(),
            engine: self.plan.engine.kind.name(),
            vcpus: self.plan.cpus,
            state: life.machine.control.run_state(),
            waits_for: life.machine.memory.shortage().as_ref().map(shortage::tell),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            configured_bytes: self.plan.memory.0,
            resident_bytes: frame_bytes(counts.resident.saturating_sub(merged)),
            ballooned_bytes: frame_bytes(counts.ballooned),
            balloon_target_bytes,
            working_set: sample.map(|sample| WorkingSet {
                window_1s_bytes: sample.working_set_1s_bytes,
                window_10s_bytes: sample.working_set_10s_bytes,
                window_60s_bytes: sample.working_set_60s_bytes,
            }),
            picture: life.observer.last_picture(),
            guest_cpu_seconds: totals.guest_cpu_seconds,
            exits: totals.exits,
            host_cache: totals.host_cache,
            reclaim: life.machine.reclaim.status(),
            shared_bytes: frame_bytes(life.machine.memory.shared() + merged),
        }
    }

    fn report(&self, life: &Life) -> RunReport {
        // The last events, and the end of the cache log.
        life.observer.end();
        life.machine.memory.catch_up();
        let counts = life.machine.memory.counts();
        let totals = self.lock().before.clone().with(life);
        let frames = [
            ("untouched", counts.untouched),
            ("resident", counts.resident),
            ("ballooned", counts.ballooned),
            ("absent", counts.absent),
        ];
        RunReport {
            engine: self.plan.engine.kind.name(),
            wall_seconds: self.started.elapsed().as_secs_f64(),
            cpu_seconds: process_cpu_seconds(),
            guest_instructions: totals.instructions,
            exits: totals.exits,
            frames: frames.into_iter().map(|(state, count)| (state, u64::from(count))).collect(),
            translation: totals.translation,
            cache: totals.cache,
            host_cache: totals.host_cache,
            working_set: totals.working_set,
            restore: life.machine.restored(),
            picture: life.observer.last_picture(),
            host_resident_bytes: process_private_bytes()
                + life.machine.memory.backed_bytes().unwrap_or(0),
            pauses: self.pauses.load(Ordering::Relaxed),
        }
    }

    /// Does what a machine refuses once it has ended: now, or after the reboot that ended it.
    fn in_some_life(&self, mut act: impl FnMut(&Machine) -> bool) -> Result<(), RequestError> {
        let mut machine = Arc::clone(&self.lock().life.machine);
        while !act(&machine) {
            machine = self.machine_after(&machine).ok_or(RequestError::Ended)?;
        }
        Ok(())
    }

    /// Waits for the life that follows the one of `ended`; `None` when there will be none.
    fn machine_after(&self, ended: &Arc<Machine>) -> Option<Arc<Machine>> {
        let mut state = self.lock();
        while state.outcome.is_none() {
            if !Arc::ptr_eq(&state.life.machine, ended) {
                return Some(Arc::clone(&state.life.machine));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn debugger(&self) -> MutexGuard<'_, Option<Debugger>> {
        self.debugger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outside(&self) -> MutexGuard<'_, Option<Outside>> {
        self.outside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn console(&self) -> MutexGuard<'_, Option<Console>> {
        self.console.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The exit status that the program ends with, too.
fn finish_of(outcome: &Result<Outcome, String>) -> Finish {
    match outcome {
        Ok(Outcome::Poweroff | Outcome::Stopped) => Finish(0),
        Ok(Outcome::Panic) => Finish(3),
        Err(_) => Finish::FAILED,
    }
}

/// Asked for by a VM that has ended, which does not reboot.
fn gone(what: &str) -> VmError {
    VmError::Host(format!("reuse the {what}"), std::io::ErrorKind::NotFound.into())
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn point((at, sample): &(Duration, WorkingSetSample)) -> WorkingSetPoint {
    WorkingSetPoint {
        t_seconds: at.as_secs_f64(),
        resident_bytes: sample.resident_bytes,
        window_1s_bytes: sample.working_set_1s_bytes,
        window_10s_bytes: sample.working_set_10s_bytes,
        window_60s_bytes: sample.working_set_60s_bytes,
    }
}

fn frame_bytes(frames: u32) -> u64 {
    u64::from(frames) * memory::FRAME_SIZE as u64
}
