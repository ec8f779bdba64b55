//! A guest that is small and made up, with a kernel in it that can be found: for tests, and for fuzzing.
//!
//! ```text
//!  gpa  0x10_0000  page tables: the image and all RAM by pages of 2 MiB, struct pages by pages of 4 KiB
//!       0x30_0000  VMCOREINFO
//!       0x31_0000  kallsyms
//!       0x33_0000  variables, tasks
//!       0x34_0000  BTF
//!       0x36_0000  a file: mapping, inode, super block
//!       0x40_0000  struct pages, 64 bytes a frame
//! ```

use std::ops::Range;
use std::sync::Arc;

use memory::{DeviceView, Gpa, GuestMemory, ReadView};

/// RAM of the guest.
pub const RAM: u64 = 8 << 20;
const FRAMES: u64 = RAM >> 12;

const IMAGE: u64 = 0xffff_ffff_8000_0000;
const DIRECT: u64 = 0xffff_8880_0000_0000;
const VMEMMAP: u64 = 0xffff_ea00_0000_0000;

const TABLES: u64 = 0x10_0000;
const NOTE: u64 = 0x30_0000;
const SYMBOLS: u64 = 0x31_0000;
const VARIABLES: u64 = 0x33_0000;
const NODE_DATA: u64 = VARIABLES + 0x200;
const CPU_OFFSETS: u64 = VARIABLES + 0x240;
const CPU_COUNT: u64 = VARIABLES + 0x260;
const ZONE: u64 = VARIABLES + 0x400;
const CPU_LISTS: u64 = VARIABLES + 0x600;
const CPU_BYTES: u64 = 0x80;
const TASKS: u64 = 0x33_1000;
const TYPES: u64 = 0x34_0000;
const FILE: u64 = 0x36_0000;
const PAGES: u64 = 0x40_0000;

/// What may be scribbled over: everything that an inspection reads.
pub const REGIONS: [Range<u64>; 7] = [
    NOTE..NOTE + 0x400,
    SYMBOLS..SYMBOLS + 0x1_0000,
    TYPES..TYPES + 0xc00,
    PAGES..PAGES + FRAMES * 64,
    VARIABLES..TASKS + 0x1000,
    FILE..FILE + 0x300,
    TABLES..TABLES + 0x7000,
];

/// Which kernel it is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Like {
    /// Page types by cleared bits, slab by a flag.
    Linux6_1,
    /// Page types by a byte, slab among them; symbols by offsets that all count up.
    Linux6_12,
}

/// A guest in memory.
#[derive(Debug)]
pub struct SmallGuest {
    memory: Arc<GuestMemory>,
    like: Like,
}

impl SmallGuest {
    /// One that has booted: each frame is the kernel's, but for those that [`SmallGuest::page`] sets. It has
    /// the processes 1, `init`, and 2, a thread of the kernel.
    pub fn new(like: Like) -> Self {
        let memory = Arc::new(GuestMemory::with_bytes(RAM).expect("memory"));
        let guest = Self { memory, like };
        guest.page_tables();
        guest.write(NOTE, guest.note().as_bytes());
        guest.symbols();
        guest.write(TYPES, &types(like));
        guest.word(VARIABLES, VMEMMAP);
        guest.free_lists();
        guest.tasks();
        guest.file();
        guest.write(PAGES, &PageWords::default().bytes().repeat(FRAMES as usize));
        guest
    }

    /// The memory as an inspection sees it.
    pub fn view(&self) -> ReadView {
        ReadView::new(Arc::clone(&self.memory))
    }

