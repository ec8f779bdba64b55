use memory::Frame;
use proptest::prelude::*;

use super::testing::{
    FreeList, Like, MAPPING, PageWords, REGIONS, SmallGuest, TypesWriter, page_address,
};
use super::*;

const BOTH: [Like; 2] = [Like::Linux6_1, Like::Linux6_12];

fn words() -> PageWords {
    PageWords::default()
}

fn buddy(like: Like) -> u32 {
    if like == Like::Linux6_1 { !0x80 } else { 0xf000_0000 }
}

/// Sets some frames, and says what they are then.
fn set_pages(guest: &SmallGuest, like: Like) -> Vec<(u32, PageClass)> {
    let swap_backed = 1 << 19;
    let table = if like == Like::Linux6_1 { !0x200 } else { 0xf200_0000 };
    let slab = match like {
        Like::Linux6_1 => PageWords { flags: 1 << 9, ..words() },
        Like::Linux6_12 => PageWords { page_type: 0xf500_0000, ..words() },
    };
    let listed = page_address(304) + 8;
    let other = page_address(305) + 8;
    let cases = [
        (300, PageWords { page_type: table, ..words() }, PageClass::PageTable),
        (301, slab, PageClass::Slab),
        (302, PageWords { flags: 1 << 12, ..words() }, PageClass::Reserved),
        (303, PageWords { refcount: 0, ..words() }, PageClass::Kernel),
        (
            304,
            PageWords { refcount: 0, head: other, previous: other, ..words() },
            PageClass::CpuFree,
        ),
        (
            305,
            PageWords { refcount: 0, head: listed, previous: listed, ..words() },
            PageClass::CpuFree,
        ),
        (306, PageWords { mapping: MAPPING, index: 9, ..words() }, PageClass::FileCache),
        (
            307,
            PageWords { mapping: MAPPING, flags: swap_backed, ..words() },
            PageClass::SharedMemory,
        ),
        (
            308,
            PageWords { mapping: 0xffff_8880_0000_0011, flags: swap_backed, ..words() },
            PageClass::Anonymous,
        ),
        (
            309,
            PageWords { mapping: 0x11, flags: swap_backed | 1 << 10, page_type: 0, ..words() },
            PageClass::SwapCache,
        ),
        // A driver's pointer where a mapping would be; a page that a driver may move.
        (310, PageWords { mapping: MAPPING + 0x100, ..words() }, PageClass::Kernel),
        (311, PageWords { mapping: MAPPING | 2, ..words() }, PageClass::Kernel),
        // A file's large folio.
        (312, PageWords { mapping: MAPPING, index: 64, ..words() }, PageClass::FileCache),
        (313, PageWords { head: page_address(312) | 1, ..words() }, PageClass::FileCache),
        // Tails of later pages, of nobody, of something that is no page.
        (314, PageWords { head: page_address(315) | 1, ..words() }, PageClass::Unknown),
        (315, PageWords { head: 0x7fff_0001, ..words() }, PageClass::Unknown),
        (316, PageWords { head: (page_address(312) + 8) | 1, ..words() }, PageClass::Unknown),
        (
            320,
            PageWords { page_type: buddy(like), private: 4, refcount: 0, ..words() },
            PageClass::Free,
        ),
        // Inside that block, left over from earlier.
        (335, PageWords { mapping: MAPPING, ..words() }, PageClass::Free),
        (336, words(), PageClass::Kernel),
        // Orders that cannot be: the frame alone is free.
        (341, PageWords { page_type: buddy(like), private: 2, ..words() }, PageClass::Free),
        (342, words(), PageClass::Kernel),
        (344, PageWords { page_type: buddy(like), private: u64::MAX, ..words() }, PageClass::Free),
        (345, words(), PageClass::Kernel),
    ];
    let mut wanted = Vec::new();
    for (frame, words, class) in cases {
        guest.page(u64::from(frame), &words);
        wanted.push((frame, class));
    }
    wanted
}

