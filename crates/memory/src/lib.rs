//! Guest RAM: the frame table, sources of absent frames, access and write facts, device views.
//!
//! RAM is an array of 4 KiB frames. The table holds the state of each and two facts, the epochs of
//! its last access and last change. All ways to guest bytes lead through it, so that it is true:
//!
//! ```text
//!   vCPU (soft TLB miss)               device                     loader
//!          |                             |                           |
//!   GuestMemory::resolve           DeviceView (pins)            LoaderView
//!          |                             |                           |
//!          +-------------+---------------+---------------------------+
//!                        v
//!    untouched ----> resident <---- absent(source) <-- snapshot, swap, peer
//!        ^   \       |  ^   ^
//!        |    \      |  |   +--- an access takes a frame back
//!        |     v     v  |        evict: the other way, contents kept
//!        +--- ballooned-+        discard: mark, revoke, punch
//!  return_from_balloon
//! ```
//!
//! Two kinds of user are kept apart. A vCPU caches translations and gives them up when the
//! [`MappingObserver`] is told to; a discard waits for that. A device pins the frames of each
//! access; a discard leaves those alone. Neither ever waits for a discard's revocation. A third only
//! looks: [`ReadView`] reads what is there and leaves no trace.
//!
//! It is *not* an MMU (guest virtual addresses are the engine's), knows no device, and decides
//! nothing: which frames to discard is a policy's verdict.
//!
//! ```
//! use std::sync::Arc;
//! use memory::{DeviceView, Discard, Frame, FrameState, Gpa, GuestMemory};
//!
//! let memory = Arc::new(GuestMemory::with_bytes(64 << 20)?);
//! let view = DeviceView::new(Arc::clone(&memory));
//! view.write(Gpa(0x1000), b"hello")?;
//! assert_eq!(memory.counts().resident, 1);
//!
//! memory.discard([Frame(1)], Discard::Balloon)?;
//! assert_eq!(memory.facts(Frame(1)).map(|facts| facts.state), Some(FrameState::Ballooned));
//! assert_eq!(memory.backed_bytes()?, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub use address::{Access, Epoch, FRAME_SHIFT, FRAME_SIZE, Frame, FrameRange, Gpa, is_zero};
pub use backing::MoveError;
pub use discard::{Discard, DiscardError, Discarded};
pub use events::{DiskBlock, Event, EventStream, Stamped, Transfer};
pub use evict::{Evict, EvictError, Evicted};
pub use freeze::{FreezeError, Frozen, Keep, TakeError, Taken};
pub use guest_memory::{AbsentError, GuestMemory, HostPage, MemoryError, ResolveError};
pub use image::{Image, ImageDraft, ImageError, ImageRun, ImageRuns};
pub use inbox::Inbox;
pub use layout::{LayoutError, RamLayout, RamRange};
pub use merge::{MERGE_RUNS_MAX, MERGE_UNIT, MergeError};
pub use owners::Owners;
pub use pin::{AccessError, PinnedSlice, read_at, write_at};
pub use read_view::{ReadError, ReadView};
pub use revoke::{MappingObserver, Revocation};
pub use share::{SHARED_MAX, ShareError, Switch};
pub use share_pool::{POOL_SLOTS_MAX, Pool, PoolError, PoolWriter, ZERO_SLOT};
pub use shortage::Shortage;
pub use source::{Source, SourceError, SourceId};
pub use table::{FrameCounts, FrameFacts, FrameState};
pub use touches::Tracer;
pub use userfault::{UserFaults, open_userfaultfd};
pub use view::DeviceView;
pub use vm_memory_traits::{FrameTracking, LoaderRegion, LoaderView, SlicePin};
pub use waits::{Wait, Waiter, Waits};

mod address;
mod backing;
mod bits;
mod census;
mod discard;
mod events;
mod evict;
mod freeze;
mod guest_memory;
mod image;
mod inbox;
mod landing;
mod layout;
mod merge;
mod origins;
mod owners;
mod pin;
mod ram;
mod read_view;
mod revoke;
mod share;
mod share_pool;
pub mod shortage;
mod source;
mod supply;
mod table;
mod touches;
mod userfault;
mod view;
mod vm_memory_traits;
pub mod waits;
mod word;
