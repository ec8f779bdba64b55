//! One record of BTF.

/// What a record describes: `BTF_KIND_*` (include/uapi/linux/btf.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Int,
    Pointer,
    Array,
    Struct,
    Union,
    Enum,
    Forward,
    Typedef,
    Volatile,
    Const,
    Restrict,
    Function,
    Prototype,
    Variable,
    DataSection,
    Float,
    DeclarationTag,
    TypeTag,
    Enum64,
}

impl Kind {
    fn of(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Int,
            2 => Self::Pointer,
            3 => Self::Array,
            4 => Self::Struct,
            5 => Self::Union,
            6 => Self::Enum,
            7 => Self::Forward,
            8 => Self::Typedef,
            9 => Self::Volatile,
            10 => Self::Const,
            11 => Self::Restrict,
            12 => Self::Function,
            13 => Self::Prototype,
            14 => Self::Variable,
            15 => Self::DataSection,
            16 => Self::Float,
            17 => Self::DeclarationTag,
            18 => Self::TypeTag,
            19 => Self::Enum64,
            _ => return None,
        })
    }

    /// Bytes behind the record's head, and for each of what it counts.
    fn tail(self) -> (usize, usize) {
        match self {
            Self::Int | Self::Variable | Self::DeclarationTag => (4, 0),
            Self::Array => (12, 0),
            Self::Struct | Self::Union | Self::DataSection | Self::Enum64 => (0, 12),
            Self::Enum | Self::Prototype => (0, 8),
            _ => (0, 0),
        }
    }

    /// Another name for a type, or a qualifier of it.
    pub(super) fn is_alias(self) -> bool {
        matches!(
            self,
            Self::Typedef | Self::Volatile | Self::Const | Self::Restrict | Self::TypeTag
        )
    }

    pub(super) fn has_size(self) -> bool {
        matches!(
            self,
            Self::Int | Self::Struct | Self::Union | Self::Enum | Self::Enum64 | Self::Float
        )
    }
}

/// Head of a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) kind: Kind,
    /// Place of its name; 0: it has none.
    pub(super) name: u32,
    /// A size in bytes or another type, by the kind.
    pub(super) size_or_type: u32,
    /// Members, enumerators or parameters.
    count: usize,
    /// Of a structure: it has bit-fields; of an enumeration: its values have signs.
    flag: bool,
    /// Where the head ends.
    body: usize,
}

/// A member as it is recorded.
pub(super) struct RawMember {
    pub(super) name: u32,
    pub(super) type_id: u32,
    pub(super) bit_offset: u32,
    /// Width of a bit-field, otherwise 0.
    pub(super) bits: u32,
}

const HEAD: usize = 12;

impl Record {
    /// The record at `at`; `None` if it is of no known kind or not all of it is in `bytes`.
    pub(super) fn at(bytes: &[u8], at: usize) -> Option<Self> {
        let head: &[u8; HEAD] = bytes.get(at..)?.first_chunk()?;
        let (name, info, size_or_type) = (word(head, 0), word(head, 4), word(head, 8));
        let record = Self {
            kind: Kind::of(info >> 24 & 0x1f)?,
            name,
            size_or_type,
            count: (info & 0xffff) as usize,
            flag: info >> 31 != 0,
            body: at + HEAD,
        };
        (record.end() <= bytes.len()).then_some(record)
    }

    /// Where the next record begins.
    pub(super) fn end(&self) -> usize {
        let (fixed, each) = self.kind.tail();
        self.body + fixed + each * self.count
    }

    pub(super) fn is_structure(&self) -> bool {
        matches!(self.kind, Kind::Struct | Kind::Union)
    }

    /// Members of a structure or union in `bytes`, of which this is a record.
    pub(super) fn members<'a>(&self, bytes: &'a [u8]) -> impl Iterator<Item = RawMember> + 'a {
        let flag = self.flag;
        let entries = if self.is_structure() { &bytes[self.body..self.end()] } else { &[] };
        entries.as_chunks::<12>().0.iter().map(move |entry| {
            let place = word(entry, 8);
            // With bit-fields in the structure: eight bits of width, 24 of offset.
            let (bits, bit_offset) =
                if flag { (place >> 24, place & 0xff_ffff) } else { (0, place) };
            RawMember { name: word(entry, 0), type_id: word(entry, 4), bit_offset, bits }
        })
    }

    /// Element type and count of an array.
    pub(super) fn array(&self, bytes: &[u8]) -> Option<(u32, u32)> {
        let body = bytes.get(self.body..self.end())?;
        let entry = body.first_chunk::<12>().filter(|_| self.kind == Kind::Array)?;
        Some((word(entry, 0), word(entry, 8)))
    }

    /// Places of names, and values, of an enumeration.
    pub(super) fn enumerators<'a>(&self, bytes: &'a [u8]) -> impl Iterator<Item = (u32, i64)> + 'a {
        let (record, body) = (*self, &bytes[self.body..self.end()]);
        let step = self.kind.tail().1.max(1);
        body.chunks_exact(step).filter_map(move |entry| {
            let name = word(entry.first_chunk::<4>()?, 0);
            let low = word(entry.get(4..8)?, 0);
            let value = match record.kind {
                Kind::Enum if record.flag => i64::from(low as i32),
                Kind::Enum => i64::from(low),
                _ => i64::from(low) | i64::from(word(entry.get(8..12)?, 0)) << 32,
            };
            Some((name, value))
        })
    }
}

/// Four bytes at `at`, which the caller has checked to be there.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
