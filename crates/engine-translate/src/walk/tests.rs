use x86::Vector;

use super::*;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT: u64 = 0x4000;
const PAGE: u64 = 0x9000;
const ALL: u64 = paging::PRESENT | paging::WRITABLE | paging::USER;
/// Indices 1, 2, 3, 4 and offset 0x567.
const VA: u64 = 1 << 39 | 2 << 30 | 3 << 21 | 4 << 12 | 0x567;

/// Where the entries for [`VA`] are, from the top.
const ENTRIES: [u64; 4] = [PML4 + 8, PDPT + 16, PD + 24, PT + 32];

const LONG: Paging = Paging {
    cr3: PML4,
    enabled: true,
    write_protect: true,
    no_execute: true,
    smep: true,
    global: true,
};

struct Tables(GuestMemory);

impl Tables {
    fn new() -> Self {
        let tables = Self(GuestMemory::with_bytes(16 << 20).unwrap());
        for (at, next) in ENTRIES.into_iter().zip([PDPT, PD, PT, PAGE]) {
            tables.set(at, next | ALL);
        }
        tables
    }

    fn host(&self, at: u64) -> usize {
        let frame = self.0.frame_of(Gpa(at)).unwrap();
        page(&self.0, frame, at, Access::Write).unwrap()
    }

    fn set(&self, at: u64, value: u64) {
        // SAFETY: an aligned word of a resident page of a memory that only this test has.
        unsafe { host::store(self.host(at), value) };
    }

    fn entry(&self, at: u64) -> u64 {
        // SAFETY: as above.
        unsafe { host::load(self.host(at)) }
    }

    fn walk(&self, regs: Paging, kind: Kind, user: bool) -> Result<Translation, Failed> {
        translate(&self.0, regs, VA, kind, user)
    }
}

fn fault(code: u32) -> Failed {
    Failed::Fault(Exception::page_fault(VA, code))
}

/// SDM volume 3, 4.6.1 and 4.7, written down once more: what an access is answered.
fn expected(regs: Paging, [w, u, nx]: [bool; 3], kind: Kind, user: bool) -> Result<(), u32> {
    let allowed = match (kind, user) {
        (Kind::Read, false) => true,
        (Kind::Read, true) => u,
        (Kind::Write, false) => w || !regs.write_protect,
        (Kind::Write, true) => u && w,
        (Kind::Fetch, false) => !(nx && regs.no_execute || u && regs.smep),
        (Kind::Fetch, true) => u && !(nx && regs.no_execute),
    };
    if allowed {
        return Ok(());
    }
    let fetch = kind == Kind::Fetch && (regs.no_execute || regs.smep);
    let bits = [(true, 0), (kind == Kind::Write, 1), (user, 2), (fetch, 4)];
    Err(bits.iter().fold(0, |code, &(set, bit)| code | u32::from(set) << bit))
}

#[test]
fn rights_are_those_of_all_levels_together() {
    let kinds = [Kind::Read, Kind::Write, Kind::Fetch];
    for choice in 0..4u32 << 9 {
        let bit = |n: u32| choice >> n & 1 != 0;
        let (level, w, u, nx) = ((choice >> 9) as usize, bit(0), bit(1), bit(2));
        let regs = Paging { write_protect: bit(3), no_execute: bit(4), smep: bit(5), ..LONG };
        let (kind, user) = (kinds[(choice >> 6) as usize % 4 % 3], bit(8));
        if nx && !regs.no_execute {
            continue; // a reserved bit then, see below
        }
        let tables = Tables::new();
        let rights = [(paging::WRITABLE, w), (paging::USER, u), (paging::NO_EXECUTE, nx)];
        let chosen = rights.iter().fold(0, |bits, &(bit, set)| if set { bits | bit } else { bits });
        let old = tables.entry(ENTRIES[level]);
        tables.set(ENTRIES[level], old & !ALL | paging::PRESENT | chosen);
        let walked = tables.walk(regs, kind, user);
        match expected(regs, [w, u, nx], kind, user) {
            Ok(()) => assert_eq!(walked.unwrap().gpa, PAGE | 0x567, "{choice:#x}"),
            Err(code) => assert_eq!(walked, Err(fault(code)), "{choice:#x}"),
        }
    }
}

#[test]
fn accessed_and_dirty_are_set_as_far_as_the_access_went() {
    let tables = Tables::new();
    let flags = |tables: &Tables| ENTRIES.map(|at| tables.entry(at) >> 5 & 3);
    assert!(!tables.walk(LONG, Kind::Read, true).unwrap().writable);
    assert_eq!(flags(&tables), [1, 1, 1, 1]);
    assert!(tables.walk(LONG, Kind::Write, true).unwrap().writable);
    assert_eq!(flags(&tables), [1, 1, 1, 3]);
    assert!(tables.walk(LONG, Kind::Read, true).unwrap().writable);

    let tables = Tables::new();
    tables.set(ENTRIES[3], 0);
    assert_eq!(tables.walk(LONG, Kind::Write, false), Err(fault(page_fault::WRITE)));
    assert_eq!(flags(&tables), [1, 1, 1, 0]);
}

