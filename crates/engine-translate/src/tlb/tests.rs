use translator::native::tables::{GUARDS, TRANSLATIONS, guard_index, second_index, token};

use super::*;

const LEAF: Leaf = Leaf { level: 0, global: false };
const GLOBAL: Leaf = Leaf { level: 0, global: true };
const LARGE: Leaf = Leaf { level: 1, global: false };
const FRAME: u32 = 7;

/// Makes the page of `va` known for everything: data at host address `va + (1 << 40)`, fetches and guards.
fn fill(tlb: &mut Tlb, va: u64, leaf: Leaf) {
    let user = tlb.user;
    tlb.insert(va, (va as usize & !0xfff).wrapping_add(1 << 40), user, true, leaf);
    tlb.insert_fetch(va, va.wrapping_add(1 << 32), user, leaf);
    tlb.admit(va, FRAME);
}

/// The frame whose code may be entered at `va`.
pub(super) fn guarded(tlb: &Tlb, va: u64, frame: u32) -> bool {
    // SAFETY: a table of `GUARDS` entries, and none is written meanwhile.
    let guard = unsafe { *tlb.guard_table().add(guard_index(va)) };
    guard.wrapping_add(va & !0xfff) == token(frame)
}

/// Where the second table leads, as generated code has it.
pub(super) fn second(tlb: &Tlb, va: u64, write: bool) -> Option<usize> {
    // SAFETY: the table has `SECOND` entries and lives as long as the TLB.
    let entry = unsafe { &*tlb.second_table().add(second_index(va)) };
    let page = if write { entry.write } else { entry.read };
    (page == va & !0xfff).then(|| entry.host + (va & 0xfff) as usize)
}

/// Where data at `va` is, by either table.
fn data(tlb: &Tlb, va: u64) -> Option<usize> {
    tlb.read(va, 1).or_else(|| second(tlb, va, false))
}

/// Whether data, fetches and guards are known at `va`.
fn known(tlb: &Tlb, va: u64) -> [bool; 3] {
    [data(tlb, va).is_some(), tlb.fetch(va).is_some(), guarded(tlb, va, FRAME)]
}

#[track_caller]
fn assert_known(tlb: &Tlb, va: u64) {
    assert_eq!(known(tlb, va), [true; 3], "{va:#x}");
    assert_eq!(data(tlb, va), Some(va as usize + (1 << 40)));
    assert_eq!(tlb.fetch(va), Some(va + (1 << 32)));
}

#[track_caller]
fn assert_unknown(tlb: &Tlb, va: u64) {
    assert_eq!(known(tlb, va), [false; 3], "{va:#x}");
}

#[test]
fn an_access_that_crosses_a_page_never_hits() {
    let mut tlb = Tlb::new();
    for va in [0x1000, 0x2000, !0xfff] {
        fill(&mut tlb, va, LEAF);
    }
    assert!(tlb.read(0x1ff8, 8).is_some() && tlb.read(0x2000, 8).is_some());
    assert!(tlb.read(0x1ff9, 8).is_none() && tlb.write(0x1fff, 2).is_none());
    assert!(tlb.read(!7, 8).is_some() && tlb.read(!6, 8).is_none());
    assert!(tlb.read(0x0fff, 2).is_none() && tlb.read(0x3000, 1).is_none());
    assert!(tlb.cached(0x1000, 4096, false, true).is_some());
    assert!(tlb.cached(0x1000, 4097, false, true).is_none());
    assert!(tlb.cached(0x1001, 4096, false, false).is_none());
}

#[test]
fn an_empty_table_answers_nothing() {
    let tlb = Tlb::new();
    for va in (0..2 * TRANSLATIONS as u64).map(|page| page << 12).chain([!0xfff]) {
        for at in [va, va + 0xfff] {
            assert!(tlb.read(at, 1).is_none() && tlb.write(at, 1).is_none());
            assert!(tlb.cached(at, 1, true, false).is_none() && tlb.fetch(at).is_none());
        }
    }
}

#[test]
fn privileges_and_address_spaces_are_apart() {
    let mut tlb = Tlb::new();
    tlb.set_asid(5);
    fill(&mut tlb, 0x1000, LEAF);
    tlb.set_user(true);
    assert_unknown(&tlb, 0x1000);
    fill(&mut tlb, 0x2000, LEAF);
    tlb.set_asid(6);
    assert_unknown(&tlb, 0x2000);
    tlb.set_user(false);
    assert_unknown(&tlb, 0x1000);
    assert_unknown(&tlb, 0x2000);
    tlb.set_asid(5);
    assert_unknown(&tlb, 0x1000);
    assert!(tlb.cached(0x2000, 8, true, true).is_none(), "not before its first user access");
    tlb.set_user(true);
    assert_known(&tlb, 0x2000);
    tlb.set_user(false);
    assert!(tlb.cached(0x2000, 8, true, true).is_some());
}

