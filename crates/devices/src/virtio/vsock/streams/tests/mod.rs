mod limits;

use std::time::Duration;

use super::*;
use crate::virtio::vsock::packet::{HOST_CID, Op, TYPE_STREAM};

pub(super) const CID: u32 = 3;
const BUFFER: u32 = 1000;
const KEY: Key = Key { host_port: 80, guest_port: 5000 };

fn streams() -> Streams {
    Streams::new(CID, 4, BUFFER)
}

/// A packet of the guest with 100 bytes of room.
pub(super) fn packet(key: Key, op: Op) -> Header {
    Header {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        src_port: key.guest_port,
        dst_port: key.host_port,
        kind: TYPE_STREAM,
        op: op as u16,
        buf_alloc: 100,
        ..Header::default()
    }
}

fn shutdown(key: Key, halves: Halves) -> Header {
    Header { flags: halves.flags(), ..packet(key, Op::Shutdown) }
}

fn send(streams: &mut Streams, key: Key, bytes: &[u8]) {
    let header = Header { len: bytes.len() as u32, ..packet(key, Op::ReadWrite) };
    streams.receive(&header, bytes);
}

fn actions(streams: &mut Streams) -> Vec<Action> {
    std::iter::from_fn(|| streams.next_action()).collect()
}

/// Everything that goes to the guest; bytes are there as many as may be.
fn said(streams: &mut Streams) -> Vec<Header> {
    let next = || {
        Some(match streams.next_packet()? {
            Outgoing::Packet(header) => header,
            Outgoing::Data { key, limit } => streams.data(key, limit),
        })
    };
    std::iter::from_fn(next).collect()
}

fn ops(streams: &mut Streams) -> Vec<(u16, u32, u32)> {
    said(streams).iter().map(|header| (header.op, header.len, header.flags)).collect()
}

fn control(op: Op) -> (u16, u32, u32) {
    (op as u16, 0, 0)
}

fn end(halves: Halves) -> (u16, u32, u32) {
    (Op::Shutdown as u16, 0, halves.flags())
}

/// A connection of the guest's that stands.
fn connect(streams: &mut Streams, key: Key) {
    streams.receive(&packet(key, Op::Request), &[]);
    assert_eq!(actions(streams), [Action::Connect(key)]);
    streams.connected(key);
    assert_eq!(ops(streams), [control(Op::Response)]);
}

fn connected() -> Streams {
    let mut streams = streams();
    connect(&mut streams, KEY);
    streams
}

#[test]
fn the_guest_is_answered_as_the_host_does() {
    let mut streams = streams();
    streams.receive(&packet(KEY, Op::Request), &[]);
    assert_eq!((actions(&mut streams), said(&mut streams)), (vec![Action::Connect(KEY)], vec![]));
    streams.connected(KEY);
    let response = Header {
        src_cid: HOST_CID,
        dst_cid: CID.into(),
        src_port: 80,
        dst_port: 5000,
        kind: TYPE_STREAM,
        op: Op::Response as u16,
        buf_alloc: 99,
        ..Header::default()
    };
    assert_eq!(said(&mut streams), [response]);

    let other = Key { guest_port: 5001, ..KEY };
    streams.receive(&packet(other, Op::Request), &[]);
    streams.refused(other);
    assert_eq!(actions(&mut streams), [Action::Connect(other), Action::Close(other)]);
    assert_eq!(ops(&mut streams), [control(Op::Reset)]);
    assert_eq!((streams.metrics.from_guest, streams.metrics.refused), (1, 1));
}

#[test]
fn the_host_is_answered_as_the_guest_does() {
    let mut streams = streams();
    let (one, two) = (streams.open(52).unwrap(), streams.open(52).unwrap());
    assert_ne!(one.host_port, two.host_port);
    assert_eq!(ops(&mut streams), [control(Op::Request), control(Op::Request)]);
    streams.receive(&packet(one, Op::Response), &[]);
    streams.receive(&packet(two, Op::Reset), &[]);
    assert_eq!(actions(&mut streams), [Action::Greet(one), Action::Close(two)]);
    streams.tick(Duration::from_secs(3600));
    assert_eq!(actions(&mut streams), [], "what stands has no deadline");
    assert_eq!((streams.metrics.from_host, streams.metrics.refused), (2, 1));
}

