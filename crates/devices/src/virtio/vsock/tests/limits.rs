//! Those who do not read, send too much, or are too many.

use super::*;

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
