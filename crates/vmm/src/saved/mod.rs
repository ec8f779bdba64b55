//! A machine as it is saved: plain data that says everything but what is in its memory, which is in the image of a
//! [`snapshot`].
//!
//! ```text
//!   the VM's process                        who asked
//!   running --capture--> SaveLanes ==sockets==> Draft --> snapshot --Saved::open, VmPlan--> rebuild, fill --> running
//! ```
//!
//! No engine is named in it but for the reader's sake: a state of one is taken up by the other where the processor that
//! the guest was shown is there. Everything comes from a file, so everything is checked: a number that cannot be is an
//! error that names its field.
//!
//! What is half done when a machine is saved, and where that is:
//!
//! | what | where |
//! |---|---|
//! | an instruction that waits for its device | nowhere: vCPUs park at instruction borders |
//! | an interrupt on its way | IRR of its local APIC; inputs of the IO-APIC. One that KVM has not delivered yet is raised again by its device's cause |
//! | a request that the guest has put into a queue | guest memory: the queue is served after the restore |
//! | a request that a device works on | nowhere: the I/O thread stands between two turns |
//! | a frame in the receiver of a network, a stream of vsock | lost, as a network loses it; streams are reset |
//! | typed input, output that the guest has sent | the device's state; the console's writer, which is the host's |
//! | writes to disks | flushed |
//!
//! A clone ([`Cloned`]) goes on from the same state; its memory lies over that of its parent.

mod capture;
mod cloned;
mod dock;
mod error;
#[cfg(test)]
mod failing_tests;
mod fill;
mod images;
mod keep;
mod live;
mod needed;
mod open;
mod rebuild;
mod send;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use devices::rtc::RtcState;
use devices::serial::SerialState;
use devices::virtio::mmio::TransportState;
use memory::FRAME_SIZE;
use serde::{Deserialize, Serialize};
use x86::model::Processor;
use x86::{IoApicState, VcpuState};

use crate::config::VmConfig;

pub(crate) use capture::{Devices, Source};
pub use cloned::{CloneFiles, CloneReport, Cloned, Origin};
pub use error::SavedError;
pub(crate) use images::Images;
pub use keep::{Draft, DraftOptions, Kept, Progress};
pub use needed::WorkingSetSources;
pub(crate) use needed::{Needed, Scan, trace};
pub use open::{CommonImage, Saved};
pub use send::SaveLanes;
pub(crate) use send::{FrozenMachine, Known};

/// The version that is written, and the only one that is read.
pub const VERSION: u32 = 1;

/// Frames that follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FrameRun {
    /// Number of the first.
    pub first: u32,
    /// How many; not 0.
    pub count: u32,
}

/// A machine at one moment, but for the contents of its memory.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    /// Of this form of data: [`VERSION`].
    pub version: u32,
    /// What it was built from, with absolute paths and the addresses that were chosen.
    pub config: VmConfig,
    /// Name of the engine that ran it.
    pub engine: String,
    /// What vCPU 0 showed its guest.
    pub processor: Processor,
    /// In order.
    pub vcpus: Vec<VcpuState>,
    /// The IO-APIC.
    pub io_apic: IoApicState,
    /// Clocks.
    pub clock: ClockState,
    /// The devices.
    pub board: BoardState,
    /// What the disks' files were, in the order of `config.disks`.
    pub disks: Vec<DiskIdentity>,
    /// Frames in the balloon, ascending.
    pub ballooned: Vec<FrameRun>,
}

/// Clocks of a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockState {
    /// Of kvmclock, when the TSCs were what they are in the states of vCPUs.
    pub kvmclock_ns: u64,
    /// The host's time of day then, since 1970.
    pub unix_ns: u64,
}

/// The devices of a machine.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoardState {
    /// COM1.
    pub serial: SerialState,
    /// The CMOS clock.
    pub rtc: RtcState,
    /// Devices on virtio-mmio, by slot.
    pub virtio: Vec<TransportState>,
}

/// By which a file is known again that a guest has half in its memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskIdentity {
    /// What the guest writes to: the overlay where there is one.
    pub path: PathBuf,
    /// Bytes.
    pub len: u64,
    /// When it was last changed, since 1970; 0 for a block device.
    pub modified_ns: u64,
}

/// How a machine is saved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SaveOptions {
    /// It ends once it is kept, before anybody moves again.
    pub stop: bool,
    /// Also the contents of frames that the guest's kernel calls free.
    pub all: bool,
    /// Frames that the guest's programs reach one after the other are sent one after the other, where its kernel is found
    /// ([`insight::kernel::Kernel::together`]); not of a live save.
    pub together: bool,
    /// The guest stands only until its memory is frozen, and goes on while that is sent.
    pub live: bool,
    /// So long before the guest stands, it is watched what it uses.
    pub watch: Duration,
    /// So long after it goes on, it is watched what it touches first. Nothing where it ends.
    pub trace: Duration,
}

/// What a save came to.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct SaveReport {
    /// How long the guest stood.
    pub pause: Duration,
    /// Frames whose contents were sent.
    pub frames_sent: u32,
    /// Frames of the guest in all.
    pub frames: u32,
    /// What was found of its working set.
    pub working_set: WorkingSetSources,
}

impl MachineState {
    /// Whether it says what a machine can be, as far as one can know before one is built of it.
    ///
    /// # Errors
    /// The field, and what is wrong with it.
    pub fn check(&self) -> Result<(), SavedError> {
        let field = |name: &str, what: String| Err(SavedError::field(name, what));
        if self.version != VERSION {
            return Err(SavedError::Version { found: self.version, expected: VERSION });
        }
        let cpus = self.config.cpus as usize;
        if self.vcpus.len() != cpus {
            return field(
                "vcpus",
                format!("{} of them, config.cpus says {cpus}", self.vcpus.len()),
            );
        }
        let disks = self.config.disks.len();
        if self.disks.len() != disks {
            return field("disks", format!("{} of them, config has {disks}", self.disks.len()));
        }
        self.io_apic.check().or_else(|what| field("io_apic", what))?;
        let frames = self.config.memory.0 / FRAME_SIZE as u64;
        let mut end = 0;
        for (index, run) in self.ballooned.iter().enumerate() {
            let (first, count) = (u64::from(run.first), u64::from(run.count));
            if count == 0 || first < end || first + count > frames {
                let what =
                    format!("frames {first} + {count}: empty, not ascending, or past {frames}");
                return field(&format!("ballooned[{index}]"), what);
            }
            end = first + count;
        }
        Ok(())
    }
}
