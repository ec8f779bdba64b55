//! VMCOREINFO: what a Linux kernel says of itself to whoever reads its crash dump.
//!
//! `KEY=VALUE` lines, in a page of their own and once more behind the header of an ELF note, both from a
//! page's first byte on (kernel/vmcore_info.c; Documentation/admin-guide/kdump/vmcoreinfo.rst).

use std::collections::HashMap;

use memory::{Frame, Gpa, ReadView};

use super::address::{IMAGE_BYTES_MAX, IMAGE_START};
use super::error::KernelError;

/// The kernel's own limit is a page; a longer text is none.
const TEXT_MAX: usize = 4096;
/// Longest name of a release: the kernel's limit (`__NEW_UTS_LEN`).
const RELEASE_MAX: usize = 64;
/// An ELF note: sizes of name and text, a type of 0, the name.
const NOTE_NAME: &[u8] = b"VMCOREINFO\0";
const NOTE_HEAD: usize = 24;
const TEXT_START: &[u8] = b"OSRELEASE=";

/// What the note says. Names and values are the guest's: bounded, and otherwise as they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    release: String,
    kaslr_offset: u64,
    symbols: HashMap<String, u64>,
    /// OFFSET, SIZE, LENGTH and NUMBER lines, by the whole key.
    numbers: HashMap<String, i64>,
}

impl Note {
    /// Reads a note's text: what is before the first zero byte, at most 4096 bytes.
    ///
    /// # Errors
    /// It has no sound release and page size, a line that should have a number has none, or two lines
    /// contradict each other. Lines of unknown kinds are passed over.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
        if end > TEXT_MAX {
            return Err(format!("it is longer than {TEXT_MAX} bytes"));
        }
        let text = std::str::from_utf8(&text[..end]).map_err(|_| "it is not text".to_owned())?;
        let mut lines = Lines::default();
        for line in text.lines() {
            lines.add(line)?;
        }
        lines.finish()
    }

    /// The release, such as `6.1.0-50-cloud-amd64`: 1 to 64 graphic characters.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// How far the kernel has moved itself from where it was linked: less than a gigabyte.
    pub fn kaslr_offset(&self) -> u64 {
        self.kaslr_offset
    }

    /// The address of a symbol that the note names.
    pub fn symbol(&self, name: &str) -> Option<u64> {
        self.symbols.get(name).copied()
    }

    /// The offset of a member in its structure: `page.flags`.
    pub fn offset(&self, member: &str) -> Option<usize> {
        usize::try_from(*self.numbers.get(&format!("OFFSET({member})"))?).ok()
    }

    /// The size of a structure.
    pub fn size(&self, name: &str) -> Option<usize> {
        usize::try_from(*self.numbers.get(&format!("SIZE({name})"))?).ok()
    }

    /// A number that the note names.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.numbers.get(&format!("NUMBER({name})")).copied()
    }

    /// Physical address of an address in the kernel's image, which lies in one piece.
    pub(super) fn image_gpa(&self, va: u64) -> Option<Gpa> {
        let from_start = va.checked_sub(IMAGE_START).filter(|&bytes| bytes < IMAGE_BYTES_MAX)?;
        from_start.checked_add_signed(self.number("phys_base")?).map(Gpa)
    }
}

/// Lines gathered so far.
#[derive(Default)]
struct Lines {
    release: Option<String>,
    page_size: Option<u64>,
    kaslr_offset: Option<u64>,
    symbols: HashMap<String, u64>,
    numbers: HashMap<String, i64>,
}

