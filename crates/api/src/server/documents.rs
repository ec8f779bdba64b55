//! A server that changes nothing: documents, each at its path.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use super::connection::{fail_of, serve_with};
use super::{Listener, Listening, Serve};
use crate::control::ControlError;
use crate::http::{Connection, Fail, Request};
use crate::metrics;
use crate::route::{no_such_path, wrong_method};

/// What there is to read. Called from many threads at a time.
pub trait Documents: Send + Sync {
    /// The document at `path`, which has no query; `None`: there is none.
    fn read(&self, path: &str) -> Option<Result<Document, ControlError>>;
}

/// A text and its type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Document {
    kind: &'static str,
    text: String,
}

impl Document {
    /// JSON.
    ///
    /// # Errors
    /// The value cannot be written as JSON.
    pub fn json(value: &impl Serialize) -> Result<Self, ControlError> {
        let text = serde_json::to_string(value);
        let text = text.map_err(|error| ControlError::Failed(error.to_string()))?;
        Ok(Self { kind: "application/json", text })
    }

    /// Metrics in the text format of Prometheus.
    #[must_use]
    pub fn metrics(text: String) -> Self {
        Self { kind: metrics::CONTENT_TYPE, text }
    }

    /// A web page.
    #[must_use]
    pub fn page(text: impl Into<String>) -> Self {
        Self { kind: "text/html; charset=utf-8", text: text.into() }
    }

    /// What a peer is sent.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Serves documents, on threads of its own, until dropped. Peers are bounded as those of [`super::Server`]: in number, in what they
/// send and in how long they take for it.
#[derive(Debug)]
pub struct DocumentServer {
    listening: Option<Listening>,
    /// Where there is a file for it, which is ours.
    socket: Option<PathBuf>,
    address: Option<SocketAddr>,
}

impl DocumentServer {
    /// Listens on a UNIX socket at `path`. One that is there is replaced: the caller knows that it is nobody's any more.
    ///
    /// # Errors
    /// The host refuses.
    pub fn at(path: &Path, documents: Arc<dyn Documents>) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        let mut server = Self { listening: None, socket: Some(path.to_owned()), address: None };
        listener.set_nonblocking(true)?;
        server.listening = Some(Listening::start(listener, serve(documents, false))?);
        Ok(server)
    }

    /// Listens by TCP on an address of this host's loopback interface: every user of the host may read it then.
    ///
    /// # Errors
    /// Another address, or the host refuses.
    pub fn loopback(address: SocketAddr, documents: Arc<dyn Documents>) -> io::Result<Self> {
        check_loopback(address)?;
        Self::on(TcpListener::bind(address)?, documents)
    }

    /// The same on a socket that somebody else has made.
    ///
    /// # Errors
    /// It is of another address, or does not listen; or the host refuses.
    pub fn on(listener: TcpListener, documents: Arc<dyn Documents>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        check_loopback(address)?;
        if !rustix::net::sockopt::socket_acceptconn(&listener)? {
            return Err(io::Error::new(ErrorKind::InvalidInput, "it does not listen"));
        }
        listener.set_nonblocking(true)?;
        let listening = Some(Listening::start(listener, serve(documents, true))?);
        Ok(Self { listening, socket: None, address: Some(address) })
    }

    /// Where it listens by TCP.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }
}

fn check_loopback(address: SocketAddr) -> io::Result<()> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    let what = "not an address of the loopback interface, such as 127.0.0.1";
    Err(io::Error::new(ErrorKind::InvalidInput, what))
}

impl Drop for DocumentServer {
    fn drop(&mut self) {
        drop(self.listening.take());
        if let Some(path) = &self.socket
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!("remove {}: {error}", path.display());
        }
    }
}

impl Listener for TcpListener {
    /// A stream of bytes under the type of the others: nothing here asks for its address, by which alone they differ.
    fn accept_stream(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.accept()?;
        Ok(UnixStream::from(OwnedFd::from(stream)))
    }
}

fn serve(documents: Arc<dyn Documents>, is_tcp: bool) -> Arc<Serve> {
    Arc::new(move |stream: UnixStream, stopping: &AtomicBool| {
        // Descriptors that came along are of no use, and closed.
        serve_with(stream, stopping, |connection, request, _, keep_alive| {
            answer(connection, request, documents.as_ref(), is_tcp, keep_alive)
        });
    })
}

fn answer(
    connection: &mut Connection,
    request: &Request,
    documents: &dyn Documents,
    is_tcp: bool,
    keep_alive: bool,
) -> io::Result<()> {
    match read(request, documents, is_tcp) {
        Ok(document) => connection.write_text(document.kind, &document.text, keep_alive),
        Err(fail) => connection.write_fail(&fail, keep_alive),
    }
}

