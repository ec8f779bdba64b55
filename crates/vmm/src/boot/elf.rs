//! The ELF vmlinux: which bytes go where, and where it is entered.

use std::ops::Range;

use super::error::ImageError;
use super::layout::{DEVICE_HOLE, HIGH_MEMORY};
use super::little_endian::{u16_at, u32_at, u64_at};

/// First bytes of every ELF file.
pub(super) const MAGIC: &[u8] = b"\x7fELF";

const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const LOAD: u32 = 1;
/// Kernels are linked into the top 2 GiB (Documentation/arch/x86/x86_64/mm.rst), programs into the lower
/// half; anything in the upper half passes for a kernel.
const UPPER_HALF: u64 = 0xffff_8000_0000_0000;

/// A loadable part of a kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Its bytes in the ELF file; within it.
    pub file: Range<usize>,
    /// Guest-physical address it goes to; at least 1 MiB.
    pub gpa: u64,
    /// Bytes it occupies there, at least `file.len()`; those beyond are zero. Ends by 3 GiB.
    pub size: u64,
}

impl Segment {
    /// Guest-physical end address.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.gpa + self.size
    }
}

/// What an ELF vmlinux says about loading itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vmlinux {
    /// Physical address of `startup_64`; inside the file bytes of a segment.
    pub entry: u64,
    /// By ascending address, not overlapping; at least one.
    pub segments: Vec<Segment>,
}

impl Vmlinux {
    /// Reads the headers of the ELF file `elf`.
    pub fn parse(elf: &[u8]) -> Result<Self, ImageError> {
        Self::parse_head(elf, elf.len() as u64)
    }

    /// The same, where `elf` is only the beginning of a file of `length` bytes, with all program headers.
    pub(super) fn parse_head(elf: &[u8], length: u64) -> Result<Self, ImageError> {
        check_identity(elf)?;
        let mut segments = Vec::new();
        let mut highest_va = 0;
        for offset in program_headers(elf)? {
            let header = &elf[offset..offset + PROGRAM_HEADER_SIZE];
            if u32_at(header, 0) == Some(LOAD) && field(header, 40)? > 0 {
                highest_va = highest_va.max(field(header, 16)?);
                segments.push(segment(elf, offset, length)?);
            }
        }
        if highest_va < UPPER_HALF {
            return Err(ImageError::NotAKernel { found: describe_program(segments.len()) });
        }
        segments.sort_by_key(|segment| segment.gpa);
        refuse_overlap(&segments)?;
        let entry = field(elf, 24)?;
        check_entry(entry, &segments)?;
        Ok(Self { entry, segments })
    }

    /// From the lowest address of the kernel to its highest.
    #[must_use]
    pub fn extent(&self) -> Range<u64> {
        let start = self.segments.iter().map(|segment| segment.gpa).min().unwrap_or(0);
        let end = self.segments.iter().map(Segment::end).max().unwrap_or(0);
        start..end
    }
}

/// What an ELF file without a kernel's addresses seems to be.
fn describe_program(segments: usize) -> String {
    if segments == 0 {
        "an ELF file with nothing to load".to_owned()
    } else {
        "an ELF file linked for the lower half of the address space (a program?)".to_owned()
    }
}

fn check_identity(elf: &[u8]) -> Result<(), ImageError> {
    if elf.len() < HEADER_SIZE {
        return Err(truncated("ELF header", 0, HEADER_SIZE, elf));
    }
    let bad = |field, offset, expected, found: u16| {
        Err(ImageError::Field { field, offset, expected, found: u64::from(found) })
    };
    if elf[4] != CLASS_64 {
        return bad("ELF class", 4, "2 (64-bit; 32-bit kernels are not booted)", elf[4].into());
    }
    if elf[5] != LITTLE_ENDIAN {
        return bad("ELF byte order", 5, "1 (little-endian)", elf[5].into());
    }
    let kind = u16_at(elf, 16).unwrap_or(0);
    if kind != TYPE_EXECUTABLE && kind != TYPE_SHARED {
        return bad("ELF type", 16, "2 (executable; 1 is an object file or a kernel module)", kind);
    }
    let machine = u16_at(elf, 18).unwrap_or(0);
    if machine != MACHINE_X86_64 {
        return bad("ELF machine", 18, "62 (x86-64)", machine);
    }
    Ok(())
}

