mod hostile;
mod limits;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use tempfile::TempDir;

use super::config::{EVENTS, RECEIVE, TRANSMIT};
use super::packet::{HEADER_LEN, HOST_CID, Halves, Header, Op, TYPE_STREAM};
use super::streams::Key;
use super::*;
use crate::virtio::testing::*;
use crate::virtio::{DeviceMetrics, DeviceState};

const CID: u32 = 3;
/// Of the guest, a stream.
const ALLOC: u32 = 64 << 10;
/// A receive buffer, as Linux has them.
const RECEIVE_LEN: u32 = 4096;
const TRANSMIT_DATA: u64 = DATA + 0x1_0000;

/// A guest's driver, and the host's folder.
struct Rig {
    driver: Driver,
    folder: TempDir,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = VsockConfig::new(CID, folder.path().join("vsock"));
        Self { driver: Driver::ready(device(&config), 0), folder }
    }

    /// Somebody on the host who wants a port of the guest's.
    fn call(&self, greeting: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.folder.path().join("vsock")).unwrap();
        stream.write_all(greeting.as_bytes()).unwrap();
        stream
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.folder.path().join(format!("vsock_{port}"))).unwrap()
    }

    fn send(&mut self, header: Header, payload: &[u8]) {
        let header = Header { len: payload.len() as u32, ..header };
        self.send_raw(&[&header.bytes(), payload].concat());
    }

    fn send_raw(&mut self, bytes: &[u8]) {
        self.driver.write(TRANSMIT_DATA, bytes);
        let buffers = [(TRANSMIT_DATA, bytes.len() as u32, false)];
        assert_eq!(self.driver.request(TRANSMIT, &buffers), 0);
    }

    /// Gives the device one buffer.
    fn hear(&mut self) -> Option<(Header, Vec<u8>)> {
        self.driver.offer(RECEIVE, &[(DATA, RECEIVE_LEN, true)]);
        self.driver.notify(RECEIVE);
        self.heard()
    }

    /// What has come into the buffer.
    fn heard(&mut self) -> Option<(Header, Vec<u8>)> {
        let (_, len) = *self.driver.used(RECEIVE).first()?;
        let bytes = self.driver.read(DATA, len as usize);
        let (header, payload) = bytes.split_first_chunk::<HEADER_LEN>().unwrap();
        let header = Header::parse(header);
        assert_eq!(header.len as usize, payload.len());
        Some((header, payload.to_vec()))
    }

    fn hear_op(&mut self, op: Op) -> Header {
        let (header, _) = self.hear().unwrap_or_else(|| panic!("{op:?} does not come"));
        assert_eq!(Op::new(header.op), Some(op));
        header
    }

    /// A connection of the guest's to whom listens on port 80.
    fn connect(&mut self, listener: &UnixListener, guest_port: u32) -> (Key, UnixStream) {
        let key = Key { host_port: 80, guest_port };
        self.send(packet(key, Op::Request), &[]);
        self.hear_op(Op::Response);
        (key, listener.accept().unwrap().0)
    }

    fn metrics(&self) -> VsockMetrics {
        let DeviceMetrics::Vsock(metrics) = self.driver.transport.device_metrics() else {
            panic!("not its metrics")
        };
        metrics
    }
}

fn device(config: &VsockConfig) -> Vsock {
    Vsock::new(config, Arc::new(VsockListener::open(config).unwrap())).unwrap()
}

fn packet(key: Key, op: Op) -> Header {
    Header {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        src_port: key.guest_port,
        dst_port: key.host_port,
        kind: TYPE_STREAM,
        op: op as u16,
        buf_alloc: ALLOC,
        ..Header::default()
    }
}

fn text(stream: &mut UnixStream, len: usize) -> String {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// The connection is at its end.
fn is_over(stream: &mut UnixStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0) | Err(_))
}

#[test]
fn the_host_calls_the_guest() {
    let mut rig = Rig::new();
    let mut stream = rig.call("CONN");
    rig.driver.run();
    stream.write_all(b"ECT 52\nfirst bytes").unwrap();
    rig.driver.run();
    let request = rig.hear_op(Op::Request);
    assert_eq!((request.src_cid, request.dst_cid, request.dst_port), (2, CID.into(), 52));
    let key = Key { host_port: request.src_port, guest_port: 52 };
    rig.send(packet(key, Op::Response), &[]);
    assert_eq!(text(&mut stream, 14), format!("OK {}\n", key.host_port));

    let (data, payload) = rig.heard().or_else(|| rig.hear()).unwrap();
    assert_eq!((data.op, &payload[..]), (Op::ReadWrite as u16, &b"first bytes"[..]));
    rig.send(packet(key, Op::ReadWrite), b"an answer");
    assert_eq!(text(&mut stream, 9), "an answer");

    drop(stream);
    rig.driver.run();
    let shutdown = rig.hear_op(Op::Shutdown);
    assert_eq!(Halves::from_flags(shutdown.flags), Halves::BOTH);
    rig.send(packet(key, Op::Reset), &[]);
    let metrics = rig.metrics();
    assert_eq!((metrics.from_host, metrics.sent_bytes, metrics.received_bytes), (1, 9, 11));
}

