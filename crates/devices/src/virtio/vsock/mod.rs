//! Sockets between guest and host (virtio 1.2, 5.10), mapped to UNIX sockets.
//!
//! ```text
//!   host program                                                 guest program
//!   connects to PATH, writes `CONNECT 52\n`  ------------------>  listens on port 52
//!                     reads `OK 1073741824\n`, then the stream
//!
//!   listens at PATH_1024                     <------------------  connects to cid 2, port 1024
//! ```
//!
//! A caller whom the guest does not take sees his connection closed.
//!
//! ```text
//!   queues <--> device <--> streams: phases, credit, turns; no I/O
//!                 |
//!                 +-------> host: UNIX sockets, a timer; no rules
//! ```
//!
//! Everything runs on the I/O thread and nothing there waits. Bytes from the guest that the host does
//! not take are kept up to the buffer's size a connection; bytes for the guest stay in the host's
//! socket until the guest has both credit and a buffer.

mod config;
mod device;
mod host;
mod metrics;
mod packet;
mod sockets;
mod state;
mod streams;
#[cfg(test)]
mod tests;

pub use config::{
    BUFFER_DEFAULT, BUFFER_RANGE, CID_MAX, CID_MIN, CONNECTIONS_DEFAULT, CONNECTIONS_MAX,
    VsockConfig,
};
pub use device::Vsock;
pub use host::{VsockError, VsockListener};
pub use metrics::VsockMetrics;
pub use state::VsockState;