/// Offsets of the program headers, all within `elf`.
fn program_headers(elf: &[u8]) -> Result<impl Iterator<Item = usize>, ImageError> {
    let size = u16_at(elf, 54).unwrap_or(0);
    if usize::from(size) != PROGRAM_HEADER_SIZE {
        return Err(ImageError::Field {
            field: "ELF program header size",
            offset: 54,
            expected: "56",
            found: size.into(),
        });
    }
    let offset = field(elf, 32)?;
    let table = usize::from(u16_at(elf, 56).unwrap_or(0)) * PROGRAM_HEADER_SIZE;
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    if start.checked_add(table).is_none_or(|end| end > elf.len()) {
        return Err(truncated("ELF program headers", offset, table, elf));
    }
    Ok((start..start + table).step_by(PROGRAM_HEADER_SIZE))
}

/// The loadable segment whose program header is at `offset`.
fn segment(elf: &[u8], offset: usize, length: u64) -> Result<Segment, ImageError> {
    let header = &elf[offset..offset + PROGRAM_HEADER_SIZE];
    let (file_offset, gpa) = (field(header, 8)?, field(header, 24)?);
    let (file_size, size) = (field(header, 32)?, field(header, 40)?);
    let bad = |field, at, expected, found| {
        Err(ImageError::Field { field, offset: (offset + at) as u64, expected, found })
    };
    if file_size > size {
        return bad("p_filesz", 32, "at most p_memsz", file_size);
    }
    if gpa < HIGH_MEMORY {
        return bad("p_paddr", 24, "1 MiB (0x100000) or more", gpa);
    }
    if gpa.checked_add(size).is_none_or(|end| end > DEVICE_HOLE) {
        return bad("p_memsz", 40, "an end at 3 GiB or below, where RAM ends", size);
    }
    let end = file_offset.checked_add(file_size);
    if end.is_none_or(|end| end > length) {
        let (what, offset, needed) = ("ELF segment", file_offset, file_size);
        let available = length.saturating_sub(offset);
        return Err(ImageError::Truncated { what, offset, needed, available, length });
    }
    let start = file_offset as usize; // at most `length`, as just checked
    Ok(Segment { file: start..start + file_size as usize, gpa, size })
}

/// `segments` ascend by address.
fn refuse_overlap(segments: &[Segment]) -> Result<(), ImageError> {
    match segments.windows(2).find(|pair| pair[0].end() > pair[1].gpa) {
        Some(pair) => Err(ImageError::Overlap { end: pair[0].end(), start: pair[1].gpa }),
        None => Ok(()),
    }
}

fn check_entry(entry: u64, segments: &[Segment]) -> Result<(), ImageError> {
    let inside = |segment: &Segment| {
        entry.checked_sub(segment.gpa).is_some_and(|at| at < segment.file.len() as u64)
    };
    if segments.iter().any(inside) {
        return Ok(());
    }
    Err(ImageError::Field {
        field: "e_entry",
        offset: 24,
        expected: "the physical address of code in a loadable segment",
        found: entry,
    })
}

/// A 64-bit field of a header whose length has been checked.
fn field(header: &[u8], offset: usize) -> Result<u64, ImageError> {
    u64_at(header, offset).ok_or_else(|| truncated("ELF header", offset as u64, 8, header))
}

