//! HTTP/1.1 over a stream, as much of it as the socket needs: heads of limited size, bodies with a
//! `Content-Length`, everything with a deadline. The syntax of heads is httparse's business.

mod request;
mod response;

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;

use crate::wire::Fault;

pub(crate) use request::{Request, read_request};
pub(crate) use response::{Response, read_response, write_request};

/// Longest head of a message.
pub(crate) const HEAD_MAX: usize = 8 << 10;
/// Longest body of a request; Firecracker's default.
pub(crate) const REQUEST_BODY_MAX: usize = 51_200;
/// Longest body of a response.
const RESPONSE_BODY_MAX: usize = 1 << 20;
const HEADERS_MAX: usize = 64;
/// Descriptors that come with a request, at most.
const DESCRIPTORS_MAX: usize = 16;
const DESCRIPTORS_SPACE: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX));
const JSON: &str = "application/json";
/// Writing stops when the peer takes nothing for so long.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// A stream, and what was read from it and not yet used.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// Those that came with what was read since somebody last took them; len <= DESCRIPTORS_MAX
    descriptors: Vec<OwnedFd>,
}

/// Why a message could not be read.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// The peer ended the stream, in the middle of a message if `partial`.
    Closed { partial: bool },
    /// The deadline has passed.
    Timeout { partial: bool },
    /// The host failed.
    Io(io::Error),
    /// The peer sent something that is not for us.
    Refused(Fail),
}

/// An answer that is not a success.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fail {
    pub(crate) status: u16,
    pub(crate) message: String,
}

impl Fail {
    pub(crate) fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }
}

impl From<Fail> for ReadError {
    fn from(fail: Fail) -> Self {
        Self::Refused(fail)
    }
}

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        Ok(Self { stream, buffer: Vec::new(), descriptors: Vec::new() })
    }

    /// Reads at least one byte more.
    fn fill(&mut self, deadline: Instant) -> Result<(), ReadError> {
        let partial = !self.buffer.is_empty();
        let mut chunk = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ReadError::Timeout { partial });
            }
            self.stream.set_read_timeout(Some(left)).map_err(ReadError::Io)?;
            match self.receive(&mut chunk) {
                Ok(0) => return Err(ReadError::Closed { partial }),
                Ok(length) => {
                    self.buffer.extend_from_slice(&chunk[..length]);
                    return Ok(());
                }
                Err(error) => match error.kind() {
                    // The loop sees whether time is up.
                    ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => {}
                    ErrorKind::ConnectionReset => return Err(ReadError::Closed { partial }),
                    _ => return Err(ReadError::Io(error)),
                },
            }
        }
    }

    /// As many bytes as there are, and the descriptors that come with them. More of those than there is room for, the
    /// kernel closes.
    fn receive(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); DESCRIPTORS_SPACE];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(chunk)];
        let received = recvmsg(&self.stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
                self.descriptors.truncate(DESCRIPTORS_MAX);
            }
        }
        Ok(received.bytes)
    }

    /// What came along with the message.
    pub(crate) fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }

    /// Sends all of `message`, `descriptors` with its first byte.
    fn send(&mut self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        if descriptors.is_empty() {
            return self.stream.write_all(message);
        }
        let mut space = [MaybeUninit::uninit(); DESCRIPTORS_SPACE];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(ErrorKind::InvalidInput.into());
        }
        let sent =
            sendmsg(&self.stream, &[IoSlice::new(message)], &mut control, SendFlags::empty())?;
        self.stream.write_all(&message[sent..])
    }

    /// Takes `length` bytes off the front, reading what is missing.
    fn take(&mut self, length: usize, deadline: Instant) -> Result<Vec<u8>, ReadError> {
        while self.buffer.len() < length {
            self.fill(deadline)?;
        }
        let rest = self.buffer.split_off(length);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }

    /// Answers with 200 and a body.
    pub(crate) fn write_json(&mut self, body: &impl Serialize, keep_alive: bool) -> io::Result<()> {
        self.write_json_with(body, &[], keep_alive)
    }

    /// The same, and descriptors with its first byte.
    pub(crate) fn write_json_with(
        &mut self,
        body: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
        keep_alive: bool,
    ) -> io::Result<()> {
        let body = serde_json::to_vec(body).map_err(io::Error::other)?;
        let message = answer(200, Some((JSON, &body)), keep_alive)?;
        self.send(&message, descriptors)
    }

    /// Answers with text of this type.
    pub(crate) fn write_text(
        &mut self,
        kind: &str,
        text: &str,
        keep_alive: bool,
    ) -> io::Result<()> {
        self.write_answer(200, Some((kind, text.as_bytes())), keep_alive)
    }

    /// Answers with 204.
    pub(crate) fn write_done(&mut self, keep_alive: bool) -> io::Result<()> {
        self.write_answer(204, None, keep_alive)
    }

    /// Answers with a fault.
    pub(crate) fn write_fail(&mut self, fail: &Fail, keep_alive: bool) -> io::Result<()> {
        let fault = Fault { fault_message: fail.message.clone() };
        let body = serde_json::to_vec(&fault).map_err(io::Error::other)?;
        self.write_answer(fail.status, Some((JSON, &body)), keep_alive)
    }

    fn write_answer(
        &mut self,
        status: u16,
        body: Option<(&str, &[u8])>,
        keep_alive: bool,
    ) -> io::Result<()> {
        self.stream.write_all(&answer(status, body, keep_alive)?)
    }
}

