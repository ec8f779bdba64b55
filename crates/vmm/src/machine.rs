//! One life of a machine: built from a plan, run until it ends.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use devices::virtio::balloon::BalloonHandle;
use devices::virtio::block::{HostCache, HostCachePolicy, PageCache};
use devices::virtio::mmio::MmioTransport;
use engine::{Engine, Tracking, Vm, VmSpec};
use insight::kernel::Kernel;
use memory::{DeviceView, FRAME_SIZE, Frame, GuestMemory, ReadView};
use x86::model::Shown;

use crate::board::{Board, Ending, FirstBlock};
use crate::boot::{self, BootSource};
use crate::config::VmPlan;
use crate::console::Console;
use crate::control::{Control, RunState};
use crate::debug::Desk;
use crate::error::VmError;
use crate::estimate_log::EstimateLog;
use crate::generation;
use crate::guest_ram::LoaderRam;
use crate::host_cache::{self, Filler, HostCacheReport};
use crate::io_thread::{Gate, IoThread};
use crate::merge::Merger;
use crate::observer;
use crate::outcome::End;
use crate::outside::Outside;
use crate::restore::{Learner, Readers, Restore, RestoreReport};
use crate::saved::{
    CloneFiles, CloneReport, Devices, Images, Known, MachineState, Needed, Origin, SaveLanes,
    SaveOptions, SaveReport, Scan, Source, WorkingSetSources, trace,
};
use crate::share::Sharer;
use crate::shortage;
use crate::swap::{Reclaim, Swap};
use crate::vcpu_thread::{self, SharedVcpu, VcpuFacts, VcpuShared};

/// A running machine. All threads belong to it; [`Machine::wait`] outlives them.
pub(crate) struct Machine {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) control: Arc<Control>,
    vm: Arc<dyn Vm>,
    vcpus: Vec<SharedVcpu>,
    facts: Vec<Arc<VcpuFacts>>,
    balloon: BalloonHandle,
    /// Where that is asked for, with what is below each disk.
    host_cache: Option<(Arc<HostCache>, Vec<PageCache>)>,
    /// See [`Machine::take_first_blocks`].
    first_blocks: Mutex<Vec<FirstBlock>>,
    devices: Devices,
    gate: Arc<Gate>,
    /// See [`Machine::tells_accesses`].
    tells_accesses: bool,
    /// Where that is asked for; it ends with the machine.
    _estimates: Option<EstimateLog>,
    /// Where it was saved before.
    restore: Option<Arc<Restore>>,
    /// What the host takes of its memory.
    pub(crate) reclaim: Reclaim,
    /// What of it others have, too.
    pub(crate) sharer: Sharer,
    pub(crate) merger: Merger,
    plan: VmPlan,
}

/// How a life begins.
pub(crate) struct Beginning<'a> {
    /// The vCPUs stand until they are resumed.
    pub(crate) paused: bool,
    /// What the machine goes on from; without, it boots.
    pub(crate) origin: Option<Origin<'a>>,
}

/// What only the thread that waits for the machine needs. No clone of the machine keeps devices alive:
/// the next life could not have their files, which belong to one VM at a time.
pub(crate) struct Threads {
    vcpus: Vec<JoinHandle<()>>,
    io: IoThread,
    filler: Option<Filler>,
    readers: Option<Readers>,
    learner: Option<Learner>,
    transports: Vec<Arc<MmioTransport>>,
}

