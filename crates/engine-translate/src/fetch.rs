//! From RIP to a decoded block.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use memory::{Access, FRAME_SIZE, Gpa};
use translator::decode::{self, MAX_LEN};
use translator::{Block, Insn, Mode, Stop, Width};

use crate::access::Target;
use crate::foresight::Known;
use crate::host;
use crate::native::Native;
use crate::runs::KEPT;
use crate::system::{Core, System};
use crate::vm::Shared;
use crate::walk::Kind;

/// Bytes that nearly every block has at most.
const SHORT: usize = 96;

/// Bytes that the longest block can have.
const WINDOW: usize = decode::BLOCK_LIMIT * MAX_LEN;

/// Entries of the jump cache; a power of two.
const JUMPS: usize = 1 << 14;

/// Blocks that ran lately, by the linear address of their first instruction.
///
/// An entry is only a guess: the TLB says which physical address a fetch comes from, and the block has to
/// be the one at that address. So nothing that changes translations has to touch this cache, and address
/// spaces share what they have in common.
pub(crate) struct JumpCache {
    entries: Box<[Jump]>,
    /// Instructions that are not kept, decoded last.
    once: Vec<Insn<System>>,
}

/// What RIP leads to.
pub(crate) enum Found<'a> {
    Block(&'a Arc<Block<System>>),
    /// Instructions that are not kept: as long as no others are asked for.
    Once(&'a [Insn<System>]),
}

struct Jump {
    key: u64,
    block: Option<Arc<Block<System>>>,
}

/// What is interpreted always is kept when it is met for the second time.
pub(crate) const AGAIN: u32 = 2;

impl JumpCache {
    pub(crate) fn new() -> Self {
        let entries = (0..JUMPS).map(|_| Jump { key: 0, block: None }).collect();
        Self { entries, once: Vec::new() }
    }

    /// The block at RIP.
    #[inline(always)]
    pub(crate) fn block(
        &mut self,
        core: &mut Core,
        native: Option<&Native>,
    ) -> Result<Found<'_>, Stop> {
        let va = linear_rip(core);
        let key = key(va, core.cpu.width);
        let jump = &mut self.entries[index(va)];
        if !jump.is_current(&core.machine, va, key) {
            let Some(block) = find(core, va, &mut self.once, native)? else {
                return Ok(Found::Once(&self.once));
            };
            *jump = Jump { key, block: Some(block) };
        }
        Ok(Found::Block(jump.block.as_ref().expect("an entry without block is not current")))
    }

    /// The instructions at RIP, where there is a path that has none: to be run once.
    #[cold]
    pub(crate) fn instructions(&mut self, core: &mut Core) -> Result<&[Insn<System>], Stop> {
        let (va, user) = (linear_rip(core), core.cpu.cpl == 3);
        let gpa = code_address(&mut core.machine, va, user)?;
        decode(core, gpa, Mode { width: core.cpu.width }, &mut self.once)?;
        if self.once.is_empty() {
            let next_gpa = code_address(&mut core.machine, next_page(va), user)?;
            let insn = crossing_insn(core, gpa, next_gpa)?;
            self.once.push(insn);
        }
        Ok(&self.once)
    }
}

impl Jump {
    #[inline(always)]
    fn is_current(&self, machine: &System, va: u64, key: u64) -> bool {
        let Some(block) = &self.block else { return false };
        self.key == key
            && machine.tlb.fetch(va) == Some(block.start)
            && block.is_valid()
            && block.next_page.is_none_or(|page| {
                machine.tlb.fetch(next_page(va)).is_some_and(|gpa| gpa >> 12 == page)
            })
    }
}

#[inline(always)]
fn index(va: u64) -> usize {
    (va >> 2 ^ va >> 12) as usize & (JUMPS - 1)
}

/// Address and width in one word: a canonical address has equal top bits, and widths are single bits, so no
/// two pairs give the same.
#[inline(always)]
fn key(va: u64, width: Width) -> u64 {
    va ^ (width as u64) << 57
}

