use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use proptest::prelude::*;
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
fn a_host_that_does_not_read_stops_the_guest_and_nobody_else() {
    let mut rig = Rig::new();
    let listener = rig.listen(80);
    let (slow, mut stream) = rig.connect(&listener, 1);
    let (quick, mut other) = rig.connect(&listener, 2);
    rig.driver.offer(RECEIVE, &[(DATA, RECEIVE_LEN, true)]);
    let (mut sent, mut forwarded) = (0_u32, 0);
    // As much as the host's socket and then our buffer take.
    while sent - forwarded < BUFFER_DEFAULT {
        let len = (BUFFER_DEFAULT - (sent - forwarded)).min(RECEIVE_LEN);
        let bytes: Vec<u8> = (sent..sent + len).map(|at| at as u8).collect();
        rig.send(packet(slow, Op::ReadWrite), &bytes);
        sent += len;
        if let Some((update, _)) = rig.heard() {
            forwarded = update.fwd_cnt;
            rig.driver.offer(RECEIVE, &[(DATA, RECEIVE_LEN, true)]);
        }
    }
    rig.send(packet(quick, Op::ReadWrite), b"not held up");
    assert_eq!(text(&mut other, 11), "not held up");

    let mut bytes = vec![0; sent as usize];
    for part in bytes.chunks_mut(4096) {
        stream.read_exact(part).unwrap();
        rig.driver.run();
    }
    assert!((0..sent).zip(&bytes).all(|(at, byte)| at as u8 == *byte));
    assert_eq!(rig.heard().unwrap().0.op, Op::CreditUpdate as u16);

    rig.send(packet(slow, Op::ReadWrite), b"x");
    assert_eq!(text(&mut stream, 1), "x");
    assert_eq!(rig.metrics().bad_packets, 0);
}

#[test]
fn more_than_the_buffer_is_refused_unread() {
    let mut rig = Rig::new();
    let listener = rig.listen(80);
    let (key, mut stream) = rig.connect(&listener, 1);
    let huge = Header { len: u32::MAX, ..packet(key, Op::ReadWrite) };
    rig.send_raw(&huge.bytes());
    rig.hear_op(Op::Reset);
    assert!(is_over(&mut stream));
    let (key, mut stream) = rig.connect(&listener, 1);
    let short = Header { len: 100, ..packet(key, Op::ReadWrite) };
    rig.send_raw(&[&short.bytes()[..], &[0; 99]].concat());
    rig.hear_op(Op::Reset);
    assert!(is_over(&mut stream));
    rig.send_raw(&short.bytes()[..HEADER_LEN - 1]);
    let metrics = rig.metrics();
    assert_eq!((metrics.bad_packets, metrics.lost_packets), (2, 1));
}

#[test]
fn packets_wait_for_buffers_and_have_their_turns() {
    let mut rig = Rig::new();
    let listener = rig.listen(80);
    let mut streams: Vec<_> = (1..=3).map(|port| rig.connect(&listener, port)).collect();
    for (_, stream) in &mut streams {
        stream.write_all(&[7; 9000]).unwrap();
    }
    rig.driver.run();
    let turns: Vec<(u32, u32)> =
        (0..9).map(|_| rig.hear().unwrap().0).map(|h| (h.dst_port, h.len)).collect();
    let part = RECEIVE_LEN - HEADER_LEN as u32;
    let rest = 9000 - 2 * part;
    for round in turns.chunks(3) {
        let mut ports: Vec<u32> = round.iter().map(|(port, _)| *port).collect();
        ports.sort_unstable();
        assert_eq!(ports, [1, 2, 3], "{turns:?}");
    }
    assert_eq!(turns.iter().filter(|(_, len)| *len == rest).count(), 3, "{turns:?}");
    assert_eq!(rig.hear(), None);
}

#[test]
fn a_buffer_without_room_stops_the_device() {
    let mut rig = Rig::new();
    rig.send(packet(Key { host_port: 1, guest_port: 1 }, Op::CreditUpdate), &[]);
    rig.driver.offer(RECEIVE, &[(DATA, HEADER_LEN as u32, true)]);
    rig.driver.notify(RECEIVE);
    assert_eq!(rig.driver.status() & NEEDS_RESET, NEEDS_RESET);
}

