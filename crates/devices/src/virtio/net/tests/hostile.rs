//! Requests that are no frames, and streams that are none.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn bad_request(what: &str, features: u64, header: [u8; HEADER_LEN], len: u32) {
    let (mut driver, mut theirs) = net(features);
    driver.write(DATA, &header);
    assert_eq!(driver.request(TRANSMIT, &[(DATA, len, false)]), 0, "{what}");
    assert_eq!(metrics(&driver).bad_requests, 1, "{what}");
    // The next one passes, and is all that comes out.
    let good = write_packet(&driver, [0; HEADER_LEN], &frame(60, 1));
    driver.request(TRANSMIT, &[(DATA, good, false)]);
    assert_eq!(receive_frame(&mut theirs), frame(60, 1), "{what}");
}

#[test]
fn requests_that_are_no_frames_are_counted_and_answered() {
    let csum = STATUS | 1 << VIRTIO_NET_F_CSUM;
    let plain = [0; HEADER_LEN];
    let segments = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0];
    let beyond = [1, 0, 0, 0, 0, 0, 70, 0, 16, 0, 0, 0];
    for (what, features, header, len) in [
        ("nothing", csum, plain, 0),
        ("half a header", csum, plain, 6),
        ("a header", csum, plain, 12),
        ("half an Ethernet header", csum, plain, 25),
        ("one byte too much", csum, plain, (HEADER_LEN + FRAME_MAX + 1) as u32),
        ("a megabyte", csum, plain, 1 << 20),
        ("a checksum not agreed on", STATUS, beyond, 200),
        ("a checksum outside", csum, beyond, 99),
        ("segments not agreed on", csum, segments, 3000),
    ] {
        bad_request(what, features, header, len);
    }
}

#[test]
fn a_request_of_writable_buffers_has_no_frame() {
    let (mut driver, _theirs) = net(STATUS);
    assert_eq!(driver.request(TRANSMIT, &[(DATA, 100, true)]), 0);
    assert_eq!(metrics(&driver).bad_requests, 1);
}

#[test]
fn a_receive_buffer_without_room_for_a_header_stops_the_device() {
    for buffer in [(BUFFERS, 11, true), (BUFFERS, 2048, false)] {
        let (mut driver, mut theirs) = net(MERGEABLE);
        driver.offer(RECEIVE, &[buffer]);
        send_frame(&mut theirs, &frame(60, 1));
        driver.run();
        assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET);
        driver.start(MERGEABLE);
        offer_buffers(&mut driver, 1, 2048);
        assert_eq!(driver.used(RECEIVE), [(0, 72)], "the frame waits for a better driver");
    }
}

#[test]
fn frames_shorter_than_ethernets_header_are_left_out() {
    let (mut driver, mut theirs) = net(STATUS);
    offer_buffers(&mut driver, 2, 2048);
    for len in [0, 1, 13, 14] {
        send_frame(&mut theirs, &frame(len, 1));
    }
    driver.run();
    assert_eq!(driver.used(RECEIVE), [(0, 26)]);
    assert_eq!(metrics(&driver).bad_frames, 3);
}

#[test]
fn a_length_that_no_frame_has_ends_the_stream() {
    for length in [FRAME_MAX as u32 + 1, u32::MAX, 1 << 31] {
        let (mut driver, mut theirs) = net(STATUS);
        offer_buffers(&mut driver, 2, 2048);
        send_frame(&mut theirs, &frame(60, 1));
        theirs.write_all(&length.to_be_bytes()).unwrap();
        driver.run();
        assert_eq!(driver.used(RECEIVE), [(0, 72)], "what came before is good");
        assert_eq!(driver.get(0x104) >> 16, 0, "the link is down");
        let metrics = metrics(&driver);
        assert_eq!((metrics.bad_streams, metrics.links_lost), (1, 1));
        assert_eq!(theirs.read(&mut [0; 8]).unwrap(), 0, "it is closed");
        assert_eq!(driver.status(), DRIVER_OK);
    }
}

/// What a peer may send: lengths that are good, wild or wrong, with anything behind them.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![
        4 => 0..200_u32,
        2 => Just(60),
        1 => 1500..3000_u32,
        1 => any::<u32>(),
    ];
    let piece = (length, vec(any::<u8>(), 0..200)).prop_map(|(length, mut bytes)| {
        // Most often as long as it says.
        if (14..2000).contains(&length) {
            bytes.resize(length as usize, 0x5a);
        }
        [&length.to_be_bytes()[..], &bytes].concat()
    });
    vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever comes in whatever pieces, into whatever buffers: it is given to the guest, left out or
    /// the end of the stream, and the device serves on.
    #[test]
    fn any_stream_is_survived(
        bytes in stream(),
        piece in 1..3000_usize,
        mergeable: bool,
        buffers in vec(12..3000_u32, 0..40),
    ) {
        let (mut driver, mut theirs) = net(if mergeable { MERGEABLE } else { STATUS });
        // The device may have stopped to read.
        theirs.set_nonblocking(true).expect("a socket");
        let mut buffers = buffers.into_iter();
        for piece in bytes.chunks(piece) {
            if theirs.write_all(piece).is_err() {
                break;
            }
            if let Some(len) = buffers.next() {
                driver.offer(RECEIVE, &[(BUFFERS, len, true)]);
                driver.notify(RECEIVE);
            }
            driver.run();
        }
        prop_assert_eq!(driver.status(), DRIVER_OK);
        let used: u32 = driver.used(RECEIVE).iter().map(|(_, len)| len).sum();
        prop_assert!(u64::from(used) >= metrics(&driver).received_bytes);
        let len = write_packet(&driver, [0; HEADER_LEN], &frame(60, 1));
        driver.request(TRANSMIT, &[(DATA, len, false)]);
        let metrics = metrics(&driver);
        prop_assert_eq!(metrics.sent_frames + metrics.dropped_sent, 1);
    }

    /// Whatever stands in a request's header: a frame comes out as it went in, or not at all.
    #[test]
    fn any_header_is_survived(header: [u8; HEADER_LEN], features: u32, len in 14..200_usize) {
        let features = u64::from(features) & (STATUS | 1 << VIRTIO_NET_F_CSUM);
        let (mut driver, mut theirs) = net(features);
        let sent = frame(len, 1);
        let len = write_packet(&driver, header, &sent);
        driver.request(TRANSMIT, &[(DATA, len, false)]);
        if metrics(&driver).sent_frames == 1 {
            let came = receive_frame(&mut theirs);
            let changed = sent.iter().zip(&came).filter(|(sent, came)| sent != came).count();
            prop_assert!(came.len() == sent.len() && changed <= 2);
        }
        prop_assert_eq!(driver.status(), DRIVER_OK);
    }
}