#[test]
fn the_kernel_keeps_its_global_pages_over_a_switch() {
    let mut tlb = Tlb::new();
    fill(&mut tlb, 0x1000, GLOBAL);
    fill(&mut tlb, 0x2000, LEAF);
    fill(&mut tlb, 0x3000, LEAF);
    fill(&mut tlb, 0x3000, GLOBAL);
    fill(&mut tlb, 0x4000, GLOBAL);
    fill(&mut tlb, 0x4000, LEAF);
    tlb.set_asid(0);
    assert_known(&tlb, 0x2000);
    tlb.set_asid(1);
    for (va, kept) in [(0x1000, true), (0x2000, false), (0x3000, true), (0x4000, false)] {
        assert_eq!(known(&tlb, va), [kept; 3], "{va:#x}");
    }
}

#[test]
fn a_switch_drops_many_local_pages() {
    let mut tlb = Tlb::new();
    let pages = || (0..3 * TRANSLATIONS as u64).map(|page| page << 12);
    pages().for_each(|va| fill(&mut tlb, va, LEAF));
    fill(&mut tlb, 0x5000_0000_1000, GLOBAL);
    tlb.set_asid(1);
    pages().for_each(|va| assert_unknown(&tlb, va));
    assert_known(&tlb, 0x5000_0000_1000);
}

#[test]
fn a_flush_of_an_address_space_takes_no_other_and_nothing_global() {
    let mut tlb = Tlb::new();
    tlb.set_asid(5);
    fill(&mut tlb, 0x1000, LEAF);
    fill(&mut tlb, 0x2000, GLOBAL);
    for asid in [5, 6] {
        tlb.set_asid(asid);
        tlb.set_user(true);
        fill(&mut tlb, 0x3000, LEAF);
        tlb.set_user(false);
        fill(&mut tlb, 0x1000, LEAF);
    }
    tlb.flush_asid(5);
    assert_known(&tlb, 0x1000);
    tlb.set_user(true);
    assert_known(&tlb, 0x3000);
    tlb.flush_asid(6);
    assert_unknown(&tlb, 0x3000);
    tlb.set_user(false);
    assert_unknown(&tlb, 0x1000);
    assert_known(&tlb, 0x2000);
    tlb.set_asid(5);
    tlb.set_user(true);
    assert_unknown(&tlb, 0x3000);
}

#[test]
fn a_flushed_page_is_gone_from_every_context() {
    let mut tlb = Tlb::new();
    for asid in 0..3 {
        tlb.set_asid(asid);
        for user in [true, false] {
            tlb.set_user(user);
            fill(&mut tlb, 0x1000, GLOBAL);
            fill(&mut tlb, 0x2000, GLOBAL);
        }
    }
    tlb.flush_page(0x1abc);
    for (asid, user) in (0..3).flat_map(|asid| [(asid, true), (asid, false)]) {
        tlb.set_asid(asid);
        tlb.set_user(user);
        assert_unknown(&tlb, 0x1000);
        assert_known(&tlb, 0x2000);
    }
    tlb.flush();
    for (asid, user) in (0..3).flat_map(|asid| [(asid, true), (asid, false)]) {
        tlb.set_asid(asid);
        tlb.set_user(user);
        assert_unknown(&tlb, 0x2000);
    }
}

#[test]
fn a_flushed_page_takes_the_rest_of_its_large_page_along() {
    let mut tlb = Tlb::new();
    let huge = Leaf { level: 2, global: true };
    fill(&mut tlb, 0x4000_0000, LARGE);
    fill(&mut tlb, 0x401f_f000, LARGE);
    fill(&mut tlb, 0x4021_1000, LEAF);
    fill(&mut tlb, 0x1_c456_7000, huge);
    tlb.flush_page(0x4010_0000);
    assert_unknown(&tlb, 0x4000_0000);
    assert_unknown(&tlb, 0x401f_f000);
    assert_known(&tlb, 0x4021_1000);
    tlb.flush_page(0x1_8000_0000);
    assert_known(&tlb, 0x1_c456_7000);
    tlb.flush_page(0x1_c000_0000);
    assert_unknown(&tlb, 0x1_c456_7000);
    assert_eq!(known(&tlb, 0x4021_1000)[..2], [true; 2], "its guard may have gone");
}

