//! The client's side.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::time::Instant;

use httparse::{EMPTY_HEADER, Status};

use super::{Connection, Fail, HEAD_MAX, HEADERS_MAX, RESPONSE_BODY_MAX, ReadError, framing};

/// A response, whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

/// Sends a request, the only one on this connection, and descriptors with it.
pub(crate) fn write_request(
    connection: &mut Connection,
    method: &str,
    path: &str,
    body: Option<&[u8]>,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut message = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\
         Connection: close\r\n"
    )
    .into_bytes();
    if let Some(body) = body {
        let length = body.len();
        write!(message, "Content-Type: application/json\r\nContent-Length: {length}\r\n")?;
    }
    message.extend_from_slice(b"\r\n");
    message.extend_from_slice(body.unwrap_or_default());
    connection.send(&message, descriptors)
}

/// Reads the answer to it.
pub(crate) fn read_response(
    connection: &mut Connection,
    deadline: Instant,
) -> Result<Response, ReadError> {
    let (head, status, length) = loop {
        match parse(&connection.buffer)? {
            Some(head) => break head,
            None => connection.fill(deadline)?,
        }
    };
    connection.take(head, deadline)?;
    let body = connection.take(length, deadline)?;
    Ok(Response { status, body })
}

/// Length of the head, status, length of the body. `None`: the head is not there yet.
fn parse(bytes: &[u8]) -> Result<Option<(usize, u16, usize)>, Fail> {
    let bad = |message: String| Fail::new(0, message);
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(&bytes[..bytes.len().min(HEAD_MAX)]);
    let status = parsed.map_err(|error| bad(format!("not an HTTP response: {error}")))?;
    let Status::Complete(head) = status else {
        let long = bytes.len() >= HEAD_MAX;
        return if long { Err(bad("response head is too long".to_owned())) } else { Ok(None) };
    };
    let framing = framing(response.headers)?;
    let length = framing.length.unwrap_or(0);
    if framing.chunked || length > RESPONSE_BODY_MAX {
        return Err(bad(format!("response body of {length} bytes")));
    }
    Ok(Some((head, response.code.unwrap_or(0), length)))
}
