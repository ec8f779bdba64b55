//! Frames into the guest's buffers.

use super::backend::Frame;
use super::config::RECEIVE;
use super::header::HEADER_LEN;
use crate::virtio::queue::{Chain, QueueError};
use crate::virtio::{DeviceKind, GuestError, Turn};

/// What became of a frame for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// The guest has it.
    Done,
    /// The guest has not made enough buffers available yet.
    Wait,
    /// No buffers that the guest can make available hold it.
    Never,
}

/// Buffers for one frame, taken from the receive queue. Empty between two frames.
#[derive(Debug, Default)]
pub(super) struct Receiver {
    chains: Vec<Chain>,
    /// Sum of their lengths.
    room: u64,
    /// What goes into the used ring.
    used: Vec<(u16, u32)>,
}

impl Receiver {
    /// Gives `frame` to the guest: in one buffer, or where both agreed on it in as many as it
    /// takes (5.1.6.4).
    pub(super) fn deliver(
        &mut self,
        frame: Frame<'_>,
        mergeable: bool,
        turn: &mut Turn<'_>,
    ) -> Result<Delivery, GuestError> {
        let len = (HEADER_LEN + frame.bytes.len()) as u64;
        let delivery = match self.gather(len, mergeable, turn)? {
            Delivery::Done => {
                self.fill(frame, turn)?;
                turn.complete_all(RECEIVE, &self.used)?;
                turn.spend(len);
                Delivery::Done
            }
            other => {
                turn.put_back(RECEIVE, self.chains.len() as u16);
                other
            }
        };
        self.chains.clear();
        Ok(delivery)
    }

    /// Takes buffers until they hold `len` bytes.
    fn gather(
        &mut self,
        len: u64,
        mergeable: bool,
        turn: &mut Turn<'_>,
    ) -> Result<Delivery, GuestError> {
        self.chains.clear();
        self.room = 0;
        while self.room < len {
            if self.chains.len() == turn.size(RECEIVE) || (!mergeable && !self.chains.is_empty()) {
                return Ok(Delivery::Never);
            }
            let Some(chain) = turn.next(RECEIVE)? else { return Ok(Delivery::Wait) };
            if chain.writable.len() < HEADER_LEN as u64 {
                let rule = "a receive buffer without room for a header";
                return Err(GuestError::Device { kind: DeviceKind::Net, rule });
            }
            self.room += chain.writable.len();
            self.chains.push(chain);
        }
        Ok(Delivery::Done)
    }

    fn fill(&mut self, frame: Frame<'_>, turn: &Turn<'_>) -> Result<(), QueueError> {
        self.used.clear();
        let header = frame.header.bytes(self.chains.len() as u16);
        let mut rest = frame.bytes;
        let mut before = &header[..];
        for chain in &self.chains {
            let room = chain.writable.len().min(usize::MAX as u64) as usize - before.len();
            let (part, more) = rest.split_at(rest.len().min(room));
            chain.writable.write(turn.memory(), 0, before)?;
            chain.writable.write(turn.memory(), before.len() as u64, part)?;
            self.used.push((chain.head, (before.len() + part.len()) as u32));
            (rest, before) = (more, &[]);
        }
        Ok(())
    }
}
