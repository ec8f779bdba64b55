//! The page walk (SDM volume 3, 4.5 to 4.8).

use memory::{Access, Frame, Gpa, GuestMemory};
use x86::{Exception, exception::page_fault, paging};

use crate::host;

/// Which access is being translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Read,
    Write,
    Fetch,
}

/// The control bits that a walk depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paging {
    pub(crate) cr3: u64,
    pub(crate) enabled: bool,
    pub(crate) write_protect: bool,
    pub(crate) no_execute: bool,
    pub(crate) smep: bool,
    /// CR4.PGE: the entries' global bits count.
    pub(crate) global: bool,
}

/// Where an address leads, and what the page allows the asking privilege beyond the access asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Translation {
    pub(crate) gpa: u64,
    /// Writes are allowed and the dirty bit is set, so they need no further walk.
    pub(crate) writable: bool,
    /// Users may use it, too.
    pub(crate) user: bool,
    pub(crate) leaf: Leaf,
}

/// The entry that a walk ends at, as far as flushes tell translations apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Leaf {
    /// 0 maps 4 KiB, 1 maps 2 MiB, 2 maps 1 GiB.
    pub(crate) level: u32,
    /// The same in all address spaces.
    pub(crate) global: bool,
}

/// Why a walk failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failed {
    /// The guest's fault.
    Fault(Exception),
    /// A table's contents cannot be had: a source of absent frames failed.
    Table(u64),
}

/// Bits 51..12 hold an address; this CPU model has 46 physical address bits, the rest is reserved.
pub(crate) const PHYSICAL_BITS: u32 = 46;
const RESERVED: u64 = paging::ADDRESS & !((1 << PHYSICAL_BITS) - 1);

/// Translates `va` for an access of `kind` made with (or without) user privilege, and sets accessed and
/// dirty bits as the access requires.
pub(crate) fn translate(
    memory: &GuestMemory,
    paging: Paging,
    va: u64,
    kind: Kind,
    user: bool,
) -> Result<Translation, Failed> {
    if !paging.enabled {
        let gpa = va & 0xffff_ffff;
        let leaf = Leaf { level: 0, global: false };
        return Ok(Translation { gpa, writable: true, user: false, leaf });
    }
    // A changed entry starts the walk over: another vCPU wrote it between our load and our update.
    loop {
        if let Some(done) = attempt(memory, paging, va, kind, user)? {
            return Ok(done);
        }
    }
}

fn attempt(
    memory: &GuestMemory,
    regs: Paging,
    va: u64,
    kind: Kind,
    user: bool,
) -> Result<Option<Translation>, Failed> {
    let fault = |bits: u32| {
        let mut code = bits;
        code |= if kind == Kind::Write { page_fault::WRITE } else { 0 };
        code |= if user { page_fault::USER } else { 0 };
        let fetch_is_told = regs.no_execute || regs.smep;
        code |= if kind == Kind::Fetch && fetch_is_told { page_fault::FETCH } else { 0 };
        Failed::Fault(Exception::page_fault(va, code))
    };
    let mut table = regs.cr3 & paging::ADDRESS;
    let (mut writable, mut user_page, mut no_execute) = (true, true, false);
    for level in (0..4).rev() {
        let at = table + (va >> (12 + 9 * level) & 0x1ff) * 8;
        // Where there is no RAM the bus answers with ones, which is an entry with reserved bits set.
        let Some(frame) = memory.frame_of(Gpa(at)) else {
            return Err(fault(page_fault::PRESENT | page_fault::RESERVED));
        };
        let entry = read(memory, frame, at)?;
        if entry & paging::PRESENT == 0 {
            return Err(fault(0));
        }
        let leaf = level == 0 || entry & paging::LARGE != 0;
        if reserved(entry, level, regs.no_execute) {
            return Err(fault(page_fault::PRESENT | page_fault::RESERVED));
        }
        writable &= entry & paging::WRITABLE != 0;
        user_page &= entry & paging::USER != 0;
        no_execute |= entry & paging::NO_EXECUTE != 0;
        if !leaf {
            if !set(memory, frame, at, entry, paging::ACCESSED)? {
                return Ok(None);
            }
            table = entry & paging::ADDRESS;
            continue;
        }
        let may_write = writable || !user && !regs.write_protect;
        let allowed = match kind {
            Kind::Read => !user || user_page,
            Kind::Write => (!user || user_page) && may_write,
            Kind::Fetch if user => !no_execute && user_page,
            Kind::Fetch => !(no_execute || user_page && regs.smep),
        };
        if !allowed {
            return Err(fault(page_fault::PRESENT));
        }
        let dirty = if kind == Kind::Write { paging::DIRTY } else { 0 };
        if !set(memory, frame, at, entry, paging::ACCESSED | dirty)? {
            return Ok(None);
        }
        let span = 1u64 << (12 + 9 * level);
        return Ok(Some(Translation {
            gpa: entry & paging::ADDRESS & !(span - 1) | va & (span - 1),
            writable: may_write && (entry | dirty) & paging::DIRTY != 0,
            user: user_page,
            leaf: Leaf { level, global: regs.global && entry & paging::GLOBAL != 0 },
        }));
    }
    unreachable!("level 0 is a leaf")
}

/// Reserved bits of an entry (SDM volume 3, tables 4-15 to 4-20): high address bits, NX without EFER.NXE,
/// the large bit in a PML4E, low address bits of a large page (bit 12 is PAT).
fn reserved(entry: u64, level: u32, no_execute: bool) -> bool {
    let mut bits = RESERVED;
    if !no_execute {
        bits |= paging::NO_EXECUTE;
    }
    if level == 3 {
        bits |= paging::LARGE;
    } else if level > 0 && entry & paging::LARGE != 0 {
        bits |= (1u64 << (12 + 9 * level)) - (1 << 13);
    }
    entry & bits != 0
}

fn page(memory: &GuestMemory, frame: Frame, at: u64, access: Access) -> Result<usize, Failed> {
    let page = memory.resolve(frame, access).map_err(|_| Failed::Table(at))?;
    Ok(page.as_ptr() as usize + (at & 0xfff) as usize)
}

/// The entry at `at`, in `frame`.
fn read(memory: &GuestMemory, frame: Frame, at: u64) -> Result<u64, Failed> {
    if let Some(events) = memory.events() {
        events.note_table(frame);
    }
    let host = page(memory, frame, at, Access::Read)?;
    // SAFETY: an aligned word of a resident page, whose address this vCPU uses before its next
    // acknowledgement (`HostPage`'s contract).
    Ok(unsafe { host::load(host) })
}

/// Sets `bits` in the entry unless they are; false if the entry is no longer `entry`.
fn set(memory: &GuestMemory, frame: Frame, at: u64, entry: u64, bits: u64) -> Result<bool, Failed> {
    if entry & bits == bits {
        return Ok(true);
    }
    let host = page(memory, frame, at, Access::Write)?;
    // SAFETY: as in `read`; resolved for writing.
    Ok(unsafe { host::compare_exchange(host, entry, entry | bits) } == entry)
}

#[cfg(test)]
mod tests;
