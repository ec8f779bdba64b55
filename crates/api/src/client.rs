//! The client: one request a connection.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use insight::picture::{MemoryCurve, Picture};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::de::DeserializeOwned;

use crate::http::{Connection, ReadError, Response, read_response, write_request};
use crate::wire::{
    BalloonTarget, CloneReport, CloneRequest, Fault, KernelInfo, KernelSymbol, KernelType,
    ReclaimRequest, SaveReport, SaveRequest, ShareReport, ShareRequest, Version, VmStatus,
};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Speaks to the VM of one name. Keeps nothing open between calls.
#[derive(Clone, Debug)]
pub struct Client {
    name: String,
    path: PathBuf,
    timeout: Duration,
}

/// Why a VM did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens under that name.
    #[error("no VM `{name}` is running: `fathom list` shows those that are")]
    NotRunning {
        /// The name.
        name: String,
    },
    /// It said no, and why.
    #[error("VM `{name}`: {message}")]
    Fault {
        /// The name.
        name: String,
        /// HTTP status.
        status: u16,
        /// One line.
        message: String,
    },
    /// It did not answer in time.
    #[error(
        "VM `{name}` did not answer within {seconds} s: its process may be stopped or overloaded"
    )]
    Silent {
        /// The name.
        name: String,
        /// How long we waited.
        seconds: u64,
    },
    /// It ended while it was asked.
    #[error("VM `{name}` ended before it answered")]
    Gone {
        /// The name.
        name: String,
    },
    /// It answered something that we do not understand.
    #[error("VM `{name}` answered strangely: {reason}: is it run by another version?")]
    Protocol {
        /// The name.
        name: String,
        /// What was strange.
        reason: String,
    },
    /// The host failed.
    #[error("socket {path}: {source}")]
    Host {
        /// The socket.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

impl Client {
    /// A client of the VM `name` that listens at `path`.
    pub(crate) fn new(name: &str, path: PathBuf) -> Self {
        Self { name: name.to_owned(), path, timeout: TIMEOUT }
    }

    /// The same, waiting no longer than `timeout` for each answer (5 s otherwise).
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The VM's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How the VM is.
    pub fn status(&self) -> Result<VmStatus, ClientError> {
        self.get("/fathom/vm")
    }

    /// What is known of its guest's memory.
    pub fn memory(&self) -> Result<Picture, ClientError> {
        self.get("/fathom/vm/memory")
    }

    /// Miss ratios with other sizes of its memory.
    pub fn curve(&self) -> Result<MemoryCurve, ClientError> {
        self.get("/fathom/vm/curve")
    }

    /// Its metrics, as Prometheus reads them.
    pub fn metrics(&self) -> Result<String, ClientError> {
        self.document("/metrics")
    }

    /// What its guest's kernel says of itself.
    pub fn kernel(&self) -> Result<KernelInfo, ClientError> {
        self.get("/fathom/vm/kernel")
    }

    /// A symbol of its guest's kernel, by name or by an address, `0x...`.
    pub fn kernel_symbol(&self, wanted: &str) -> Result<KernelSymbol, ClientError> {
        self.get(&format!("/fathom/vm/kernel/symbols/{}", in_path(wanted)))
    }

    /// A structure of its guest's kernel, or a member: `page`, `page.lru`.
    pub fn kernel_type(&self, wanted: &str) -> Result<KernelType, ClientError> {
        self.get(&format!("/fathom/vm/kernel/types/{}", in_path(wanted)))
    }

    /// Its classes of frames against what its guest's kernel says, for experiments.
    pub fn classes(&self) -> Result<serde_json::Value, ClientError> {
        self.get("/fathom/vm/classes/check")
    }

    /// Which version runs it.
    pub fn version(&self) -> Result<Version, ClientError> {
        self.get("/fathom/version")
    }

    /// Has its working set measured for the next minute, which costs the guest a little.
    pub fn watch(&self) -> Result<(), ClientError> {
        self.put("/fathom/vm/watch", None)
    }

    /// Stops its vCPUs.
    pub fn pause(&self) -> Result<(), ClientError> {
        self.put("/fathom/vm/pause", None)
    }

    /// Lets its vCPUs go on.
    pub fn resume(&self) -> Result<(), ClientError> {
        self.put("/fathom/vm/resume", None)
    }

    /// Ends it.
    pub fn stop(&self) -> Result<(), ClientError> {
        self.put("/fathom/vm/stop", None)
    }

    /// Sets what its balloon is to hold.
    pub fn set_balloon(&self, target: BalloonTarget) -> Result<(), ClientError> {
        let body = serde_json::to_vec(&target).map_err(|error| self.strange(error))?;
        self.put("/fathom/vm/balloon", Some(&body))
    }

    /// Has memory of its guest taken, which may be written to `store`, an empty file that nobody else uses.
    /// On KVM its memory may have to be copied into a file first, and status is not told meanwhile.
    pub fn reclaim(
        &self,
        request: ReclaimRequest,
        store: Option<&File>,
    ) -> Result<(), ClientError> {
        let body = serde_json::to_vec(&request).map_err(|error| self.strange(error))?;
        let descriptors: Vec<_> = store.iter().map(AsFd::as_fd).collect();
        self.ask_with("PUT", "/fathom/vm/reclaim", Some(&body), &descriptors).map(drop)
    }

    /// Has it look for frames that others may have, and share what they have. `attach`: in this pool from now on, with an
    /// outbox.
    pub fn share(
        &self,
        request: &ShareRequest,
        attach: Option<[BorrowedFd<'_>; 2]>,
    ) -> Result<ShareReport, ClientError> {
        let body = serde_json::to_vec(request).map_err(|error| self.strange(error))?;
        let descriptors = attach.as_ref().map_or(&[][..], |attach| attach);
        let response = self.ask_with("PUT", "/fathom/vm/share", Some(&body), descriptors)?;
        serde_json::from_slice(&response.body).map_err(|error| self.strange(error))
    }

    /// Has it sent on these sockets, 1 to 16, whose other ends the caller reads meanwhile. They are closed here when
    /// this returns. Give it a timeout for that.
    pub fn save(
        &self,
        lanes: Vec<OwnedFd>,
        request: SaveRequest,
    ) -> Result<SaveReport, ClientError> {
        let body = serde_json::to_vec(&request).map_err(|error| self.strange(error))?;
        let descriptors: Vec<_> = lanes.iter().map(AsFd::as_fd).collect();
        let response = self.ask_with("PUT", "/fathom/vm/save", Some(&body), &descriptors)?;
        serde_json::from_slice(&response.body).map_err(|error| self.strange(error))
    }

    /// Has its memory become what clones lie over, and its state written into `machine`, open for writing; `memory` is an
    /// empty memfd that can be sealed. The descriptors are of what clones lie over, at least
    /// one. Give it a timeout for that.
    pub fn make_clonable(
        &self,
        machine: &File,
        memory: &OwnedFd,
        request: CloneRequest,
    ) -> Result<(CloneReport, Vec<OwnedFd>), ClientError> {
        let body = serde_json::to_vec(&request).map_err(|error| self.strange(error))?;
        let descriptors = [machine.as_fd(), memory.as_fd()];
        let (response, memory) =
            self.ask_both_ways("PUT", "/fathom/vm/clone", Some(&body), &descriptors)?;
        let report = serde_json::from_slice(&response.body).map_err(|error| self.strange(error))?;
        match memory.is_empty() {
            true => Err(self.strange("no descriptor of its memory")),
            false => Ok((report, memory)),
        }
    }

    /// The text at a path of who listens there, such as of a [`crate::DocumentServer`].
    pub fn document(&self, path: &str) -> Result<String, ClientError> {
        let response = self.ask("GET", path, None)?;
        String::from_utf8(response.body).map_err(|error| self.strange(error))
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self.ask("GET", path, None)?;
        serde_json::from_slice(&response.body).map_err(|error| self.strange(error))
    }

    fn put(&self, path: &str, body: Option<&[u8]>) -> Result<(), ClientError> {
        self.ask("PUT", path, body).map(drop)
    }

    /// One request; anything but a success is an error.
    fn ask(&self, method: &str, path: &str, body: Option<&[u8]>) -> Result<Response, ClientError> {
        self.ask_with(method, path, body, &[])
    }

    fn ask_with(
        &self,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Response, ClientError> {
        self.ask_both_ways(method, path, body, descriptors).map(|(response, _)| response)
    }

    /// The answer, and the descriptors that came along.
    fn ask_both_ways(
        &self,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Response, Vec<OwnedFd>), ClientError> {
        let deadline = Instant::now() + self.timeout;
        let mut connection = self.connect().map_err(|error| self.no_connection(error))?;
        // A server that refuses the connection answers and closes without reading: its answer counts.
        let written = write_request(&mut connection, method, path, body, descriptors);
        let response = match (read_response(&mut connection, deadline), written) {
            (Ok(response), _) => response,
            (Err(_), Err(error)) => return Err(self.no_connection(error)),
            (Err(error), Ok(())) => return Err(self.no_response(error)),
        };
        if (200..300).contains(&response.status) {
            return Ok((response, connection.take_descriptors()));
        }
        let fault = serde_json::from_slice::<Fault>(&response.body);
        let message = fault.map_or_else(
            |_| format!("HTTP status {}", response.status),
            |fault| one_line(&fault.fault_message),
        );
        Err(ClientError::Fault { name: self.name.clone(), status: response.status, message })
    }

    /// Not `UnixStream::connect`, which waits for ever when the backlog of a stopped process is full.
    fn connect(&self) -> io::Result<Connection> {
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // connect() on a UNIX socket waits as long as a send may: unix(7), net/unix/af_unix.c.
        set_socket_timeout(&socket, Timeout::Send, Some(self.timeout))?;
        connect(&socket, &SocketAddrUnix::new(&self.path)?)?;
        Connection::new(UnixStream::from(socket))
    }

    fn no_connection(&self, error: io::Error) -> ClientError {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => self.not_running(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.silent(),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => self.gone(),
            _ => ClientError::Host { path: self.path.clone(), source: error },
        }
    }

    fn no_response(&self, error: ReadError) -> ClientError {
        match error {
            ReadError::Closed { partial: false } => self.gone(),
            ReadError::Closed { partial: true } => self.strange("half an answer"),
            ReadError::Timeout { .. } => self.silent(),
            ReadError::Refused(fail) => self.strange(fail.message),
            ReadError::Io(source) => ClientError::Host { path: self.path.clone(), source },
        }
    }

    fn not_running(&self) -> ClientError {
        ClientError::NotRunning { name: one_line(&self.name) }
    }

    fn silent(&self) -> ClientError {
        ClientError::Silent { name: self.name.clone(), seconds: self.timeout.as_secs() }
    }

    fn gone(&self) -> ClientError {
        ClientError::Gone { name: self.name.clone() }
    }

    fn strange(&self, reason: impl ToString) -> ClientError {
        let reason = one_line(&reason.to_string());
        ClientError::Protocol { name: self.name.clone(), reason }
    }

    /// Where the VM listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A name as a part of a path. What no name in C has becomes `!`, which none has either.
fn in_path(name: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.$".contains(c);
    name.chars().take(512).map(|c| if fits(c) { c } else { '!' }).collect()
}

/// Somebody else's text, made fit for a terminal.
fn one_line(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
