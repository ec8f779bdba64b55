//! The network device (virtio 1.2, 5.1): one interface, on a TAP interface of the host or, without
//! any privilege, through `passt`.
//!
//! `NetConfig` (asked) -> `NetPlan` (the host's side open and checked; it outlives the device, for a
//! guest that reboots) -> `Net` (running) -> `NetState` (saved).
//!
//! ```text
//!   guest --- transmit queue ---> Net --- send, flush ---> Backend --- TAP: a frame a call
//!         <--- receive queue ----     <--- peek, consume -         --- passt: a stream of frames
//! ```
//!
//! Both directions push back: a backend without room leaves requests in the transmit queue, a guest
//! without buffers leaves frames in the backend, and nothing waits. A backend that vanishes takes
//! the link down; the guest sees a cable pulled out and goes on.

mod announce;
mod backend;
mod checksum;
mod config;
mod device;
mod error;
mod header;
mod mac;
mod metrics;
mod receive;
mod state;
#[cfg(test)]
mod tests;

pub use config::{NetBackend, NetConfig, NetPlan, PortForward, Protocol};
pub use device::Net;
pub use error::NetError;
pub use mac::{MacAddress, MacError};
pub use metrics::NetMetrics;
pub use state::NetState;