fn read(request: &Request, documents: &dyn Documents, is_tcp: bool) -> Result<Document, Fail> {
    // A page of somebody else's whose name leads to this address must not read it (DNS rebinding).
    if is_tcp && !request.host.as_deref().is_none_or(is_local) {
        return Err(Fail::new(403, "ask for 127.0.0.1, [::1] or localhost"));
    }
    if request.method != "GET" {
        return Err(wrong_method(request, "GET"));
    }
    let path = request.path.split_once('?').map_or(request.path.as_str(), |(path, _)| path);
    match documents.read(path) {
        Some(document) => document.map_err(|error| fail_of(&error)),
        None => Err(no_such_path(&request.path)),
    }
}

/// `host`: a header, with or without a port.
fn is_local(host: &str) -> bool {
    let port = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    let name = port.map_or(host, |(name, _)| name);
    let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpStream};
    use std::time::Duration;

    use super::*;
    use crate::SocketDirectory;

    struct Two;

    impl Documents for Two {
        fn read(&self, path: &str) -> Option<Result<Document, ControlError>> {
            match path {
                "/" => Some(Ok(Document::page("<p>page"))),
                "/later" => Some(Err(ControlError::State("nothing yet".to_owned()))),
                _ => None,
            }
        }
    }

    /// What is said to `bytes` if nothing follows them.
    fn tell(mut stream: impl Read + Write, end: impl FnOnce(), bytes: &[u8]) -> String {
        let _ = stream.write_all(bytes);
        end();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    fn tell_unix(path: &Path, bytes: &[u8]) -> String {
        let stream = UnixStream::connect(path).expect("connect");
        let other = stream.try_clone().expect("a clone");
        tell(stream, || drop(other.shutdown(Shutdown::Write)), bytes)
    }

    fn tell_tcp(address: SocketAddr, bytes: &[u8]) -> String {
        let stream = TcpStream::connect(address).expect("connect");
        let other = stream.try_clone().expect("a clone");
        tell(stream, || drop(other.shutdown(Shutdown::Write)), bytes)
    }

    #[test]
    fn documents_are_read_and_nothing_else_is_done() {
        let folder = tempfile::tempdir().expect("folder");
        let sockets = SocketDirectory::at(folder.path().join("fathom")).expect("directory");
        let path = sockets.daemon_socket();
        fs::write(&path, "left by one that was killed").expect("written");
        let server = DocumentServer::at(&path, Arc::new(Two)).expect("server");
        assert_eq!(sockets.daemon().document("/").expect("page"), "<p>page");
        assert_eq!(sockets.names().expect("names"), [""; 0], "it is no VM");
        for (bytes, status) in [
            ("GET /?x=1 HTTP/1.1\r\nHost: anything\r\n\r\n", 200),
            ("GET / HTTP/1.0\r\n\r\n", 200),
            ("GET /later HTTP/1.1\r\n\r\n", 409),
            ("GET /../etc/passwd HTTP/1.1\r\n\r\n", 404),
            ("GET /fathom/vm HTTP/1.1\r\n\r\n", 404),
            ("GET * HTTP/1.1\r\n\r\n", 404),
            ("PUT / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 405),
            ("POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413),
            ("\u{16}\u{3}\u{1}hello", 400),
            ("GET /fath", 400),
        ] {
            let answer = tell_unix(&path, bytes.as_bytes());
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{bytes:?}: {answer}");
        }
        drop(server);
        assert!(!path.exists());
        assert!(sockets.daemon().document("/").is_err());
    }

    #[test]
    fn tcp_is_of_this_host_only() {
        let any = "0.0.0.0:0".parse().expect("an address");
        assert!(DocumentServer::loopback(any, Arc::new(Two)).is_err());
        let here = "127.0.0.1:0".parse().expect("an address");
        let server = DocumentServer::loopback(here, Arc::new(Two)).expect("server");
        let address = server.address().expect("tcp");
        let ask = |host: &str| {
            tell_tcp(address, format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())
        };
        let answer = ask(&address.to_string());
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("<p>page"), "{answer}");
        assert!(answer.contains("Content-Type: text/html; charset=utf-8\r\n"), "{answer}");
        assert!(ask("LOCALHOST").starts_with("HTTP/1.1 200 "));
        for host in ["evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", "", "[", ":", "::1:x"]
        {
            assert!(ask(host).starts_with("HTTP/1.1 403 "), "{host}");
        }
        // One that says nothing holds up nobody else, nor the end.
        let silent = TcpStream::connect(address).expect("connect");
        silent.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
        assert!(ask("[::1]:80").starts_with("HTTP/1.1 200 "));
        drop(server);
        assert!(TcpStream::connect(address).is_err());
        assert_eq!((&silent).read(&mut [0]).expect("ended"), 0);
    }

    #[test]
    fn no_more_than_so_many_are_served_at_a_time() {
        let here = "127.0.0.1:0".parse().expect("an address");
        let server = DocumentServer::loopback(here, Arc::new(Two)).expect("server");
        let address = server.address().expect("tcp");
        let silent: Vec<_> = (0..super::super::CONNECTIONS_MAX)
            .map(|_| TcpStream::connect(address).expect("connect"))
            .collect();
        // It is told before it asks.
        let mut answer = String::new();
        let mut stream = TcpStream::connect(address).expect("connect");
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        drop(silent);
    }
}
