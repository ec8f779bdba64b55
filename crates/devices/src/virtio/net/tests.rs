//! The whole device, with a stream as passt has it on its other side.

mod hostile;
mod link;
mod tap;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};

use super::config::{FRAME_MAX, RECEIVE, TRANSMIT};
use super::header::HEADER_LEN;
use super::*;
use crate::virtio::testing::*;
use crate::virtio::{DeviceMetrics, DeviceState, RestoreError};

const MAC: &str = "52:54:00:12:34:56";
const STATUS: u64 = 1 << VIRTIO_NET_F_STATUS;
const MERGEABLE: u64 = STATUS | 1 << VIRTIO_NET_F_MRG_RXBUF;
/// Where the tests have the guest's buffers.
const BUFFERS: u64 = DATA + 0x2_0000;

fn mac() -> MacAddress {
    MAC.parse().unwrap()
}

fn plan() -> (NetPlan, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    // A failure only: everything is there when it is read.
    theirs.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (NetPlan::over_stream(ours, mac(), Some(65520)).unwrap(), theirs)
}

/// A running interface, and the other end of its cable.
fn net(features: u64) -> (Driver, UnixStream) {
    let (plan, theirs) = plan();
    (Driver::ready(Net::new(plan), features), theirs)
}

fn metrics(driver: &Driver) -> NetMetrics {
    let DeviceMetrics::Net(metrics) = driver.transport.device_metrics() else { panic!() };
    metrics
}

/// Bytes that tell a frame from others, and each of its places from its neighbours.
fn frame(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251 + seed * 31) as u8).collect()
}

fn send_frame(theirs: &mut UnixStream, frame: &[u8]) {
    theirs.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
    theirs.write_all(frame).unwrap();
}

fn receive_frame(theirs: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    theirs.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    theirs.read_exact(&mut frame).unwrap();
    frame
}

/// A request with this header in front of `frame`, at `DATA`.
fn write_packet(driver: &Driver, header: [u8; HEADER_LEN], frame: &[u8]) -> u32 {
    driver.write(DATA, &header);
    driver.write(DATA + HEADER_LEN as u64, frame);
    (HEADER_LEN + frame.len()) as u32
}

/// Makes `count` receive buffers of `len` bytes available.
fn offer_buffers(driver: &mut Driver, count: u64, len: u32) {
    for i in 0..count {
        driver.offer(RECEIVE, &[(BUFFERS + i * u64::from(len), len, true)]);
    }
    driver.notify(RECEIVE);
}

#[test]
fn the_guest_is_told_what_there_is() {
    let (driver, _theirs) = net(STATUS);
    assert_eq!(driver.get(0x08), 1, "a network device");
    let mut space = [0; 16];
    crate::bus::BusDevice::read(&*driver.transport, 0x100, &mut space);
    assert_eq!(space[..6], mac().bytes());
    assert_eq!(space[6..8], [1, 0], "the link is up");
    assert_eq!(space[8..], [0, 0, 0xf0, 0xff, 0, 0, 0, 0], "an MTU of 65520, and no more");
    driver.set(0x14, 0);
    let offered = u64::from(driver.get(0x10));
    for feature in [
        VIRTIO_NET_F_CSUM,
        VIRTIO_NET_F_GUEST_CSUM,
        VIRTIO_NET_F_MTU,
        VIRTIO_NET_F_MAC,
        VIRTIO_NET_F_STATUS,
        VIRTIO_NET_F_MRG_RXBUF,
    ] {
        assert_ne!(offered & 1 << feature, 0, "{feature}");
    }
    assert_eq!(offered & 1 << VIRTIO_NET_F_GUEST_TSO4, 0, "passt cuts nothing up");
}

#[test]
fn frames_of_the_guest_come_out() {
    let (mut driver, mut theirs) = net(STATUS);
    let sent = frame(100, 1);
    let len = write_packet(&driver, [0; HEADER_LEN], &sent);
    assert_eq!(driver.request(TRANSMIT, &[(DATA, len, false)]), 0);
    assert_eq!(receive_frame(&mut theirs), sent);
    // Cut anywhere, in the header too.
    let cut = [(DATA, 5, false), (DATA + 5, 0, false), (DATA + 5, 20, false)];
    let cut = [&cut[..], &[(DATA + 25, len - 25, false)]].concat();
    assert_eq!(driver.request(TRANSMIT, &cut), 0);
    assert_eq!(receive_frame(&mut theirs), sent);
    let metrics = metrics(&driver);
    assert_eq!((metrics.sent_frames, metrics.sent_bytes, metrics.dropped_sent), (2, 200, 0));
}

