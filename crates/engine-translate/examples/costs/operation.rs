//! The operations, and the ways of having them done.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// What is measured. The names are those of the lines printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    /// The loop around all others.
    Nothing,
    Rdtsc,
    /// CLI, then STI.
    CliSti,
    /// SYSCALL, and SYSRET at once; in this process, getppid.
    Syscall,
    /// A store to an entry of a page table.
    PageTable,
    /// The same, INVLPG, and a load through the entry.
    Remap,
    /// A load from a page that is not there, to the handler and behind the load; in this process, the first access
    /// to a page.
    PageFault,
    /// IN from a port.
    Port,
    /// MOV to CR3, and a load; in this process, from one process to another through a pipe.
    Switch,
    /// Additions, multiplications, shifts, each of which needs the one before.
    Arithmetic,
    /// Loads and stores of one cache line.
    Memory,
    /// CALL and RET.
    Calls,
}

pub(crate) const OPERATIONS: [Operation; 12] = [
    Operation::Nothing,
    Operation::Rdtsc,
    Operation::CliSti,
    Operation::Syscall,
    Operation::PageTable,
    Operation::Remap,
    Operation::PageFault,
    Operation::Port,
    Operation::Switch,
    Operation::Arithmetic,
    Operation::Memory,
    Operation::Calls,
];

/// How it is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// By generated code, in line where that is what it does.
    Translated,
    /// By generated code that leaves to others what it can.
    CallOut,
    Interpreted,
    /// In this process.
    Native,
    /// In this process, which it is not allowed to: its signal handler stands in for it.
    Trap,
}

impl Way {
    pub(crate) const ALL: [Self; 5] =
        [Self::Translated, Self::CallOut, Self::Interpreted, Self::Native, Self::Trap];
}

/// What code finds in registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    /// RSI: 64 bytes to read and write. RDI: the operation's own place.
    pub(crate) data: u64,
    pub(crate) own: u64,
}

impl Operation {
    /// Operations in one round of the loop.
    pub(crate) const UNROLLED: u64 = 8;

    /// Rounds that take a millisecond or few: most passes are not interrupted.
    pub(crate) fn rounds(self, way: Way) -> u64 {
        match (way, self) {
            (_, Self::Nothing | Self::Arithmetic | Self::Memory | Self::Calls) => 20_000,
            (Way::Trap, _) => 100,
            (Way::Native, Self::PageFault | Self::Switch) => 100,
            (_, Self::PageFault | Self::Port | Self::Switch | Self::Remap) => 500,
            (_, _) => 3_000,
        }
    }

    /// Whether it is what ordinary programs are made of.
    pub(crate) fn is_innocuous(self) -> bool {
        matches!(self, Self::Nothing | Self::Arithmetic | Self::Memory | Self::Calls)
    }

    /// The innocuous ones, the same everywhere, [`Self::UNROLLED`] times. RSI has the data's place; RAX, RCX, RDX
    /// are free.
    pub(crate) fn innocuous(self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        let (mut function, mut over) = (a.create_label(), a.create_label());
        for n in 0..Self::UNROLLED as i32 {
            match self {
                Self::Arithmetic => {
                    a.add(rax, n + 3)?;
                    a.imul_3(rax, rax, 5)?;
                    a.mov(rcx, rax)?;
                    a.shr(rcx, 7)?;
                    a.xor(rax, rcx)?;
                }
                Self::Memory => {
                    a.mov(rcx, ptr(rsi + n * 8))?;
                    a.add(rcx, rax)?;
                    a.mov(ptr(rsi + n * 8), rcx)?;
                    a.add(dword_ptr(rsi), 3)?;
                }
                Self::Calls => a.call(function)?,
                _ => {}
            }
        }
        if self == Self::Calls {
            a.jmp(over)?;
            a.set_label(&mut function)?;
            a.add(rax, 1)?;
            a.ret()?;
            a.set_label(&mut over)?;
            a.nop()?;
        }
        Ok(())
    }
}

/// The loop, timed: R12 rounds of `body`; R8 has the ticks. `body` may not change R9, R12.
pub(crate) fn timed(
    a: &mut CodeAssembler,
    body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let mut again = a.create_label();
    read_clock(a)?;
    a.mov(r9, rax)?;
    a.set_label(&mut again)?;
    body(a)?;
    a.dec(r12)?;
    a.jnz(again)?;
    read_clock(a)?;
    a.sub(rax, r9)?;
    a.mov(r8, rax)
}

/// RAX: the TSC, after all that comes before. Changes RDX.
fn read_clock(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.lfence()?;
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)
}
