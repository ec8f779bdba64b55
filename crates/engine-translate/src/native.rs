//! Generated code: which blocks get some, and the memory for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use engine::EngineError;
use memory::FRAME_SIZE;
use translator::native::{self, CodeCache, CodeStats, Emitted, Lane, Left, Made, NotTranslated};
use translator::paths::{self, Follow, Path, Policy, Source};
use translator::vector::ArenaError;
use translator::{Block, Insn, Mode, Width, decode};

use crate::foresight::{self, Known, Recent};
use crate::heads::{Heads, Next, Reached};
use crate::hot::Hot;
use crate::lockstep::{Lockstep, Verified};
use crate::options::{Dump, Options, Predict};
use crate::profile;
use crate::runs::{KEPT, MOST};
use crate::system::{Core, System};
use crate::threshold::Threshold;
use crate::vm::Shared;
use crate::{Observers, clock, fetch};

/// The generated code of a VM.
pub(crate) struct Code {
    cache: Arc<CodeCache>,
    options: Options,
    observers: Observers,
    /// Where the code that takes the most time is to be shown.
    hot: Option<Hot>,
    /// Blocks translated before they had run often, since they were going to.
    foreseen: AtomicU64,
    /// Ticks of the host's TSC spent on translating.
    ticks: AtomicU64,
    threshold: Arc<Threshold>,
    leaving: Mutex<Leaving>,
}

/// All code goes when the memory is full.
#[derive(Debug, Default)]
struct Leaving {
    /// The generation after which nobody is in old code any more.
    generation: Option<u64>,
    /// When it went for the last time, and how much of the time until then was spent on translating; ticks.
    last: (u64, u64),
}

impl Code {
    pub(crate) fn new(options: Options, observers: Observers) -> Result<Self, ArenaError> {
        let cache = Arc::new(CodeCache::new(options.code_bytes, how(options), options.policy())?);
        if let Some(map) = &observers.perf_map {
            cache.thunk_names().for_each(|(name, range)| map.add(range, name));
        }
        Ok(Self {
            cache,
            hot: options.dump.and_then(Dump::hot).map(Hot::new),
            options,
            observers,
            foreseen: AtomicU64::new(0),
            ticks: AtomicU64::new(0),
            threshold: Arc::new(Threshold::of(&options.policy())),
            leaving: Mutex::new(Leaving { generation: None, last: (clock::host_tsc(), 0) }),
        })
    }

    pub(crate) fn stats(&self) -> CodeStats {
        self.cache.stats()
    }

    pub(crate) fn foreseen(&self) -> u64 {
        self.foreseen.load(Ordering::Relaxed)
    }

