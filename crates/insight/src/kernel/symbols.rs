//! kallsyms: the kernel's own table of its symbols, as it lies in memory.
//!
//! Names are strings of tokens, each of which stands for one or more characters; addresses are offsets of 32
//! bits (kernel/kallsyms.c, scripts/kallsyms.c). The tables' order in memory changed from version to
//! version; the note names each of them since 6.0, so the order does not matter here.

use super::address::AddressSpace;
use super::error::KernelError;
use super::note::Note;

/// More symbols than any kernel has: Debian's have some 150,000.
const SYMBOLS_MAX: u32 = 1 << 21;
/// Bytes of all names: 64 a symbol would be more than any kernel has.
const NAMES_MAX: usize = 32 << 20;
/// The longest name that is made; longer ones end there. The kernel's limit is 512 (`KSYM_NAME_LEN`).
const NAME_MAX: usize = 1024;
/// Each so many-th name's place is remembered.
const MARK: usize = 64;
/// Names are read in pieces, since only they tell where they end.
const PIECE: usize = 64 << 10;

const TABLE: &str = "kallsyms";

/// The symbols of the kernel's image: those of modules are not among them.
///
/// In memory at most 32 MiB of names and 10 bytes a symbol; some 4 MiB for Debian's kernels.
#[derive(Debug)]
pub struct Symbols {
    tokens: Tokens,
    names: Vec<u8>,
    /// Where every [`MARK`]-th name begins.
    marks: Vec<u32>,
    /// By number of the symbol. Rising, if the guest does not lie.
    addresses: Vec<u64>,
}

/// Where the tables are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    pub(super) names: u64,
    pub(super) count: u64,
    pub(super) token_table: u64,
    pub(super) token_index: u64,
    pub(super) offsets: u64,
    pub(super) relative_base: u64,
}

impl Places {
    /// As the note has them, since Linux 6.0.
    pub(super) fn of(note: &Note) -> Option<Self> {
        Some(Self {
            names: note.symbol("kallsyms_names")?,
            count: note.symbol("kallsyms_num_syms")?,
            token_table: note.symbol("kallsyms_token_table")?,
            token_index: note.symbol("kallsyms_token_index")?,
            offsets: note.symbol("kallsyms_offsets")?,
            relative_base: note.symbol("kallsyms_relative_base")?,
        })
    }
}

impl Symbols {
    /// Reads the tables at `places`. `known` is a symbol whose address is known from elsewhere: it tells how
    /// offsets are meant.
    ///
    /// # Errors
    /// A table runs out of memory, over its bound, or does not agree with `known`.
    pub(super) fn read(
        space: &AddressSpace,
        places: &Places,
        known: (&str, u64),
    ) -> Result<Self, KernelError> {
        let count = space.u32(places.count)?;
        if count == 0 || count > SYMBOLS_MAX {
            return Err(KernelError::malformed(TABLE, format_args!("{count} symbols")));
        }
        let tokens = Tokens::read(space, places)?;
        let (names, marks) = read_names(space, places.names, count as usize)?;
        let mut offsets = vec![0; count as usize * 4];
        space.read(places.offsets, &mut offsets)?;
        let base = space.u64(places.relative_base)?;
        let mut symbols = Self { tokens, names, marks, addresses: Vec::new() };
        let offsets = offsets.as_chunks::<4>().0.iter().map(|&offset| i32::from_le_bytes(offset));
        symbols.addresses = symbols.addresses(offsets.collect(), base, known)?;
        Ok(symbols)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Whether there is none: never, in a table that was read.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// The address of the first symbol with this name. One pass over all names.
    pub fn address_of(&self, name: &str) -> Option<u64> {
        self.number_of(name).map(|number| self.addresses[number])
    }

    /// The symbol that `address` is in or after, and how far. Among several at one address it is the last.
    pub fn symbol_at(&self, address: u64) -> Option<(String, u64)> {
        let number = self.addresses.partition_point(|&start| start <= address).checked_sub(1)?;
        let past = address.checked_sub(self.addresses[number])?;
        Some((self.name(number)?, past))
    }

    /// Address and name of each symbol, in the table's order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, String)> + '_ {
        let names = self.strings(0).map(|tokens| self.tokens.name(tokens));
        self.addresses.iter().copied().zip(names)
    }

    fn number_of(&self, name: &str) -> Option<usize> {
        self.strings(0).position(|tokens| self.tokens.spell(tokens, name))
    }

    fn name(&self, number: usize) -> Option<String> {
        let tokens = self.strings(number / MARK).nth(number % MARK)?;
        Some(self.tokens.name(tokens))
    }

    /// The strings of tokens from the `mark`-th mark on.
    fn strings(&self, mark: usize) -> impl Iterator<Item = &[u8]> {
        let start = self.marks.get(mark).map_or(self.names.len(), |&start| start as usize);
        let mut rest = &self.names[start..];
        std::iter::from_fn(move || {
            let (tokens, later) = next_string(rest)?;
            rest = later;
            Some(tokens)
        })
    }

