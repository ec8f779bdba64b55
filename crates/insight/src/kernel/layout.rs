//! Where things are in `struct page`, and what its flags and types are called by, in this kernel.

use super::error::KernelError;
use super::note::Note;
use super::pages::PageClass;
use super::types::Types;

/// A `struct page` has 56 or 64 bytes; bounds for what a guest may claim.
const SIZE: std::ops::RangeInclusive<usize> = 32..=1024;

/// Offsets are of eight bytes (`flags`, `mapping`, ...) or four (`refcount`, `page_type`) that lie in `size`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct PageLayout {
    pub(super) size: usize,
    pub(super) flags: usize,
    pub(super) mapping: usize,
    pub(super) private: usize,
    pub(super) lru: usize,
    pub(super) compound_head: usize,
    pub(super) refcount: usize,
    pub(super) page_type: usize,
    /// Of a folio; without BTF unknown.
    pub(super) index: Option<usize>,
    pub(super) bits: FlagBits,
    pub(super) types: PageTypes,
}

/// Masks of the flags that are looked at; 0: this kernel has no such flag, or it is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FlagBits {
    pub(super) reserved: u64,
    pub(super) slab: u64,
    pub(super) swap_backed: u64,
    pub(super) swap_cache: u64,
}

/// How a page that is not mapped by programs says what it is for: by its `page_type`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct PageTypes {
    scheme: Scheme,
    classes: Vec<(u32, PageClass)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scheme {
    /// Up to 6.11: all bits of the base are set, and that of the type is cleared.
    ClearedBit { base: u32 },
    /// Since 6.12: the value of the highest byte.
    TopByte,
}

/// Types by what follows `PG_` up to 6.11, and `PGTY_` since.
const TYPES: [(&str, PageClass); 7] = [
    ("buddy", PageClass::Free),
    ("offline", PageClass::Offline),
    ("table", PageClass::PageTable),
    ("hugetlb", PageClass::Huge),
    ("slab", PageClass::Slab),
    ("guard", PageClass::Kernel),
    ("zsmalloc", PageClass::Kernel),
];

impl PageLayout {
    /// From BTF where there is some, else from the note.
    pub(super) fn new(note: &Note, types: Option<&Types>) -> Result<Self, KernelError> {
        let layout = match types {
            Some(types) => Self::of_types(note, types)?,
            None => Self::of_note(note)?,
        };
        layout.check()
    }

    fn of_types(note: &Note, types: &Types) -> Result<Self, KernelError> {
        // Members move from `page` to `folio` over the versions; both describe the same bytes.
        let offset = |name: &'static str, paths: &[(&str, &str)]| {
            let mut offsets = paths.iter().filter_map(|(of, path)| types.offset(of, path));
            offsets.next().ok_or_else(|| unknown(name, "BTF has no such member"))
        };
        let bit = |name| types.enumerator("pageflags", name).map_or(0, mask);
        Ok(Self {
            size: types.size_of("page").ok_or_else(|| unknown("page", "BTF has no such type"))?,
            flags: offset("page.flags", &[("page", "flags")])?,
            mapping: offset("page.mapping", &[("folio", "mapping"), ("page", "mapping")])?,
            private: offset("page.private", &[("page", "private"), ("folio", "private")])?,
            lru: offset("page.lru", &[("page", "lru")])?,
            compound_head: offset("page.compound_head", &[("page", "compound_head")])?,
            refcount: offset("page._refcount", &[("page", "_refcount")])?,
            page_type: offset("page.page_type", &[("page", "page_type"), ("page", "_mapcount")])?,
            index: types.offset("folio", "index").or_else(|| types.offset("page", "index")),
            bits: FlagBits {
                reserved: bit("PG_reserved"),
                slab: bit("PG_slab"),
                swap_backed: bit("PG_swapbacked"),
                swap_cache: bit("PG_swapcache"),
            },
            types: PageTypes::of_types(types).or_else(|| PageTypes::of_note(note)).ok_or_else(
                || unknown("page types", "neither BTF nor the note has them in a known form"),
            )?,
        })
    }

    fn of_note(note: &Note) -> Result<Self, KernelError> {
        let offset =
            |name| note.offset(name).ok_or_else(|| unknown(name, "no BTF, and not in the note"));
        let bit = |name| note.number(name).map_or(0, mask);
        Ok(Self {
            size: note.size("page").ok_or_else(|| unknown("page", "no BTF, not in the note"))?,
            flags: offset("page.flags")?,
            mapping: offset("page.mapping")?,
            private: offset("page.private")?,
            lru: offset("page.lru")?,
            compound_head: offset("page.compound_head")?,
            refcount: offset("page._refcount")?,
            page_type: offset("page._mapcount")?,
            index: None,
            bits: FlagBits {
                // Not in the note.
                reserved: 0,
                slab: bit("PG_slab"),
                swap_backed: bit("PG_swapbacked"),
                swap_cache: bit("PG_swapcache"),
            },
            types: PageTypes::of_note(note)
                .ok_or_else(|| unknown("page types", "the note has them in no known form"))?,
        })
    }

    fn check(self) -> Result<Self, KernelError> {
        let words = [self.flags, self.mapping, self.private, self.compound_head];
        let ends = words.map(|offset| offset.saturating_add(8));
        let index = self.index.map_or(0, |offset| offset.saturating_add(8));
        let halves = [self.refcount, self.page_type].map(|offset| offset.saturating_add(4));
        let end = ends.into_iter().chain(halves).chain([index, self.lru.saturating_add(16)]).max();
        if !SIZE.contains(&self.size) || end.is_some_and(|end| end > self.size) {
            let reason = format_args!("members up to {end:?} in {} bytes", self.size);
            return Err(KernelError::malformed("struct page", reason));
        }
        Ok(self)
    }
}