    /// Writes over guest memory.
    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        let view = DeviceView::new(Arc::clone(&self.memory));
        view.write(Gpa(gpa), bytes).expect("inside RAM");
    }

    /// Reads guest memory.
    pub fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.view().read(Gpa(gpa), &mut bytes).expect("inside RAM");
        bytes
    }

    /// Writes over some bytes of [`REGIONS`], by any numbers.
    pub fn scribble(&self, region: u8, offset: u16, bytes: &[u8]) {
        let region = REGIONS[usize::from(region) % REGIONS.len()].clone();
        let at = region.start + u64::from(offset) % (region.end - region.start);
        self.write(at, &bytes[..bytes.len().min((region.end - at) as usize)]);
    }

    /// Sets the `struct page` of a frame.
    pub fn page(&self, frame: u64, words: &PageWords) {
        self.write(PAGES + frame * 64, &words.bytes());
    }

    /// Removes the types from the table of symbols' reach.
    pub fn spoil_types(&self) {
        self.write(TYPES, &[0; 8]);
    }

    fn word(&self, gpa: u64, word: u64) {
        self.write(gpa, &word.to_le_bytes());
    }

    fn page_tables(&self) {
        const RIGHTS: u64 = 0x3;
        const LARGE: u64 = 1 << 7;
        let table = |number: u64| TABLES + number * 0x1000;
        let entry = |table: u64, index: u64, to: u64| self.word(table + index * 8, to | RIGHTS);
        // The image: the last gigabyte but one of the top entry; then the direct map, with the same pages.
        entry(table(0), 511, table(1));
        entry(table(1), 510, table(2));
        (0..RAM >> 21).for_each(|large| entry(table(2), large, large << 21 | LARGE));
        entry(table(0), DIRECT >> 39 & 511, table(3));
        entry(table(3), DIRECT >> 30 & 511, table(2));
        entry(table(0), VMEMMAP >> 39 & 511, table(4));
        entry(table(4), 0, table(5));
        entry(table(5), 0, table(6));
        (0..(FRAMES * 64) >> 12).for_each(|page| entry(table(6), page, PAGES + (page << 12)));
    }

    fn note(&self) -> String {
        let mut text = format!(
            "OSRELEASE=6.1.0-test\nPAGESIZE=4096\nSYMBOL(init_top_pgt)={:x}\nSYMBOL(_stext)={:x}\n\
             NUMBER(phys_base)=0\nNUMBER(pgtable_l5_enabled)=0\nKERNELOFFSET=1000000\nSIZE(page)=64\n\
             OFFSET(page.flags)=0\nOFFSET(page.lru)=8\nOFFSET(page.compound_head)=8\n\
             OFFSET(page.mapping)=24\nOFFSET(page.private)=40\nOFFSET(page._mapcount)=48\n\
             OFFSET(page._refcount)=52\nNUMBER(PG_swapbacked)=19\nNUMBER(PG_swapcache)=10\n",
            IMAGE + TABLES,
            IMAGE + 0x20_0000,
        );
        text += match self.like {
            Like::Linux6_1 => "NUMBER(PG_slab)=9\nNUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129\n",
            Like::Linux6_12 => {
                "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=4026531840\n\
                 NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)=4110417920\n"
            }
        };
        let tables =
            ["num_syms", "relative_base", "token_index", "token_table", "offsets", "names"];
        for (name, place) in tables.iter().zip(symbol_places()) {
            text += &format!("SYMBOL(kallsyms_{name})={:x}\n", IMAGE + place);
        }
        text
    }

    fn symbols(&self) {
        let mut symbols = vec![
            ("_stext".to_owned(), IMAGE + 0x20_0000),
            ("start_kernel".to_owned(), IMAGE + 0x20_1000),
            ("vmemmap_base".to_owned(), IMAGE + VARIABLES),
            ("node_data".to_owned(), IMAGE + NODE_DATA),
            ("__per_cpu_offset".to_owned(), IMAGE + CPU_OFFSETS),
            ("nr_cpu_ids".to_owned(), IMAGE + CPU_COUNT),
            ("init_task".to_owned(), IMAGE + TASKS),
            ("__start_BTF".to_owned(), IMAGE + TYPES),
        ];
        // Enough that more than one mark is needed.
        symbols.extend((0..200).map(|n| (format!("more_{n}"), IMAGE + 0x50_0000 + n * 16)));
        let base = IMAGE + 0x20_0000;
        let [count, relative_base, token_index, token_table, offsets, names] = symbol_places();
        self.write(count, &(symbols.len() as u32).to_le_bytes());
        self.word(relative_base, base);
        let (mut index, mut table) = (Vec::new(), Vec::new());
        for token in 0..=u8::MAX {
            index.extend((table.len() as u16).to_le_bytes());
            match token {
                1 => table.extend(b"start"),
                // A name's length in two bytes begins with such a one.
                2 => table.extend(b"_"),
                _ => table.extend([token].iter().filter(|byte| byte.is_ascii_graphic())),
            }
            table.push(0);
        }
        self.write(token_index, &index);
        self.write(token_table, &table);
        let (mut stream, mut places) = (Vec::new(), Vec::new());
        for (name, va) in &symbols {
            let up = (va - base) as u32;
            let down = -1 - up as i32;
            places.extend(if self.like == Like::Linux6_1 { down as u32 } else { up }.to_le_bytes());
            let tokens = format!("T{name}").replace("start", "\u{1}").into_bytes();
            stream.push(tokens.len() as u8);
            stream.extend(tokens);
        }
        self.write(offsets, &places);
        self.write(names, &stream);
    }

    /// One zone, with free blocks of two orders in two lists each, and two CPUs with two lists each; all of them empty.
    fn free_lists(&self) {
        self.word(NODE_DATA, IMAGE + ZONE);
        self.word(CPU_OFFSETS + 8, CPU_BYTES);
        self.word(CPU_COUNT, 2);
        self.word(ZONE, IMAGE + CPU_LISTS);
        for list in FreeList::ALL {
            self.list(list, &[]);
        }
    }

    /// Puts the frames into a list of free ones: `words` of each, but for its links.
    pub fn list(&self, list: FreeList, frames: &[(u64, PageWords)]) {
        let head = list.head();
        let entry = |frame: u64| page_address(frame) + 8;
        let around = |n: usize| match n.checked_sub(1).and_then(|n| frames.get(n)) {
            Some((frame, _)) => entry(*frame),
            None => IMAGE + head,
        };
        for (n, (frame, words)) in frames.iter().enumerate() {
            let (head, previous) = (around(n + 2), around(n));
            self.page(*frame, &PageWords { head, previous, ..words.clone() });
        }
        self.word(head, around(1));
        self.word(head + 8, around(frames.len()));
    }

    fn tasks(&self) {
        let task = |number: u64| TASKS + number * 0x100;
        for (number, name) in [(0, "swapper/0"), (1, "init"), (2, "kthreadd")] {
            let at = task(number);
            self.word(at, IMAGE + task((number + 1) % 3));
            self.word(at + 16, if number == 1 { IMAGE + VARIABLES + 0x100 } else { 0 });
            self.write(at + 24, &(number as u32).to_le_bytes());
            self.write(at + 32, name.as_bytes());
        }
        // The page tables of the `mm` of process 1.
        self.word(VARIABLES + 0x100 + 8, DIRECT + 0x7_7000);
    }

    fn file(&self) {
        let [mapping, inode, super_block] = [0, 0x100, 0x200].map(|offset| FILE + offset);
        self.word(mapping, DIRECT + inode);
        self.word(inode, DIRECT + mapping);
        self.word(inode + 8, 4711);
        self.word(inode + 16, DIRECT + super_block);
        self.write(inode + 28, &0o100_644_u32.to_le_bytes());
        self.write(super_block, &(254_u32 << 20 | 3).to_le_bytes());
    }
}

