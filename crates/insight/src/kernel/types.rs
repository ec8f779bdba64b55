//! BTF: the kernel's description of its own types.
//!
//! A header, records of types, their names (Documentation/bpf/btf.rst). The kernel carries that of its image
//! between `__start_BTF` and `__stop_BTF`.

mod record;

use record::{Kind, Record};

use super::error::KernelError;

/// Bytes of a section at most: Debian's kernels have some 5 MiB.
const BYTES_MAX: usize = 64 << 20;
/// Types at most: Debian's kernels have some 130,000.
const TYPES_MAX: usize = 1 << 21;
/// How deep types may lie in each other.
const DEPTH_MAX: u32 = 16;
/// Members looked at for one question.
const STEPS_MAX: u32 = 1 << 16;

const TABLE: &str = "BTF";
/// First bytes of a section of the one version there is, little endian, with a header of 24 bytes.
const MAGIC: [u8; 8] = [0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
pub(super) const HEADER: usize = 24;

/// The types of the kernel's image.
///
/// In memory the section itself, at most 64 MiB, and 4 bytes a type. Offsets that it answers are the guest's
/// word: less than 2^29, and otherwise unchecked.
#[derive(Debug)]
pub struct Types {
    bytes: Vec<u8>,
    /// Where each record begins in `bytes`; type 1 first, 0 being `void`.
    records: Vec<u32>,
    /// Where names are in `bytes`.
    names: (usize, usize),
}

/// A member of a structure, as the compiler laid it out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// From the structure's first bit.
    pub bit_offset: u32,
    /// Width in bits; of a bit-field that of the field, of another member that of its type.
    pub bits: u64,
    type_id: u32,
}

impl Member {
    /// Its offset in bytes; `None` for one that does not begin at a byte.
    pub fn offset(&self) -> Option<usize> {
        self.bit_offset.is_multiple_of(8).then_some(self.bit_offset as usize / 8)
    }

    /// Its size in bytes, rounded up.
    pub fn bytes(&self) -> u64 {
        self.bits.div_ceil(8)
    }
}