#[test]
fn a_kernel_is_found_and_read() {
    for like in BOTH {
        let guest = SmallGuest::new(like);
        let kernel = Kernel::find(&guest.view()).expect("a kernel");
        assert_eq!((kernel.note().release(), kernel.note_at()), ("6.1.0-test", Gpa(0x30_0000)));
        assert_eq!(kernel.missing(), Vec::<String>::new());
        let symbols = kernel.symbols().expect("symbols");
        assert_eq!(symbols.len(), 208);
        assert_eq!(symbols.address_of("start_kernel"), Some(0xffff_ffff_8020_1000));
        assert_eq!(symbols.address_of("more_199"), Some(0xffff_ffff_8050_0c70));
        assert_eq!(symbols.address_of("more_"), None);
        let at = symbols.symbol_at(0xffff_ffff_8050_0c6f);
        assert_eq!(at, Some(("more_198".to_owned(), 15)));
        assert_eq!(symbols.symbol_at(0), None);
        assert_eq!(symbols.iter().nth(73), Some((0xffff_ffff_8050_0410, "more_65".to_owned())));
        let processes = kernel.processes().expect("processes");
        assert_eq!(processes.cut, None);
        let seen = processes.list.iter().map(|it| (it.pid, it.name.as_str(), it.page_table));
        let wanted = [(1, "init", Some(Gpa(0x7_7000))), (2, "kthreadd", None)];
        assert_eq!(seen.collect::<Vec<_>>(), wanted);
    }
}

#[test]
fn every_frame_has_its_class() {
    for like in BOTH {
        let guest = SmallGuest::new(like);
        let wanted = set_pages(&guest, like);
        let kernel = Kernel::find(&guest.view()).expect("a kernel");
        let pages = kernel.pages().expect("pages");
        for (frame, class) in wanted {
            assert_eq!(pages.class(Frame(frame)), Some(class), "{like:?}: frame {frame}");
        }
        let is_free = |class: &PageClass| matches!(class, PageClass::Free | PageClass::CpuFree);
        let free: Vec<_> = pages.classes().iter().map(is_free).collect();
        let lists = kernel.free_frames().expect("lists");
        assert_eq!(lists.read(0..u32::MAX), free);
        assert_eq!(lists.read(304..336), free[304..336]);
        assert!(lists.read(4000..5000).is_empty());
        assert_eq!(pages.classes().len(), 2048);
        assert_eq!(pages.class(Frame(2048)), None);
        assert_eq!(pages.counts().iter().map(|(_, frames)| frames).sum::<u64>(), 2048);
        let cached: Vec<_> = pages.cached().map(|it| (it.frame.0, it.index)).collect();
        assert_eq!(cached, [(306, Some(9)), (307, Some(0)), (312, Some(64)), (313, Some(65))]);
        let [file] = pages.files() else { panic!("{:?}", pages.files()) };
        let inode = file.inode.expect("an inode");
        assert_eq!((inode.number, inode.device, inode.is_block_device), (4711, (254, 3), false));
    }
}

fn walked(lists: &FreeLists) -> Vec<u32> {
    let mut frames: Vec<u32> = lists.walk().expect("lists").into_iter().flatten().collect();
    frames.sort_unstable();
    frames.dedup();
    frames
}

#[test]
fn free_frames_are_in_lists() {
    for like in BOTH {
        let guest = SmallGuest::new(like);
        let lists = Kernel::find(&guest.view()).expect("a kernel").free_lists().expect("lists");
        assert!(walked(&lists).is_empty());
        let block = |order| PageWords { page_type: buddy(like), private: order, ..words() };
        let of_cpu = || PageWords { refcount: 0, ..words() };
        guest.list(FreeList::Buddy(0, 1), &[(400, block(0)), (77, block(0)), (500, block(0))]);
        guest.list(FreeList::Buddy(1, 0), &[(402, block(1))]);
        guest.list(FreeList::Cpu(1, 0), &[(90, of_cpu()), (95, of_cpu())]);
        assert_eq!(walked(&lists), [77, 90, 95, 400, 402, 403, 500]);
        // One in the middle is somebody's by now: what lies behind it is reached from the other end.
        guest.page(77, &words());
        assert_eq!(walked(&lists), [90, 95, 400, 402, 403, 500]);
        // One of another order, and one that is in use.
        guest.list(FreeList::Buddy(1, 0), &[(402, block(0))]);
        guest.list(FreeList::Cpu(1, 0), &[(90, words())]);
        assert_eq!(walked(&lists), [400, 500]);
        guest.list(FreeList::Buddy(0, 1), &[]);
        assert!(walked(&lists).is_empty());
    }
}

