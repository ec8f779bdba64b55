use std::io::Read;
use std::os::fd::OwnedFd;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::testing::FakeVm;
use crate::wire::{
    BalloonTarget, KernelInfo, KernelSymbol, KernelType, RunState, SaveRequest, VmStatus,
};
use crate::{ClientError, ControlError, Picture, SocketDirectory};

struct Running {
    _outer: TempDir,
    directory: SocketDirectory,
    server: Server,
}

fn running() -> Running {
    let outer = tempfile::tempdir().expect("temporary directory");
    let directory = SocketDirectory::at(outer.path().join("fathom")).expect("directory");
    let claim = directory.claim("fake").expect("claim");
    let server = Server::start(claim, Arc::new(FakeVm::new("fake"))).expect("server");
    Running { _outer: outer, directory, server }
}

impl Running {
    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.directory.client("fake").path()).expect("connect")
    }

    /// What the server says to `bytes` if nothing follows them.
    fn tell(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // The server may answer and close before it has read all.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }
}

#[test]
fn every_verb_does_its_thing() {
    let running = running();
    let client = running.directory.client("fake");
    assert_eq!(client.version().expect("version").fathom_version, env!("CARGO_PKG_VERSION"));
    assert_eq!(client.status().expect("status").state, RunState::Running);
    client.pause().expect("pause");
    assert_eq!(client.status().expect("status").state, RunState::Paused);
    client.resume().expect("resume");
    client.set_balloon(BalloonTarget { target_bytes: 4096 }).expect("balloon");
    let status = client.status().expect("status");
    assert_eq!((status.state, status.balloon_target_bytes), (RunState::Running, 4096));
    let picture = client.memory().expect("memory");
    assert_eq!(picture.parts.values().map(|part| part.bytes).sum::<u64>(), picture.memory_bytes);
    assert_eq!(client.curve().expect("curve"), picture.curve);
    client.stop().expect("stop");
}

#[test]
fn metrics_are_text_of_their_type() {
    let running = running();
    let answer = running.tell(b"GET /metrics HTTP/1.1\r\n\r\n");
    assert!(answer.contains("Content-Type: text/plain; version=0.0.4"), "{answer}");
    assert!(answer.contains("fathom_memory_resident_bytes{name=\"fake\"} 104857600\n"), "{answer}");
    let text = running.directory.client("fake").metrics().expect("metrics");
    // Figures rise from one answer to the next.
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let names = |text: &str| -> Vec<String> {
        let name = |line: &str| line.rsplit_once(' ').map(|(name, _)| name.to_owned());
        text.lines().filter(|line| !line.starts_with('#')).filter_map(name).collect()
    };
    assert_eq!(names(body), names(&text));
}

#[test]
fn refusals_reach_the_client_as_one_line() {
    let running = running();
    let client = running.directory.client("fake");
    let error = client.set_balloon(BalloonTarget { target_bytes: 1 << 40 }).expect_err("too much");
    assert!(matches!(error, ClientError::Fault { status: 400, .. }));
    assert_eq!(error.to_string(), "VM `fake`: more than the guest has: ask for less");
    client.stop().expect("stop");
    let error = client.stop().expect_err("stopped");
    assert!(matches!(error, ClientError::Fault { status: 409, .. }), "{error}");
    let error = running.directory.client("none").status().expect_err("no such VM");
    assert!(matches!(error, ClientError::NotRunning { .. }), "{error}");
}

#[test]
fn a_connection_serves_many_requests() {
    let running = running();
    let two = "GET /fathom/version HTTP/1.1\r\n\r\nPUT /fathom/vm/pause HTTP/1.1\r\n\r\n";
    let answer = running.tell(two.as_bytes());
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 1, "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 204 No Content").count(), 1, "{answer}");
}

