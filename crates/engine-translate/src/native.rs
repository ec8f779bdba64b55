//! Generated code: which blocks get some, and the memory for it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use memory::FRAME_SIZE;
use translator::native::{CodeCache, CodeStats, Emitted, Lane, Left, Made, NotTranslated};
use translator::paths::{self, Follow, Known, Path, Policy, Source};
use translator::vector::ArenaError;
use translator::{Block, Mode, Width};

use crate::fetch;
use crate::heads::{Heads, Next, Reached};
use crate::options::Options;
use crate::perf_map::PerfMap;
use crate::system::{Core, System};
use crate::vm::Shared;

/// The generated code of a VM.
pub(crate) struct Code {
    cache: Arc<CodeCache>,
    options: Options,
    perf_map: Option<Arc<PerfMap>>,
    /// The generation after which nobody is in old code any more, when the memory was full.
    leaving: Mutex<Option<u64>>,
}

impl Code {
    pub(crate) fn new(
        options: Options,
        perf_map: Option<Arc<PerfMap>>,
    ) -> Result<Self, ArenaError> {
        let cache = Arc::new(CodeCache::new(options.code_bytes, options.native, options.policy())?);
        if let Some(map) = &perf_map {
            cache.thunk_names().for_each(|(name, range)| map.add(range, name));
        }
        Ok(Self { cache, options, perf_map, leaving: Mutex::default() })
    }

    pub(crate) fn stats(&self) -> CodeStats {
        self.cache.stats()
    }

    /// Tells those who want to know.
    fn tell(&self, path: &Path, page: u64, source: Source<'_>, made: &Emitted) {
        let (base, len) = (page << 12, path.len());
        if let Some(map) = &self.perf_map {
            let start = base + u64::from(path.head());
            map.add(made.addresses(), format_args!("guest_{start:x}+{len:x}"));
        }
        let wanted = |at: u64| at >> 12 == page && path.covers((at & 0xfff) as u32);
        if self.options.dump.is_some_and(wanted) {
            // On a terminal in raw mode a line feed does not return to the margin.
            eprint!("{}", made.listing(base, source).replace('\n', "\r\n"));
        }
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

/// A vCPU's way through generated code.
pub(crate) struct Native {
    lane: Lane,
    policy: Policy,
    /// Where only some targets may be heads of paths.
    heads: Option<Box<Heads>>,
    /// What ran last was code.
    was_inside: bool,
}

impl Native {
    /// `None` where everything is interpreted.
    pub(crate) fn new(shared: &Shared) -> Option<Self> {
        let options = shared.code.options;
        if !is_used(options) {
            return None;
        }
        let (lane, policy) = (Lane::new(Arc::clone(&shared.code.cache)), options.policy());
        let heads = Heads::new(&policy).map(Box::new);
        Some(Self { lane, policy, heads, was_inside: false })
    }

    /// Whether blocks are kept when they are met for the first time.
    pub(crate) fn is_eager(&self) -> bool {
        self.policy.hot() <= 1 || self.heads.is_some()
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
        core.machine.tlb.admit(core.cpu.rip(), block.code_frame()?);
        self.was_inside = true;
        self.lane.run(core, block)
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
        if core.cpu.width != Width::Bits64 || block.next_page.is_some() {
            self.interrupt();
            return None;
        }
        let Some(heads) = &mut self.heads else {
            if block.entered() < self.policy.hot() {
                return None;
            }
            return self.make(core, block, |bytes, core, policy| grown(bytes, core, block, policy));
        };
        let reached = match self.lane.came_from() {
            Some(from) => Reached::Code(block.start & !0xfff | u64::from(from)),
            None if std::mem::take(&mut self.was_inside) => Reached::Elsewhere,
            None => Reached::Interpreted,
        };
        match heads.next(block, reached) {
            Next::Interpret => None,
            Next::Code if block.has_code() => Some(Arc::clone(block)),
            Next::Code => self.make(core, block, |_, _, _| Some(alone(block))),
            Next::Recorded { page, path } => {
                self.make_recorded(core, page, path);
                None
            }
        }
    }

    /// Where its head has been written over meanwhile there is no path.
    fn make_recorded(&self, core: &mut Core, page: u64, path: Path) {
        let head = page << 12 | u64::from(path.head());
        let mode = Mode { width: Width::Bits64 };
        let found = core.machine.shared.blocks.find(head, mode, || None);
        if let Some(block) = found {
            self.make(core, &block, |_, _, _| Some(path));
        }
    }

    /// Code for the path that `choose` finds in the page of `block`, with the same head.
    fn make(
        &self,
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
        let cache = &shared.code.cache;
        match cache.translate(&path, source, page, frame.0) {
            Ok(Made { block: made, emitted }) => {
                shared.code.tell(&path, page, source, &emitted);
                shared.blocks.insert(Mode { width: Width::Bits64 }, Arc::clone(&made));
                // The bytes may be others than those that were read; or all code is about to go, and who sees to that
                // has not seen this.
                if shared.code_writes.load(Ordering::SeqCst) != writes || cache.is_full() {
                    fetch::forget(&shared, &made);
                }
                made.is_valid().then_some(made)
            }
            Err(NotTranslated::Full) => {
                shared.code.start_over(&shared, core.machine.id);
                None
            }
            Err(NotTranslated::Never) => None,
        }
    }
}

/// The path from the head of `block`, by what is known of the page.
fn grown(bytes: &[u8], core: &Core, block: &Block<System>, policy: &Policy) -> Option<Path> {
    if policy.follow == Follow::Nothing {
        return Some(alone(block));
    }
    let head = (block.start & 0xfff) as u32;
    let mode = Mode { width: Width::Bits64 };
    let all = core.machine.shared.blocks.known(block.start >> 12, mode);
    let known = |offset: u32| {
        let index = all.binary_search_by_key(&offset, |&(offset, _)| offset);
        index.map_or(Known::Runs(0), |index| all[index].1)
    };
    paths::grow(bytes, head, mode, policy, known)
}

fn alone(block: &Block<System>) -> Path {
    Path::run((block.start & 0xfff) as u32, block.len)
}