#[test]
fn a_batch_of_frames_keeps_its_order() {
    let (mut driver, mut theirs) = net(STATUS);
    let sent: Vec<_> = (0..100).map(|i| frame(60 + i, i)).collect();
    for (i, frame) in (0..).zip(&sent) {
        driver.write(DATA + i * 0x400, &[0; HEADER_LEN]);
        driver.write(DATA + i * 0x400 + HEADER_LEN as u64, frame);
        let len = (HEADER_LEN + frame.len()) as u32;
        driver.offer(TRANSMIT, &[(DATA + i * 0x400, len, false)]);
    }
    driver.notify(TRANSMIT);
    assert_eq!(driver.used(TRANSMIT).len(), sent.len());
    assert_eq!(driver.interrupts(), 1, "one for all");
    sent.iter().for_each(|frame| assert_eq!(receive_frame(&mut theirs), *frame));
}

#[test]
fn frames_for_the_guest_go_into_its_buffers() {
    let (mut driver, mut theirs) = net(STATUS);
    offer_buffers(&mut driver, 2, 2048);
    let (first, second) = (frame(1514, 1), frame(60, 2));
    send_frame(&mut theirs, &first);
    send_frame(&mut theirs, &second);
    driver.run();
    assert_eq!(driver.used(RECEIVE), [(0, 1526), (1, 72)]);
    assert_eq!(driver.read(BUFFERS, HEADER_LEN), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(driver.read(BUFFERS + HEADER_LEN as u64, 1514), first);
    assert_eq!(driver.read(BUFFERS + 2048 + HEADER_LEN as u64, 60), second);
    let metrics = metrics(&driver);
    assert_eq!((metrics.received_frames, metrics.received_bytes), (2, 1574));
}

#[test]
fn a_large_frame_takes_several_buffers() {
    let (mut driver, mut theirs) = net(MERGEABLE);
    let sent = frame(65534, 3);
    send_frame(&mut theirs, &sent);
    driver.run();
    assert_eq!(driver.used(RECEIVE), []);
    offer_buffers(&mut driver, 10, 4096);
    assert_eq!(driver.used(RECEIVE), [], "not in part");
    for i in 10..20_u64 {
        driver.offer(RECEIVE, &[(BUFFERS + i * 4096, 4096, true)]);
    }
    driver.notify(RECEIVE);
    let used = driver.used(RECEIVE);
    let buffers = (HEADER_LEN + sent.len()).div_ceil(4096);
    assert_eq!(used.len(), buffers);
    assert_eq!(used.iter().map(|entry| entry.1 as usize).sum::<usize>(), HEADER_LEN + sent.len());
    assert_eq!(driver.read(BUFFERS + 10, 2), (buffers as u16).to_le_bytes());
    assert_eq!(driver.read(BUFFERS + HEADER_LEN as u64, sent.len()), sent);
    // What it did not need is there for the next.
    send_frame(&mut theirs, &frame(60, 4));
    driver.run();
    assert_eq!(driver.used(RECEIVE), [(buffers as u32, 72)]);
    assert_eq!(metrics(&driver).receive_waits, 2);
}

#[test]
fn a_frame_that_no_buffer_holds_is_dropped() {
    let (mut driver, mut theirs) = net(STATUS);
    offer_buffers(&mut driver, 1, 1526);
    send_frame(&mut theirs, &frame(1515, 1));
    send_frame(&mut theirs, &frame(1514, 2));
    driver.run();
    assert_eq!(driver.used(RECEIVE), [(0, 1526)], "the next one has the buffer");
    assert_eq!(driver.read(BUFFERS + HEADER_LEN as u64, 1514), frame(1514, 2));
    assert_eq!(metrics(&driver).dropped_received, 1);
}

#[test]
fn a_frame_that_the_whole_queue_does_not_hold_is_dropped() {
    let (plan, mut theirs) = plan();
    let mut driver = Driver::new(Net::new(plan));
    driver.negotiate(MERGEABLE);
    driver.set_up_queues_of(8);
    driver.set(0x70, DRIVER_OK);
    offer_buffers(&mut driver, 8, 64);
    send_frame(&mut theirs, &frame(8 * 64 - HEADER_LEN + 1, 1));
    send_frame(&mut theirs, &frame(8 * 64 - HEADER_LEN, 2));
    driver.run();
    assert_eq!(driver.used(RECEIVE), (0..8).map(|head| (head, 64)).collect::<Vec<_>>());
    assert_eq!(metrics(&driver).dropped_received, 1);
}

#[test]
fn a_stream_comes_in_any_pieces() {
    let (mut driver, mut theirs) = net(STATUS);
    offer_buffers(&mut driver, 3, 2048);
    let mut bytes = Vec::new();
    for (len, seed) in [(60, 1), (14, 2), (1514, 3)] {
        bytes.extend((len as u32).to_be_bytes());
        bytes.extend(frame(len, seed));
    }
    for piece in bytes.chunks(7) {
        theirs.write_all(piece).unwrap();
        driver.run();
    }
    assert_eq!(driver.used(RECEIVE), [(0, 72), (1, 26), (2, 1526)]);
    assert_eq!(driver.read(BUFFERS + 4096 + HEADER_LEN as u64, 1514), frame(1514, 3));
}

#[test]
fn a_stream_that_is_full_holds_the_guest_back() {
    let (mut driver, mut theirs) = net(STATUS);
    let len = write_packet(&driver, [0; HEADER_LEN], &frame(60_000, 9));
    for _ in 0..64 {
        driver.offer(TRANSMIT, &[(DATA, len, false)]);
    }
    driver.notify(TRANSMIT);
    let first = driver.used(TRANSMIT).len();
    assert!((1..64).contains(&first), "{first} of 64 frames fit");
    assert_eq!(metrics(&driver).send_waits, 1);
    let reader = std::thread::spawn(move || {
        (0..64).for_each(|_| assert_eq!(receive_frame(&mut theirs), frame(60_000, 9)));
        theirs
    });
    while !reader.is_finished() {
        driver.run();
    }
    let _theirs = reader.join().unwrap();
    driver.run();
    assert_eq!(first + driver.used(TRANSMIT).len(), 64, "and nothing is lost");
    assert_eq!(metrics(&driver).dropped_sent, 0);
}

#[test]
fn a_checksum_left_to_the_device_is_finished() {
    let (mut driver, mut theirs) = net(STATUS | 1 << VIRTIO_NET_F_CSUM);
    let mut sent = frame(200, 5);
    let (start, offset) = (34_u16, 16_u16);
    let mut header = [0; HEADER_LEN];
    header[0] = 1;
    header[6..8].copy_from_slice(&start.to_le_bytes());
    header[8..10].copy_from_slice(&offset.to_le_bytes());
    let len = write_packet(&driver, header, &sent);
    driver.request(TRANSMIT, &[(DATA, len, false)]);
    assert!(checksum::finish(&mut sent, start, offset));
    assert_eq!(receive_frame(&mut theirs), sent);
}

#[test]
fn checksums_need_not_be_looked_at_where_that_was_agreed_on() {
    for (feature, flags) in [(0, 0), (1 << VIRTIO_NET_F_GUEST_CSUM, 2)] {
        let (mut driver, mut theirs) = net(STATUS | feature);
        offer_buffers(&mut driver, 1, 2048);
        send_frame(&mut theirs, &frame(60, 1));
        driver.run();
        assert_eq!(driver.read(BUFFERS, 1), [flags]);
    }
}

#[test]
fn the_largest_frame_goes_both_ways() {
    let (mut driver, mut theirs) = net(MERGEABLE);
    let largest = frame(FRAME_MAX, 1);
    let len = write_packet(&driver, [0; HEADER_LEN], &largest);
    driver.request(TRANSMIT, &[(DATA, len, false)]);
    assert_eq!(receive_frame(&mut theirs), largest);
    offer_buffers(&mut driver, 1, len);
    send_frame(&mut theirs, &largest);
    driver.run();
    assert_eq!(driver.used(RECEIVE), [(0, len)]);
    assert_eq!(driver.read(BUFFERS + HEADER_LEN as u64, FRAME_MAX), largest);
}

#[test]
fn a_state_belongs_to_an_interface_like_it() {
    let (driver, _theirs) = net(STATUS);
    let state = driver.transport.state();
    assert_eq!(state.device, DeviceState::Net(NetState { mac: mac(), mtu: Some(65520) }));
    let (mut other, mut other_end) = net(STATUS);
    assert_eq!(other.transport.restore(&state), Ok(()));
    other.run();
    // Switches learn where it is now: RFC 903.
    let frame = receive_frame(&mut other_end);
    let address = mac().bytes();
    assert_eq!((frame.len(), &frame[..6], &frame[6..12]), (60, &[0xff; 6][..], &address[..]));
    assert_eq!(frame[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    assert_eq!((&frame[22..28], &frame[32..38]), (&address[..], &address[..]));
    // Once.
    other.run();
    send_frame(&mut other_end, &frame);
    assert_eq!(metrics(&other).sent_frames, 0);
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let other_mtu = NetPlan::over_stream(ours, mac(), Some(1500)).unwrap();
    let other = Driver::ready(Net::new(other_mtu), STATUS);
    assert!(matches!(other.transport.restore(&state), Err(RestoreError::Differs { .. })));
}