#[test]
fn a_guest_that_does_not_answer_is_waited_for_in_vain() {
    let mut streams = streams();
    let told = streams.open(52).unwrap();
    said(&mut streams);
    let untold = streams.open(53).unwrap();
    assert_eq!(streams.next_deadline(), Some(REQUEST_TIMEOUT));
    streams.tick(REQUEST_TIMEOUT - Duration::from_nanos(1));
    assert_eq!(actions(&mut streams), []);
    streams.tick(REQUEST_TIMEOUT);
    assert_eq!(actions(&mut streams), [Action::Close(told), Action::Close(untold)]);
    let resets = said(&mut streams);
    assert_eq!(resets.len(), 1, "of the other it never heard");
    assert_eq!(resets[0].src_port, told.host_port);
    assert_eq!((streams.next_deadline(), streams.metrics.timeouts), (None, 2));
}

#[test]
fn bytes_for_the_guest_wait_for_its_credit() {
    let mut streams = connected();
    streams.readable(KEY);
    let data = |len| (Op::ReadWrite as u16, len, 0);
    assert_eq!(ops(&mut streams), [data(100), control(Op::CreditRequest)]);
    streams.readable(KEY);
    assert_eq!(ops(&mut streams), [], "asked once");
    let more = Header { fwd_cnt: 60, ..packet(KEY, Op::CreditUpdate) };
    streams.receive(&more, &[]);
    assert_eq!(ops(&mut streams), [data(60), control(Op::CreditRequest)]);
    streams.receive(&Header { fwd_cnt: 160, ..more }, &[]);
    streams.no_data(KEY);
    assert_eq!(ops(&mut streams), []);
    assert_eq!(streams.metrics.received_bytes, 160);
}

#[test]
fn bytes_of_the_guest_wait_for_the_host() {
    let mut streams = connected();
    send(&mut streams, KEY, b"hello ");
    send(&mut streams, KEY, b"world");
    assert_eq!(actions(&mut streams), [Action::Flush(KEY); 2]);
    streams.forwarded(KEY, 3);
    assert_eq!(streams.bytes_for_host(KEY), b"lo world");
    assert_eq!(ops(&mut streams), [], "room for much more");
    send(&mut streams, KEY, &[0; 500]);
    let update = said(&mut streams)[0];
    assert_eq!((update.op, update.fwd_cnt), (Op::CreditUpdate as u16, 3));
    streams.receive(&packet(KEY, Op::CreditRequest), &[]);
    assert_eq!(ops(&mut streams), [control(Op::CreditUpdate)]);
}

#[test]
fn more_than_the_credit_is_the_end() {
    let mut streams = connected();
    send(&mut streams, KEY, &[0; BUFFER as usize]);
    send(&mut streams, KEY, &[]);
    assert_eq!(ops(&mut streams), []);
    send(&mut streams, KEY, &[0]);
    assert_eq!(ops(&mut streams), [control(Op::Reset)]);
    assert!(actions(&mut streams).contains(&Action::Close(KEY)));
    assert_eq!((streams.metrics.bad_packets, streams.metrics.dropped_bytes), (1, 1000));
}

#[test]
fn the_guest_may_be_done_with_one_half_first() {
    let mut streams = connected();
    send(&mut streams, KEY, b"last");
    streams.receive(&shutdown(KEY, Halves::SEND), &[]);
    assert_eq!(actions(&mut streams), [Action::Flush(KEY)], "not while there are bytes");
    streams.forwarded(KEY, 4);
    assert_eq!(actions(&mut streams), [Action::ShutWrite(KEY)]);
    streams.readable(KEY);
    assert_eq!(ops(&mut streams)[0], (Op::ReadWrite as u16, 100, 0));

    streams.receive(&shutdown(KEY, Halves::RECEIVE), &[]);
    assert_eq!(actions(&mut streams), [Action::Close(KEY)], "halves add up");
    assert_eq!(ops(&mut streams), [control(Op::Reset)]);

    connect(&mut streams, KEY);
    streams.receive(&shutdown(KEY, Halves::RECEIVE), &[]);
    streams.readable(KEY);
    assert_eq!((actions(&mut streams), ops(&mut streams)), (vec![Action::ShutRead(KEY)], vec![]));
}

