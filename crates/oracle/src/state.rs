//! What code starts from and what it leaves behind.

use x86::XSTATE_SIZE;

use crate::arena;

/// Registers and memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    /// General registers in encoding order.
    pub gpr: [u64; 16],
    /// RFLAGS.
    pub rflags: u64,
    /// XSAVE image, standard format; used only where [`crate::Host::run`] is asked for it.
    pub xstate: Box<[u8; XSTATE_SIZE]>,
    /// The data pages of the arena.
    pub data: Box<arena::Pages>,
}

impl State {
    /// All zero, with the x87 and SSE control words at their defaults.
    #[must_use]
    pub fn new() -> Self {
        let mut xstate = Box::new([0; XSTATE_SIZE]);
        xstate[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
        xstate[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        // XSTATE_BV: x87, SSE and AVX are all present.
        xstate[512] = 7;
        Self { gpr: [0; 16], rflags: 2, xstate, data: Box::new(arena::Pages([0; arena::DATA_LEN])) }
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

/// How the code ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Registers and memory at the end.
    pub state: State,
    /// Where execution would go on, or the instruction that faulted.
    pub rip: u64,
    /// The exception, if there was one.
    pub fault: Option<Fault>,
}

impl Fault {
    /// What is comparable: error code and address belong to page faults alone, and the interpreter leaves
    /// it to the machine to turn #GP into #SS.
    #[must_use]
    pub fn new(vector: u8, write: bool, address: u64) -> Self {
        match vector {
            14 => Self { vector, write, address },
            12 => Self { vector: 13, write: false, address: 0 },
            _ => Self { vector, write: false, address: 0 },
        }
    }
}

/// An exception as the kernel and the interpreter both report it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Vector.
    pub vector: u8,
    /// For a page fault: whether the access was a write.
    pub write: bool,
    /// For a page fault: the address.
    pub address: u64,
}