impl Types {
    /// Reads a section.
    ///
    /// # Errors
    /// The header is not one, a part lies outside `bytes`, or a record runs over the end.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, KernelError> {
        let bad = |reason: &str| KernelError::malformed(TABLE, reason);
        if bytes.len() > BYTES_MAX {
            return Err(bad("a section of more than 64 MiB"));
        }
        if bytes.len() < HEADER || !bytes.starts_with(&MAGIC) {
            return Err(bad("no header"));
        }
        let field =
            |at| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let part = |offset: u32, len: u32| {
            let start = HEADER.checked_add(offset as usize)?;
            let end = start.checked_add(len as usize)?;
            (end <= bytes.len()).then_some((start, end))
        };
        let types = part(field(8), field(12)).ok_or_else(|| bad("types outside the section"))?;
        let names = part(field(16), field(20)).ok_or_else(|| bad("names outside the section"))?;
        let mut records = Vec::new();
        let mut at = types.0;
        while at < types.1 {
            let record = Record::at(&bytes[..types.1], at).ok_or_else(|| bad("a broken record"))?;
            if records.len() == TYPES_MAX {
                return Err(bad("more types than 2097152"));
            }
            records.push(at as u32);
            at = record.end();
        }
        Ok(Self { bytes, records, names })
    }

    /// Length of the section whose first bytes these are, if it is one.
    pub(super) fn section_len(header: &[u8; HEADER]) -> Option<usize> {
        let field =
            |at| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let end = |offset, len| HEADER.checked_add(offset as usize)?.checked_add(len as usize);
        let len = end(field(8), field(12))?.max(end(field(16), field(20))?);
        (header.starts_with(&MAGIC) && len <= BYTES_MAX).then_some(len)
    }

    /// How many types there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Size in bytes of the structure or union `name`.
    pub fn size_of(&self, name: &str) -> Option<usize> {
        self.structure(name).map(|record| record.size_or_type as usize)
    }

    /// A member of the structure or union `name`, by its path: `lru`, or `lru.next`. Members of nameless
    /// members are its own, as in C.
    pub fn member(&self, name: &str, path: &str) -> Option<Member> {
        let mut record = self.structure(name)?;
        let mut bit_offset = 0_u32;
        let mut found: Option<Member> = None;
        for part in path.split('.') {
            if let Some(outer) = found {
                record = self.resolved(outer.type_id)?;
            }
            let member = self.find(&record, part, 0, &mut 0)?;
            bit_offset = bit_offset.checked_add(member.bit_offset)?;
            found = Some(Member { bit_offset, ..member });
        }
        found
    }

    /// Offset in bytes of a member, see [`Types::member`].
    pub fn offset(&self, name: &str, path: &str) -> Option<usize> {
        self.member(name, path)?.offset()
    }

    /// The value of an enumerator of the enumeration `name`.
    pub fn enumerator(&self, name: &str, enumerator: &str) -> Option<i64> {
        let mut enums = self.all().filter(|record| {
            matches!(record.kind, Kind::Enum | Kind::Enum64) && self.is_named(record.name, name)
        });
        enums
            .find_map(|record| {
                let mut values = record.enumerators(&self.bytes);
                values.find(|&(value_name, _)| self.is_named(value_name, enumerator))
            })
            .map(|(_, value)| value)
    }

    fn structure(&self, name: &str) -> Option<Record> {
        let is_it = |record: &Record| record.is_structure() && self.is_named(record.name, name);
        self.all().find(is_it)
    }

    fn find(&self, within: &Record, name: &str, depth: u32, steps: &mut u32) -> Option<Member> {
        if depth > DEPTH_MAX || !within.is_structure() {
            return None;
        }
        for member in within.members(&self.bytes) {
            *steps += 1;
            if *steps > STEPS_MAX {
                return None;
            }
            if member.name == 0 {
                let Some(inner) = self.resolved(member.type_id) else { continue };
                if let Some(found) = self.find(&inner, name, depth + 1, steps) {
                    let bit_offset = found.bit_offset.checked_add(member.bit_offset)?;
                    return Some(Member { bit_offset, ..found });
                }
            } else if self.is_named(member.name, name) {
                let bits = match member.bits {
                    0 => self.bytes_of(member.type_id, 0)?.checked_mul(8)?,
                    bits => bits.into(),
                };
                return Some(Member {
                    bit_offset: member.bit_offset,
                    bits,
                    type_id: member.type_id,
                });
            }
        }
        None
    }

    /// Size of a type in bytes.
    fn bytes_of(&self, type_id: u32, depth: u32) -> Option<u64> {
        if depth > DEPTH_MAX {
            return None;
        }
        let record = self.resolved(type_id)?;
        match record.kind {
            Kind::Pointer => Some(8),
            Kind::Array => {
                let (element, count) = record.array(&self.bytes)?;
                self.bytes_of(element, depth + 1)?.checked_mul(count.into())
            }
            kind if kind.has_size() => Some(record.size_or_type.into()),
            _ => None,
        }
    }

    /// The type behind typedefs and qualifiers.
    fn resolved(&self, mut type_id: u32) -> Option<Record> {
        // `const volatile` typedefs of typedefs: a few. A lying guest's may run in a circle.
        for _ in 0..=2 * DEPTH_MAX {
            let record = self.record(type_id)?;
            if !record.kind.is_alias() {
                return Some(record);
            }
            type_id = record.size_or_type;
        }
        None
    }

    fn record(&self, type_id: u32) -> Option<Record> {
        let at = *self.records.get(type_id.checked_sub(1)? as usize)?;
        Record::at(&self.bytes, at as usize)
    }

    fn all(&self) -> impl Iterator<Item = Record> + '_ {
        self.records.iter().filter_map(|&at| Record::at(&self.bytes, at as usize))
    }

    fn is_named(&self, place: u32, name: &str) -> bool {
        let names = &self.bytes[self.names.0..self.names.1];
        let rest = names.get(place as usize..).and_then(|rest| rest.strip_prefix(name.as_bytes()));
        rest.is_some_and(|rest| rest.first() == Some(&0))
    }
}