fn truncated(what: &'static str, offset: u64, needed: usize, whole: &[u8]) -> ImageError {
    let length = whole.len() as u64;
    let available = length.saturating_sub(offset);
    ImageError::Truncated { what, offset, needed: needed as u64, available, length }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::{ElfSegment, elf};
    use proptest::prelude::*;

    const TEXT: ElfSegment =
        ElfSegment { va: 0xffff_ffff_8100_0000, gpa: 0x100_0000, data: 0x3000, size: 0x4000 };
    const DATA: ElfSegment =
        ElfSegment { va: 0xffff_ffff_8120_0000, gpa: 0x120_0000, data: 0x100, size: 0x2100 };

    fn field_of(error: &ImageError) -> &'static str {
        match error {
            ImageError::Field { field, .. } => field,
            _ => panic!("not about a field: {error}"),
        }
    }

    #[test]
    fn segments_come_in_order_with_their_addresses() {
        let file = elf(0x100_0040, &[DATA, TEXT]);
        let vmlinux = Vmlinux::parse(&file).unwrap();
        assert_eq!(vmlinux.entry, 0x100_0040);
        assert_eq!(vmlinux.extent(), 0x100_0000..0x120_2100);
        assert_eq!(vmlinux.segments[0].file.len(), 0x3000);
        assert_eq!(vmlinux.segments[1].size, 0x2100);
    }

    #[test]
    fn a_program_is_no_kernel() {
        let low = ElfSegment { va: 0x40_0000, gpa: 0x40_0000, ..TEXT };
        let error = Vmlinux::parse(&elf(0x40_0000, &[low])).unwrap_err();
        assert!(error.to_string().contains("a program?"), "{error}");
        let error = Vmlinux::parse(&elf(0, &[])).unwrap_err();
        assert!(error.to_string().contains("nothing to load"), "{error}");
    }

    #[test]
    fn header_fields_are_checked() {
        for (offset, value, name) in [
            (4, 1, "ELF class"),
            (5, 2, "ELF byte order"),
            (16, 1, "ELF type"),
            (18, 40, "ELF machine"),
            (54, 32, "ELF program header size"),
        ] {
            let mut file = elf(0x100_0000, &[TEXT]);
            file[offset] = value;
            assert_eq!(field_of(&Vmlinux::parse(&file).unwrap_err()), name);
        }
    }

    #[test]
    fn segments_must_be_sound() {
        let parse = |segment| Vmlinux::parse(&elf(0x100_0000, &[segment])).unwrap_err();
        assert_eq!(field_of(&parse(ElfSegment { size: 0x2fff, ..TEXT })), "p_filesz");
        assert_eq!(field_of(&parse(ElfSegment { gpa: 0xf_ffff, ..TEXT })), "p_paddr");
        assert_eq!(field_of(&parse(ElfSegment { size: u64::MAX, ..TEXT })), "p_memsz");
        assert_eq!(field_of(&parse(ElfSegment { gpa: 0x200_0000, ..TEXT })), "e_entry");
    }

    #[test]
    fn overlap_is_refused_with_both_addresses() {
        let over = ElfSegment { gpa: TEXT.gpa + TEXT.size - 1, ..DATA };
        let error = Vmlinux::parse(&elf(0x100_0000, &[TEXT, over])).unwrap_err();
        assert!(matches!(error, ImageError::Overlap { end: 0x100_4000, start: 0x100_3fff }));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let file = elf(0x100_0000, &[TEXT, DATA]);
        for length in (0..file.len()).step_by(61) {
            assert!(Vmlinux::parse(&file[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn damaged_headers_never_give_unsound_segments(
            damage in prop::collection::vec((0usize..64 + 2 * 56, any::<u8>()), 1..12)
        ) {
            let mut file = elf(0x100_0000, &[TEXT, DATA]);
            for (offset, value) in damage {
                file[offset] = value;
            }
            if let Ok(vmlinux) = Vmlinux::parse(&file) {
                let mut end = HIGH_MEMORY;
                for segment in &vmlinux.segments {
                    prop_assert!(segment.gpa >= end && segment.file.end <= file.len());
                    prop_assert!(segment.file.len() as u64 <= segment.size);
                    end = segment.end();
                }
            }
        }
    }
}
