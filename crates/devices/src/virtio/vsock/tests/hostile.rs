//! A guest without rules, and a host that does what it likes.

use proptest::prelude::*;

use super::*;

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