#[test]
fn lists_of_free_frames_that_lie_end() {
    let guest = SmallGuest::new(Like::Linux6_1);
    let lists = Kernel::find(&guest.view()).expect("a kernel").free_lists().expect("lists");
    let block = PageWords { page_type: buddy(Like::Linux6_1), ..words() };
    guest.list(FreeList::Buddy(0, 0), &[(400, block.clone()), (401, block.clone())]);
    // In a circle without the head.
    for (frame, next) in [(400, 401), (401, 400)] {
        let entry = page_address(next) + 8;
        guest.page(frame, &PageWords { head: entry, previous: entry, ..block.clone() });
    }
    assert!(lists.walk().expect("lists").len() <= 2 * 512);
    assert_eq!(walked(&lists), [400, 401]);
    // To nowhere, and to the middle of a page.
    for entry in [0, u64::MAX, page_address(401) + 9, page_address(1 << 20)] {
        guest.page(400, &PageWords { head: entry, previous: entry, ..block.clone() });
        assert!(walked(&lists).len() <= 2);
    }
}

#[test]
fn who_has_a_frame_is_told_by_its_page() {
    for like in BOTH {
        let guest = SmallGuest::new(like);
        let free = Kernel::find(&guest.view()).expect("a kernel").free_frames().expect("frames");
        let user = |words: &PageWords| {
            guest.page(400, words);
            free.user(Frame(400))
        };
        assert_eq!(user(&words()), None);
        assert_eq!(user(&PageWords { page_type: buddy(like), ..words() }), Some(PageUser::Kernel));
        let anonymous = PageWords { mapping: 0xffff_8880_0000_0011, ..words() };
        assert_eq!(user(&anonymous), Some(PageUser::Other(1)));
        let file = |index| user(&PageWords { mapping: MAPPING, index, ..words() });
        let PageUser::Other(first) = file(9).expect("a file's") else { panic!("a file's") };
        assert!(first > 1);
        assert_eq!(file(9), file(9));
        assert_ne!(file(9), file(10));
        // The rest of a large page is as if it stood alone.
        let large = PageWords { mapping: MAPPING, index: 9, ..words() };
        guest.page(399, &large);
        assert_eq!(user(&PageWords { head: page_address(399) | 1, ..words() }), file(10));
        assert_eq!(free.user(Frame(u32::MAX)), None);
    }
}

#[test]
fn without_types_the_note_tells_most() {
    for like in BOTH {
        let guest = SmallGuest::new(like);
        let wanted = set_pages(&guest, like);
        guest.spoil_types();
        let kernel = Kernel::find(&guest.view()).expect("a kernel");
        assert_eq!(kernel.missing(), ["types: BTF unknown: no header at its symbol"]);
        assert!(kernel.processes().is_err());
        let pages = kernel.pages().expect("pages");
        for (frame, class) in wanted {
            // No inode that could deny it; no word of what is reserved.
            let class = match (frame, class) {
                (310, _) => PageClass::FileCache,
                (302, _) => PageClass::Kernel,
                (_, class) => class,
            };
            assert_eq!(pages.class(Frame(frame)), Some(class), "{like:?}: frame {frame}");
        }
        assert!(pages.cached().all(|cached| cached.index.is_none() && cached.file.inode.is_none()));
    }
}