impl Machine {
    /// Builds the machine and starts its vCPUs, which a debugger at `desk` may want to stand first.
    pub(crate) fn start(
        plan: &VmPlan,
        engine: &dyn Engine,
        console: &Console,
        outside: &Outside,
        desk: Option<&Arc<Desk>>,
        beginning: Beginning<'_>,
    ) -> Result<(Arc<Self>, Threads), VmError> {
        let Beginning { paused, origin } = beginning;
        origin.as_ref().map_or(Ok(()), |origin| origin.check(plan))?;
        let memory = origin.as_ref().and_then(Origin::memory);
        let memory = memory.unwrap_or_else(|| guest_memory(plan, engine, origin.is_some()));
        let memory = Arc::new(memory?);
        let host_cache = host_cache::new(plan);
        let takes_evictions =
            host_cache.as_ref().is_some_and(|cache| cache.policy() == HostCachePolicy::Eviction);
        if plan.insight || plan.classes || outside.cache_log.is_some() || takes_evictions {
            // From the guest's first access to a disk on; the observer takes them in.
            memory.listen(observer::CAPACITY);
        }
        let estimates = outside.estimates.clone();
        let estimates =
            estimates.map(|files| EstimateLog::start(Arc::clone(&memory), files)).transpose();
        let estimates = estimates.map_err(VmError::host("start the thread of the estimate log"))?;
        let vm = engine.create_vm(VmSpec {
            memory: Arc::clone(&memory),
            vcpus: plan.cpus,
            // As it was shown before: by one engine's model a guest cannot go back to the other.
            cpu: origin.as_ref().map_or(plan.cpu_model.into(), |origin| {
                Shown::Elsewhere(origin.state().processor.clone())
            }),
        })?;
        let control =
            Arc::new(Control::new(plan.cpus, desk.map_or(0, |desk| desk.held_at_birth())));
        if paused {
            control.ask_to_pause();
        }
        let ending = Ending::new(&control, &vm, plan.cpus);
        let saved = origin.as_ref().map(Origin::state);
        let serial = saved.map(|saved| &saved.board.serial);
        let recorded = plan.report.is_some();
        let filled = origin.map(|origin| origin.fill(&memory, recorded)).transpose()?;
        let (restore, learning) = filled.unwrap_or_default();
        let readers = restore.as_ref().map(|restore| Readers::start(restore, plan.cpus));
        let readers = readers.transpose()?.flatten();
        let board = Board::build(
            plan,
            &memory,
            &vm,
            &ending,
            console,
            outside,
            host_cache.as_ref(),
            serial,
        )?;
        let mut vcpus =
            (0..plan.cpus).map(|id| vm.create_vcpu(id)).collect::<Result<Vec<_>, _>>()?;
        match saved {
            Some(saved) => {
                saved.restore_devices(&board)?;
                saved.restore_processors(&vm, &mut vcpus, &board)?;
            }
            None => {
                let mut ram = LoaderRam(Arc::clone(&memory));
                let boot = boot::prepare(&source(plan), &board.platform, &mut ram)?;
                generation::begin(&board.view)?;
                vcpus[0].set_state(&boot.vcpu_state())?;
            }
        }
        let devices = board.devices();
        let filler = host_cache.as_ref().map(Filler::start).transpose();
        let filler = filler.map_err(VmError::host("start the thread of the host cache"))?.flatten();
        let io = IoThread::start(board.subscribers)?;
        let shared = Arc::new(VcpuShared {
            control: Arc::clone(&control),
            ports: board.ports,
            mmio: board.mmio,
            kick_all: kick_all(&vm, plan.cpus),
            debug: desk.map(|desk| (Arc::clone(desk), DeviceView::new(Arc::clone(&memory)))),
        });
        let vcpus: Vec<SharedVcpu> =
            vcpus.into_iter().map(|vcpu| Arc::new(Mutex::new(vcpu))).collect();
        let facts: Vec<Arc<VcpuFacts>> = vcpus.iter().map(|_| Arc::default()).collect();
        let machine = Arc::new(Self {
            memory,
            control,
            vm,
            vcpus,
            facts,
            balloon: board.balloon,
            devices,
            gate: io.gate(),
            first_blocks: Mutex::new(board.first_blocks),
            host_cache: host_cache.map(|cache| (cache, board.page_caches)),
            tells_accesses: engine.capabilities().access_tracking != Tracking::Sampled,
            _estimates: estimates,
            restore,
            reclaim: Reclaim::default(),
            sharer: Sharer::default(),
            merger: Merger::default(),
            plan: plan.clone(),
        });
        shortage::watch(&machine.control, &machine.memory, kick_all(&machine.vm, plan.cpus))
            .map_err(VmError::host("start the thread that waits for sources of memory"))?;
        if let Some(readers) = &readers {
            readers.wait_for_first();
        }
        let vcpus = machine.spawn(&shared)?;
        let learner = machine.restore.as_ref().zip(learning);
        let learner = learner.map(|(restore, file)| Learner::start(restore, file)).transpose();
        let learner = learner.inspect_err(|_| machine.end(End::Stopped))?;
        let threads = Threads { vcpus, io, filler, readers, learner, transports: board.transports };
        Ok((machine, threads))
    }