impl Lines {
    fn add(&mut self, line: &str) -> Result<(), String> {
        let Some((key, value)) = line.split_once('=') else { return Ok(()) };
        let bad = || format!("`{}` has no sound value", shown(line));
        let known = match key.split_once('(').map_or(key, |(kind, _)| kind) {
            "OSRELEASE" => self.release.replace(value.to_owned()).is_some_and(|old| old != value),
            "PAGESIZE" => {
                let value = value.parse().map_err(|_| bad())?;
                self.page_size.replace(value).is_some_and(|old| old != value)
            }
            "KERNELOFFSET" => {
                let value = hexadecimal(value).ok_or_else(bad)?;
                self.kaslr_offset.replace(value).is_some_and(|old| old != value)
            }
            "SYMBOL" => {
                let name = key.strip_prefix("SYMBOL(").and_then(|rest| rest.strip_suffix(')'));
                let (name, value) = name.zip(hexadecimal(value)).ok_or_else(bad)?;
                self.symbols.insert(name.to_owned(), value).is_some_and(|old| old != value)
            }
            "OFFSET" | "SIZE" | "LENGTH" | "NUMBER" => {
                let value = number(value).ok_or_else(bad)?;
                self.numbers.insert(key.to_owned(), value).is_some_and(|old| old != value)
            }
            _ => false,
        };
        if known { Err(format!("`{}` contradicts an earlier line", shown(line))) } else { Ok(()) }
    }

    fn finish(self) -> Result<Note, String> {
        let release = self.release.ok_or("it names no release")?;
        if !(1..=RELEASE_MAX).contains(&release.len())
            || !release.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(format!("`{}` is no release", shown(&release)));
        }
        let page_size = self.page_size.ok_or("it names no page size")?;
        if page_size != 4096 {
            return Err(format!("pages of {page_size} bytes are not x86-64's"));
        }
        let kaslr_offset = self.kaslr_offset.unwrap_or(0);
        if kaslr_offset >= IMAGE_BYTES_MAX {
            return Err(format!("a kernel cannot be moved by {kaslr_offset:#x}"));
        }
        let (symbols, numbers) = (self.symbols, self.numbers);
        Ok(Note { release, kaslr_offset, symbols, numbers })
    }
}

/// Decimal with a sign, or hexadecimal with `0x`: then the bits count.
fn number(text: &str) -> Option<i64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok().map(u64::cast_signed),
        None => text.parse().ok(),
    }
}

fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

/// The guest's text, fit for a message.
fn shown(text: &str) -> String {
    text.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Frames that begin like a note, by rising address. A glance at each frame's first bytes.
pub(super) fn candidates(view: &ReadView) -> impl Iterator<Item = Gpa> + '_ {
    let frames = (0..view.layout().frames()).filter_map(|frame| view.layout().gpa_of(Frame(frame)));
    frames.filter(|&gpa| {
        let mut head = [0; NOTE_HEAD];
        view.read(gpa, &mut head).is_ok() && text_start(&head).is_some()
    })
}

/// Where the text begins in a frame with this head.
fn text_start(head: &[u8; NOTE_HEAD]) -> Option<usize> {
    if head.starts_with(TEXT_START) {
        return Some(0);
    }
    let name_bytes = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let named = name_bytes == NOTE_NAME.len() && head[12..].starts_with(NOTE_NAME);
    named.then_some(NOTE_HEAD)
}