/// A 204 has no length: RFC 9110, 8.6.
fn answer(status: u16, body: Option<(&str, &[u8])>, keep_alive: bool) -> io::Result<Vec<u8>> {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let reason = reason(status);
    let mut message =
        format!("HTTP/1.1 {status} {reason}\r\nServer: Fathom\r\nConnection: {connection}\r\n")
            .into_bytes();
    if let Some((kind, body)) = body {
        let length = body.len();
        write!(message, "Content-Type: {kind}\r\nContent-Length: {length}\r\n")?;
    }
    message.extend_from_slice(b"\r\n");
    message.extend_from_slice(body.map(|(_, body)| body).unwrap_or_default());
    Ok(message)
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "",
    }
}

/// What a message's headers say about its body and about the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Framing {
    /// `None`: no length given.
    length: Option<usize>,
    chunked: bool,
    /// What the `Connection` header says, if it says anything.
    keep_alive: Option<bool>,
}

/// `Err`: lengths that contradict or are no numbers (RFC 9112, 6.3: the message cannot be trusted).
fn framing(headers: &[httparse::Header<'_>]) -> Result<Framing, Fail> {
    let mut framing = Framing { length: None, chunked: false, keep_alive: None };
    for header in headers {
        if header.name.eq_ignore_ascii_case("content-length") {
            let length = content_length(header.value)?;
            if framing.length.replace(length).is_some_and(|before| before != length) {
                return Err(Fail::new(400, "two different Content-Length headers"));
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            framing.chunked = true;
        } else if header.name.eq_ignore_ascii_case("connection") {
            framing.keep_alive = connection(header.value).or(framing.keep_alive);
        }
    }
    Ok(framing)
}

/// Digits only: `parse` alone would take a plus sign.
fn content_length(value: &[u8]) -> Result<usize, Fail> {
    let text = std::str::from_utf8(value).unwrap_or_default().trim();
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let length = if digits { text.parse().ok() } else { None };
    length.ok_or_else(|| Fail::new(400, "Content-Length is not a number"))
}

fn connection(value: &[u8]) -> Option<bool> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    let mut options = text.split(',').map(str::trim);
    options.find_map(|option| match option.to_ascii_lowercase().as_str() {
        "close" => Some(false),
        "keep-alive" => Some(true),
        _ => None,
    })
}
