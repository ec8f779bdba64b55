//! Generated code: which blocks get some, and the memory for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use engine::EngineError;
use memory::FRAME_SIZE;
use translator::native::{self, CodeCache, CodeStats, Emitted, Lane, Left, NotTranslated};
use translator::vector::ArenaError;
use translator::{Block, Insn, Mode, Width, decode};

use crate::foresight::{self, Known, Recent};
use crate::lockstep::{Lockstep, Verified};
use crate::options::Options;
use crate::profile;
use crate::system::{Core, System};
use crate::vm::Shared;
use crate::{Observers, clock, fetch};

/// The generated code of a VM.
pub(crate) struct Code {
    cache: Arc<CodeCache>,
    options: Options,
    observers: Observers,
    /// Blocks translated before they had run often, since they were going to.
    foreseen: AtomicU64,
    /// Ticks of the host's TSC spent on translating.
    ticks: AtomicU64,
    /// The generation after which nobody is in old code any more, when the memory was full.
    leaving: Mutex<Option<u64>>,
}

impl Code {
    pub(crate) fn new(options: Options, observers: Observers) -> Result<Self, ArenaError> {
        let cache = Arc::new(CodeCache::new(options.code_bytes, how(options))?);
        if let Some(map) = &observers.perf_map {
            cache.thunk_names().for_each(|(name, range)| map.add(range, name));
        }
        Ok(Self {
            cache,
            options,
            observers,
            foreseen: AtomicU64::new(0),
            ticks: AtomicU64::new(0),
            leaving: Mutex::default(),
        })
    }

    pub(crate) fn stats(&self) -> CodeStats {
        self.cache.stats()
    }

    pub(crate) fn foreseen(&self) -> u64 {
        self.foreseen.load(Ordering::Relaxed)
    }

    pub(crate) fn translation_ns(&self) -> u64 {
        clock::ticks_to_duration(self.ticks.load(Ordering::Relaxed)).as_nanos() as u64
    }

    /// What is known of code that was decoded just now from physical address `start` on.
    pub(crate) fn foresee(&self, core: &mut Core, start: u64, insns: &[Insn<System>]) -> Known {
        match &self.observers.profile {
            Some(profile) => foresight::from(profile, core, start, insns, self.options.hot),
            None if self.options.predict => foresight::bound(core, start, insns),
            None => Known::default(),
        }
    }

    /// Tells those who want to know.
    fn tell(&self, block: &Block<System>, source: &[u8], made: &Emitted) {
        let (start, len) = (block.start, u64::from(block.len));
        if let Some(recorder) = &self.observers.recorder {
            recorder.add(profile::key(start, source));
        }
        if let Some(map) = &self.observers.perf_map {
            map.add(made.addresses(), format_args!("guest_{start:x}+{len:x}"));
        }
        if self.options.dump.is_some_and(|wanted| (start..start + len).contains(&wanted)) {
            // On a terminal in raw mode a line feed does not return to the margin.
            eprint!("{}", made.listing(start, source).replace('\n', "\r\n"));
        }
    }

    /// The block of `bytes` at `start` and its code, which is made once more. `None`: there is no room.
    pub(crate) fn list(&self, bytes: &[u8], start: u64, frame: u32) -> Option<String> {
        let mode = Mode { width: Width::Bits64 };
        let decoded = decode::decode_block(bytes, mode, decode::BLOCK_LIMIT);
        let block = Arc::new(Block::<System>::new(decoded.insns, start, None));
        let made = self.cache.translate(&block, bytes, frame).ok()??;
        Some(made.listing(start, bytes))
    }

    /// The memory is full: all code goes, and there is none before every vCPU has come out of it.
    #[cold]
    fn start_over(&self, shared: &Shared, vcpu: u32) {
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.cache.is_full() {
            return;
        }
        let generation = *leaving.get_or_insert_with(|| {
            shared.blocks.clear();
            shared.begin_revocation_from(vcpu)
        });
        if shared.is_revoked(generation, vcpu) {
            self.cache.reset();
            *leaving = None;
        }
    }
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
    hot: u32,
    recent: Recent,
    lockstep: Option<Lockstep>,
}

impl Native {
    /// `None` where everything is interpreted.
    pub(crate) fn new(core: &Core) -> Option<Self> {
        let shared = &core.machine.shared;
        let options = shared.code.options;
        let lane = || Lane::new(Arc::clone(&shared.code.cache));
        let lockstep = options.verify.then(|| Lockstep::new(core, how(options)));
        is_used(options).then(|| Self {
            lane: lane(),
            hot: options.hot,
            recent: Recent::new(),
            lockstep,
        })
    }

    /// Whether blocks are translated when they are met.
    pub(crate) fn is_eager(&self) -> bool {
        self.hot <= 1
    }

    /// Instructions at RIP are going to run that are not kept.
    #[inline(always)]
    pub(crate) fn pass(&mut self, core: &Core) {
        if let Some(start) = core.machine.tlb.fetch(core.cpu.rip()) {
            self.recent.note(start);
        }
    }

    /// This thread is going to run `core`.
    pub(crate) fn begin(&mut self, core: &mut Core) {
        self.lane.begin(core);
    }

    /// Runs `block`, to which RIP points, and what follows it. `None`: it is to be interpreted.
    #[inline]
    pub(crate) fn run(&mut self, core: &mut Core, block: &Arc<Block<System>>) -> Option<Left> {
        if !self.connect(core, block) {
            return None;
        }
        core.machine.tlb.admit(core.cpu.rip(), block.code_frame()?);
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

    /// Lets the branch that came out last lead to `block`, to which RIP points. Whether the block has code.
    pub(crate) fn connect(&mut self, core: &mut Core, block: &Arc<Block<System>>) -> bool {
        let has_code = block.has_code() || self.translate(core, block);
        if has_code {
            self.lane.connect(core.cpu.rip(), block);
        }
        has_code
    }

    fn translate(&mut self, core: &mut Core, block: &Arc<Block<System>>) -> bool {
        if core.cpu.width != Width::Bits64 || block.next_page.is_some() {
            return false;
        }
        let left = self.hot.saturating_sub(block.entered());
        let foreseen = left > 0 && foresight::will_run(core, block, left, &mut self.recent);
        if left > 0 && !foreseen {
            self.recent.note(block.start);
            return false;
        }
        let shared = Arc::clone(&core.machine.shared);
        shared.code.foreseen.fetch_add(u64::from(foreseen), Ordering::Relaxed);
        let Some(frame) = core.machine.frame(block.start) else { return false };
        let writes = shared.code_writes.load(Ordering::SeqCst);
        let mut bytes = [0; FRAME_SIZE];
        let bytes = &mut bytes[..block.len as usize];
        if !block.is_valid() || fetch::read_code(core, block.start, bytes).is_err() {
            return false;
        }
        let began = clock::host_tsc();
        let made = shared.code.cache.translate(block, bytes, frame.0);
        shared.code.ticks.fetch_add(clock::host_tsc() - began, Ordering::Relaxed);
        match made {
            Ok(made) => {
                if let Some(made) = &made {
                    shared.code.tell(block, bytes, made);
                }
                // The bytes may be others than those that were decoded: then it runs once, as prefetched
                // code may.
                if shared.code_writes.load(Ordering::SeqCst) != writes {
                    fetch::forget(&shared, block);
                }
                true
            }
            Err(NotTranslated::Full) => {
                shared.code.start_over(&shared, core.machine.id);
                false
            }
            Err(NotTranslated::Never) => false,
        }
    }
}