pub(crate) fn next_page(va: u64) -> u64 {
    (va | 0xfff).wrapping_add(1)
}

/// The block at `va` from the shared cache, or decoded now. `None`: it is to run from `once`.
#[cold]
#[inline(never)]
fn find(
    core: &mut Core,
    va: u64,
    once: &mut Vec<Insn<System>>,
    native: Option<&Native>,
) -> Result<Option<Arc<Block<System>>>, Stop> {
    let mode = Mode { width: core.cpu.width };
    let user = core.cpu.cpl == 3;
    let gpa = code_address(&mut core.machine, va, user)?;
    let keep_at = native.map_or(AGAIN, |native| native.keep_at(gpa, mode));
    let shared = &core.machine.shared;
    let runs = shared.runs.add(gpa, mode);
    let soon = shared.lately.meet(gpa, runs)
        && runs < keep_at
        && native.is_some_and(|native| native.expects(user, mode));
    let mut may_be_kept = soon || runs >= keep_at;
    if !may_be_kept && shared.is_watched(gpa) {
        let foresees = shared.code.foresees();
        shared.decoded.fetch_add(1, Ordering::Relaxed);
        decode(core, gpa, mode, once)?;
        let tells = !once.is_empty() && foresees && foresee(core, gpa, once).tells();
        if !once.is_empty() && !tells {
            return Ok(None);
        }
        // What crosses a page's end is kept from its first run on, which may have been forgotten.
        may_be_kept = true;
    }
    let shared = Arc::clone(&core.machine.shared);
    if may_be_kept {
        let machine = &mut core.machine;
        // The second page is looked at only for a block that needs it; if it cannot be had, decoding below
        // finds out again and raises its fault.
        let next = || code_address(machine, next_page(va), user).ok().map(|gpa| gpa >> 12);
        let found = shared.blocks.find(gpa, mode, next);
        if found.is_some() {
            shared.runs.set(gpa, mode, KEPT);
            return Ok(found);
        }
    }
    let runs = if runs == KEPT {
        // What was there has been written over, or was dropped since it did not run often.
        shared.runs.set(gpa, mode, 1);
        1
    } else {
        runs
    };
    let hot = native.filter(|native| soon || native.is_hot(runs, mode)).map(Native::hot);
    keep(core, Place { va, gpa, mode, runs, keep: soon || runs >= keep_at, hot }, once)
}

fn foresee(core: &mut Core, gpa: u64, insns: &[Insn<System>]) -> Known {
    let shared = Arc::clone(&core.machine.shared);
    shared.code.foresee(core, gpa, insns)
}

/// Code that is not in the shared cache.
struct Place {
    va: u64,
    gpa: u64,
    mode: Mode,
    /// How often it has run, with this time.
    runs: u32,
    keep: bool,
    /// It gets code right away: the number of runs that code needs.
    hot: Option<u32>,
}

/// Decodes the block at `place`, and keeps it if that is wanted or it crosses a page's end. `None`: it is to run from
/// `once`.
fn keep(
    core: &mut Core,
    place: Place,
    once: &mut Vec<Insn<System>>,
) -> Result<Option<Arc<Block<System>>>, Stop> {
    let Place { va, gpa, mode, runs, keep, hot } = place;
    let shared = Arc::clone(&core.machine.shared);
    let mut watch = shared.code_watch.lock().unwrap_or_else(PoisonError::into_inner);
    let watched = watch_code(core, &mut watch, gpa);
    let writes = shared.code_writes.load(Ordering::SeqCst);
    shared.decoded.fetch_add(1, Ordering::Relaxed);
    decode(core, gpa, mode, once)?;
    if once.is_empty() {
        let block = crossing(core, va, gpa, &mut watch, watched)?;
        shared.runs.set(gpa, mode, KEPT);
        return Ok(Some(block));
    }
    let known = foresee(core, gpa, once);
    if !watched || !keep && !known.tells() {
        // It runs once, as prefetched code may, and is decoded again the next time.
        return Ok(None);
    }
    let block = if hot.is_some() {
        Block::without_instructions(once, gpa)
    } else {
        let mut insns = Vec::with_capacity(once.len());
        insns.append(once);
        Block::new(insns, gpa, None)
    };
    let block = Arc::new(known.with(block));
    // The entries that went by, or that are going to be.
    block.heat(hot.map_or(runs, |hot| hot.max(runs)) - 1);
    if hot.is_some_and(|hot| runs < hot) {
        shared.code.count_foreseen();
    }
    publish(&shared, mode, &block, writes);
    shared.runs.set(gpa, mode, KEPT);
    Ok(Some(block))
}