/// A list of free frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FreeList {
    /// Of blocks of this order (0 or 1), of two kinds (0 or 1).
    Buddy(u64, u64),
    /// Of a CPU (0 or 1), of two kinds.
    Cpu(u64, u64),
}

impl FreeList {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Buddy(0, 0),
        Self::Buddy(0, 1),
        Self::Buddy(1, 0),
        Self::Buddy(1, 1),
        Self::Cpu(0, 0),
        Self::Cpu(0, 1),
        Self::Cpu(1, 0),
        Self::Cpu(1, 1),
    ];

    /// Where its head is, in the image.
    fn head(self) -> u64 {
        match self {
            Self::Buddy(order, kind) => ZONE + 16 + order * 40 + kind * 16,
            Self::Cpu(cpu, kind) => CPU_LISTS + cpu * CPU_BYTES + 16 + kind * 16,
        }
    }
}

/// The `mapping` of the guest's one file.
pub const MAPPING: u64 = DIRECT + FILE;

/// The address of the `struct page` of a frame.
pub const fn page_address(frame: u64) -> u64 {
    VMEMMAP + frame * 64
}

/// The words of a `struct page`. Otherwise it is a frame that the kernel uses for itself.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "they are those of the kernel")]
pub struct PageWords {
    pub flags: u64,
    /// `compound_head`, or the first word of `lru`.
    pub head: u64,
    /// The second word of `lru`.
    pub previous: u64,
    pub mapping: u64,
    pub index: u64,
    pub private: u64,
    pub page_type: u32,
    pub refcount: u32,
}

