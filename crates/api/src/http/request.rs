//! The server's side of reading.

use std::time::Instant;

use httparse::{EMPTY_HEADER, Error as Syntax, Status};

use super::{Connection, Fail, HEAD_MAX, HEADERS_MAX, REQUEST_BODY_MAX, ReadError, framing};

/// A request, whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// At most [`REQUEST_BODY_MAX`] bytes.
    pub(crate) body: Vec<u8>,
    /// Whether the peer may send another one.
    pub(crate) keep_alive: bool,
    /// Of whom it thinks that it asks: the `Host` header.
    pub(crate) host: Option<String>,
}

struct Head {
    /// Bytes that the head takes.
    length: usize,
    body: usize,
    request: Request,
}

/// Reads the next request: its first byte before `idle`, the rest before `deadline()`, which is asked when
/// the first byte is there.
pub(crate) fn read_request(
    connection: &mut Connection,
    idle: Instant,
    deadline: impl FnOnce() -> Instant,
) -> Result<Request, ReadError> {
    if connection.buffer.is_empty() {
        connection.fill(idle)?;
    }
    let deadline = deadline();
    let head = loop {
        match parse(&connection.buffer)? {
            Some(head) => break head,
            None => connection.fill(deadline)?,
        }
    };
    connection.take(head.length, deadline)?;
    let body = connection.take(head.body, deadline)?;
    Ok(Request { body, ..head.request })
}

/// `None`: the head is not there yet.
fn parse(bytes: &[u8]) -> Result<Option<Head>, Fail> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let status = request.parse(&bytes[..bytes.len().min(HEAD_MAX)]).map_err(refusal)?;
    let Status::Complete(length) = status else {
        return if bytes.len() < HEAD_MAX { Ok(None) } else { Err(head_too_long()) };
    };
    // Both are there once the head is complete.
    let method = request.method.unwrap_or_default().to_owned();
    let path = request.path.unwrap_or_default().to_owned();
    let framing = framing(request.headers)?;
    if framing.chunked {
        return Err(Fail::new(411, "Transfer-Encoding is not taken: send a Content-Length"));
    }
    let body = framing.length.unwrap_or(0);
    if body > REQUEST_BODY_MAX {
        let message = format!("body of {body} bytes: at most {REQUEST_BODY_MAX} are taken");
        return Err(Fail::new(413, message));
    }
    let keep_alive = framing.keep_alive.unwrap_or(request.version == Some(1));
    let host = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("host"));
    let host = host.map(|header| String::from_utf8_lossy(header.value).trim().to_owned());
    let request = Request { method, path, body: Vec::new(), keep_alive, host };
    Ok(Some(Head { length, body, request }))
}

fn refusal(error: Syntax) -> Fail {
    match error {
        Syntax::TooManyHeaders => {
            Fail::new(431, format!("too many headers: at most {HEADERS_MAX} are taken"))
        }
        other => Fail::new(400, format!("not an HTTP request: {other}")),
    }
}

fn head_too_long() -> Fail {
    Fail::new(431, format!("request head is too long: at most {HEAD_MAX} bytes are taken"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> u16 {
        match parse(text.as_bytes()) {
            Err(fail) => fail.status,
            Ok(head) => panic!("{text:?} was taken: {}", head.is_some()),
        }
    }

    fn taken(text: &str) -> Head {
        parse(text.as_bytes()).expect("a request").expect("a whole head")
    }

    #[test]
    fn heads_are_read() {
        let head = taken("PUT /fathom/vm/balloon HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello");
        assert_eq!((head.request.method.as_str(), head.body), ("PUT", 5));
        assert!(head.request.keep_alive);
        assert!(!taken("GET / HTTP/1.1\r\nconnection: foo, Close\r\n\r\n").request.keep_alive);
        assert!(!taken("GET / HTTP/1.0\r\n\r\n").request.keep_alive);
        assert_eq!(
            taken("GET / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n").body,
            2
        );
        assert!(parse(b"GET / HTTP/1.1\r\nHost:").expect("so far so good").is_none());
        assert!(parse(b"").expect("so far so good").is_none());
    }

    #[test]
    fn refusals_have_their_status() {
        assert_eq!(refused("\0\0"), 400);
        assert_eq!(refused("GET / HTTP/3.0\r\n\r\n"), 400);
        for length in ["-1", "+1", "", "1 1", "0x1", "99999999999999999999"] {
            assert_eq!(
                refused(&format!("PUT / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n")),
                400
            );
        }
        let twice = "PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n";
        assert_eq!(refused(twice), 400);
        assert_eq!(refused("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), 411);
        assert_eq!(refused("PUT / HTTP/1.1\r\nContent-Length: 51201\r\n\r\n"), 413);
        let headers = "X: y\r\n".repeat(HEADERS_MAX + 1);
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\n{headers}\r\n")), 431);
        assert_eq!(refused(&format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(HEAD_MAX))), 431);
    }
}
