//! What carries frames between the device and the host.
//!
//! System calls, for whoever filters them. Before the VM: `open` of /dev/net/tun, `ioctl` below, `socket`, `connect`;
//! for a passt of our own `socketpair`, `memfd_create`, `fcntl`, `clone3`, `execve`, `wait4`. The I/O thread, passt:
//! `recvfrom`, `sendto`, `socket` and `connect` of UNIX streams; TAP: `read` and `write`, and when it is back `ioctl`
//! with SIOCGIFINDEX, TUNSETIFF, TUNSETVNETHDRSZ and TUNSETOFFLOAD; both: `epoll_ctl`, `epoll_wait`,
//! `timerfd_settime`, `read`, `close`.

pub(super) mod child;
mod passt;
mod retry;
mod stream;
mod tap;

use super::header::{HEADER_LEN, Header};
use crate::Watch;

pub(super) use self::passt::Passt;
pub(super) use self::tap::TapBackend;

/// The host's side of an interface. It never waits, and hides its errors: it is up or it is not.
///
/// On the I/O thread.
pub(super) trait Backend: Send {
    /// Feature bits that it can serve, of checksums and segmentation.
    fn features(&self) -> u64;

    /// The driver has accepted these of them. Called before frames go either way.
    fn set_features(&mut self, features: u64);

    /// Its descriptors.
    fn watch(&self) -> Watch;

    /// Looks at what has changed with its descriptors.
    fn attend(&mut self);

    /// Whether frames can pass.
    fn is_up(&self) -> bool;

    /// The oldest frame for the guest, until it is consumed; `None` if there is none now.
    fn peek(&mut self) -> Option<Frame<'_>>;

    /// Drops the frame that [`peek`](Self::peek) gave.
    fn consume(&mut self);

    /// Sends a header, in its sane form, and the frame behind it, of at most `FRAME_MAX` bytes. It
    /// may finish the frame in place.
    fn send(&mut self, packet: &mut [u8]) -> Sent;

    /// Sends what it holds back to send it together. What it has no room for it sends later.
    fn flush(&mut self) {}

    /// What went wrong since it was opened.
    fn faults(&self) -> Faults;
}

/// A frame for the guest: `FRAME_MIN <= bytes.len() <= FRAME_MAX`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    pub(super) header: Header,
    pub(super) bytes: &'a [u8],
}

/// What became of a frame that was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is on its way.
    Taken,
    /// There is no room: a change of the watch will tell when there is.
    Full,
    /// It never will be: the link is down, or the host does not like it.
    Refused,
}

/// What went wrong on the host's side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    pub(super) bad_frames: u64,
    pub(super) bad_streams: u64,
    pub(super) links_lost: u64,
}

/// The header and the frame of a packet that the device made.
fn split(packet: &mut [u8]) -> (Header, &mut [u8]) {
    match packet.split_first_chunk_mut::<HEADER_LEN>() {
        Some((header, frame)) => (Header::parse(header), frame),
        None => (Header::default(), &mut []),
    }
}