#[test]
fn addresses_are_walked_by_pages_of_every_size() {
    let guest = SmallGuest::new(Like::Linux6_1);
    let kernel = Kernel::find(&guest.view()).expect("a kernel");
    let space = kernel.space();
    assert_eq!(space.translate(0xffff_ffff_8030_0123), Ok(Gpa(0x30_0123)));
    assert_eq!(space.translate(0xffff_8880_007f_ffff), Ok(Gpa(0x7f_ffff)));
    assert_eq!(space.translate(page_address(64) + 5), Ok(Gpa(0x40_1005)));
    let mut bytes = [0; 8192];
    assert_eq!(space.read(page_address(1), &mut bytes), Ok(()));
    assert_eq!(bytes[..], guest.read(0x40_0040, 8192));
    for va in [0, 0x7fff_ffff_f000, 1 << 47, 0xffff_8880_0080_0000, 0x0fff_ffff_8030_0000] {
        assert_eq!(space.translate(va), Err(AddressError::NotMapped { va }), "{va:#x}");
    }
    let wraps = AddressError::Wraps { va: u64::MAX - 3, len: 8 };
    assert_eq!(space.u64(u64::MAX - 3), Err(wraps));
    // An entry that leads out of RAM.
    guest.write(0x10_2000 + 3 * 8, &0x7fff_ffe0_0083_u64.to_le_bytes());
    let fresh = AddressSpace::new(guest.view(), Gpa(0x10_0000), false);
    assert!(matches!(fresh.u64(0xffff_ffff_8060_0000), Err(AddressError::NotReadable { .. })));
    // Five levels: one more table above, of which the entry for the kernel's half is the last.
    guest.write(0x10_8000 + 511 * 8, &0x10_0003_u64.to_le_bytes());
    let five = AddressSpace::new(guest.view(), Gpa(0x10_8000), true);
    assert_eq!(five.translate(0xffff_ffff_8030_0123), Ok(Gpa(0x30_0123)));
}

#[test]
fn members_are_found_through_nameless_ones_typedefs_and_bits() {
    let mut writer = TypesWriter::default();
    let word = writer.integer(8);
    let alias = writer.alias("u64", word);
    let alias = writer.alias("pgoff_t", alias);
    let words = writer.array(alias, 5);
    let inner = writer.structure("", 48, &[("one", alias, 0), ("many", words, 8)]);
    let named = writer.structure("named", 48, &[("", inner, 0)]);
    writer.structure("outer", 100, &[("", inner, 4), ("sub", named, 52)]);
    writer.bit_field("bits", "flag", word, 13, 3);
    writer.enumeration("kinds", &[("A", 7), ("B", u32::MAX)]);
    let types = Types::parse(writer.finish()).expect("types");
    assert_eq!((types.len(), types.size_of("outer")), (9, Some(100)));
    let member = |path| types.member("outer", path).map(|it| (it.offset(), it.bytes()));
    assert_eq!(member("many"), Some((Some(12), 40)));
    assert_eq!(member("sub.one"), Some((Some(52), 8)));
    assert_eq!((member("sub.two"), member("one.x"), member("")), (None, None, None));
    let flag = types.member("bits", "flag").expect("a member");
    assert_eq!((flag.bit_offset, flag.bits, flag.offset()), (13, 3, None));
    assert_eq!(types.enumerator("kinds", "B"), Some(i64::from(u32::MAX)));
    assert_eq!(types.enumerator("kinds", "C"), None);
}

#[test]
fn types_that_go_in_circles_end() {
    let mut writer = TypesWriter::default();
    // 1 is a typedef of 2, which is one of 1; 3 holds itself without a name.
    writer.alias("a", 2);
    writer.alias("b", 1);
    writer.structure("self", 8, &[("", 3, 0), ("", 3, 0), ("x", 1, 0), ("last", 4, 0)]);
    writer.array(4, u32::MAX);
    let types = Types::parse(writer.finish()).expect("types");
    for path in ["x", "nobody", "last", "x.y"] {
        assert_eq!(types.member("self", path), None, "{path}");
    }
}

#[test]
fn broken_sections_are_refused() {
    let mut writer = TypesWriter::default();
    writer.structure("s", 8, &[("a", 1, 0)]);
    let whole = writer.finish();
    assert!(Types::parse(whole.clone()).is_ok());
    assert!((0..whole.len()).all(|len| Types::parse(whole[..len].to_vec()).is_err()));
    for (at, byte) in [(0, 0), (2, 2), (4, 32), (8, 255), (12, 1), (16, 255), (31, 31 << 2)] {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        assert!(Types::parse(bytes).is_err(), "byte {at}");
    }
}

