//! The same on a TAP interface, in a network namespace of its own: the host's network is not touched.

use std::net::UdpSocket;
use std::process::Command;

use super::link::wait_for;
use super::*;

/// Set in the namespace.
const INSIDE: &str = "FATHOM_IN_NETWORK_NAMESPACE";
const HOST: [u8; 4] = [10, 77, 0, 1];
const GUEST: [u8; 4] = [10, 77, 0, 2];

fn ip(arguments: &str) -> bool {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    status.is_ok_and(|status| status.success())
}

/// Runs the test of this name once more, where it has a network of its own; true there. Says so
/// loudly where that cannot be had.
fn in_a_namespace(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let unshare = |command: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--net", "--"]).args(command);
        unshare
    };
    let probe = "ip tuntap add probe mode tap && ip link delete probe";
    let possible = unshare(&["sh", "-c", probe]).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        eprintln!("\n*** NOT TESTED: {test}: no TAP interface to be had by unshare and ip ***");
        return false;
    }
    let itself = std::env::current_exe().unwrap();
    let name = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    let inside = unshare(&[itself.to_str().unwrap(), "--exact", &name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&inside.stdout) + String::from_utf8_lossy(&inside.stderr);
    assert!(inside.status.success() && said.contains("1 passed"), "{said}");
    false
}

fn make_interface() {
    let commands = [
        "tuntap add tap0 mode tap",
        "address add 10.77.0.1/24 dev tap0",
        "link set tap0 up mtu 9000",
        "neighbour add 10.77.0.2 lladdr 52:54:00:12:34:56 dev tap0 nud permanent",
    ];
    commands.iter().for_each(|command| assert!(ip(command), "{command}"));
}

fn config() -> NetConfig {
    NetConfig { backend: NetBackend::Tap("tap0".into()), mac: mac(), mtu: None }
}

/// A frame of the guest for the host's UDP port: its checksum is left to others.
fn datagram(to: &[u8], port: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut frame = [to, &mac().bytes(), &[8, 0]].concat();
    let mut header = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0].to_vec();
    header[2..4].copy_from_slice(&(20 + length).to_be_bytes());
    header.extend([GUEST, HOST].concat());
    let sum = !folded(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(header);
    let pseudo = [&GUEST[..], &HOST, &[0, 17], &length.to_be_bytes()].concat();
    for field in [7777, port, length, folded(&pseudo)] {
        frame.extend(field.to_be_bytes());
    }
    frame.extend(payload);
    frame
}

fn folded(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    ((sum & 0xffff) + (sum >> 16)) as u16
}

fn host_address() -> [u8; 6] {
    let text = std::fs::read_to_string("/sys/class/net/tap0/address").unwrap_or_default();
    text.trim().parse::<MacAddress>().map_or([0xff; 6], MacAddress::bytes)
}

/// Sends datagrams to the guest's port 7777 until one comes in: the host's kernel drops those that it
/// has before it has noticed that the interface is in use.
fn sent_to_guest(driver: &mut Driver, socket: &UdpSocket, payload: &[u8]) -> Vec<u8> {
    let port = 7777_u16;
    let is_it = |packet: &Vec<u8>| {
        packet.len() > 50 && packet[24..26] == [8, 0] && packet[48..50] == port.to_be_bytes()
    };
    for _ in 0..1000 {
        socket.send_to(payload, ("10.77.0.2", port)).unwrap();
        std::thread::sleep(Duration::from_millis(10));
        driver.run();
        for (head, len) in driver.used(RECEIVE) {
            let address = BUFFERS + u64::from(head % 64) * 0x4000;
            let packet = driver.read(address, len as usize);
            if is_it(&packet) {
                return packet;
            }
        }
    }
    panic!("no datagram came: {:?}", metrics(driver));
}

fn offer_large_buffers(driver: &mut Driver) {
    for i in 0..64 {
        driver.offer(RECEIVE, &[(BUFFERS + i * 0x4000, 0x4000, true)]);
    }
    driver.notify(RECEIVE);
}

#[test]
fn datagrams_go_both_ways_with_checksums_left_to_the_other_side() {
    if !in_a_namespace("datagrams_go_both_ways_with_checksums_left_to_the_other_side") {
        return;
    }
    make_interface();
    let features = STATUS | 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_GUEST_CSUM;
    let mut driver = Driver::ready(Net::new(config().plan().unwrap()), features);
    assert_eq!(driver.get(0x108) >> 16, 9000, "the MTU is the interface's");
    assert!(config().plan().unwrap_err().to_string().contains("in use"), "there is one");
    offer_large_buffers(&mut driver);

    let socket = UdpSocket::bind("10.77.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let port = socket.local_addr().unwrap().port();
    let frame = datagram(&host_address(), port, b"from the guest");
    let len = write_packet(&driver, [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0], &frame);
    driver.request(TRANSMIT, &[(DATA, len, false)]);
    let mut payload = [0; 64];
    let (len, from) = socket.recv_from(&mut payload).unwrap();
    assert_eq!((&payload[..len], from.port()), (&b"from the guest"[..], 7777));

    let packet = sent_to_guest(&mut driver, &socket, b"from the host");
    assert_eq!(packet[0] & 1, 1, "the guest is to finish the checksum");
    assert_eq!(packet[HEADER_LEN + 42..], *b"from the host");
    assert_eq!(packet[10..12], [1, 0], "in one buffer");
}

#[test]
fn an_interface_that_is_deleted_takes_the_link_down_until_it_is_back() {
    if !in_a_namespace("an_interface_that_is_deleted_takes_the_link_down_until_it_is_back") {
        return;
    }
    make_interface();
    let mut driver = Driver::ready(Net::new(config().plan().unwrap()), STATUS);
    let up = |driver: &Driver| driver.get(0x104) >> 16 & 1 == 1;
    assert!(up(&driver));
    assert!(ip("link delete tap0"));
    wait_for(&mut driver, |driver| !up(driver));
    let len = write_packet(&driver, [0; HEADER_LEN], &frame(60, 1));
    driver.request(TRANSMIT, &[(DATA, len, false)]);
    let lost = metrics(&driver);
    assert_eq!((lost.links_lost, lost.dropped_sent, lost.sent_frames), (1, 1, 0));

    make_interface();
    wait_for(&mut driver, up);
    offer_large_buffers(&mut driver);
    let socket = UdpSocket::bind("10.77.0.1:0").unwrap();
    let packet = sent_to_guest(&mut driver, &socket, b"again");
    assert_eq!(packet[HEADER_LEN + 42..], *b"again");
}

#[test]
fn what_is_no_tap_interface_is_refused_by_name() {
    if !in_a_namespace("what_is_no_tap_interface_is_refused_by_name") {
        return;
    }
    for (name, word) in [("lo", "not a TAP"), ("absent", "ip tuntap add absent")] {
        let config = NetConfig { backend: NetBackend::Tap(name.into()), ..config() };
        let error = config.plan().unwrap_err().to_string();
        assert!(error.contains(word) && error.contains(name), "{error}");
    }
}