#[test]
fn many_large_regions_are_all_flushed() {
    let mut tlb = Tlb::new();
    for region in 0..4000u64 {
        tlb.insert(region << 21 | (region & 511) << 12, 0, false, true, LARGE);
    }
    for region in 3900..4000u64 {
        let va = region << 21 | (region & 511) << 12;
        assert!(tlb.read(va, 1).is_some());
        tlb.flush_page(va ^ 0x1000);
        assert!(tlb.read(va, 1).is_none());
    }
}

#[test]
fn the_address_space_that_ran_least_recently_makes_room() {
    let mut tlb = Tlb::new();
    tlb.set_user(true);
    for asid in 0..8 {
        tlb.set_asid(asid);
        fill(&mut tlb, 0x1000, LEAF);
    }
    tlb.set_asid(0);
    assert_known(&tlb, 0x1000);
    tlb.set_asid(8);
    assert_unknown(&tlb, 0x1000);
    for asid in [0, 2, 3, 4, 5, 6, 7] {
        tlb.set_asid(asid);
        assert_known(&tlb, 0x1000);
    }
    tlb.set_asid(1);
    assert_unknown(&tlb, 0x1000);
}

#[test]
fn address_spaces_without_user_accesses_take_no_place() {
    let mut tlb = Tlb::new();
    tlb.set_user(true);
    fill(&mut tlb, 0x1000, LEAF);
    tlb.set_user(false);
    (1..20).for_each(|asid| tlb.set_asid(asid));
    tlb.set_asid(0);
    tlb.set_user(true);
    assert_known(&tlb, 0x1000);
}

#[test]
fn a_dropped_write_can_still_be_read() {
    let mut tlb = Tlb::new();
    tlb.insert(0x1000, 0x7f00_0000_5000, true, true, LEAF);
    tlb.insert(0x9000, 0x7f00_0000_5000, false, true, LEAF);
    tlb.insert(0x2000, 0x7f00_0000_6000, true, true, LEAF);
    tlb.set_asid(1);
    tlb.drop_writes(0x7f00_0000_5000);
    tlb.insert(0x9000, 0x7f00_0000_5000, false, true, LEAF);
    tlb.drop_writes(0x7f00_0000_5000);
    assert!(tlb.read(0x9000, 1).is_some() && tlb.write(0x9000, 1).is_none());
    tlb.set_asid(0);
    tlb.set_user(true);
    assert!(tlb.cached(0x1000, 1, true, false).is_some());
    assert!(tlb.cached(0x1000, 1, true, true).is_none());
    assert!(tlb.cached(0x2000, 1, true, true).is_some());
}

#[test]
fn all_dropped_writes_can_still_be_read_in_each_address_space() {
    let mut tlb = Tlb::new();
    let pages = [(0x1000, true), (0x9000, false), (0x2000, true)];
    for (page, user) in pages {
        // Another address space makes the kernel's forget what is not global.
        let leaf = if user { LEAF } else { GLOBAL };
        tlb.insert(page, 0x7f00_0000_5000, user, true, leaf);
        tlb.insert_fetch(page, 0x5000, user, leaf);
    }
    // Leaves an entry of no page behind.
    tlb.insert(0x4000, 0x7f00_0000_5000, false, true, LEAF);
    tlb.flush_page(0x4000);
    tlb.set_asid(1);
    tlb.insert(0x3000, 0x7f00_0000_5000, true, true, LEAF);
    tlb.drop_all_writes();
    tlb.drop_all_writes();
    assert!(tlb.cached(0x3000, 1, true, false).is_some());
    assert!(tlb.cached(0x3000, 1, true, true).is_none());
    tlb.set_asid(0);
    tlb.set_user(true);
    for (page, user) in pages {
        assert!(tlb.cached(page, 1, user, false).is_some(), "{page:#x}");
        assert!(tlb.cached(page, 1, user, true).is_none(), "{page:#x}");
    }
    assert!(tlb.cached(0x4000, 1, false, true).is_none());
    assert_eq!(tlb.fetch(0x1000), Some(0x5000));
    tlb.insert(0x1000, 0x7f00_0000_5000, true, true, LEAF);
    assert!(tlb.cached(0x1000, 1, true, true).is_some());
}

