//! Typed input on its way to the guest.

use std::collections::VecDeque;
use std::io;
use std::sync::Mutex;

use super::config::INPUT_LIMIT;
use crate::Notifier;
use crate::input::InputSink;
use crate::sync::lock;

/// The end of the console that the host types into. Any thread.
#[derive(Debug)]
pub struct ConsoleInput {
    /// len <= INPUT_LIMIT
    held: Mutex<VecDeque<u8>>,
    /// There is input for the guest.
    pub(super) arrived: Notifier,
    /// There is space for more.
    space: Notifier,
}

impl ConsoleInput {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { held: Mutex::default(), arrived: Notifier::new()?, space: Notifier::new()? })
    }

    /// Copies the oldest bytes without taking them; how many.
    pub(super) fn peek(&self, bytes: &mut [u8]) -> usize {
        let held = lock(&self.held);
        let len = held.len().min(bytes.len());
        for (to, from) in bytes.iter_mut().zip(held.iter()) {
            *to = *from;
        }
        len
    }

    /// Takes the `len` oldest bytes away.
    pub(super) fn consume(&self, len: usize) {
        let mut held = lock(&self.held);
        let len = len.min(held.len());
        held.drain(..len);
        if len > 0 {
            self.space.signal();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.held).is_empty()
    }

    pub(super) fn saved(&self) -> Vec<u8> {
        lock(&self.held).iter().copied().collect()
    }

    pub(super) fn replace(&self, bytes: &[u8]) {
        *lock(&self.held) = bytes.iter().copied().take(INPUT_LIMIT).collect();
        self.arrived.signal();
    }
}

impl InputSink for ConsoleInput {
    fn space(&self) -> usize {
        INPUT_LIMIT - lock(&self.held).len()
    }

    fn push(&self, bytes: &[u8]) -> usize {
        let mut held = lock(&self.held);
        let len = bytes.len().min(INPUT_LIMIT - held.len());
        held.extend(&bytes[..len]);
        if len > 0 {
            self.arrived.signal();
        }
        len
    }

    fn space_notifier(&self) -> Notifier {
        self.space.clone()
    }
}