#[test]
fn the_guest_calls_the_host() {
    let mut rig = Rig::new();
    let listener = rig.listen(80);
    let (key, mut stream) = rig.connect(&listener, 5000);
    rig.send(packet(key, Op::ReadWrite), b"hello");
    let shutdown = Header { flags: Halves::SEND.flags(), ..packet(key, Op::Shutdown) };
    rig.send(shutdown, &[]);
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert_eq!(said, "hello", "and then the end, while the other half goes on");
    stream.write_all(b"good bye").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    rig.driver.run();
    assert_eq!(rig.hear().unwrap().1, b"good bye");
    // Both halves are over for the host, so it is over.
    let shutdown = rig.hear_op(Op::Shutdown);
    assert_eq!(Halves::from_flags(shutdown.flags), Halves::BOTH);
}

#[test]
fn nobody_is_there() {
    let mut rig = Rig::new();
    for port in [81, u32::MAX] {
        rig.send(packet(Key { host_port: port, guest_port: 1 }, Op::Request), &[]);
        let reset = rig.hear_op(Op::Reset);
        assert_eq!((reset.src_port, reset.dst_port), (port, 1));
    }
    let mut stream = rig.call("CONNECT 52\n");
    rig.driver.run();
    let request = rig.hear_op(Op::Request);
    let key = Key { host_port: request.src_port, guest_port: 52 };
    rig.send(packet(key, Op::Reset), &[]);
    assert!(is_over(&mut stream));
    let mut stream = rig.call("HELLO\n");
    rig.driver.run();
    assert!(is_over(&mut stream));
    assert_eq!(rig.metrics().refused, 2);
}

#[test]
fn who_hangs_up_before_he_has_spoken_is_forgotten() {
    let mut rig = Rig::new();
    for _ in 0..CONNECTIONS_DEFAULT + 1 {
        rig.call("CONN");
        rig.driver.run();
    }
    let _stream = rig.call("CONNECT 52\n");
    rig.driver.run();
    rig.hear_op(Op::Request);
}

#[test]
fn a_reset_closes_everything_and_callers_come_again() {
    let mut rig = Rig::new();
    let listener = rig.listen(80);
    let (_, mut stream) = rig.connect(&listener, 1);
    let mut silent = rig.call("");
    rig.driver.run();
    rig.driver.set(0x70, 0);
    assert!(is_over(&mut stream) && is_over(&mut silent));
    // He calls while no driver is there, and is heard when one is.
    let mut early = rig.call("CONNECT 52\n");
    rig.driver.run();
    rig.driver.start(0);
    let key = Key { host_port: rig.hear_op(Op::Request).src_port, guest_port: 52 };
    rig.send(packet(key, Op::Response), &[]);
    assert_eq!(text(&mut early, 3), "OK ");
}

#[test]
fn a_restored_guest_hears_that_its_connections_are_gone() {
    let mut rig = Rig::new();
    let listener = rig.listen(80);
    let (_, mut stream) = rig.connect(&listener, 1);
    rig.driver.write(DATA, &[0xff; 8]);
    rig.driver.offer(EVENTS, &[(DATA, 4, true)]);
    rig.driver.notify(EVENTS);
    assert_eq!(rig.driver.used(EVENTS), [], "nothing to say");
    let state = rig.driver.transport.state();
    assert_eq!(state.device, DeviceState::Vsock(VsockState { cid: CID }));
    rig.driver.transport.restore(&state).unwrap();
    assert!(is_over(&mut stream));
    rig.driver.run();
    assert_eq!(rig.driver.used(EVENTS), [(0, 4)]);
    assert_eq!(rig.driver.read(DATA, 8), [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(rig.metrics().transport_resets, 1);
    rig.connect(&listener, 1);
}

#[test]
fn the_guest_reads_its_address() {
    let rig = Rig::new();
    assert_eq!((rig.driver.get(0x100), rig.driver.get(0x104)), (CID, 0));
    assert_eq!(rig.driver.get(0x108), 0);
}
