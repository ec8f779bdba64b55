//! From RIP to a decoded block.

use std::sync::{Arc, PoisonError};

use memory::Gpa;
use translator::decode::{self, MAX_LEN};
use translator::{Block, Mode, Stop};

use crate::access::Target;
use crate::host;
use crate::system::{Core, System};
use crate::walk::Kind;
use memory::FRAME_SIZE;

/// Entries of the jump cache; a power of two.
const JUMPS: usize = 4096;

/// Blocks by the linear address of their first instruction, the address space and the privilege.
pub(crate) struct JumpCache {
    entries: Box<[Jump]>,
    /// Entries of an older generation are stale.
    generation: u64,
}

struct Jump {
    key: u64,
    generation: u64,
    block: Option<Arc<Block<System>>>,
}

impl JumpCache {
    pub(crate) fn new() -> Self {
        let entries = (0..JUMPS).map(|_| Jump { key: 0, generation: 0, block: None }).collect();
        Self { entries, generation: 1 }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.generation += 1;
    }

    /// Takes the block out, so that it can run while everything else is borrowed; [`JumpCache::put`] puts
    /// it back.
    #[inline(always)]
    pub(crate) fn take(&mut self, key: u64) -> Option<Arc<Block<System>>> {
        let entry = &mut self.entries[index(key)];
        if entry.key == key && entry.generation == self.generation {
            return entry.block.take();
        }
        None
    }

    #[inline(always)]
    pub(crate) fn put(&mut self, key: u64, block: Arc<Block<System>>) {
        let generation = self.generation;
        self.entries[index(key)] = Jump { key, generation, block: Some(block) };
    }
}

#[inline(always)]
fn index(key: u64) -> usize {
    (key ^ key >> 12) as usize & (JUMPS - 1)
}

/// What a jump-cache entry is found by: 48 bits of address (canonical, or translated as if it were: the
/// key only has to be unambiguous), the address-space number, the privilege.
#[inline(always)]
pub(crate) fn key(core: &Core) -> u64 {
    linear_rip(core) & 0xffff_ffff_ffff
        | core.machine.tlb.asid() << 48
        | u64::from(core.cpu.cpl == 3) << 60
}

/// The block at RIP, from the shared cache or decoded now.
#[cold]
#[inline(never)]
pub(crate) fn block(core: &mut Core) -> Result<Arc<Block<System>>, Stop> {
    let va = linear_rip(core);
    let mode = Mode { width: core.cpu.width };
    let user = core.cpu.cpl == 3;
    let gpa = code_address(&mut core.machine, va, user)?;
    let shared = Arc::clone(&core.machine.shared);
    let next = (va | 0xfff).wrapping_add(1);
    let machine = &mut core.machine;
    // The second page is looked at only for a block that needs it; if it cannot be had, decoding below
    // finds out again and raises its fault.
    let found = shared
        .blocks
        .find(gpa, mode, || code_address(machine, next, user).ok().map(|gpa| gpa >> 12));
    if let Some(block) = found {
        return Ok(block);
    }
    decode(core, va, gpa, mode, user)
}

fn decode(
    core: &mut Core,
    va: u64,
    gpa: u64,
    mode: Mode,
    user: bool,
) -> Result<Arc<Block<System>>, Stop> {
    let shared = Arc::clone(&core.machine.shared);
    // Outside while we wait for the lock: its holder may be waiting for us.
    let own = &shared.vcpus[core.machine.id as usize].attention;
    shared.generation.leave(own);
    let decoding = shared.decoding.lock().unwrap_or_else(PoisonError::into_inner);
    if shared.generation.enter(own) {
        core.machine.flush_all();
    }
    // Translations may have changed while we were outside.
    let again = code_address(&mut core.machine, va, user)?;
    if again != gpa {
        return Err(Stop::Retry);
    }
    mark_code(core, gpa);
    let mut bytes = [0; FRAME_SIZE + MAX_LEN];
    let len = FRAME_SIZE - (gpa & 0xfff) as usize;
    read_code(&mut core.machine, va, &mut bytes[..len], user)?;
    let decoded = decode::decode_block(&bytes[..len], mode, decode::BLOCK_LIMIT);
    let block = if decoded.crosses {
        let next = (va | 0xfff).wrapping_add(1);
        let next_gpa = code_address(&mut core.machine, next, user)?;
        mark_code(core, next_gpa);
        let more = MAX_LEN.min(FRAME_SIZE);
        read_code(&mut core.machine, next, &mut bytes[len..len + more], user)?;
        match decode::decode_crossing(&bytes[..len + more], mode) {
            Some(insn) => Block::new(vec![insn], gpa, Some(next_gpa >> 12)),
            None => return Err(core.machine.gp(0)),
        }
    } else {
        Block::new(decoded.insns, gpa, None)
    };
    let block = Arc::new(block);
    shared.blocks.insert(mode, Arc::clone(&block));
    drop(decoding);
    Ok(block)
}

/// Makes sure that no store to the frame goes unseen from now on.
fn mark_code(core: &mut Core, gpa: u64) {
    let shared = Arc::clone(&core.machine.shared);
    let Some(frame) = shared.memory.frame_of(Gpa(gpa)) else { return };
    if !shared.memory.mark_code(frame) {
        return;
    }
    core.machine.tlb.drop_writes();
    if shared.vcpus.len() > 1 && shared.revoke_from(core.machine.id) {
        core.machine.flush_all();
    }
}

/// Translates for a fetch. Code in device registers cannot be fetched: the bus answers with ones, which no
/// sane guest executes; #GP stands for what hardware leaves open.
fn code_address(machine: &mut System, va: u64, user: bool) -> Result<u64, Stop> {
    match machine.target(va, Kind::Fetch, user)? {
        Target::Ram { gpa, .. } => Ok(gpa),
        Target::Device { .. } => Err(machine.gp(0)),
    }
}

fn read_code(machine: &mut System, va: u64, into: &mut [u8], user: bool) -> Result<(), Stop> {
    let Target::Ram { host, .. } = machine.target(va, Kind::Fetch, user)? else {
        return Err(machine.gp(0));
    };
    for (offset, byte) in into.iter_mut().enumerate() {
        // SAFETY: the caller asks for no more than is left of the page, which was resolved just now.
        *byte = unsafe { host::load(host + offset) };
    }
    Ok(())
}

/// CS:RIP as a linear address.
pub(crate) fn linear_rip(core: &Core) -> u64 {
    core.cpu.segs[1].base.wrapping_add(core.cpu.rip())
}