#[test]
fn what_is_watched_is_walked_for() {
    let mut tlb = Tlb::new();
    let (kernels, users) = (0x7f00_0000_5000, 0x7f00_0000_6000);
    tlb.insert(0x1000, kernels, false, true, GLOBAL);
    tlb.insert(0x2000, users, false, true, GLOBAL);
    tlb.insert(0x3000, users, true, true, LEAF);
    tlb.insert(0x4000, kernels, true, false, LEAF);
    for _ in 0..2 {
        tlb.forget_watched(|host, user| host == if user { users } else { kernels });
        let reads = [(0x1000, false), (0x2000, false), (0x3000, true), (0x4000, true)];
        let cached = |write| reads.map(|(va, user)| tlb.cached(va, 1, user, write).is_some());
        assert_eq!(cached(false), [true, true, false, true]);
        assert_eq!(cached(true), [false, true, false, false]);
    }
}

#[test]
fn forgotten_data_can_still_be_fetched() {
    let mut tlb = Tlb::new();
    fill(&mut tlb, 0x1000, GLOBAL);
    tlb.set_user(true);
    fill(&mut tlb, 0x1000, LEAF);
    tlb.forget_data(0x1234);
    assert_eq!(known(&tlb, 0x1000), [false, true, true]);
    tlb.set_user(false);
    assert_eq!(known(&tlb, 0x1000), [false, true, true]);
}

#[test]
fn on_the_slow_path_only_the_privileged_look() {
    let mut tlb = Tlb::new();
    tlb.set_user(true);
    fill(&mut tlb, 0x1000, LEAF);
    tlb.set_slow(true);
    assert_eq!(known(&tlb, 0x1000), [false, true, true]);
    assert!(tlb.cached(0x1000, 1, true, true).is_some());
    tlb.set_asid(1);
    tlb.set_asid(0);
    assert_eq!(known(&tlb, 0x1000), [false, true, true]);
    tlb.set_slow(false);
    assert_known(&tlb, 0x1000);
}

#[test]
fn a_guard_needs_a_fetch_and_outlives_its_place() {
    let mut tlb = Tlb::new();
    tlb.admit(0x1000, FRAME);
    assert_unknown(&tlb, 0x1000);
    fill(&mut tlb, 0x1000, GLOBAL);
    let table = tlb.guard_table();
    // The same place among fetches, another among guards.
    fill(&mut tlb, 0x100_1000, LEAF);
    assert!(tlb.fetch(0x1000).is_none() && guarded(&tlb, 0x1000, FRAME));
    assert!(!guarded(&tlb, 0x1000 + ((GUARDS as u64) << 12), FRAME));
    tlb.set_asid(1);
    assert!(guarded(&tlb, 0x1000, FRAME) && !guarded(&tlb, 0x100_1000, FRAME));
    tlb.flush_page(0x1000);
    assert!(!guarded(&tlb, 0x1000, FRAME));
    assert_eq!(tlb.guard_table(), table);
}

#[test]
fn tables_follow_privilege_and_address_space() {
    let mut tlb = Tlb::new();
    let at = |tlb: &Tlb| (tlb.data_table(), tlb.guard_table());
    let kernel = at(&tlb);
    tlb.set_user(true);
    let first = at(&tlb);
    tlb.set_asid(1);
    let second = at(&tlb);
    assert!(kernel.0 != first.0 && first.0 != second.0 && first.1 != second.1);
    fill(&mut tlb, 0x1000, LEAF);
    // SAFETY: a table of `TRANSLATIONS` entries, and none is written meanwhile.
    assert_eq!(unsafe { &*second.0.add(data_index(0x1000)) }.write, 0x1000);
    tlb.flush();
    assert_eq!(at(&tlb), second);
    tlb.set_user(false);
    assert_eq!(at(&tlb), kernel);
}

#[test]
fn a_page_is_forgotten_in_every_space_and_its_neighbours_are_not() {
    let mut tlb = Tlb::new();
    let spaces: Vec<_> = (0..3).flat_map(|asid| [(asid, true), (asid, false)]).collect();
    for &(asid, user) in &spaces {
        tlb.set_asid(asid);
        tlb.set_user(user);
        fill(&mut tlb, 0x20_1000, LARGE);
        fill(&mut tlb, 0x20_2000, LARGE);
    }
    tlb.forget_page(0x20_1abc);
    // The last one first: what is local of the kernel's goes with its address space.
    for &(asid, user) in spaces.iter().rev() {
        tlb.set_asid(asid);
        tlb.set_user(user);
        assert_unknown(&tlb, 0x20_1000);
        if user || asid == 2 {
            // Nothing else of its large page goes.
            assert_known(&tlb, 0x20_2000);
        }
    }
}