    /// A block gets code before it has run often.
    pub(crate) fn count_foreseen(&self) {
        self.foreseen.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn translation_ns(&self) -> u64 {
        clock::ticks_to_duration(self.ticks.load(Ordering::Relaxed)).as_nanos() as u64
    }

    /// Whether anything may be known of code that is decoded.
    pub(crate) fn foresees(&self) -> bool {
        self.observers.profile.is_some() || self.options.predict == Predict::Everything
    }

    /// What is known of code that was decoded just now from physical address `start` on.
    pub(crate) fn foresee(&self, core: &mut Core, start: u64, insns: &[Insn<System>]) -> Known {
        match &self.observers.profile {
            Some(profile) => foresight::from(profile, core, start, insns, self.options.hot),
            None if self.options.predict == Predict::Everything => {
                foresight::bound(core, start, insns)
            }
            None => Known::default(),
        }
    }

    /// Tells those who want to know.
    fn tell(&self, path: &Path, page: u64, source: Source<'_>, made: &Emitted) {
        let (base, len) = (page << 12, path.len());
        if let Some(map) = &self.observers.perf_map {
            let start = base + u64::from(path.head());
            map.add(made.addresses(), format_args!("guest_{start:x}+{len:x}"));
        }
        let wanted = |at: u64| at >> 12 == page && path.covers((at & 0xfff) as u32);
        if self.options.dump.and_then(Dump::address).is_some_and(wanted) {
            print(&made.listing(base, source));
        }
        if let Some(hot) = &self.hot {
            hot.add(path, page, source, made);
        }
    }

    /// Counts where a vCPU was, which `at` tells, if that is of interest.
    pub(crate) fn take_sample(&self, at: impl FnOnce() -> Option<usize>) -> bool {
        let Some(hot) = &self.hot else { return false };
        if let Some(at) = at() {
            hot.sample(at);
        }
        true
    }

    /// Notes the blocks of a path in `page` for a later run.
    fn record(&self, path: &Path, base: u64, page: &[u8]) {
        let Some(recorder) = &self.observers.recorder else { return };
        let mode = Mode { width: Width::Bits64 };
        for fragment in &path.fragments {
            let mut rest = &page[usize::from(fragment.offset)..fragment.end() as usize];
            let mut start = base + u64::from(fragment.offset);
            while !rest.is_empty() {
                let decoded = decode::decode_block::<System>(rest, mode, decode::BLOCK_LIMIT);
                let (block, behind) = rest.split_at(decoded.len.max(1) as usize);
                recorder.add(profile::key(start, block));
                (start, rest) = (start + block.len() as u64, behind);
            }
        }
    }

    /// `path` of `page` and its code, which is made once more. `None`: there is no room.
    pub(crate) fn list(
        &self,
        path: &Path,
        source: Source<'_>,
        page: u64,
        frame: u32,
    ) -> Option<String> {
        let made: Made<System> = self.cache.translate(path, source, page, frame).ok()?;
        Some(made.emitted.listing(page << 12, source))
    }

    /// The memory is full: all code goes, and there is none before every vCPU has come out of it.
    #[cold]
    fn start_over(&self, shared: &Shared, vcpu: u32) {
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.cache.is_full() {
            return;
        }
        let generation = *leaving.generation.get_or_insert_with(|| {
            shared.blocks.clear();
            shared.begin_revocation_from(vcpu)
        });
        if shared.is_revoked(generation, vcpu) {
            if let Some(hot) = &self.hot {
                hot.forget_places();
            }
            self.cache.reset();
            let now = (clock::host_tsc(), self.ticks.load(Ordering::Relaxed));
            let last =
                std::mem::replace(&mut *leaving, Leaving { generation: None, last: now }).last;
            self.threshold.learn(now.1.saturating_sub(last.1), now.0.saturating_sub(last.0));
        }
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        if let Some(hot) = &self.hot {
            print(&hot.text());
        }
    }
}

/// On standard error: on a terminal in raw mode a line feed does not return to the margin.
fn print(text: &str) {
    eprint!("{}", text.replace('\n', "\r\n"));
}

/// Whether there is generated code at all: as asked, and if the host can run it.
pub(crate) fn is_used(options: Options) -> bool {
    options.translate && Lane::is_supported()
}

/// How blocks are translated: where they are compared, each comes out at its end, and what must not be executed
/// twice is left to its handler.
fn how(options: Options) -> native::Options {
    let native = options.native;
    if !options.verify {
        return native;
    }
    let native = native::Options { link: false, indirect: false, ..native };
    native::Options { time: false, interrupts: false, bases: false, calls: false, ..native }
}

/// Whether code can be compared with the interpreter, if it is to be.
pub(crate) fn check_verify(options: Options, vcpus: u32) -> Result<(), EngineError> {
    let refuse = |why: &str| Err(EngineError::Unsupported(format!("--translate verify: {why}")));
    match options {
        Options { verify: false, .. } => Ok(()),
        _ if !is_used(options) => refuse("nothing is translated, so there is nothing to compare"),
        _ if vcpus > 1 => refuse("others would see what is executed twice: ask for one vcpu"),
        _ => Ok(()),
    }
}

/// A vCPU's way through generated code.
pub(crate) struct Native {
    lane: Lane,
    policy: Policy,
    threshold: Arc<Threshold>,
    predict: Predict,
    /// Where only some targets may be heads of paths.
    heads: Option<Box<Heads>>,
    /// The cache's epoch that they are of, and how many of their bytes it knows of.
    told: (u32, usize),
    /// What ran last was code.
    was_inside: bool,
    /// Where trips are predicted.
    recent: Option<Recent>,
    lockstep: Option<Lockstep>,
}

impl Native {
    /// `None` where everything is interpreted.
    pub(crate) fn new(core: &Core) -> Option<Self> {
        let shared = &core.machine.shared;
        let options = shared.code.options;
        if !is_used(options) {
            return None;
        }
        let (lane, policy) = (Lane::new(Arc::clone(&shared.code.cache)), options.policy());
        let heads = Heads::new(&policy).map(Box::new);
        let lockstep = options.verify.then(|| Lockstep::new(core, how(options), policy.look_ahead));
        let recent = (options.predict == Predict::Everything).then(Recent::new);
        Some(Self {
            lane,
            policy,
            threshold: Arc::clone(&shared.code.threshold),
            predict: options.predict,
            heads,
            told: (0, 0),
            was_inside: false,
            recent,
            lockstep,
        })
    }