/// The note at `gpa`, one of [`candidates`].
pub(super) fn read(view: &ReadView, gpa: Gpa) -> Result<Note, KernelError> {
    let refused = |reason: String| KernelError::Refused { at: gpa, reason };
    let mut head = [0; NOTE_HEAD];
    view.read(gpa, &mut head).map_err(|error| refused(error.to_string()))?;
    let start = text_start(&head).ok_or_else(|| refused("it has changed".to_owned()))?;
    // The text may end with the page; what is in the next one is read where there is one.
    let mut text = vec![0; TEXT_MAX];
    let first = TEXT_MAX - start;
    view.read(Gpa(gpa.0 + start as u64), &mut text[..first])
        .map_err(|error| refused(error.to_string()))?;
    if view.read(Gpa(gpa.0 + TEXT_MAX as u64), &mut text[first..]).is_err() {
        text.truncate(first);
    }
    Note::parse(&text).map_err(refused)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "OSRELEASE=6.1.0-50-cloud-amd64\nBUILD-ID=d1\nPAGESIZE=4096\n\
        SYMBOL(init_uts_ns)=ffffffff9e81b340\nOFFSET(page.flags)=0\nSIZE(page)=64\n\
        NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129\nNUMBER(phys_base)=-16777216\n\
        NUMBER(VMALLOC_START)=0xffffc90000000000\nKERNELOFFSET=1c000000\n";

    #[test]
    fn a_sound_note_is_read() {
        let note = Note::parse(TEXT.as_bytes()).expect("a note");
        assert_eq!((note.release(), note.kaslr_offset()), ("6.1.0-50-cloud-amd64", 0x1c00_0000));
        assert_eq!(note.symbol("init_uts_ns"), Some(0xffff_ffff_9e81_b340));
        assert_eq!((note.offset("page.flags"), note.size("page")), (Some(0), Some(64)));
        assert_eq!(note.number("PAGE_BUDDY_MAPCOUNT_VALUE"), Some(-129));
        assert_eq!(
            (note.symbol("nobody"), note.offset("page"), note.size("x")),
            (None, None, None)
        );
        let start = note.number("VMALLOC_START");
        assert_eq!(start, Some(0xffff_c900_0000_0000_u64.cast_signed()), "6.12 has such numbers");
        assert_eq!(note.image_gpa(IMAGE_START + 0x200_0000), Some(Gpa(0x100_0000)));
        assert_eq!(note.image_gpa(IMAGE_START + 0x10_0000), None, "before address 0");
        assert_eq!(note.image_gpa(IMAGE_START + IMAGE_BYTES_MAX), None);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (more, part) in [
            ("PAGESIZE=8192\n", "contradicts"),
            ("SYMBOL(init_uts_ns)=1\n", "contradicts"),
            ("SIZE(page)=56\n", "contradicts"),
            ("OSRELEASE=6.2\n", "contradicts"),
            ("SYMBOL(x)=here\n", "`SYMBOL(x)=here` has no sound value"),
            ("SYMBOL(x=1\n", "no sound value"),
            ("OFFSET(a.b)=99999999999999999999\n", "no sound value"),
        ] {
            let error = Note::parse(format!("{TEXT}{more}").as_bytes()).expect_err(more);
            assert!(error.contains(part), "{error}");
        }
        assert!(Note::parse(format!("{TEXT}SIZE(page)=64\nodd line\nA=b\n").as_bytes()).is_ok());
        for (text, part) in [
            ("PAGESIZE=4096\n", "no release"),
            ("OSRELEASE=6.1\n", "no page size"),
            ("OSRELEASE=\nPAGESIZE=4096", "is no release"),
            ("OSRELEASE=a b\nPAGESIZE=4096", "is no release"),
            ("OSRELEASE=6.1\nPAGESIZE=16384", "not x86-64's"),
            ("OSRELEASE=6.1\nPAGESIZE=4096\nKERNELOFFSET=40000000", "cannot be moved"),
        ] {
            let error = Note::parse(text.as_bytes()).expect_err(text);
            assert!(error.contains(part), "{error}");
        }
        assert!(Note::parse(b"OSRELEASE=\xff\n").is_err());
        assert!(Note::parse(&[b'\n'; 4097]).is_err());
    }

    proptest! {
        #[test]
        fn any_mutation_is_read_or_refused(
            changes in proptest::collection::vec((0..TEXT.len(), any::<u8>()), 1..8),
        ) {
            let mut text = TEXT.as_bytes().to_vec();
            for (at, byte) in changes {
                text[at] = byte;
            }
            if let Ok(note) = Note::parse(&text) {
                prop_assert!(note.kaslr_offset() < IMAGE_BYTES_MAX);
                prop_assert!((1..=RELEASE_MAX).contains(&note.release().len()));
            }
        }
    }
}