#[test]
fn every_error_has_its_status_and_a_fault() {
    let running = running();
    for (bytes, status) in [
        ("GET /nothing HTTP/1.1\r\n\r\n", 404),
        ("PATCH /fathom/vm HTTP/1.1\r\n\r\n", 405),
        ("PUT /fathom/vm/balloon HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 400),
        ("PUT /fathom/vm/balloon HTTP/1.1\r\nContent-Length: 9\r\n\r\n{}", 400),
        ("PUT /fathom/vm/balloon HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413),
        ("PUT /fathom/vm/balloon HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        ("\u{16}\u{3}\u{1}hello", 400),
        ("GET /fath", 400),
    ] {
        let answer = running.tell(bytes.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{bytes:?}: {answer}");
        assert!(answer.contains("fault_message"), "{bytes:?}: {answer}");
    }
    assert_eq!(running.tell(b""), "", "nobody asked");
}

#[test]
fn a_slow_peer_keeps_nobody_waiting() {
    let running = running();
    let mut slow = running.connect();
    slow.write_all(b"GET /fathom/v").expect("write");
    running.directory.client("fake").status().expect("status");
    slow.write_all(b"ersion HTTP/1.1\r\nConnection: close\r\n\r\n").expect("write");
    let mut answer = String::new();
    slow.read_to_string(&mut answer).expect("read");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[test]
fn sockets_come_along_with_a_request() {
    let running = running();
    let client = running.directory.client("fake");
    let request = SaveRequest::default();
    let (ours, theirs): (Vec<_>, Vec<_>) =
        (0..3).map(|_| UnixStream::pair().expect("sockets")).unzip();
    let report = client.save(theirs.into_iter().map(OwnedFd::from).collect(), request);
    let report = report.expect("saved");
    assert_eq!((report.pause_seconds, report.sent_bytes), (0.5, 10));
    for mut lane in ours {
        let mut text = String::new();
        lane.read_to_string(&mut text).expect("read");
        assert_eq!(text, "its memory");
    }
    // Without them it is refused.
    let mut peer = running.connect();
    let ask = "PUT /fathom/vm/save HTTP/1.1\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";
    peer.write_all(ask.as_bytes()).expect("write");
    let mut answer = String::new();
    peer.read_to_string(&mut answer).expect("read");
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("no socket"), "{answer}");
}

#[test]
fn too_many_peers_are_told_so() {
    let running = running();
    let mut peers: Vec<_> = (0..CONNECTIONS_MAX).map(|_| running.connect()).collect();
    // An answer proves that the server has taken the connection, and all those before it.
    peers[CONNECTIONS_MAX - 1].write_all(b"GET /fathom/vm HTTP/1.1\r\n\r\n").expect("write");
    let mut byte = [0];
    peers[CONNECTIONS_MAX - 1].read_exact(&mut byte).expect("read");
    let error = running.directory.client("fake").status().expect_err("full");
    assert!(matches!(error, ClientError::Fault { status: 503, .. }), "{error}");
    drop(peers);
    // The server sees each hang-up in its own time.
    while running.directory.client("fake").status().is_err() {
        thread::yield_now();
    }
}

#[test]
fn closing_answers_frees_the_name_and_ends_connections() {
    let Running { _outer, directory, server } = running();
    let mut idle = UnixStream::connect(directory.client("fake").path()).expect("connect");
    directory.client("fake").status().expect("status");
    drop(server);
    assert_eq!(idle.read(&mut [0]).expect("read"), 0, "the connection has ended");
    assert!(!directory.is_running("fake"));
    assert!(matches!(directory.client("fake").status(), Err(ClientError::NotRunning { .. })));
}

/// Answers every status with a panic.
struct Broken;

impl VmControl for Broken {
    fn status(&self) -> Result<VmStatus, ControlError> {
        std::panic::resume_unwind(Box::new("a bug"))
    }
    fn memory(&self) -> Result<Picture, ControlError> {
        Err(ControlError::Failed("no picture".to_owned()))
    }
    fn kernel(&self) -> Result<KernelInfo, ControlError> {
        Err(ControlError::State("no kernel".to_owned()))
    }
    fn kernel_symbol(&self, wanted: &str) -> Result<KernelSymbol, ControlError> {
        Err(ControlError::Invalid(wanted.to_owned()))
    }
    fn kernel_type(&self, wanted: &str) -> Result<KernelType, ControlError> {
        Err(ControlError::Invalid(wanted.to_owned()))
    }
    fn watch(&self) -> Result<(), ControlError> {
        Ok(())
    }
    fn pause(&self) -> Result<(), ControlError> {
        Ok(())
    }
    fn resume(&self) -> Result<(), ControlError> {
        Ok(())
    }
    fn stop(&self) -> Result<(), ControlError> {
        Ok(())
    }
    fn set_balloon(&self, _: BalloonTarget) -> Result<(), ControlError> {
        Err(ControlError::Failed("no balloon".to_owned()))
    }
}

#[test]
fn a_bug_behind_one_request_leaves_the_server_alive() {
    let outer = tempfile::tempdir().expect("temporary directory");
    let directory = SocketDirectory::at(outer.path().join("fathom")).expect("directory");
    let _server = Server::start(directory.claim("fake").expect("claim"), Arc::new(Broken));
    let client = directory.client("fake");
    for _ in 0..2 * CONNECTIONS_MAX {
        assert!(matches!(
            client.status(),
            Err(ClientError::Gone { .. } | ClientError::Fault { .. })
        ));
    }
    // Places are given back as the threads unwind.
    while client.pause().is_err() {
        thread::yield_now();
    }
}

/// What `connection::serve` says to these pieces.
fn converse(pieces: &[Vec<u8>]) -> Vec<u8> {
    let (mut peer, ours) = UnixStream::pair().expect("pair");
    thread::scope(|scope| {
        scope.spawn(|| connection::serve(ours, &FakeVm::new("fake"), &AtomicBool::new(false)));
        for piece in pieces {
            let _ = peer.write_all(piece);
        }
        let _ = peer.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = peer.read_to_end(&mut answer);
        answer
    })
}

fn request_like() -> impl Strategy<Value = Vec<u8>> {
    let fragment = prop_oneof![
        Just(b"GET ".to_vec()),
        Just(b"PUT ".to_vec()),
        Just(b"/fathom/vm".to_vec()),
        Just(b"/balloon".to_vec()),
        Just(b" HTTP/1.1\r\n".to_vec()),
        Just(b"Content-Length: 3\r\n".to_vec()),
        Just(b"Content-Length: 18446744073709551615\r\n".to_vec()),
        Just(b"Transfer-Encoding: chunked\r\n".to_vec()),
        Just(b"\r\n\r\n".to_vec()),
        Just(br#"{"target_bytes":1}"#.to_vec()),
        prop::collection::vec(any::<u8>(), 0..40),
    ];
    prop::collection::vec(fragment, 0..12).prop_map(|fragments| fragments.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever comes in, the connection ends, and what comes out is HTTP.
    #[test]
    fn garbage_is_answered_or_ignored(pieces in prop::collection::vec(request_like(), 0..4)) {
        let answer = converse(&pieces);
        prop_assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 "));
    }

    /// A good request is understood however it is cut.
    #[test]
    fn pieces_make_a_whole(cuts in prop::collection::vec(0_usize..80, 0..6)) {
        let request =
            b"PUT /fathom/vm/balloon HTTP/1.1\r\nContent-Length: 18\r\n\r\n{\"target_bytes\":1}";
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(request.len())).collect();
        cuts.extend([0, request.len()]);
        cuts.sort_unstable();
        let pieces: Vec<_> = cuts.windows(2).map(|cut| request[cut[0]..cut[1]].to_vec()).collect();
        prop_assert!(converse(&pieces).starts_with(b"HTTP/1.1 204 "));
    }
}
