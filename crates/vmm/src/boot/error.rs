//! What can go wrong between a kernel file and its first instruction.

use std::io;
use std::path::PathBuf;

use super::unpack::Compression;

/// Why a file is not a kernel that can be booted. Offsets are bytes from the start of the file, or of
/// what was unpacked from it where the message says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// No byte in it.
    #[error("the file is empty: expected a Linux kernel (bzImage or ELF vmlinux)")]
    Empty,
    /// It is something else.
    #[error(
        "not a Linux kernel: expected a bzImage (\"HdrS\" at offset 0x202), an ELF vmlinux or a \
         compressed one, found {found}"
    )]
    NotAKernel {
        /// What it seems to be.
        found: String,
    },
    /// It ends too early.
    #[error(
        "truncated: {what} at offset {offset:#x} needs {needed} bytes, but only {available} of \
         {length} are left"
    )]
    Truncated {
        /// The part that is cut off.
        what: &'static str,
        /// Where that part starts.
        offset: u64,
        /// Its length in bytes.
        needed: u64,
        /// Bytes there are from `offset` on.
        available: u64,
        /// Length of the whole in bytes.
        length: u64,
    },
    /// A field has a value that it cannot have.
    #[error("bad {field} at offset {offset:#x}: expected {expected}, found {found:#x}")]
    Field {
        /// The field's name in its specification.
        field: &'static str,
        /// Where it is.
        offset: u64,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: u64,
    },
    /// Two segments of the ELF file want the same memory.
    #[error(
        "overlapping ELF segments: one ends at physical {end:#x}, the next starts at {start:#x}"
    )]
    Overlap {
        /// End of the lower segment.
        end: u64,
        /// Start of the higher one.
        start: u64,
    },
    /// A kernel of a kind that is not booted here.
    #[error("unsupported kernel: {what}")]
    Unsupported {
        /// What it has, and what to use instead.
        what: &'static str,
    },
    /// The compressed data is damaged.
    #[error("the {compression} data at offset {offset:#x} is damaged")]
    Unpack {
        /// How it is compressed.
        compression: Compression,
        /// Where the data starts.
        offset: u64,
        /// What the decoder says.
        #[source]
        source: io::Error,
    },
    /// It unpacks to another length than it says.
    #[error(
        "the {compression} data at offset {offset:#x} is damaged: it should unpack to {expected} \
         bytes (modulo 4 GiB), but gives {found}"
    )]
    UnpackedLength {
        /// How it is compressed.
        compression: Compression,
        /// Where the data starts.
        offset: u64,
        /// The length stored behind the data.
        expected: u32,
        /// What came out.
        found: u64,
    },
    /// Whoever wanted the unpacked kernel took only a part.
    #[error("the unpacked kernel is not taken: {0}")]
    NotTaken(#[source] io::Error),
    /// It unpacks to more than the guest could hold.
    #[error(
        "the {compression} data at offset {offset:#x} unpacks to more than {limit} bytes: give the \
         guest more memory, if this is a kernel"
    )]
    UnpackedTooLarge {
        /// How it is compressed.
        compression: Compression,
        /// Where the data starts.
        offset: u64,
        /// The most that was allowed.
        limit: u64,
    },
}