    /// At which run the code at `gpa` is kept: what may get code is counted until it is time.
    pub(crate) fn keep_at(&self, gpa: u64, mode: Mode) -> u32 {
        let expects = || self.recent.as_ref().is_some_and(|recent| recent.knows(gpa));
        match () {
            () if self.heads.is_some() => 1,
            () if mode.width != Width::Bits64 => fetch::AGAIN,
            () if expects() => 1,
            () => self.threshold.runs_to_keep().min(MOST),
        }
    }

    /// The run at which code is translated.
    pub(crate) fn hot(&self) -> u32 {
        self.threshold.runs()
    }

    /// Whether code that is met again soon is translated.
    pub(crate) fn expects(&self, user: bool, mode: Mode) -> bool {
        let wanted = match self.predict {
            Predict::Nothing => false,
            Predict::Programs => user,
            Predict::Everything => true,
        };
        wanted && self.heads.is_none() && !self.threshold.is_raised() && mode.width == Width::Bits64
    }

    /// Whether code that runs for the `runs`th time is translated.
    pub(crate) fn is_hot(&self, runs: u32, mode: Mode) -> bool {
        self.heads.is_none() && mode.width == Width::Bits64 && runs >= self.threshold.runs()
    }

    /// Instructions at RIP are going to run that are not kept.
    #[inline(always)]
    pub(crate) fn pass(&mut self, core: &Core) {
        if let Some(recent) = &mut self.recent
            && let Some(start) = core.machine.tlb.fetch(core.cpu.rip())
        {
            recent.note(start);
        }
    }

    /// This thread is going to run `core`.
    pub(crate) fn begin(&mut self, core: &mut Core) {
        self.lane.begin(core);
    }

    /// Something else ran, or will run, between two blocks: an exception, say.
    #[inline]
    pub(crate) fn interrupt(&mut self) {
        self.was_inside = false;
        if let Some(heads) = &mut self.heads {
            heads.interrupt();
        }
    }

    /// Bytes kept to choose paths.
    pub(crate) fn bytes(&self) -> usize {
        self.heads.as_ref().map_or(0, |heads| heads.bytes())
    }

    /// Runs `block`, to which RIP points, and what follows it. `None`: it is to be interpreted.
    #[inline]
    pub(crate) fn run(&mut self, core: &mut Core, block: &Arc<Block<System>>) -> Option<Left> {
        let made;
        let block = if block.has_code() && self.heads.is_none() {
            block
        } else {
            made = self.choose(core, block);
            made.as_ref()?
        };
        self.lead(core, block);
        let rip = core.cpu.rip();
        core.machine.tlb.admit(rip, block.code_frame()?);
        if let Some(frame) = block.next_code_frame() {
            core.machine.tlb.admit(fetch::next_page(rip), frame);
        }
        self.was_inside = true;
        match &mut self.lockstep {
            Some(lockstep) => lockstep.run(core, &mut self.lane, block),
            None => self.lane.run(core, block),
        }
    }

    /// Whether what is native is compared with the interpreter.
    pub(crate) fn verifies(&self) -> bool {
        self.lockstep.is_some()
    }

    /// What was compared with the interpreter, if that is done.
    pub(crate) fn verified(&self) -> Option<Verified> {
        self.lockstep.as_ref().map(|lockstep| lockstep.verified)
    }

    /// Lets the branch that came out last lead to `block`, to which RIP points, if that has code.
    pub(crate) fn connect(&mut self, core: &mut Core, block: &Arc<Block<System>>) {
        if block.has_code() {
            return self.lead(core, block);
        }
        if self.heads.is_none()
            && let Some(made) = self.choose(core, block)
        {
            self.lead(core, &made);
        }
    }

