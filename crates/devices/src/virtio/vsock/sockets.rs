//! The device's side of the sockets: does what the streams want, and tells them what has happened.

use std::io;

use super::Vsock;
use super::host::{Greeting, Put, Socket, Token, answer};
use super::packet::Halves;
use super::streams::{Action, Key};
use crate::Change;

/// Callers let in at a time.
const ACCEPT_MAX: usize = 64;

impl Vsock {
    /// Does what the streams want of the sockets.
    pub(super) fn act(&mut self) {
        while let Some(action) = self.streams.next_action() {
            match action {
                Action::Connect(key) => self.connect(key),
                Action::Greet(key) => self.greet(key),
                Action::Flush(key) => self.flush(key),
                Action::ShutWrite(key) => {
                    self.host.stream(key).into_iter().for_each(Socket::shut_write);
                }
                Action::ShutRead(key) => {
                    self.host.stream(key).into_iter().for_each(Socket::shut_read);
                }
                Action::Close(key) => self.host.close(key),
            }
        }
    }

    fn connect(&mut self, key: Key) {
        match self.host.connect(key) {
            Ok(()) => self.streams.connected(key),
            Err(error) => {
                tracing::debug!("vsock: the guest calls port {}: {error}", key.host_port);
                self.streams.refused(key);
            }
        }
    }

    fn greet(&mut self, key: Key) {
        let answer = answer(key.host_port);
        let put = self.host.stream(key).map(|socket| socket.put(answer.as_bytes()));
        // Nothing was written before it: it fits unless nobody is there.
        if put != Some(Put::Taken(answer.len())) {
            self.streams.host_gone(key);
        }
    }

    fn flush(&mut self, key: Key) {
        let Some(socket) = self.host.stream(key) else { return };
        loop {
            let bytes = self.streams.bytes_for_host(key);
            if bytes.is_empty() {
                return;
            }
            match socket.put(bytes) {
                Put::Taken(len) => self.streams.forwarded(key, len),
                Put::Full => return,
                Put::Refused => return self.streams.host_shut(key, Halves::RECEIVE),
            }
        }
    }

    pub(super) fn take_changes(&mut self) {
        for (token, change) in self.host.changes() {
            match token {
                Token::Listener => self.knocking = true,
                // Each turn looks at the time.
                Token::Timer => {}
                Token::Caller(caller) => self.hear(caller, change),
                Token::Stream(key) => self.stream_changed(key, change),
            }
            self.act();
        }
    }

    fn stream_changed(&mut self, key: Key, change: Change) {
        // What the host has sent is there still; what it is sent is not taken.
        if change.closed {
            self.streams.host_gone(key);
        }
        if change.readable {
            self.streams.readable(key);
        }
        if change.writable {
            self.flush(key);
        }
    }

    fn hear(&mut self, caller: u32, change: Change) {
        let opened = match self.host.hear(caller) {
            Greeting::Unfinished if !change.closed => return,
            Greeting::Connect { port, .. } => self.streams.open(port),
            Greeting::Unfinished | Greeting::Bad => None,
        };
        match opened {
            Some(key) => {
                if self.host.adopt(caller, key).is_err() {
                    self.streams.refused(key);
                }
            }
            None => self.host.dismiss(caller),
        }
    }

    pub(super) fn let_callers_in(&mut self) {
        let mut budget = ACCEPT_MAX;
        while self.knocking {
            if budget == 0 {
                return self.again.signal();
            }
            budget -= 1;
            let welcome = !self.streams.is_full_with(self.host.callers());
            match self.host.accept(welcome) {
                Ok(more) => {
                    self.knocking = more;
                    self.streams.metrics.refused += u64::from(more && !welcome);
                }
                Err(error) => return self.host_error("let a caller in", &error),
            }
        }
    }

    pub(super) fn set_alarm(&mut self) {
        let (alarm, now) = (self.streams.next_deadline(), self.started.elapsed());
        if let Err(error) = self.host.set_alarm(alarm, now) {
            self.host_error("set a timer", &error);
        }
    }

    fn host_error(&mut self, operation: &str, error: &io::Error) {
        if self.streams.metrics.host_errors == 0 {
            tracing::warn!("vsock: {operation}: {error}: it is tried again");
        }
        self.streams.metrics.host_errors += 1;
    }
}
