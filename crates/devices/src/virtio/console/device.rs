//! The running device.

use std::io;
use std::sync::Arc;

use super::config::{INPUT_LIMIT, OUTPUT_LIMIT, QUEUES, RECEIVE, TRANSMIT};
use super::{ConsoleInput, ConsoleMetrics, ConsoleState};
use crate::Notifier;
use crate::output::{Gate, Output};
use crate::virtio::queue::Segments;
use crate::virtio::{
    DeviceKind, DeviceMetrics, DeviceState, GuestError, RestoreError, Turn, VirtioDevice,
};

/// Bytes copied out of guest memory at a time.
const CHUNK: usize = 4096;

/// A console with one port.
#[derive(Debug)]
pub struct Console {
    output: Output,
    gate: Gate,
    input: Arc<ConsoleInput>,
    sent_bytes: u64,
    received_bytes: u64,
}

impl Console {
    /// A console that sends to `output`.
    ///
    /// # Errors
    /// The host is out of file descriptors.
    pub fn new(output: Output) -> io::Result<Self> {
        let input = Arc::new(ConsoleInput::new()?);
        let gate = output.gate();
        Ok(Self { output, gate, input, sent_bytes: 0, received_bytes: 0 })
    }

    /// Where the host types: for an [`InputPump`](crate::input::InputPump).
    pub fn input(&self) -> Arc<ConsoleInput> {
        Arc::clone(&self.input)
    }

    fn transmit(&mut self, turn: &mut Turn<'_>) -> Result<(), GuestError> {
        // A reader who is behind holds up this queue, not the thread.
        while !self.gate.is_shut() {
            let Some(chain) = turn.next(TRANSMIT)? else { return Ok(()) };
            if chain.readable.len() > OUTPUT_LIMIT {
                let rule = "more than 1 MiB of output in one request";
                return Err(GuestError::Device { kind: DeviceKind::Console, rule });
            }
            self.send(&chain.readable, turn)?;
            turn.spend(chain.readable.len());
            turn.complete(TRANSMIT, chain.head, 0)?;
        }
        self.gate.signal_when_open(&self.input.arrived);
        Ok(())
    }

    fn send(&mut self, bytes: &Segments, turn: &Turn<'_>) -> Result<(), GuestError> {
        let mut done = 0;
        while done < bytes.len() {
            let mut chunk = [0; CHUNK];
            let len = (bytes.len() - done).min(CHUNK as u64) as usize;
            bytes.read(turn.memory(), done, &mut chunk[..len])?;
            self.output.send(&chunk[..len]);
            done += len as u64;
        }
        self.sent_bytes += done;
        Ok(())
    }

    fn receive(&mut self, turn: &mut Turn<'_>) -> Result<(), GuestError> {
        while !self.input.is_empty() {
            let Some(chain) = turn.next(RECEIVE)? else { return Ok(()) };
            let mut bytes = [0; INPUT_LIMIT];
            let limit = chain.writable.len().min(INPUT_LIMIT as u64) as usize;
            let len = self.input.peek(&mut bytes[..limit]);
            chain.writable.write(turn.memory(), 0, &bytes[..len])?;
            turn.complete(RECEIVE, chain.head, len as u64)?;
            self.input.consume(len);
            self.received_bytes += len as u64;
        }
        Ok(())
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUES
    }

    fn read_config(&self, _offset: usize, data: &mut [u8]) {
        // Size, ports and emergency write each belong to a feature that is not offered.
        data.fill(0);
    }

    fn serve_queue(&mut self, index: usize, turn: &mut Turn<'_>) -> Result<(), GuestError> {
        if index == TRANSMIT { self.transmit(turn) } else { self.receive(turn) }
    }

    fn wake(&self) -> Option<Notifier> {
        Some(self.input.arrived.clone())
    }

    fn serve_wake(&mut self, turn: &mut Turn<'_>) -> Result<(), GuestError> {
        self.receive(turn)?;
        self.transmit(turn)
    }

    fn reset(&mut self) {}

    fn state(&self) -> DeviceState {
        DeviceState::Console(ConsoleState { input: self.input.saved() })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Console(state) = state else {
            return Err(RestoreError::Kind { expected: DeviceKind::Console });
        };
        self.input.replace(&state.input);
        Ok(())
    }

    fn metrics(&self) -> DeviceMetrics {
        DeviceMetrics::Console(ConsoleMetrics {
            sent_bytes: self.sent_bytes,
            lost_bytes: self.output.lost_bytes(),
            received_bytes: self.received_bytes,
        })
    }
}