/// Lets others find `block`, unless code has been written since `writes` were counted, before its bytes were read.
fn publish(shared: &Shared, mode: Mode, block: &Arc<Block<System>>, writes: u64) {
    shared.blocks.insert(mode, Arc::clone(block));
    if shared.code_writes.load(Ordering::SeqCst) != writes {
        forget(shared, block);
    }
}

/// Decodes the block at `gpa`; no instruction: the first one crosses the page's end.
fn decode(core: &mut Core, gpa: u64, mode: Mode, into: &mut Vec<Insn<System>>) -> Result<(), Stop> {
    let left = FRAME_SIZE - (gpa & 0xfff) as usize;
    let mut bytes = [0; SHORT];
    let bytes = &mut bytes[..SHORT.min(left)];
    read_code(core, gpa, bytes)?;
    if !decode::decode_into(into, bytes, mode, decode::BLOCK_LIMIT) && bytes.len() < left {
        let mut bytes = [0; WINDOW];
        let bytes = &mut bytes[..WINDOW.min(left)];
        read_code(core, gpa, bytes)?;
        decode::decode_into(into, bytes, mode, decode::BLOCK_LIMIT);
    }
    Ok(())
}

/// The block of the one instruction at `gpa`, which reaches into another page.
fn crossing(
    core: &mut Core,
    va: u64,
    gpa: u64,
    watch: &mut CodeWatch,
    watched: bool,
) -> Result<Arc<Block<System>>, Stop> {
    let shared = Arc::clone(&core.machine.shared);
    let mode = Mode { width: core.cpu.width };
    let next_gpa = code_address(&mut core.machine, next_page(va), core.cpu.cpl == 3)?;
    let watched = watch_code(core, watch, next_gpa) && watched;
    let writes = shared.code_writes.load(Ordering::SeqCst);
    let insn = crossing_insn(core, gpa, next_gpa)?;
    let block = Arc::new(Block::new(vec![insn], gpa, Some(next_gpa >> 12)));
    if !watched {
        // It runs once, as prefetched code may, and is decoded again the next time.
        block.invalidate();
        return Ok(block);
    }
    publish(&shared, mode, &block, writes);
    Ok(block)
}

/// The instruction at `gpa`, which goes on at `next_gpa`.
fn crossing_insn(core: &mut Core, gpa: u64, next_gpa: u64) -> Result<Insn<System>, Stop> {
    let mut bytes = [0; 2 * MAX_LEN];
    let len = FRAME_SIZE - (gpa & 0xfff) as usize;
    read_code(core, gpa, &mut bytes[..len])?;
    read_code(core, next_gpa, &mut bytes[len..len + MAX_LEN])?;
    let mode = Mode { width: core.cpu.width };
    let insn = decode::decode_crossing(&bytes[..len + MAX_LEN], mode);
    insn.ok_or_else(|| core.machine.gp(0))
}

/// Somebody wrote code between our reading the bytes and inserting the block, and may have looked for it
/// before it was there: it runs once too.
pub(crate) fn forget(shared: &Shared, block: &Block<System>) {
    let first = block.start as u32 & 0xfff;
    shared.blocks.invalidate(block.start >> 12, first, first + 1);
}

/// Frames on their way into and out of being code, while some vCPU has yet to pass a block's end: physical
/// pages, and the generation that ends the wait.
#[derive(Debug, Default)]
pub(crate) struct CodeWatch {
    /// Marked, but some vCPU may still write them unnoticed.
    entering: HashMap<u64, u64>,
    /// Without blocks, but some vCPU may still run one.
    leaving: HashMap<u64, u64>,
}