    #[inline]
    fn lead(&mut self, core: &Core, block: &Arc<Block<System>>) {
        if self.heads.as_ref().is_none_or(|heads| heads.may_link(block)) {
            self.lane.connect(core.cpu.rip(), block);
        }
    }

    /// The code that is to run for `block`, made now if it is time. `None`: it is interpreted.
    #[cold]
    fn choose(
        &mut self,
        core: &mut Core,
        block: &Arc<Block<System>>,
    ) -> Option<Arc<Block<System>>> {
        if core.cpu.width != Width::Bits64 {
            self.interrupt();
            return None;
        }
        if block.next_page.is_some() {
            self.interrupt();
            let wanted = core.machine.shared.code.options.native.crossing && !self.verifies();
            let hot = wanted && block.entered() >= self.threshold.runs();
            return if hot { make_crossing(core, block) } else { None };
        }
        self.forget_heads_without_code(core);
        let Some(heads) = &mut self.heads else {
            let left = self.threshold.runs().saturating_sub(block.entered());
            let recent = self.recent.as_mut().filter(|_| left > 0);
            let foreseen =
                recent.is_some_and(|recent| foresight::will_run(core, block, left, recent));
            if left > 0 && !foreseen {
                if let Some(recent) = &mut self.recent {
                    recent.note(block.start);
                }
                return None;
            }
            if foreseen {
                core.machine.shared.code.count_foreseen();
            }
            return self.make(core, block, |bytes, core, policy| grown(bytes, core, block, policy));
        };
        let reached = match self.lane.came_from() {
            Some(from) => Reached::Code(block.start & !0xfff | u64::from(from)),
            None if std::mem::take(&mut self.was_inside) => Reached::Elsewhere,
            None => Reached::Interpreted,
        };
        let next = heads.next(block, reached);
        self.tell_bytes(core);
        match next {
            Next::Interpret => None,
            Next::Code if block.has_code() => Some(Arc::clone(block)),
            Next::Code => self.make(core, block, |_, _, _| Some(alone(block))),
            Next::Recorded { page, path } => {
                self.make_recorded(core, page, path);
                None
            }
        }
    }

    /// When all code has gone, so has what is known of heads: it takes of the same memory.
    fn forget_heads_without_code(&mut self, core: &Core) {
        let Some(heads) = &mut self.heads else { return };
        let epoch = core.machine.shared.code.cache.epoch();
        if self.told.0 != epoch {
            self.told = (epoch, 0);
            **heads = Heads::new(&self.policy).expect("a policy with heads");
        }
    }

    /// Counts what is known of heads as bookkeeping.
    fn tell_bytes(&mut self, core: &Core) {
        let bytes = self.bytes();
        if bytes > self.told.1 {
            core.machine.shared.code.cache.count_choosing(bytes - self.told.1);
            self.told.1 = bytes;
        }
    }

    /// Where its head has been written over meanwhile there is no path.
    fn make_recorded(&mut self, core: &mut Core, page: u64, path: Path) {
        let head = page << 12 | u64::from(path.head());
        let mode = Mode { width: Width::Bits64 };
        let found = core.machine.shared.blocks.find(head, mode, || None);
        if let Some(block) = found {
            self.make(core, &block, |_, _, _| Some(path));
        }
    }

