//! Runs code as generated code.

use std::arch::asm;
use std::sync::Arc;

use translator::decode::decode_block;
use translator::native::tables::{
    GUARDS, NO_GUARD, SECOND, TRANSLATIONS, Translation, data_index, guard, guard_index,
    second_index,
};
use translator::native::{CodeCache, Lane, Made, Options, View};
use translator::paths::{self, Follow, Known, Path, Policy, Source};
use translator::{Block, Mode, Outcome as Ended, Width};
use x86::Exception;

use crate::arena;
use crate::interpret::{self, FlatMachine, outcome, raised};
use crate::native::Bitness;
use crate::state::{Outcome, State};

/// Code of some hundred cases.
const CODE: usize = 1 << 20;
/// The number of the only frame with code.
const FRAME: u32 = 5;

/// What generated code looks at.
#[derive(Debug)]
pub struct Tables {
    translations: Box<[Translation; TRANSLATIONS]>,
    second: Box<[Translation]>,
    guards: Box<[u64; GUARDS]>,
    pending: Box<u8>,
}

impl Tables {
    /// With nothing in them.
    fn new() -> Self {
        let mut translations = Box::new([Translation::empty(0); TRANSLATIONS]);
        for (index, translation) in translations.iter_mut().enumerate() {
            *translation = Translation::empty(index);
        }
        let second = (0..SECOND).map(Translation::empty).collect();
        let guards = Box::new([NO_GUARD; GUARDS]);
        Self { translations, second, guards, pending: Box::new(0) }
    }

    /// For the arena, with these data.
    fn of_arena(data: &mut [u8; arena::DATA_LEN]) -> Self {
        let mut tables = Self::new();
        for page in (0..arena::DATA_LEN).step_by(4096) {
            let va = arena::DATA + page as u64;
            let host = data.as_mut_ptr() as usize + page;
            let translation = Translation { read: va, write: va, host };
            tables.second[second_index(va)] = translation;
            // Another page has taken its place in the first, as it were.
            if page == 0 {
                tables.translations[data_index(va)] = translation;
            }
        }
        tables.guards[guard_index(arena::CODE)] = guard(arena::CODE, FRAME);
        tables
    }

    pub(crate) fn view(&self) -> View {
        View {
            translations: self.translations.as_ptr() as usize,
            second: self.second.as_ptr() as usize,
            guards: self.guards.as_ptr() as usize,
            pending: std::ptr::from_ref(&*self.pending) as usize,
            held: false,
            tsc_offset: None,
            tsc_aux: 0,
            base_instructions: false,
            copies_told: false,
            calls: 0,
            of_privilege: [None; 2],
        }
    }
}

/// Puts the base of GS back: [`crate::Host`] has its own.
struct GsBase(u64);

impl GsBase {
    fn kept() -> Self {
        let base;
        // SAFETY: reads a register; whoever runs generated code may.
        unsafe { asm!("rdgsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
        Self(base)
    }
}

impl Drop for GsBase {
    fn drop(&mut self) {
        // SAFETY: what it was before.
        unsafe { asm!("wrgsbase {}", in(reg) self.0, options(nomem, nostack, preserves_flags)) };
    }
}

/// Runs cases, one after the other.
pub struct Translated {
    options: Options,
    policy: Policy,
    /// What vector and x87 instructions raise.
    pub closed: Option<Exception>,
    cache: Arc<CodeCache>,
    lane: Lane,
}

impl Translated {
    /// With these options.
    ///
    /// # Panics
    ///
    /// Where the host has no memory for code.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self::with_paths(options, Policy::BLOCKS)
    }

    /// The same with paths by `policy`, which take conditional branches at random.
    ///
    /// # Panics
    ///
    /// As [`Translated::new`].
    #[must_use]
    pub fn with_paths(options: Options, policy: Policy) -> Self {
        let cache = Arc::new(CodeCache::new(CODE, options, policy).expect("memory for code"));
        let lane = Lane::new(Arc::clone(&cache));
        Self { options, policy, closed: None, cache, lane }
    }

    /// Whether a fault may find status flags that are not what they were.
    #[must_use]
    pub fn forgets_flags(&self) -> bool {
        self.options.forget_dead_flags
    }

    /// As [`interpret::run`], for 64-bit code.
    #[must_use]
    pub fn run(&mut self, state: &State, code: &[u8], limit: usize) -> Outcome {
        let mut core = Box::new(interpret::core(state, Bitness::Bits64));
        core.machine.closed = self.closed;
        core.machine.tables = Some(Tables::of_arena(&mut core.machine.data));
        // Not while there are blocks with code.
        if self.cache.bytes() > CODE / 2 {
            self.cache.reset();
        }
        let _base = GsBase::kept();
        self.lane.begin(&mut core);
        let mut fault = None;
        let mut blocks: Vec<Arc<Block<FlatMachine>>> = Vec::new();
        for _ in 0..limit {
            let offset = core.cpu.rip().wrapping_sub(arena::ENTRY);
            if offset >= code.len() as u64 {
                break;
            }
            let rip = core.cpu.rip();
            let block = match blocks.iter().find(|block| block.start == rip) {
                Some(block) => Arc::clone(block),
                None => {
                    let Some(path) = self.path(code, rip) else { break };
                    let block = self.translate(&path, code);
                    blocks.push(Arc::clone(&block));
                    block
                }
            };
            self.lane.connect(rip, &block);
            let left = self.lane.run(&mut core, &block).expect("code");
            let mut outcome = left.outcome;
            if left.interpret {
                let offset = core.cpu.rip().wrapping_sub(arena::ENTRY) as usize;
                let decoded = decode_block(&code[offset..], MODE, 1);
                outcome = core.run_block(&decoded.insns, true);
            }
            if outcome == Ended::Fault {
                fault = raised(&core.machine);
                break;
            }
        }
        // The next case has other code at the same places.
        blocks.iter().for_each(|block| block.invalidate());
        outcome(*core, state, fault)
    }

    /// What is translated from `rip` on.
    fn path(&self, code: &[u8], rip: u64) -> Option<Path> {
        let head = (rip & 0xfff) as u32;
        if self.policy.follow == Follow::Nothing {
            let decoded =
                decode_block::<FlatMachine>(&code[(rip - arena::ENTRY) as usize..], MODE, 64);
            return (!decoded.insns.is_empty()).then(|| Path::run(head, decoded.len));
        }
        let mut page = vec![0xcc; FIRST as usize];
        page.extend(code);
        let known = |at: u32| Known::Runs(1 + (at.wrapping_mul(0x9e37_79b1) >> 28));
        paths::grow::<FlatMachine>(&page, head, MODE, &self.policy, known)
    }

    fn translate(&mut self, path: &Path, code: &[u8]) -> Arc<Block<FlatMachine>> {
        let source = Source { bytes: code, first: FIRST };
        let page = arena::ENTRY >> 12;
        let made = self.cache.translate(path, source, page, FRAME);
        let Made { block, .. } = made.expect("a path that can be translated");
        block
    }
}

const MODE: Mode = Mode { width: Width::Bits64 };

/// Offset of the code in its page.
const FIRST: u32 = (arena::ENTRY & 0xfff) as u32;