/// Why a guest cannot be booted.
///
/// By blame: the user's files and sizes (`Read` to `CmdlineNul`), the machine's builder (`RamShape` to
/// `AcpiTooLarge`), guest memory (`Memory`). Nothing is undone: guest memory may have been written in
/// part, so it is not to be used again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// A file cannot be read.
    #[error("cannot read the {what} {}", path.display())]
    Read {
        /// "kernel" or "initrd".
        what: &'static str,
        /// Its path as given.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A path names no regular file.
    #[error("cannot read the {what} {}: it is {found}, not a regular file", path.display())]
    NotAFile {
        /// "kernel" or "initrd".
        what: &'static str,
        /// Its path as given.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// A file is larger than it can sensibly be.
    #[error("the {what} {} is larger than {limit} bytes", path.display())]
    FileTooLarge {
        /// "kernel" or "initrd".
        what: &'static str,
        /// Its path as given.
        path: PathBuf,
        /// The most that is read.
        limit: u64,
    },
    /// The kernel file is no kernel, or a damaged one.
    #[error("cannot boot the kernel {}", path.display())]
    Kernel {
        /// Its path as given.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ImageError,
    },
    /// The kernel is damaged; [`super::prepare`] says which ([`BootError::Kernel`]).
    #[error(transparent)]
    Image(ImageError),
    /// The initrd's content ended early; [`super::prepare`] says whose ([`BootError::Read`]).
    #[error("read the initrd: {0}")]
    InitrdRead(#[source] io::Error),
    /// The kernel does not fit into the guest's memory.
    #[error(
        "too little memory: the kernel occupies {start:#x} to {end:#x}, and the guest's low memory \
         ends at {ram_end:#x}: give it at least {} MiB", mib_up(*.end) + super::KERNEL_HEADROOM_MIB
    )]
    TooLittleMemory {
        /// Lowest address of the kernel.
        start: u64,
        /// End of its highest segment.
        end: u64,
        /// End of the RAM that starts at 0.
        ram_end: u64,
    },
    /// The initrd file has no byte.
    #[error("the initrd is empty: give a cpio archive, or leave --initrd out")]
    InitrdEmpty,
    /// The initrd does not fit behind the kernel.
    #[error(
        "the initrd of {size} bytes does not fit: {} bytes are free between the kernel's end at \
         {kernel_end:#x} and {ceiling:#x} ({limited_by}): {}",
        ceiling.saturating_sub(*kernel_end),
        initrd_advice(*.size, *.kernel_end, *.limited_by)
    )]
    InitrdTooLarge {
        /// Its length in bytes.
        size: u64,
        /// Where the kernel ends, rounded up to a page.
        kernel_end: u64,
        /// The end of the room for it.
        ceiling: u64,
        /// What sets `ceiling`.
        limited_by: InitrdLimit,
    },
    /// The command line is too long.
    #[error(
        "the command line has {length} bytes, and this kernel takes at most {limit}: shorten it"
    )]
    CmdlineTooLong {
        /// Its length in bytes.
        length: usize,
        /// The kernel's `cmdline_size`.
        limit: usize,
    },
    /// The command line has a NUL in it.
    #[error(
        "the command line has a NUL byte at position {position}: the kernel would end it there"
    )]
    CmdlineNul {
        /// Index of the byte.
        position: usize,
    },
    /// The guest's RAM is not where a PC has it.
    #[error("guest RAM {found:#x?} cannot be booted from: expected {expected}")]
    RamShape {
        /// The ranges that were given.
        found: Vec<std::ops::Range<u64>>,
        /// The rule that they break.
        expected: &'static str,
    },
    /// A machine has more of something than its tables can describe.
    #[error("{found} {what} asked for: from {min} to {max} are possible")]
    Count {
        /// Of what.
        what: &'static str,
        /// How many were asked for.
        found: u32,
        /// The least.
        min: u32,
        /// The most.
        max: u32,
    },
    /// The ACPI tables do not fit into the room they have.
    #[error("the ACPI tables take {size} bytes and have room for {room}: use fewer vCPUs")]
    AcpiTooLarge {
        /// Their size in bytes.
        size: u64,
        /// The room in bytes.
        room: u64,
    },
    /// Guest memory could not be written.
    #[error("cannot write {length} bytes of guest memory at {gpa:#x}")]
    Memory {
        /// Where.
        gpa: u64,
        /// How much.
        length: u64,
        /// What the memory says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What bounds an initrd from above.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InitrdLimit {
    /// The end of the RAM that starts at 0.
    Ram,
    /// The kernel's `initrd_addr_max`.
    Kernel,
}

impl std::fmt::Display for InitrdLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ram => "the end of memory below the device hole",
            Self::Kernel => "the highest address this kernel takes an initrd from",
        })
    }
}

fn initrd_advice(size: u64, kernel_end: u64, limited_by: InitrdLimit) -> String {
    match limited_by {
        InitrdLimit::Ram => format!(
            "give the guest at least {} MiB, or a smaller initrd",
            mib_up(kernel_end.saturating_add(size)) + super::KERNEL_HEADROOM_MIB
        ),
        InitrdLimit::Kernel => "give a smaller initrd".to_owned(),
    }
}

/// Bytes in whole MiB, rounded up.
fn mib_up(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}