impl PageTypes {
    /// The class of a page with this `page_type`; `None`: the word has another meaning.
    pub(super) fn class(&self, word: u32) -> Option<PageClass> {
        let is = |value: u32| match self.scheme {
            Scheme::ClearedBit { base } => word & (base | value) == base,
            Scheme::TopByte => word >> 24 == value,
        };
        self.classes.iter().find(|&&(value, _)| is(value)).map(|&(_, class)| class)
    }

    /// `enum pagetype`: there since 6.11.
    fn of_types(types: &Types) -> Option<Self> {
        let value = |name: &str| types.enumerator("pagetype", name).map(|value| value as u32);
        let named = |prefix| {
            let named =
                move |&(name, class): &(&str, _)| Some((value(&format!("{prefix}{name}"))?, class));
            TYPES.iter().filter_map(named).collect::<Vec<_>>()
        };
        if value("PGTY_buddy").is_some() {
            return Some(Self { scheme: Scheme::TopByte, classes: named("PGTY_") });
        }
        let base = value("PAGE_TYPE_BASE").filter(|_| value("PG_buddy").is_some())?;
        Some(Self { scheme: Scheme::ClearedBit { base }, classes: named("PG_") })
    }

    /// What the note says of buddies tells which of the known forms it is. It never names page tables; their
    /// value is that of the form (include/linux/page-flags.h).
    fn of_note(note: &Note) -> Option<Self> {
        let value = |name: &str| {
            note.number(&format!("PAGE_{name}_MAPCOUNT_VALUE")).map(|value| value as u32)
        };
        let buddy = value("BUDDY")?;
        let (scheme, table) = match buddy {
            0xffff_ff7f => (Scheme::ClearedBit { base: 0xf000_0000 }, 0x200),
            0xbfff_ffff => (Scheme::ClearedBit { base: 0x8000_0000 }, 0x1000_0000),
            0xf000_0000 => (Scheme::TopByte, 0xf2),
            _ => return None,
        };
        let named = [
            ("BUDDY", PageClass::Free),
            ("OFFLINE", PageClass::Offline),
            ("HUGETLB", PageClass::Huge),
            ("SLAB", PageClass::Slab),
        ];
        let plain = |value: u32| match scheme {
            Scheme::ClearedBit { .. } => !value,
            Scheme::TopByte => value >> 24,
        };
        let known = named.iter().filter_map(|&(name, class)| Some((plain(value(name)?), class)));
        let classes = known.chain([(table, PageClass::PageTable)]).collect();
        Some(Self { scheme, classes })
    }
}

fn mask(bit: i64) -> u64 {
    u32::try_from(bit).ok().and_then(|bit| 1_u64.checked_shl(bit)).unwrap_or(0)
}

fn unknown(what: &'static str, why: &str) -> KernelError {
    KernelError::Unknown { what, why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(lines: &str) -> Note {
        let text = format!("OSRELEASE=6.1\nPAGESIZE=4096\n{lines}");
        Note::parse(text.as_bytes()).expect("a note")
    }

    #[test]
    fn page_types_of_every_form_are_told_by_the_note() {
        let old = note(
            "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129\nNUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)=-257\n",
        );
        let types = PageTypes::of_note(&old).expect("6.1");
        for (word, class) in [
            (!0x80, Some(PageClass::Free)),
            (!0x100, Some(PageClass::Offline)),
            (!0x200, Some(PageClass::PageTable)),
            // Not mapped; mapped once; twice.
            (u32::MAX, None),
            (0, None),
            (1, None),
        ] {
            assert_eq!(types.class(word), class, "{word:#x}");
        }
        let middle = note("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-1073741825\n");
        let types = PageTypes::of_note(&middle).expect("6.11");
        assert_eq!(types.class(!0x4000_0000), Some(PageClass::Free));
        assert_eq!(types.class(!0x1000_0000), Some(PageClass::PageTable));
        let new = note(
            "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=4026531840\nNUMBER(PAGE_SLAB_MAPCOUNT_VALUE)=4110417920\n",
        );
        let types = PageTypes::of_note(&new).expect("6.12");
        assert_eq!(types.class(0xf000_0000), Some(PageClass::Free));
        assert_eq!(types.class(0xf200_0001), Some(PageClass::PageTable));
        assert_eq!(types.class(0xf500_0000), Some(PageClass::Slab));
        assert_eq!((types.class(u32::MAX), types.class(0)), (None, None));
        assert_eq!(PageTypes::of_note(&note("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=7\n")), None);
    }

    #[test]
    fn members_outside_the_page_are_refused() {
        let lines = |size: u32, mapping: u32| {
            format!(
                "SIZE(page)={size}\nOFFSET(page.flags)=0\nOFFSET(page.mapping)={mapping}\n\
                 OFFSET(page.private)=40\nOFFSET(page.lru)=8\nOFFSET(page.compound_head)=8\n\
                 OFFSET(page._refcount)=52\nOFFSET(page._mapcount)=48\nNUMBER(PG_slab)=9\n\
                 NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129\n"
            )
        };
        let layout = PageLayout::new(&note(&lines(64, 24)), None).expect("a layout");
        assert_eq!((layout.size, layout.mapping, layout.bits.slab), (64, 24, 1 << 9));
        for (size, mapping) in [(64, 60), (64, 1 << 31), (8, 0), (4096, 24)] {
            let error = PageLayout::new(&note(&lines(size, mapping)), None).expect_err("refused");
            assert!(matches!(error, KernelError::Malformed { .. }), "{error}");
        }
        let error = PageLayout::new(&note("SIZE(page)=64\n"), None).expect_err("not enough");
        assert!(error.to_string().starts_with("page.flags unknown: no BTF"), "{error}");
    }
}