    fn spawn(&self, shared: &Arc<VcpuShared>) -> Result<Vec<JoinHandle<()>>, VmError> {
        let mut threads = Vec::new();
        for (id, (vcpu, facts)) in self.vcpus.iter().zip(&self.facts).enumerate() {
            let (vcpu, facts) = (Arc::clone(vcpu), Arc::clone(facts));
            match vcpu_thread::spawn(id as u32, vcpu, Arc::clone(shared), facts) {
                Ok(thread) => threads.push(thread),
                Err(source) => {
                    self.end(End::Stopped);
                    return Err(VmError::Host(format!("start the thread of vcpu {id}"), source));
                }
            }
        }
        Ok(threads)
    }

    /// Waits for the end of the machine, of its threads and its devices; but not for a thread that waits for a source of
    /// memory which does not answer, say a file on a server that is gone: that one is left behind.
    pub(crate) fn wait(&self, threads: Threads) -> End {
        let end = self.control.wait_end();
        self.memory.stop_waiting();
        if !shortage::have_come_back(&self.control, &self.memory) {
            tracing::error!(
                "a source of guest memory does not answer: what waits for it is left behind, disks are not flushed"
            );
            std::mem::forget(threads);
            return end;
        }
        for thread in threads.vcpus {
            // A panicking vCPU has already ended the machine with a message.
            let _ = thread.join();
        }
        drop(threads.io);
        drop(threads.filler);
        drop(threads.readers);
        drop(threads.learner);
        for transport in &threads.transports {
            if let Err(error) = transport.flush() {
                tracing::error!(
                    "flush {:?}: {error}: the guest's last writes may be lost",
                    transport.kind()
                );
            }
        }
        end
    }

    /// Ends the machine from any thread.
    pub(crate) fn end(&self, end: End) {
        self.control.end(end);
        self.kick();
    }

    /// Prepares the memory for measuring who accesses it. False, and a word in the log, where it cannot be.
    pub(crate) fn can_be_watched(&self) -> bool {
        if !self.memory.is_anonymous() {
            return true;
        }
        let moved = self.control.while_still(|| self.kick(), || self.memory.move_to_file());
        match moved {
            Some(Err(error)) => {
                tracing::warn!("{error}: the working set stays unknown");
                false
            }
            moved => moved.is_some(),
        }
    }

    /// Sends the machine on `lanes` while all of it stands. If it is to stop, it waits until it is kept, and ends before
    /// anybody moves again. `None`: it has ended before.
    pub(crate) fn save(
        &self,
        lanes: &SaveLanes,
        options: SaveOptions,
        watched: bool,
    ) -> Option<Result<SaveReport, VmError>> {
        let _not_reclaimed = self.reclaim.hold();
        let needed = self.scan(options, watched);
        let known = self.before_save(options);
        let saved = if options.live {
            self.save_live(lanes, options, &known, &needed)
        } else {
            self.save_standing(lanes, options, &known, &needed)
        };
        let frames = self.memory.layout().frames();
        Some(saved?.map(|saved| SaveReport { frames, ..saved }))
    }

    /// It stands until its memory is frozen.
    fn save_live(
        &self,
        lanes: &SaveLanes,
        options: SaveOptions,
        known: &Known,
        needed: &Needed,
    ) -> Option<Result<SaveReport, VmError>> {
        // A freeze does so, too, and says what fails; here the guest does not stand meanwhile.
        let _ = self.memory.unmark_all();
        let begun = Instant::now();
        let frozen = self.while_all_stands(|| self.source().freeze(known))?;
        let pause = begun.elapsed();
        Some(frozen.and_then(|frozen| {
            let (sent, traced) = self.traced_while(options, || lanes.send_frozen(frozen));
            let (frames_sent, state) = sent.map_err(VmError::host("send the machine"))?;
            let working_set = send_last(lanes, needed, traced, &state)?;
            Ok(SaveReport { pause, frames_sent, working_set, ..SaveReport::default() })
        }))
    }