#[test]
fn the_host_may_be_done_with_one_half_first() {
    let mut streams = connected();
    streams.readable(KEY);
    streams.host_shut(KEY, Halves::SEND);
    assert_eq!(ops(&mut streams), [end(Halves::SEND)]);
    send(&mut streams, KEY, b"answer");
    assert_eq!(actions(&mut streams), [Action::Flush(KEY)]);
    streams.host_shut(KEY, Halves::RECEIVE);
    assert_eq!(actions(&mut streams), [Action::Close(KEY)]);
    assert_eq!(ops(&mut streams), [end(Halves::BOTH)]);
    send(&mut streams, KEY, b"too late");
    assert_eq!(streams.bytes_for_host(KEY), b"");
    assert_eq!(streams.metrics.dropped_bytes, 14);
    streams.receive(&packet(KEY, Op::Reset), &[]);
    assert_eq!((ops(&mut streams), streams.next_deadline()), (vec![], None));
}

#[test]
fn a_host_that_is_gone_has_its_last_bytes_fetched() {
    let mut streams = connected();
    streams.host_gone(KEY);
    let Some(Outgoing::Data { key, .. }) = streams.next_packet() else { panic!("bytes first") };
    streams.data(key, 10);
    let Some(Outgoing::Data { key, .. }) = streams.next_packet() else { panic!("more bytes") };
    streams.host_shut(key, Halves::SEND);
    assert_eq!(ops(&mut streams), [end(Halves::BOTH)]);

    streams.tick(SHUTDOWN_TIMEOUT);
    assert_eq!(ops(&mut streams), [control(Op::Reset)], "the guest did not confirm");
    streams.receive(&packet(KEY, Op::CreditUpdate), &[]);
    assert_eq!(ops(&mut streams), [control(Op::Reset)], "nor has it heard");
}

#[test]
fn what_the_guest_sent_before_it_left_still_arrives() {
    let leave: [fn(&mut Streams); 2] = [
        |streams| streams.receive(&shutdown(KEY, Halves::BOTH), &[]),
        |streams| {
            streams.receive(&shutdown(KEY, Halves::SEND), &[]);
            streams.receive(&packet(KEY, Op::Reset), &[]);
        },
    ];
    for (leave, answers) in leave.into_iter().zip([1, 0]) {
        let mut streams = connected();
        send(&mut streams, KEY, b"farewell");
        leave(&mut streams);
        assert_eq!(ops(&mut streams), vec![control(Op::Reset); answers]);
        assert_eq!(actions(&mut streams), [Action::Flush(KEY)]);
        streams.receive(&packet(KEY, Op::Request), &[]);
        assert_eq!(ops(&mut streams), [control(Op::Reset)], "its port is still in use");
        assert_eq!(streams.bytes_for_host(KEY), b"farewell");
        streams.forwarded(KEY, 8);
        assert_eq!(actions(&mut streams), [Action::Close(KEY)]);
        connect(&mut streams, KEY);
    }
}

#[test]
fn a_reset_without_a_farewell_drops_everything() {
    let mut streams = connected();
    send(&mut streams, KEY, b"never mind");
    streams.receive(&packet(KEY, Op::Reset), &[]);
    assert_eq!(actions(&mut streams), [Action::Flush(KEY), Action::Close(KEY)]);
    assert_eq!(streams.bytes_for_host(KEY), b"");
    assert_eq!(ops(&mut streams), []);
}

#[test]
fn a_host_that_gives_up_before_the_guest_answers_is_forgotten() {
    let mut streams = streams();
    let untold = streams.open(52).unwrap();
    streams.host_gone(untold);
    assert_eq!((actions(&mut streams), ops(&mut streams)), (vec![Action::Close(untold)], vec![]));
    let told = streams.open(52).unwrap();
    assert_eq!(ops(&mut streams), [control(Op::Request)]);
    streams.host_gone(told);
    assert_eq!(actions(&mut streams), [Action::Close(told)]);
    assert_eq!(ops(&mut streams), [control(Op::Reset)]);
}
