//! What a guest may not do, and how much of what it may.

use super::*;

#[test]
fn bad_packets_are_reset_from_where_they_went() {
    let request = packet(KEY, Op::Request);
    for bad in [
        Header { src_cid: 4, ..request },
        Header { src_cid: u64::from(CID) | 1 << 32, ..request },
        Header { dst_cid: 1, ..request },
        Header { dst_cid: 3, ..request },
        Header { src_port: PORT_ANY, ..request },
        Header { dst_port: PORT_ANY, ..request },
        Header { kind: 0, ..request },
        Header { kind: 2, ..request },
        Header { op: 0, ..request },
        Header { op: 8, ..request },
        Header { op: u16::MAX, ..request },
        Header { fwd_cnt: 1, ..request },
    ] {
        let mut streams = streams();
        streams.receive(&bad, &[]);
        let [reset] = said(&mut streams)[..] else { panic!("{bad:?} is not answered") };
        assert_eq!((reset.src_cid, reset.src_port), (bad.dst_cid, bad.dst_port), "{bad:?}");
        assert_eq!((reset.dst_cid, reset.dst_port), (bad.src_cid, bad.src_port), "{bad:?}");
        assert_eq!((reset.op, reset.kind), (Op::Reset as u16, bad.kind), "{bad:?}");
        assert_eq!(streams.metrics.bad_packets, 1, "{bad:?}");
        assert!(!actions(&mut streams).iter().any(|action| matches!(action, Action::Connect(_))));

        streams.receive(&Header { op: Op::Reset as u16, ..bad }, &[]);
        assert_eq!(said(&mut streams), [], "resets are not reset");
    }
}

#[test]
fn what_does_not_fit_the_phase_is_the_end() {
    let unasked = [Op::Response, Op::Request];
    for op in unasked {
        let mut streams = connected();
        streams.receive(&packet(KEY, op), &[]);
        assert_eq!(ops(&mut streams), [control(Op::Reset)], "{op:?}");
        assert_eq!(actions(&mut streams), [Action::Close(KEY)], "{op:?}");
    }
    for op in [Op::ReadWrite, Op::Shutdown, Op::CreditUpdate, Op::CreditRequest, Op::Request] {
        let mut streams = streams();
        let key = streams.open(52).unwrap();
        assert_eq!(ops(&mut streams), [control(Op::Request)]);
        streams.receive(&packet(key, op), &[]);
        assert_eq!(ops(&mut streams), [control(Op::Reset)], "{op:?}");
        assert_eq!(actions(&mut streams), [Action::Close(key)], "{op:?}");
        assert_eq!(streams.metrics.bad_packets, 1);
    }
    let mut streams = connected();
    streams.receive(&shutdown(KEY, Halves::SEND), &[]);
    send(&mut streams, KEY, b"one more thing");
    assert_eq!(ops(&mut streams), [control(Op::Reset)]);
    let mut streams = connected();
    streams.receive(&Header { len: 1, ..packet(KEY, Op::CreditUpdate) }, &[0]);
    assert_eq!(ops(&mut streams), [control(Op::Reset)], "a payload where none belongs");
}

#[test]
fn connections_are_limited() {
    let mut streams = streams();
    for guest_port in 1..=4 {
        connect(&mut streams, Key { host_port: 80, guest_port });
    }
    streams.receive(&packet(KEY, Op::Request), &[]);
    assert_eq!((actions(&mut streams), ops(&mut streams)), (vec![], vec![control(Op::Reset)]));
    assert_eq!(streams.open(52), None);
    assert_eq!(streams.metrics.refused, 2);
    streams.receive(&packet(Key { host_port: 80, guest_port: 1 }, Op::Reset), &[]);
    actions(&mut streams);
    assert!(streams.open(52).is_some());
}

#[test]
fn everybody_has_one_packet_in_turn() {
    let mut streams = streams();
    let keys: Vec<Key> = (1..=3).map(|guest_port| Key { host_port: 80, guest_port }).collect();
    keys.iter().for_each(|key| connect(&mut streams, *key));
    keys.iter().for_each(|key| streams.readable(*key));
    for turn in 0..9 {
        let Some(Outgoing::Data { key, .. }) = streams.next_packet() else { panic!("bytes") };
        assert_eq!(key, keys[turn % 3]);
        streams.data(key, 1);
    }
    assert_eq!(streams.open(52).map(|key| key.guest_port), Some(52));
    let turns = [1, 2, 3, 52];
    for guest_port in turns {
        let (key, op) = match streams.next_packet().unwrap() {
            Outgoing::Data { key, .. } => (key, streams.data(key, 1).op),
            Outgoing::Packet(header) => {
                (Key { host_port: 0, guest_port: header.dst_port }, header.op)
            }
        };
        assert_eq!((key.guest_port, op == Op::Request as u16), (guest_port, guest_port == 52));
    }
}

#[test]
fn answers_that_wait_are_limited() {
    let mut streams = streams();
    let mut taken = 0;
    while streams.takes_packets() {
        streams.receive(&packet(KEY, Op::CreditRequest), &[]);
        taken += 1;
    }
    assert_eq!(taken, RESETS_MAX);
    streams.next_packet();
    assert!(streams.takes_packets());
}

#[test]
fn a_turn_that_was_not_taken_goes_with_its_connection() {
    let mut streams = streams();
    for _ in 0..1000 {
        streams.receive(&packet(KEY, Op::Request), &[]);
        streams.connected(KEY);
        streams.receive(&packet(KEY, Op::Reset), &[]);
        actions(&mut streams);
    }
    assert!(streams.ring.is_empty() && streams.deadlines.is_empty());
    assert!(!streams.has_packet());
}

#[test]
fn a_guest_whose_bytes_are_on_their_way_sees_room_when_the_host_has_gone() {
    let mut streams = streams();
    streams.receive(&packet(KEY, Op::Request), &[]);
    actions(&mut streams);
    streams.connected(KEY);
    let response = said(&mut streams)[0];
    // The guest has sent as much as it may, and none of it has come yet.
    streams.host_gone(KEY);
    streams.host_shut(KEY, Halves::BOTH);
    let said = said(&mut streams);
    let [last] = said.as_slice() else { panic!("{said:?}") };
    assert_eq!((last.op, last.flags), (Op::Shutdown as u16, Halves::BOTH.flags()));
    // It sends no more than its own buffer has, either.
    let on_the_way = response.buf_alloc;
    assert!(last.buf_alloc.min(100) > on_the_way - last.fwd_cnt, "{response:?}, {last:?}");
}