#[test]
fn a_refused_write_leaves_the_page_clean() {
    let tables = Tables::new();
    tables.set(ENTRIES[3], PAGE | paging::PRESENT | paging::USER);
    let code = page_fault::PRESENT | page_fault::WRITE | page_fault::USER;
    assert_eq!(tables.walk(LONG, Kind::Write, true), Err(fault(code)));
    assert_eq!(tables.entry(ENTRIES[3]) & (paging::ACCESSED | paging::DIRTY), 0);
}

#[test]
fn large_pages_map_with_their_offset() {
    let tables = Tables::new();
    tables.set(ENTRIES[2], 0x60_0000 | ALL | paging::LARGE);
    let two_mib = tables.walk(LONG, Kind::Read, false).unwrap();
    assert_eq!((two_mib.gpa, two_mib.leaf.level), (0x60_0000 | VA & 0x1f_ffff, 1));
    tables.set(ENTRIES[1], 0x4000_0000 | ALL | paging::LARGE);
    let one_gib = tables.walk(LONG, Kind::Read, false).unwrap();
    assert_eq!((one_gib.gpa, one_gib.leaf.level), (0x4000_0000 | VA & 0x3fff_ffff, 2));
}

#[test]
fn leaves_are_global_where_paging_says_so() {
    let tables = Tables::new();
    let is_global = |regs| tables.walk(regs, Kind::Read, false).unwrap().leaf.global;
    assert!(!is_global(LONG));
    tables.set(ENTRIES[3], PAGE | ALL | paging::GLOBAL);
    assert!(is_global(LONG) && !is_global(Paging { global: false, ..LONG }));
    // The bit of an entry that leads to another table is ignored.
    tables.set(ENTRIES[3], PAGE | ALL);
    tables.set(ENTRIES[2], PT | ALL | paging::GLOBAL);
    assert!(!is_global(LONG));
    tables.set(ENTRIES[2], 0x60_0000 | ALL | paging::LARGE | paging::GLOBAL);
    assert!(is_global(LONG));
}

#[test]
fn reserved_bits_are_told_at_every_level() {
    let code = page_fault::PRESENT | page_fault::RESERVED;
    let no_nx = Paging { no_execute: false, ..LONG };
    for (level, at) in ENTRIES.into_iter().enumerate() {
        let tables = Tables::new();
        let old = tables.entry(at);
        tables.set(at, old | 1 << 51);
        assert_eq!(tables.walk(LONG, Kind::Read, false), Err(fault(code)), "level {level}");
        tables.set(at, old | paging::NO_EXECUTE);
        assert_eq!(tables.walk(no_nx, Kind::Read, false), Err(fault(code)), "level {level}");
        tables.set(at, old);
        assert!(tables.walk(LONG, Kind::Read, false).is_ok());
    }
    let tables = Tables::new();
    for (level, low) in [(0, 0), (1, 1 << 21), (2, 1 << 13)] {
        tables.set(ENTRIES[level], ALL | paging::LARGE | low);
        assert_eq!(tables.walk(LONG, Kind::Read, false), Err(fault(code)), "level {level}");
        tables.set(ENTRIES[level], [PDPT, PD, PT][level] | ALL);
    }
}

#[test]
fn tables_outside_memory_are_reserved_bits() {
    let tables = Tables::new();
    let code = page_fault::PRESENT | page_fault::RESERVED;
    let nowhere = Paging { cr3: 1 << 40, ..LONG };
    assert_eq!(tables.walk(nowhere, Kind::Read, false), Err(fault(code)));
    tables.set(ENTRIES[1], 1 << 40 | ALL);
    assert_eq!(tables.walk(LONG, Kind::Read, false), Err(fault(code)));
}

#[test]
fn a_fault_names_the_address() {
    let tables = Tables::new();
    tables.set(ENTRIES[0], 0);
    let Err(Failed::Fault(exception)) = tables.walk(LONG, Kind::Fetch, true) else {
        panic!("a missing entry translates")
    };
    assert_eq!((exception.vector, exception.address), (Vector::PF, VA));
    assert_eq!(exception.error_code, page_fault::USER | page_fault::FETCH);
}

#[test]
fn without_paging_addresses_are_physical_and_short() {
    let tables = Tables::new();
    let regs = Paging { enabled: false, ..LONG };
    let walked = translate(&tables.0, regs, 0x1_0000_1234, Kind::Write, false);
    let leaf = Leaf { level: 0, global: false };
    assert_eq!(walked, Ok(Translation { gpa: 0x1234, writable: true, user: false, leaf }));
}