    /// Code for the path that `choose` finds in the page of `block`, with the same head.
    fn make(
        &mut self,
        core: &mut Core,
        block: &Block<System>,
        choose: impl FnOnce(&[u8], &Core, &Policy) -> Option<Path>,
    ) -> Option<Arc<Block<System>>> {
        let shared = Arc::clone(&core.machine.shared);
        let frame = core.machine.frame(block.start)?;
        let writes = shared.code_writes.load(Ordering::SeqCst);
        let (page, mut bytes) = (block.start >> 12, [0; FRAME_SIZE]);
        if !block.is_valid() || fetch::read_code(core, page << 12, &mut bytes).is_err() {
            return None;
        }
        let path = choose(&bytes, core, &self.policy)?;
        let source = Source { bytes: &bytes, first: 0 };
        let text = Text { source, page, frame: frame.0, next: None };
        let (mut made, instructions) = text.translate(core, &path)?;
        shared.code.record(&path, page << 12, &bytes);
        if let Some(lockstep) = &mut self.lockstep {
            keep_insns(&mut made, &bytes);
            lockstep.keep(&made, path, &bytes, instructions);
        }
        publish(&shared, made, writes)
    }
}

/// Code for a block of one instruction that reaches into the next page.
fn make_crossing(core: &mut Core, block: &Block<System>) -> Option<Arc<Block<System>>> {
    let shared = Arc::clone(&core.machine.shared);
    let (start, next) = (block.start, block.next_page?);
    let (frame, next_frame) = (core.machine.frame(start)?, core.machine.frame(next << 12)?);
    let writes = shared.code_writes.load(Ordering::SeqCst);
    let mut bytes = [0; decode::MAX_LEN];
    let bytes = &mut bytes[..block.len as usize];
    let here = FRAME_SIZE - (start & 0xfff) as usize;
    let (first, rest) = bytes.split_at_mut_checked(here)?;
    fetch::read_code(core, start, first).ok()?;
    fetch::read_code(core, next << 12, rest).ok()?;
    if !block.is_valid() {
        return None;
    }
    let path = alone(block);
    let source = Source { bytes, first: path.head() };
    let next = Some((next, next_frame.0));
    let text = Text { source, page: start >> 12, frame: frame.0, next };
    let (made, _) = text.translate(core, &path)?;
    publish(&shared, made, writes)
}

/// Bytes of a page that were read to be translated.
struct Text<'a> {
    source: Source<'a>,
    page: u64,
    frame: u32,
    /// The page that an instruction reaches into, and its frame.
    next: Option<(u64, u32)>,
}

impl Text<'_> {
    /// And how many instructions it has. Starts over where there is no room.
    fn translate(&self, core: &Core, path: &Path) -> Option<(Arc<Block<System>>, usize)> {
        let &Self { source, page, frame, next } = self;
        let (shared, id) = (&core.machine.shared, core.machine.id);
        let code = &shared.code;
        let began = clock::host_tsc();
        let made = match next {
            None => code.cache.translate(path, source, page, frame),
            Some(next) => code.cache.translate_crossing(path, source, page, frame, next),
        };
        code.ticks.fetch_add(clock::host_tsc() - began, Ordering::Relaxed);
        if matches!(made, Err(NotTranslated::Full)) {
            code.start_over(shared, id);
        }
        let Made { block, emitted } = made.ok()?;
        code.tell(path, page, source, &emitted);
        Some((block, emitted.instructions()))
    }
}

/// Lets others find `made`, whose bytes were read when `writes` of code had been counted.
fn publish(shared: &Shared, made: Arc<Block<System>>, writes: u64) -> Option<Arc<Block<System>>> {
    shared.blocks.insert(Mode { width: Width::Bits64 }, Arc::clone(&made));
    // The bytes may be others than those that were read; or all code is about to go, and who sees to that has not seen
    // this.
    if shared.code_writes.load(Ordering::SeqCst) != writes || shared.code.cache.is_full() {
        fetch::forget(shared, &made);
    }
    made.is_valid().then_some(made)
}

/// The path from the head of `block`, by what is known of the page.
fn grown(bytes: &[u8], core: &Core, block: &Block<System>, policy: &Policy) -> Option<Path> {
    if policy.follow == Follow::Nothing {
        return Some(alone(block));
    }
    let head = (block.start & 0xfff) as u32;
    let mode = Mode { width: Width::Bits64 };
    let (shared, page) = (&core.machine.shared, block.start & !0xfff);
    let known = |offset: u32| match shared.runs.of(page | u64::from(offset), mode) {
        KEPT => shared.blocks.known(page | u64::from(offset), mode),
        runs => paths::Known::Runs(runs),
    };
    paths::grow::<System>(bytes, head, mode, policy, known)
}

fn alone(block: &Block<System>) -> Path {
    Path::run((block.start & 0xfff) as u32, block.len)
}

/// For whoever interprets it, too.
fn keep_insns(made: &mut Arc<Block<System>>, page: &[u8]) {
    if let Some(block) = Arc::get_mut(made) {
        let bytes = &page[(block.start & 0xfff) as usize..];
        let mode = Mode { width: Width::Bits64 };
        block.insns = decode::decode_block(bytes, mode, decode::BLOCK_LIMIT).insns.into();
    }
}
