//! Runs code as generated code.

use std::arch::asm;
use std::sync::Arc;

use translator::decode::decode_block;
use translator::native::tables::{
    GUARDS, NO_GUARD, SECOND, TRANSLATIONS, Translation, data_index, guard, guard_index,
    second_index,
};
use translator::native::{CodeCache, Lane, NotTranslated, Options, View};
use translator::{Block, Mode, Outcome as Ended};
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
        let cache = Arc::new(CodeCache::new(CODE, options).expect("memory for code"));
        let lane = Lane::new(Arc::clone(&cache));
        Self { options, closed: None, cache, lane }
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
        let _base = GsBase::kept();
        self.lane.begin(&mut core);
        let mode = Mode { width: core.cpu.width };
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
                    let decoded = decode_block(&code[offset as usize..], mode, 64);
                    if decoded.insns.is_empty() {
                        break;
                    }
                    let block = Arc::new(Block::new(decoded.insns, rip, None));
                    blocks.push(Arc::clone(&block));
                    block
                }
            };
            if !block.has_code() {
                self.translate(&block, &code[offset as usize..]);
            }
            self.lane.connect(rip, &block);
            let left = self.lane.run(&mut core, &block).expect("code");
            let mut outcome = left.outcome;
            if left.interpret {
                let offset = core.cpu.rip().wrapping_sub(arena::ENTRY) as usize;
                let decoded = decode_block(&code[offset..], mode, 1);
                outcome = core.run_block(&decoded.insns, true);
            }
            if outcome == Ended::Fault {
                fault = raised(&core.machine);
                break;
            }
        }
        outcome(*core, state, fault)
    }

    fn translate(&mut self, block: &Arc<Block<FlatMachine>>, source: &[u8]) {
        match self.cache.translate(block, source, FRAME) {
            Err(NotTranslated::Full) => {
                self.cache.reset();
                self.cache.translate(block, source, FRAME).expect("room");
            }
            done => drop(done.expect("a block that can be translated")),
        }
    }
}