#[test]
fn notes_that_lie_about_memory_are_refused() {
    let refusal = |from: &str, to: &str| {
        let guest = SmallGuest::new(Like::Linux6_1);
        let text = String::from_utf8(guest.read(0x30_0000, 0x400)).expect("text");
        assert_eq!(from.len(), to.len());
        guest.write(0x30_0000, text.replace(from, to).as_bytes());
        Kernel::find(&guest.view()).expect_err(to).to_string()
    };
    for (from, to, part) in [
        ("init_top_pgt", "init_top_bgt", "names no page tables"),
        ("pgt)=ffffffff80", "pgt)=ffffff7f80", "outside the kernel's image"),
        ("pgt)=ffffffff8010", "pgt)=ffffffff8020", "is not mapped"),
        ("_stext)=ffffffff8", "_stext)=ffffffff9", "is not mapped"),
        ("phys_base)=0", "phys_base)=8", "not where it says"),
        ("PAGESIZE=4096", "PAGESIZE=8192", "not x86-64's"),
    ] {
        let error = refusal(from, to);
        assert!(error.starts_with("the note at 0x300000 is refused:"), "{error}");
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_copy_of_the_note_that_is_none_does_not_hide_the_kernel() {
    let guest = SmallGuest::new(Like::Linux6_12);
    guest.write(0x1_0000, b"OSRELEASE=6.6\nPAGESIZE=4096\n");
    guest.write(0x2_0000, b"\x0b\0\0\0\x07\0\0\0\0\0\0\0VMCOREINFO\0\0nothing");
    assert_eq!(Kernel::find(&guest.view()).expect("a kernel").note_at(), Gpa(0x30_0000));
    // The same note behind the header of an ELF note, further down.
    let text = guest.read(0x30_0000, 0x400);
    guest.write(0x3_0000, b"\x0b\0\0\0\0\x10\0\0\0\0\0\0VMCOREINFO\0\0");
    guest.write(0x3_0000 + 24, &text);
    assert_eq!(Kernel::find(&guest.view()).expect("a kernel").note_at(), Gpa(0x3_0000));
}

#[test]
fn lists_of_tasks_that_lie_are_cut() {
    let cut = |at: u64, to: u64| {
        let guest = SmallGuest::new(Like::Linux6_1);
        guest.write(at, &to.to_le_bytes());
        let processes = Kernel::find(&guest.view()).and_then(|it| it.processes());
        let processes = processes.expect("processes");
        (processes.list.len(), processes.cut.expect("cut"))
    };
    let task = |number: u64| 0x33_1000 + number * 0x100;
    let circle = cut(task(2), 0xffff_ffff_8000_0000 + task(1));
    assert_eq!(circle, (2, "the list runs in a circle".to_owned()));
    let (seen, why) = cut(task(1), 0xdead_0000_0000_0100);
    assert_eq!((seen, why.contains("is not mapped")), (1, true), "{why}");
}

#[test]
fn tables_of_symbols_that_lie_are_refused() {
    let (count, index, offsets, names) = (0x31_0000, 0x31_0100, 0x31_2000, 0x31_4000);
    for (at, bytes, part) in [
        (count, &[0; 4][..], "0 symbols"),
        (count, &[0xff; 4][..], "4294967295 symbols"),
        (count, &[0xff, 0xff, 3, 0][..], "kallsyms: a name without characters"),
        (index, &[0xff; 2][..], "in no order"),
        (offsets, &[7; 4][..], "`_stext` is not at"),
        (names, &[7, b'T', b'x'][..], "no symbol `_stext`"),
    ] {
        let guest = SmallGuest::new(Like::Linux6_12);
        guest.write(at, bytes);
        let kernel = Kernel::find(&guest.view()).expect("a kernel");
        let error = kernel.symbols().expect_err(part).to_string();
        assert!(error.contains(part), "{part}: {error}");
        assert!(kernel.pages().is_err() && kernel.processes().is_err());
    }
}

/// Asks everything; whatever the guest says, there is an answer, and it keeps to the frames there are.
fn inspect(guest: &SmallGuest) {
    let Ok(kernel) = Kernel::find(&guest.view()) else { return };
    kernel.missing();
    if let Ok(symbols) = kernel.symbols() {
        assert!(
            symbols.symbol_at(0xffff_ffff_8020_0000).is_none_or(|(name, _)| name.len() <= 4096)
        );
        assert_eq!(symbols.iter().count(), symbols.len());
    }
    if let Ok(pages) = kernel.pages() {
        assert_eq!(pages.classes().len(), 2048);
        assert!(pages.cached().all(|cached| cached.frame.0 < 2048));
    }
    if let Ok(free) = kernel.free_frames() {
        assert_eq!(free.read(0..u32::MAX).len(), 2048);
        assert!((0..2048).map(Frame).all(|frame| free.user(frame) != Some(PageUser::Other(0))));
    }
    if let Ok(Ok(found)) = kernel.free_lists().map(|lists| lists.walk()) {
        assert!(found.iter().all(|frames| frames.start < frames.end && frames.end <= 2048));
    }
    if let Ok(together) = kernel.together() {
        check_together(&together);
    }
    if let Ok(processes) = kernel.processes() {
        assert!(processes.list.iter().all(|process| process.name.chars().count() <= 15));
    }
}

/// Tables of process 1: its root is `SmallGuest`'s 0x7_7000.
fn map(guest: &SmallGuest, pages: &[u64]) {
    const USER: u64 = 7;
    let entry = |table: u64, index: usize, to: u64| {
        guest.write(table + index as u64 * 8, &(to | USER).to_le_bytes());
    };
    entry(0x7_7000, 0, 0x7_8000);
    entry(0x7_8000, 3, 0x7_9000);
    entry(0x7_9000, 0, 0x7_a000);
    pages.iter().enumerate().for_each(|(index, page)| entry(0x7_a000, 3 + 2 * index, page << 12));
}

#[test]
fn frames_stand_as_programs_see_them() {
    let guest = SmallGuest::new(Like::Linux6_1);
    for (frame, index) in [(400, 5), (401, 3), (402, 4)] {
        guest.page(frame, &PageWords { mapping: MAPPING, index, ..words() });
    }
    // One that is a file's, one that is mapped twice.
    map(&guest, &[500, 0x20, 401, 500, 499]);
    // 2 MiB from 6 MiB on, in a later entry; and one past the end of RAM.
    guest.write(0x7_9008, &(0x60_0000_u64 | 0x87).to_le_bytes());
    guest.write(0x7_9010, &(0x4000_0000_u64 | 0x87).to_le_bytes());
    // In the kernel's half nothing is followed.
    guest.write(0x7_7800, &0x7_b007_u64.to_le_bytes());
    let together = Kernel::find(&guest.view()).expect("a kernel").together().expect("an order");
    let small = [401, 402, 400, 0x77, 0x78, 0x79, 0x7a, 500, 0x20, 499];
    let expected: Vec<Frame> = small.into_iter().chain(0x600..0x800).map(Frame).collect();
    assert_eq!(together, expected);
}

#[test]
fn tables_that_lead_nowhere_end() {
    let guest = SmallGuest::new(Like::Linux6_12);
    // Each table leads to all, at every level, and to large pages of a gigabyte.
    for table in [0x7_7000, 0x7_8000, 0x7_9000, 0x7_a000_u64] {
        let entries = [table | 7, 0x7_8007, 0x7_9007, 0x7_a007, 0x87, u64::MAX, 1 << 51 | 7, 7];
        let page: Vec<u8> =
            entries.iter().cycle().take(512).flat_map(|it| it.to_le_bytes()).collect();
        guest.write(table, &page);
    }
    let together = Kernel::find(&guest.view()).expect("a kernel").together().expect("an order");
    check_together(&together);
    // Large pages that are not there have used up what may be looked at.
    assert!(together.len() >= 512, "{}", together.len());
}

/// Each once, and all in RAM.
fn check_together(together: &[Frame]) {
    let mut sorted = together.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), together.len(), "one twice");
    assert!(sorted.last().is_none_or(|last| u64::from(last.0) < super::testing::RAM >> 12));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_guest_that_scribbles_gets_an_answer(
        old in any::<bool>(),
        patches in proptest::collection::vec(
            (0..REGIONS.len() as u8, any::<u16>(), proptest::collection::vec(any::<u8>(), 1..12)),
            1..12,
        ),
    ) {
        let like = if old { Like::Linux6_1 } else { Like::Linux6_12 };
        let guest = SmallGuest::new(like);
        set_pages(&guest, like);
        map(&guest, &[500, 2, 400]);
        for (region, offset, bytes) in patches {
            guest.scribble(region, offset, &bytes);
        }
        inspect(&guest);
    }
}