    /// It stands until its memory is sent, or, if it is to stop, until all is kept.
    fn save_standing(
        &self,
        lanes: &SaveLanes,
        options: SaveOptions,
        known: &Known,
        needed: &Needed,
    ) -> Option<Result<SaveReport, VmError>> {
        let begun = Instant::now();
        let mut pause = Duration::ZERO;
        let sent = self.while_all_stands(|| -> Result<_, VmError> {
            let (sent, state) = self.source().send(lanes, known)?;
            let mut sources = None;
            if options.stop {
                sources = Some(send_last(lanes, needed, Vec::new(), &state)?);
                let kept = lanes.wait_until_kept();
                kept.map_err(VmError::host("end the VM once it is saved"))?;
                self.control.end(End::Stopped);
            }
            pause = begun.elapsed();
            Ok((sent, state, sources))
        })?;
        Some(sent.and_then(|(frames_sent, state, sources)| {
            let working_set = match sources {
                Some(sources) => sources,
                None => {
                    let (_, traced) = self.traced_while(options, || ());
                    send_last(lanes, needed, traced, &state)?
                }
            };
            Ok(SaveReport { pause, frames_sent, working_set, ..SaveReport::default() })
        }))
    }

    /// Watches what the guest needs before it is saved. If `watched`, somebody has done so all the time.
    fn scan(&self, options: SaveOptions, watched: bool) -> Needed {
        let wanted = !options.watch.is_zero() && self.control.run_state() == RunState::Running;
        let scan = (wanted && self.can_be_watched())
            .then(|| Scan::run(&self.memory, options.watch, watched));
        Needed::of(&self.memory, scan)
    }