#[test]
fn answers_that_find_no_buffer_hold_the_guest_up() {
    let mut rig = Rig::new();
    let stray = Header { len: 0, ..packet(Key { host_port: 1, guest_port: 1 }, Op::CreditUpdate) };
    rig.driver.write(TRANSMIT_DATA, &stray.bytes());
    let mut taken = 0;
    for _ in 0..4 {
        for _ in 0..100 {
            rig.driver.offer(TRANSMIT, &[(TRANSMIT_DATA, HEADER_LEN as u32, false)]);
        }
        rig.driver.notify(TRANSMIT);
        taken += rig.driver.used(TRANSMIT).len();
    }
    assert_eq!(taken, 256);
    for _ in 0..400 {
        rig.hear_op(Op::Reset);
    }
    assert_eq!(taken + rig.driver.used(TRANSMIT).len(), 400);
    assert_eq!(rig.hear(), None);
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

#[test]
fn a_thousand_connections() {
    let mut rig = Rig::new();
    let listener = rig.listen(80);
    let mut streams = Vec::new();
    for port in 0..CONNECTIONS_DEFAULT {
        let (key, stream) = rig.connect(&listener, port);
        rig.send(packet(key, Op::ReadWrite), &port.to_le_bytes());
        streams.push((key, stream));
    }
    rig.send(packet(Key { host_port: 80, guest_port: 9999 }, Op::Request), &[]);
    rig.hear_op(Op::Reset);
    let mut caller = rig.call("CONNECT 52\n");
    rig.driver.run();
    assert!(is_over(&mut caller), "one too many");
    for (key, mut stream) in streams {
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), key.guest_port);
        let over = Header { flags: Halves::BOTH.flags(), ..packet(key, Op::Shutdown) };
        rig.send(over, &[]);
        rig.hear_op(Op::Reset);
        assert!(is_over(&mut stream));
    }
    rig.connect(&listener, 1);
}

/// Something that guest and host do in any order: five numbers that mean what they like.
fn act(rig: &mut Rig, host: &mut Vec<UnixStream>, [what, a, b, c, d]: [u8; 5]) {
    let key = Key { host_port: u32::from(a % 3) + 80, guest_port: (b % 4).into() };
    let header = Header { fwd_cnt: (d % 8).into(), ..packet(key, Op::Request) };
    match what % 12 {
        0 | 1 => rig.offer_packet(Header { op: u16::from(c % 9), ..header }, 0),
        2 | 3 => rig.offer_packet(Header { op: 5, len: u32::from(c) * 16, ..header }, c),
        4 => rig.offer_packet(Header { op: 4, flags: c.into(), ..header }, 0),
        5 => rig.offer_packet(
            Header { kind: (c % 3).into(), dst_cid: (d % 4).into(), len: d.into(), ..header },
            b,
        ),
        6 | 7 => drop(rig.driver.offer(RECEIVE, &[(DATA, RECEIVE_LEN, true)])),
        8 => host.push(rig.call(["CONNECT 1\n", "CONNECT 2\nx", "CON", "?\n"][usize::from(a % 4)])),
        9 if !host.is_empty() => drop(host.swap_remove(usize::from(a) % host.len())),
        10 => {
            // Whoever has hung up refuses it.
            host.last_mut().into_iter().for_each(|stream| drop(stream.write(&[b; 100])));
        }
        _ => rig.driver.run(),
    }
}

impl Rig {
    /// As `send_raw`, without expecting anything: `pages` times 16 bytes follow the header.
    fn offer_packet(&mut self, header: Header, pages: u8) {
        self.driver.write(TRANSMIT_DATA, &header.bytes());
        let len = HEADER_LEN as u32 + u32::from(pages) * 16;
        self.driver.offer(TRANSMIT, &[(TRANSMIT_DATA, len, false)]);
        self.driver.set(0x50, TRANSMIT as u32);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn hostile_packets_harm_nobody(acts in proptest::collection::vec(any::<[u8; 5]>(), 1..150)) {
        let mut rig = Rig::new();
        let listeners = [rig.listen(80), rig.listen(81)];
        for listener in &listeners {
            listener.set_nonblocking(true).unwrap();
        }
        let mut host = Vec::new();
        for five in acts {
            act(&mut rig, &mut host, five);
            host.extend(listeners.iter().filter_map(|listener| listener.accept().ok()).map(|it| it.0));
        }
        rig.driver.run();
        prop_assert_eq!(rig.driver.status(), DRIVER_OK, "packets do not stop the device");
        host.clear();
        rig.driver.start(0);
        while listeners[0].accept().is_ok() {}
        let (key, mut stream) = rig.connect(&listeners[0], 5000);
        stream.set_nonblocking(false).unwrap();
        rig.send(packet(key, Op::ReadWrite), b"as new");
        prop_assert_eq!(text(&mut stream, 6), "as new");
    }
}
