//! The running device.

use rustix::io::{Errno, retry_on_intr};
use rustix::rand::{GetRandomFlags, getrandom};

use super::config::{QUEUES, REQUEST_LIMIT, REQUESTS};
use super::{RngMetrics, RngState};
use crate::virtio::queue::Segments;
use crate::virtio::{
    DeviceKind, DeviceMetrics, DeviceState, GuestError, RestoreError, Turn, VirtioDevice,
};

/// Bytes asked of the host at a time: up to 256 come whole and uninterrupted (getrandom(2)).
const CHUNK: usize = 256;

/// An entropy source.
#[derive(Debug, Default)]
pub struct Rng {
    metrics: RngMetrics,
}

impl Rng {
    /// A source that draws on the host kernel's.
    pub fn new() -> Self {
        Self::default()
    }

    fn fill(&mut self, buffer: &Segments, turn: &Turn<'_>) -> Result<u64, GuestError> {
        let want = buffer.len().min(REQUEST_LIMIT);
        let mut done = 0;
        while done < want {
            let mut chunk = [0; CHUNK];
            let len = (want - done).min(CHUNK as u64) as usize;
            if fill_random(&mut chunk[..len]).is_err() {
                self.metrics.host_errors += 1;
                break;
            }
            buffer.write(turn.memory(), done, &chunk[..len])?;
            done += len as u64;
        }
        Ok(done)
    }
}

fn fill_random(mut bytes: &mut [u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let len = retry_on_intr(|| getrandom(&mut *bytes, GetRandomFlags::empty()))?;
        bytes = &mut bytes[len..];
    }
    Ok(())
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUES
    }

    fn read_config(&self, _offset: usize, data: &mut [u8]) {
        data.fill(0);
    }

    fn serve_queue(&mut self, _index: usize, turn: &mut Turn<'_>) -> Result<(), GuestError> {
        while let Some(chain) = turn.next(REQUESTS)? {
            if chain.writable.is_empty() {
                let rule = "a request without a writable buffer";
                return Err(GuestError::Device { kind: DeviceKind::Rng, rule });
            }
            let filled = self.fill(&chain.writable, turn)?;
            self.metrics.requests += 1;
            self.metrics.bytes += filled;
            turn.spend(filled);
            turn.complete(REQUESTS, chain.head, filled)?;
        }
        Ok(())
    }

    fn reset(&mut self) {}

    fn state(&self) -> DeviceState {
        DeviceState::Rng(RngState {})
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Rng(RngState {}) => Ok(()),
            _ => Err(RestoreError::Kind { expected: DeviceKind::Rng }),
        }
    }

    fn metrics(&self) -> DeviceMetrics {
        DeviceMetrics::Rng(self.metrics)
    }
}