impl Default for PageWords {
    fn default() -> Self {
        let (flags, head, previous, mapping, index, private) = (0, 0, 0, 0, 0, 0);
        Self { flags, head, previous, mapping, index, private, page_type: u32::MAX, refcount: 1 }
    }
}

impl PageWords {
    fn bytes(&self) -> Vec<u8> {
        let type_and_count = u64::from(self.page_type) | u64::from(self.refcount) << 32;
        let words = [
            self.flags,
            self.head,
            self.previous,
            self.mapping,
            self.index,
            self.private,
            type_and_count,
            0,
        ];
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

fn symbol_places() -> [u64; 6] {
    [0, 8, 0x100, 0x400, 0x2000, 0x4000].map(|offset| SYMBOLS + offset)
}

/// BTF of what an inspection asks for.
fn types(like: Like) -> Vec<u8> {
    let mut types = TypesWriter::default();
    let word = types.integer(8);
    let half = types.integer(4);
    let letter = types.integer(1);
    let name = types.array(letter, 16);
    let list = types.structure("list_head", 16, &[("next", word, 0), ("prev", word, 8)]);
    // As in the kernel, most of `struct page` is in nameless members.
    let lru = types.structure("", 16, &[("lru", list, 0)]);
    let tail = types.structure("", 8, &[("compound_head", word, 0)]);
    let either = types.union("", 16, &[("", lru, 0), ("", tail, 0)]);
    let page = [
        ("flags", word, 0),
        ("", either, 8),
        ("mapping", word, 24),
        ("index", word, 32),
        ("private", word, 40),
        ("page_type", half, 48),
        ("_refcount", half, 52),
    ];
    types.structure("page", 64, &page);
    let task = [("tasks", list, 0), ("mm", word, 16), ("tgid", half, 24), ("comm", name, 32)];
    types.structure("task_struct", 256, &task);
    types.structure("mm_struct", 16, &[("pgd", word, 8)]);
    types.structure("address_space", 64, &[("host", word, 0)]);
    let inode = [
        ("i_mapping", word, 0),
        ("i_ino", word, 8),
        ("i_sb", word, 16),
        ("i_rdev", half, 24),
        ("i_mode", half, 28),
    ];
    types.structure("inode", 64, &inode);
    types.structure("super_block", 64, &[("s_dev", half, 0)]);
    let pair = types.array(list, 2);
    let area = types.structure("free_area", 40, &[("free_list", pair, 0), ("nr_free", word, 32)]);
    let areas = types.array(area, 2);
    let zone = [("per_cpu_pageset", word, 0), ("free_area", areas, 16)];
    let zone = types.structure("zone", 128, &zone);
    let zones = types.array(zone, 1);
    types.structure("pglist_data", 128, &[("node_zones", zones, 0)]);
    types.structure("per_cpu_pages", 48, &[("lists", pair, 16)]);
    let flags = [("PG_swapcache", 10), ("PG_reserved", 12), ("PG_swapbacked", 19)];
    match like {
        Like::Linux6_1 => types.enumeration("pageflags", &[&flags[..], &[("PG_slab", 9)]].concat()),
        Like::Linux6_12 => {
            types.enumeration("pageflags", &flags);
            let named = [("PGTY_buddy", 0xf0), ("PGTY_table", 0xf2), ("PGTY_slab", 0xf5)];
            types.enumeration("pagetype", &named);
        }
    }
    types.finish()
}

/// Writes a section of BTF.
#[derive(Debug)]
pub(super) struct TypesWriter {
    types: Vec<u8>,
    names: Vec<u8>,
    count: u32,
}

impl Default for TypesWriter {
    fn default() -> Self {
        Self { types: Vec::new(), names: vec![0], count: 0 }
    }
}

impl TypesWriter {
    pub(super) fn integer(&mut self, bytes: u32) -> u32 {
        self.record("", 1, 0, bytes);
        self.words(&[bytes * 8]);
        self.count
    }

    pub(super) fn array(&mut self, element: u32, count: u32) -> u32 {
        self.record("", 3, 0, 0);
        self.words(&[element, element, count]);
        self.count
    }

    /// Members by name, type and offset in bytes.
    pub(super) fn structure(
        &mut self,
        name: &str,
        bytes: u32,
        members: &[(&str, u32, u32)],
    ) -> u32 {
        self.with_members(name, 4, bytes, members)
    }

    pub(super) fn union(&mut self, name: &str, bytes: u32, members: &[(&str, u32, u32)]) -> u32 {
        self.with_members(name, 5, bytes, members)
    }

    pub(super) fn enumeration(&mut self, name: &str, values: &[(&str, u32)]) {
        self.record(name, 6, values.len() as u32, 4);
        for &(name, value) in values {
            let name = self.name(name);
            self.words(&[name, value]);
        }
    }

    /// `typedef`: kind 8.
    #[cfg(test)]
    pub(super) fn alias(&mut self, name: &str, of: u32) -> u32 {
        self.record(name, 8, 0, of);
        self.count
    }

    /// A structure with one bit-field: offset and width in bits.
    #[cfg(test)]
    pub(super) fn bit_field(&mut self, name: &str, member: &str, of: u32, at: u32, bits: u32) {
        self.record(name, 4, 1 | 1 << 31, 8);
        let member = self.name(member);
        self.words(&[member, of, bits << 24 | at]);
    }

    pub(super) fn finish(self) -> Vec<u8> {
        let (types, names) = (self.types.len() as u32, self.names.len() as u32);
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in [24, 0, types, types, names] {
            bytes.extend(u32::to_le_bytes(word));
        }
        bytes.extend(self.types);
        bytes.extend(self.names);
        bytes
    }

    fn with_members(
        &mut self,
        name: &str,
        kind: u32,
        bytes: u32,
        members: &[(&str, u32, u32)],
    ) -> u32 {
        self.record(name, kind, members.len() as u32, bytes);
        for &(name, of, offset) in members {
            let name = self.name(name);
            self.words(&[name, of, offset * 8]);
        }
        self.count
    }

    fn record(&mut self, name: &str, kind: u32, info: u32, size_or_type: u32) {
        let name = self.name(name);
        self.words(&[name, kind << 24 | info, size_or_type]);
        self.count += 1;
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let place = self.names.len() as u32;
        self.names.extend(name.bytes().chain([0]));
        place
    }

    fn words(&mut self, words: &[u32]) {
        self.types.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }
}