    /// Up to 6.14 an offset of 0 or more is an address of its own, for variables of each CPU, and others count
    /// down from the base (`KALLSYMS_ABSOLUTE_PERCPU`); since then all count up from it.
    fn addresses(
        &self,
        offsets: Vec<i32>,
        base: u64,
        (known, address): (&str, u64),
    ) -> Result<Vec<u64>, KernelError> {
        let number = self.number_of(known).ok_or_else(|| {
            KernelError::malformed(TABLE, format_args!("it has no symbol `{known}`"))
        })?;
        let downwards = |offset: i32| match offset {
            0.. => offset as u64,
            _ => base.wrapping_sub(1).wrapping_sub(i64::from(offset) as u64),
        };
        let upwards = |offset: i32| base.wrapping_add(u64::from(offset as u32));
        if downwards(offsets[number]) == address {
            Ok(offsets.into_iter().map(downwards).collect())
        } else if upwards(offsets[number]) == address {
            Ok(offsets.into_iter().map(upwards).collect())
        } else {
            let reason = format_args!("`{known}` is not at {address:#x}, where the note has it");
            Err(KernelError::malformed(TABLE, reason))
        }
    }
}

/// What each of 256 tokens stands for.
#[derive(Debug)]
struct Tokens {
    text: Vec<u8>,
    /// Beginning and end in `text`.
    places: [(u32, u32); 256],
}

impl Tokens {
    fn read(space: &AddressSpace, places: &Places) -> Result<Self, KernelError> {
        let mut index = [0; 512];
        space.read(places.token_index, &mut index)?;
        let starts: Vec<u32> = index
            .as_chunks::<2>()
            .0
            .iter()
            .map(|&start| u16::from_le_bytes(start).into())
            .collect();
        if !starts.is_sorted() {
            return Err(KernelError::malformed(TABLE, "its tokens are in no order"));
        }
        // The last token ends at a zero byte, no further on than the longest name.
        let mut text = vec![0; starts[255] as usize + NAME_MAX];
        space.read(places.token_table, &mut text)?;
        let mut tokens = [(0, 0); 256];
        for (token, &start) in tokens.iter_mut().zip(&starts) {
            let rest = &text[start as usize..];
            let bytes = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
            *token = (start, start + bytes.min(NAME_MAX) as u32);
        }
        Ok(Self { text, places: tokens })
    }

    fn text(&self, token: u8) -> &[u8] {
        let (start, end) = self.places[usize::from(token)];
        &self.text[start as usize..end as usize]
    }

    /// The characters of a string of tokens, without the first one, which is the symbol's kind.
    fn characters<'a>(&'a self, tokens: &'a [u8]) -> impl Iterator<Item = u8> + 'a {
        tokens.iter().flat_map(|&token| self.text(token)).copied().skip(1)
    }

    fn name(&self, tokens: &[u8]) -> String {
        let bytes: Vec<u8> = self.characters(tokens).take(NAME_MAX).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether the tokens spell `name`.
    fn spell(&self, tokens: &[u8], name: &str) -> bool {
        self.characters(tokens).eq(name.bytes())
    }
}

/// The first string of tokens and what follows. One byte of length, or since 6.1 two for long ones: seven bits
/// each, the low ones first.
fn next_string(names: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = names.split_first()?;
    if first & 0x80 == 0 {
        return rest.split_at_checked(first.into());
    }
    let (&second, rest) = rest.split_first()?;
    let len = usize::from(first & 0x7f) | usize::from(second & 0x7f) << 7;
    rest.split_at_checked(len)
}

/// The strings of `count` names, and where every [`MARK`]-th begins.
fn read_names(
    space: &AddressSpace,
    va: u64,
    count: usize,
) -> Result<(Vec<u8>, Vec<u32>), KernelError> {
    let (mut names, mut marks) = (Vec::new(), Vec::new());
    let (mut at, mut seen) = (0, 0);
    while seen < count {
        // Whole as far as it was read, but for what follows the last piece.
        match next_string(&names[at..]) {
            Some((tokens, rest)) => {
                if tokens.is_empty() {
                    return Err(KernelError::malformed(TABLE, "a name without characters"));
                }
                if seen % MARK == 0 {
                    marks.push(at as u32);
                }
                at = names.len() - rest.len();
                seen += 1;
            }
            None => read_more(space, va, &mut names)?,
        }
    }
    names.truncate(at);
    Ok((names, marks))
}

fn read_more(space: &AddressSpace, va: u64, names: &mut Vec<u8>) -> Result<(), KernelError> {
    let start = names.len();
    if start + PIECE > NAMES_MAX {
        return Err(KernelError::malformed(TABLE, format_args!("more than {NAMES_MAX} bytes")));
    }
    let from = va.wrapping_add(start as u64);
    names.resize(start + PIECE, 0);
    if space.read(from, &mut names[start..]).is_ok() {
        return Ok(());
    }
    // The image may end within this piece.
    names.truncate(start);
    let page = 4096 - from as usize % 4096;
    names.resize(start + page, 0);
    Ok(space.read(from, &mut names[start..])?)
}