/// Frames that may leave at a time; one that is forgotten starts again at its next store.
const LEAVING: usize = 1024;

impl CodeWatch {
    /// The generation after which nobody runs code of `page`, begun now unless it was before.
    pub(crate) fn begin_leaving(&mut self, page: u64, begin: impl FnOnce() -> u64) -> u64 {
        if self.leaving.len() >= LEAVING {
            self.leaving.clear();
        }
        *self.leaving.entry(page).or_insert_with(begin)
    }

    /// Whether there are such frames.
    pub(crate) fn moves(&self) -> bool {
        !self.entering.is_empty() || !self.leaving.is_empty()
    }

    /// The frame is not code any more.
    pub(crate) fn forget(&mut self, page: u64) {
        self.entering.remove(&page);
        self.leaving.remove(&page);
    }
}

/// Makes sure that no store to the frame goes unseen, and returns whether that is so already.
///
/// The other vCPUs have to drop their translations first, each between two blocks. This one does not wait
/// for them, since one that the host has descheduled takes its time.
fn watch_code(core: &mut Core, watch: &mut CodeWatch, gpa: u64) -> bool {
    let shared = Arc::clone(&core.machine.shared);
    let Some(frame) = shared.memory.frame_of(Gpa(gpa)) else { return true };
    let page = gpa >> 12;
    watch.leaving.remove(&page);
    // Before it is marked: see `Shared::is_watched`.
    shared.code_moves.store(true, Ordering::SeqCst);
    if shared.memory.mark_code(frame) {
        // Resolved by the fetch, so that this gives the address and no more.
        if let Ok(host) = shared.memory.resolve(frame, Access::Read) {
            core.machine.tlb.drop_writes(host.as_ptr() as usize);
        }
        if shared.vcpus.len() > 1 {
            watch.entering.insert(page, shared.begin_revocation_from(core.machine.id));
        }
    }
    let generation = watch.entering.get(&page);
    let done = generation.is_none_or(|&generation| shared.is_revoked(generation, core.machine.id));
    if done {
        watch.entering.remove(&page);
    }
    shared.code_moves.store(watch.moves(), Ordering::SeqCst);
    done
}

/// Translates for a fetch. Code in device registers cannot be fetched: the bus answers with ones, which no
/// sane guest executes; #GP stands for what hardware leaves open.
fn code_address(machine: &mut System, va: u64, user: bool) -> Result<u64, Stop> {
    if let Some(gpa) = machine.tlb.fetch(va) {
        return Ok(gpa);
    }
    match machine.target(va, Kind::Fetch, user)? {
        Target::Ram { gpa, .. } => Ok(gpa),
        Target::Device { .. } => Err(machine.gp(0)),
    }
}

/// Reads from the frame that was marked, wherever the page tables lead by now.
pub(crate) fn read_code(core: &mut Core, gpa: u64, into: &mut [u8]) -> Result<(), Stop> {
    let memory = &core.machine.shared.memory;
    let frame = memory.frame_of(Gpa(gpa));
    let page = frame.and_then(|frame| memory.resolve(frame, Access::Read).ok());
    let Some(page) = page else { return Err(core.machine.lost_memory(gpa)) };
    let host = page.as_ptr() as usize + (gpa & 0xfff) as usize;
    // SAFETY: the caller asks for no more than is left of the page, which was resolved just now.
    unsafe { host::load_bytes(host, into) };
    Ok(())
}

/// CS:RIP as a linear address: CS has no base in 64-bit mode, and addresses 32 bits elsewhere.
#[inline(always)]
pub(crate) fn linear_rip(core: &Core) -> u64 {
    let rip = core.cpu.rip();
    match core.cpu.width {
        Width::Bits64 => rip,
        _ => core.cpu.segs[1].base.wrapping_add(rip) & 0xffff_ffff,
    }
}
