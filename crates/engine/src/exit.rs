//! Why a vCPU came back.

use memory::Frame;

use crate::debug::DebugStop;

/// What happened in the guest that the engine cannot answer. Plain data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Exit {
    /// The guest reads `size` (1, 2, 4) bytes from an I/O port. Answer with `Vcpu::complete_read`.
    PortRead {
        /// The port.
        port: u16,
        /// Bytes.
        size: u8,
    },
    /// The guest wrote to an I/O port.
    PortWrite {
        /// The port.
        port: u16,
        /// Bytes: 1, 2 or 4.
        size: u8,
        /// The value, zero-extended.
        value: u32,
    },
    /// The guest reads `size` (1, 2, 4, 8) bytes where there is no RAM. Answer with
    /// `Vcpu::complete_read`.
    MmioRead {
        /// Guest-physical address.
        gpa: u64,
        /// Bytes.
        size: u8,
    },
    /// The guest wrote where there is no RAM.
    MmioWrite {
        /// Guest-physical address.
        gpa: u64,
        /// Bytes: 1, 2, 4 or 8.
        size: u8,
        /// The value, zero-extended.
        value: u64,
    },
    /// Somebody called `Vm::kick`.
    Kicked,
    /// A stop that `Vcpu::set_debug` asked for. The state is exact.
    Debug(DebugStop),
    /// The guest needs a frame whose source cannot give it now (`memory::GuestMemory::retry` says why): the
    /// instruction, or the delivery of an event, has not begun for all that the guest can see. The state is exact,
    /// and the next run tries again.
    Unavailable {
        /// The frame.
        frame: Frame,
    },
    /// A fault during the delivery of a double fault: on hardware the processor shuts down, and boards
    /// turn that into a reset.
    TripleFault,
}

impl Exit {
    /// The name under which exits of this kind are counted and reported.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::PortRead { .. } => "port_read",
            Self::PortWrite { .. } => "port_write",
            Self::MmioRead { .. } => "mmio_read",
            Self::MmioWrite { .. } => "mmio_write",
            Self::Kicked => "kicked",
            Self::Debug(_) => "debug",
            Self::Unavailable { .. } => "unavailable",
            Self::TripleFault => "triple_fault",
        }
    }
}