    /// Does `act`, and watches meanwhile, and until the time for it is over, what the guest touches first, which has just
    /// gone on.
    fn traced_while<T>(&self, options: SaveOptions, act: impl FnOnce() -> T) -> (T, Vec<Frame>) {
        let runs = || self.control.run_state() == RunState::Running;
        // What is not watched by now is not moved into a file for that: it may be frozen.
        if options.trace.is_zero() || !runs() || self.memory.is_anonymous() {
            return (act(), Vec::new());
        }
        let wait = |pause| {
            self.control.sleep(pause);
            runs()
        };
        std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().name("trace".into());
            let body = || trace(&self.memory, options.trace, wait);
            let tracer = builder.spawn_scoped(scope, body);
            let done = act();
            // One that panicked has said so, and one that did not start leaves the guest as well as it was.
            let traced = tracer.ok().and_then(|tracer| tracer.join().ok());
            (done, traced.unwrap_or_default())
        })
    }

    /// What is written down of it.
    fn source(&self) -> Source<'_> {
        Source {
            plan: &self.plan,
            memory: &self.memory,
            vm: &self.vm,
            vcpus: &self.vcpus,
            devices: &self.devices,
        }
    }

    /// Neither vCPUs nor devices work until `act` returns. `None`: the machine has ended before.
    fn while_all_stands<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        let held = || {
            let _held = self.gate.hold();
            act()
        };
        self.control.while_still(|| self.kick(), held)
    }

    /// What can be found out before the guest stands.
    fn before_save(&self, options: SaveOptions) -> Known {
        // A kernel that fills free frames with a pattern wants to find it there.
        let checks_free = ["page_poison", "debug_pagealloc"]
            .iter()
            .any(|option| self.plan.cmdline.contains(option));
        let wants_free = !options.all && !checks_free;
        let wants_order = options.together && !options.live;
        let kernel = (wants_free || wants_order).then(|| {
            self.memory.catch_up();
            Kernel::find(&ReadView::new(Arc::clone(&self.memory)))
        });
        let kernel = kernel.transpose().unwrap_or_else(|error| {
            tracing::info!("{error}: free frames are saved, too");
            None
        });
        let free = kernel.as_ref().filter(|_| wants_free).map(Kernel::free_frames);
        let free = free.transpose().unwrap_or_else(|error| {
            tracing::info!("{error}: free frames are saved, too");
            None
        });
        let together = kernel.as_ref().filter(|_| wants_order).map(Kernel::together);
        let together = together.transpose().unwrap_or_else(|error| {
            tracing::info!("{error}: frames are saved in the order of their numbers");
            None
        });
        let images = if options.all { Vec::new() } else { self.plan.images_that_stay() };
        Known { free: free.map(Mutex::new), images, together: together.unwrap_or_default() }
    }

    /// Has its memory become an image for clones while all of it stands, and writes the state that they go on from.
    /// `None`: it has ended before. If `stands`, it goes on standing as if the user had paused it.
    pub(crate) fn make_clonable(
        &self,
        files: CloneFiles,
        stands: bool,
    ) -> Option<Result<CloneReport, VmError>> {
        // What is absent is fetched, and must not go again before it is an image.
        let _not_reclaimed = self.reclaim.hold();
        let failed = |error| VmError::Host("clone the memory".into(), io::Error::other(error));
        let memory = match files.memory.try_clone().map_err(VmError::host("clone the memory")) {
            Ok(memory) => memory,
            Err(error) => return Some(Err(error)),
        };
        let draft = match self.memory.draft_image(memory).map_err(failed) {
            Ok(draft) => draft,
            Err(error) => return Some(Err(error)),
        };
        let source = self.source();
        // So that there is little to flush while the guest stands.
        if let Err(error) = source.flush() {
            return Some(Err(error));
        }
        let begun = Instant::now();
        let mut pause = Duration::ZERO;
        let cloned = self.while_all_stands(|| {
            let parked = begun.elapsed();
            let cloned = source.state().and_then(|state| {
                let captured = begun.elapsed();
                let image = self.memory.become_image(draft).map_err(failed)?;
                let mapped = begun.elapsed();
                tracing::debug!(?parked, ?captured, ?mapped, "cloned");
                Ok((state, image))
            });
            if stands && cloned.is_ok() {
                self.control.ask_to_pause();
            }
            pause = begun.elapsed();
            cloned
        })?;
        Some(cloned.and_then(|(state, image)| {
            files.write_state(&state)?;
            Ok(CloneReport { pause, frames: self.memory.layout().frames(), stands, image })
        }))
    }

    /// Where what the host takes of its memory goes: to `store` and what `images` have.
    pub(crate) fn begin_to_reclaim(
        &self,
        images: Arc<Images>,
        store: Option<File>,
    ) -> Result<(), VmError> {
        let had_sources = self.memory.has_sources();
        let full = || VmError::Host("reclaim".into(), io::ErrorKind::StorageFull.into());
        let swap = Swap::register(&self.memory, images, store).ok_or_else(full)?;
        if !had_sources {
            self.watch_for_shortage()?;
        }
        self.reclaim.begin(swap);
        Ok(())
    }

    /// When memory has its first source.
    pub(crate) fn watch_for_shortage(&self) -> Result<(), VmError> {
        let kick_all = kick_all(&self.vm, self.vcpu_count());
        shortage::watch(&self.control, &self.memory, kick_all)
            .map_err(VmError::host("start the thread that waits for sources of memory"))
    }

    /// Makes every vCPU leave guest code and look at the run state.
    pub(crate) fn kick(&self) {
        (0..self.vcpu_count()).for_each(|id| self.vm.kick(id));
    }

    pub(crate) fn vcpu_count(&self) -> u32 {
        self.vcpus.len() as u32
    }

    /// To be locked while it is parked: its thread has it locked while it runs.
    pub(crate) fn vcpu(&self, id: u32) -> Option<&SharedVcpu> {
        self.vcpus.get(id as usize)
    }

    /// Guest memory by physical address.
    pub(crate) fn view(&self) -> DeviceView {
        DeviceView::new(Arc::clone(&self.memory))
    }

    /// Asks the guest's balloon driver to hold `target_bytes`.
    pub(crate) fn set_balloon(&self, target_bytes: u64) {
        let pages = u32::try_from(target_bytes / FRAME_SIZE as u64).unwrap_or(u32::MAX);
        if let Err(error) = self.balloon.set_target(pages) {
            // The handle has checked the target against the same memory.
            tracing::error!("{error}");
        }
    }

    /// Exits by kind, all vCPUs together.
    pub(crate) fn exits(&self) -> BTreeMap<&'static str, u64> {
        let mut sum = BTreeMap::new();
        for (kind, count) in self.facts.iter().flat_map(|facts| facts.exits()) {
            *sum.entry(kind).or_default() += count;
        }
        sum
    }

    /// Guest instructions of all vCPUs, where the engine counts them.
    pub(crate) fn instructions(&self) -> Option<u64> {
        self.facts.iter().map(|facts| facts.counters().instructions).sum()
    }

    /// What became of guest code, on an engine that translates it.
    pub(crate) fn translation(&self) -> BTreeMap<&'static str, u64> {
        self.vm.translation()
    }

    /// The cache of disk blocks, where somebody asked.
    pub(crate) fn host_cache(&self) -> Option<HostCacheReport> {
        let (cache, page_caches) = self.host_cache.as_ref()?;
        Some(HostCacheReport::new(cache, &self.plan, page_caches))
    }

    /// Who is told which blocks the guest gives up, where somebody asked.
    pub(crate) fn takes_evictions(&self) -> Option<Arc<HostCache>> {
        let (cache, _) = self.host_cache.as_ref()?;
        (cache.policy() == HostCachePolicy::Eviction).then(|| Arc::clone(cache))
    }

    /// What disks were used for at the start: once.
    pub(crate) fn take_first_blocks(&self) -> Vec<FirstBlock> {
        std::mem::take(&mut *self.first_blocks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether vCPUs tell of accesses and address spaces one by one.
    pub(crate) fn tells_accesses(&self) -> bool {
        self.tells_accesses
    }

    /// How its memory came, where it was saved before.
    pub(crate) fn restored(&self) -> Option<RestoreReport> {
        let begun: Vec<_> = self.facts.iter().map(|facts| facts.begun()).collect();
        Some(self.restore.as_ref()?.report(&begun))
    }

    /// CPU time of all vCPU threads.
    pub(crate) fn guest_cpu_seconds(&self) -> f64 {
        self.facts.iter().map(|facts| facts.cpu_seconds()).sum()
    }
}

/// What comes when all frames are sent: those that the guest needs first, as far as they are `traced` too, and the state.
fn send_last(
    lanes: &SaveLanes,
    needed: &Needed,
    traced: Vec<Frame>,
    state: &MachineState,
) -> Result<WorkingSetSources, VmError> {
    let (needed, sources) = needed.after(traced);
    let done = lanes.send_last(&needed, state);
    done.map_err(VmError::host("send the machine")).map(|()| sources)
}

/// Anonymous, for the host's large pages, until somebody asks which frames the guest accesses; an engine that
/// sees each access needs no file for that, and gains nothing. A `restored` machine has absent frames.
fn guest_memory(
    plan: &VmPlan,
    engine: &dyn Engine,
    restored: bool,
) -> Result<GuestMemory, VmError> {
    let watched_from_the_start = plan.report.is_some() || plan.estimate_log.is_some() || restored;
    let sampled = engine.capabilities().access_tracking == Tracking::Sampled;
    let memory = if sampled && !watched_from_the_start {
        GuestMemory::anonymous(plan.memory.0)
    } else {
        GuestMemory::with_bytes(plan.memory.0)
    };
    memory
        .map_err(|error| VmError::Host("reserve guest memory".into(), std::io::Error::other(error)))
}

fn kick_all(vm: &Arc<dyn Vm>, vcpus: u32) -> Box<dyn Fn() + Send + Sync> {
    let vm = Arc::clone(vm);
    Box::new(move || (0..vcpus).for_each(|id| vm.kick(id)))
}

fn source(plan: &VmPlan) -> BootSource<'_> {
    BootSource { kernel: &plan.kernel, initrd: plan.initrd.as_deref(), cmdline: &plan.cmdline }
}
