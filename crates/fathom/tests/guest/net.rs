//! Network interfaces, through passt and through TAP: much in both directions, many connections, and a
//! host's side that goes and comes back.
//!
//! The guest's end is Python, from the disk image: it comes to the guest as a disk.

pub(crate) mod ground;
mod http;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use crate::console::{deadline, events};
use crate::engine::announce;
use crate::kit;
use crate::processor;
use crate::sandbox::Sandbox;
use crate::vm::{Guest, Vm};
use ground::{Ground, script};
use http::{Server, checksum_of_noise};

const CLIENT: &str = include_str!("net/client.py");
const MIB: u64 = 1 << 20;
/// In each direction.
const MUCH: u64 = 100 * MIB;
/// In sequence.
const CONNECTIONS: u32 = 1000;
/// At a time.
const TOGETHER: u32 = 100;
/// The guest's port that is forwarded.
const ECHO: u16 = 7777;

/// So that passt, which gives the guest the host's address and route, finds some.
const UPLINK: &str = "
    \"$B\" tunctl -t uplink >/dev/null
    \"$B\" ip address add 192.0.2.2/24 dev uplink
    \"$B\" ip link set uplink up
    \"$B\" ip route add default via 192.0.2.1";

const TAP_ADDRESS: &str = "192.168.77.1";
/// The guest's neighbour keeps its Ethernet address.
const TAP: &str = "
    \"$B\" tunctl -t tap0 >/dev/null
    \"$B\" ip link set tap0 address 02:00:00:00:77:01
    \"$B\" ip address add 192.168.77.1/24 dev tap0
    \"$B\" ip link set tap0 up";

/// Bit numbers of virtio (5.1.3).
const CHECKSUMS: [usize; 2] = [0, 1];
const SEGMENTS: [usize; 4] = [7, 8, 11, 12];
const MERGEABLE: usize = 15;

#[test]
fn a_guest_has_a_network_through_passt() {
    with_passt(|| {
        let sandbox = Sandbox::new();
        let forwarded = free_port();
        let mut vm = start(&sandbox, "ip=dhcp", &format!("passt,tcp={forwarded}:{ECHO}"));
        let server = Server::start(Ipv4Addr::LOCALHOST);
        let host = Host::new(gateway(&mut vm), server, &mut vm);
        agreed_on(&mut vm, &[&CHECKSUMS[..], &[MERGEABLE]].concat());
        host.transfers(&mut vm, |_| {});
        host.connects(&mut vm);
        the_host_calls(&mut vm, forwarded);
        end(vm);
    });
}

#[test]
fn a_passt_that_vanishes_is_waited_for() {
    with_passt(|| {
        let sandbox = Sandbox::new();
        let socket = sandbox.path("passt");
        let socket = socket.to_str().expect("text");
        let passt = passt(socket);
        let mut vm = start(&sandbox, "ip=dhcp", &format!("passt={socket}"));
        let server = Server::start(Ipv4Addr::LOCALHOST);
        let host = Host::new(gateway(&mut vm), server, &mut vm);
        host.asks_in_background(&mut vm, "transfer", MUCH);
        host.has_moved(MIB);
        drop(passt);
        wait_for_carrier(&mut vm, 0);
        vm.shell("kill %1; wait");
        let _passt = self::passt(socket);
        wait_for_carrier(&mut vm, 1);
        assert_eq!(host.ask(&mut vm, "one-by-one", 10), "10");
        end(vm);
    });
}

#[test]
fn a_guest_has_a_network_through_tap() {
    apart(|| {
        let Some(_ground) = Ground::enter() else {
            return announce(
                "*** NOT TESTED: TAP: a network to test in takes root and /dev/net/tun ***",
            );
        };
        script(TAP);
        let sandbox = Sandbox::new();
        let address = format!("ip=192.168.77.2::{TAP_ADDRESS}:255.255.255.0::eth0:off");
        let mut vm = start(&sandbox, &address, "tap=tap0");
        let server = Server::start(Ipv4Addr::UNSPECIFIED);
        let host = Host::new(TAP_ADDRESS.into(), server, &mut vm);
        agreed_on(&mut vm, &[&CHECKSUMS[..], &SEGMENTS, &[MERGEABLE]].concat());
        host.transfers(&mut vm, |vm| {
            script("\"$B\" ip link del tap0");
            wait_for_carrier(vm, 0);
            script(TAP);
            wait_for_carrier(vm, 1);
        });
        frames_were_large(&mut vm);
        host.connects(&mut vm);
        end(vm);
    });
}

/// Does `test` in a thread of its own: it enters another network.
pub(crate) fn apart(test: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let name = thread::current().name().unwrap_or_default().to_owned();
        let thread = thread::Builder::new().name(name).spawn_scoped(scope, test);
        if let Err(panic) = thread.expect("a thread").join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Does `test` where there is passt, if we may in a network that has only an uplink to nowhere.
fn with_passt(test: impl FnOnce() + Send) {
    if Command::new("passt")
        .arg("--help")
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        return announce("*** NOT TESTED: passt is not here: apt-get install passt ***");
    }
    apart(|| {
        let ground = Ground::enter();
        if ground.is_some() {
            script(UPLINK);
        }
        test();
    });
}

/// A passt as an administrator would start it; it ends when dropped.
fn passt(socket: &str) -> Passt {
    // What an earlier one left.
    let _ = std::fs::remove_file(socket);
    let mut command = Command::new("passt");
    command.args(["--foreground", "--quiet", "--runas", "0", "--socket", socket]);
    let passt = Passt(command.stderr(Stdio::null()).spawn().expect("passt runs"));
    let deadline = deadline();
    while !std::path::Path::new(socket).exists() {
        assert!(Instant::now() < deadline, "passt made no socket");
        thread::sleep(Duration::from_millis(50));
    }
    passt
}

struct Passt(Child);

impl Drop for Passt {
    fn drop(&mut self) {
        // Gone already is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start<'a>(sandbox: &'a Sandbox, address: &str, net: &str) -> Vm<'a> {
    let overlay = format!("{},overlay={}", kit::disk_image(), sandbox.path("overlay").display());
    let mut client = CLIENT.as_bytes().to_vec();
    // Empty lines up to the sector's end.
    client.resize(client.len().next_multiple_of(512), b'\n');
    let guest = Guest::new(address).word("fathom.run=disk:/bin/true fathom.run=sh");
    let guest = guest.disk(overlay).disk(sandbox.file("client.py", &client));
    let mut vm = guest.arguments(&["--net", net]).start(sandbox);
    vm.wait_for_shell();
    let log = vm.console.so_far();
    assert_eq!(events(&log, "network")[0]["ok"], true, "{log}");
    vm.shell("cat /dev/vdb >/disk/tmp/client.py");
    vm
}

fn end(mut vm: Vm<'_>) {
    vm.type_line("poweroff -f");
    vm.ended().well();
}

/// The host as a guest reaches it.
struct Host {
    address: String,
    server: Server,
    /// To transfer in each direction.
    bytes: u64,
}

impl Host {
    /// Whose guest is waited for as long as anything moves.
    fn new(address: String, server: Server, vm: &mut Vm<'_>) -> Self {
        vm.console.be_patient_while_counting(Arc::clone(server.moved()));
        Self { address, server, bytes: bytes() }
    }

    /// Down and up; in the middle of it `meanwhile` happens.
    fn transfers(&self, vm: &mut Vm<'_>, meanwhile: impl FnOnce(&mut Vm<'_>)) {
        let begun = Instant::now();
        self.asks_in_background(vm, "transfer", self.bytes);
        self.has_moved(self.bytes / 3);
        meanwhile(vm);
        vm.shell("wait; cat /tmp/log");
        let said = vm.shell("cat /tmp/log");
        let (down, up) = said.split_once('\n').expect(&said);
        assert_eq!(down, format!("down {} {}", self.bytes, checksum_of_noise(self.bytes)));
        // The guest has compared the checksum with its own.
        assert!(up.starts_with(&format!("up {} ", self.bytes)), "{said}");
        let mib = self.bytes / MIB;
        announce(&format!("{mib} MiB down and as much up: {:?}", begun.elapsed()));
    }

    fn connects(&self, vm: &mut Vm<'_>) {
        let one_by_one = connections();
        assert_eq!(self.ask(vm, "one-by-one", one_by_one.into()), one_by_one.to_string());
        assert_eq!(self.ask(vm, "together", TOGETHER.into()), TOGETHER.to_string());
    }

    fn ask(&self, vm: &mut Vm<'_>, verb: &str, number: u64) -> String {
        vm.shell(&self.command(verb, number))
    }

    fn asks_in_background(&self, vm: &mut Vm<'_>, verb: &str, number: u64) {
        vm.shell(&format!("{{ {} >/tmp/log 2>&1 & }}", self.command(verb, number)));
    }

    fn command(&self, verb: &str, number: u64) -> String {
        let (address, port) = (&self.address, self.server.port);
        format!("chroot /disk python3 /tmp/client.py {verb} {address} {port} {number}")
    }

    fn has_moved(&self, bytes: u64) {
        let moved = || self.server.moved().load(Relaxed);
        let (mut deadline, mut before) = (deadline(), 0);
        while moved() < bytes {
            if moved() != before {
                (deadline, before) = (self::deadline(), moved());
            }
            assert!(Instant::now() < deadline, "of {bytes} bytes it is {before} that moved");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A processor below the host's takes too long for [`MUCH`]: passt drops frames that a slow VM has not taken
/// yet, and sends them again after seconds.
fn bytes() -> u64 {
    if !processor::in_lab() {
        return MUCH;
    }
    announce("*** NOT TESTED in the lab: 100 MiB in each direction: too slow a machine ***");
    MUCH / 20
}

/// For the same reason: what is dropped of a connection's beginning is sent again after a second.
fn connections() -> u32 {
    if !processor::in_lab() {
        return CONNECTIONS;
    }
    announce(
        "*** NOT TESTED in the lab: 1000 connections one after the other: too slow a machine ***",
    );
    CONNECTIONS / 20
}

/// passt has the host's own programs behind the address of the gateway.
fn gateway(vm: &mut Vm<'_>) -> String {
    vm.shell("ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'")
}

/// Which features Linux and the interface have agreed on.
fn agreed_on(vm: &mut Vm<'_>, bits: &[usize]) {
    let features = vm.shell("cat /sys/class/net/eth0/device/features");
    for &bit in bits {
        assert_eq!(features.as_bytes()[bit], b'1', "feature {bit}: {features}");
    }
}

/// Frames of both directions were much longer than the MTU: segments are left to the other side, and buffers
/// of the guest were merged.
fn frames_were_large(vm: &mut Vm<'_>) {
    assert_eq!(vm.shell("cat /sys/class/net/eth0/mtu"), "1500");
    for direction in ["rx", "tx"] {
        let mut count = |what: &str| -> u64 {
            let path = format!("/sys/class/net/eth0/statistics/{direction}_{what}");
            vm.shell(&format!("cat {path}")).parse().expect("a number")
        };
        let (bytes, frames) = (count("bytes"), count("packets"));
        announce(&format!("{direction}: {bytes} bytes in {frames} frames"));
        assert!(bytes / frames > 3000, "{direction}: {bytes} bytes in {frames} frames");
    }
}

fn wait_for_carrier(vm: &mut Vm<'_>, carrier: u8) {
    vm.shell(&format!(
        "until [ $(cat /sys/class/net/eth0/carrier) = {carrier} ]; do usleep 200000; done"
    ));
}

/// A port of the host that is forwarded leads to the guest.
fn the_host_calls(vm: &mut Vm<'_>, forwarded: u16) {
    vm.shell(&format!("{{ chroot /disk python3 /tmp/client.py serve {ECHO} >/tmp/served & }}"));
    vm.shell("until grep -q serving /tmp/served; do usleep 200000; done");
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, forwarded)).expect("connected");
    stream.write_all(b"from the host").expect("sent");
    let mut answer = [0; 13];
    stream.read_exact(&mut answer).expect("echoed");
    assert_eq!(&answer, b"from the host");
    drop(stream);
    vm.shell("wait");
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("bound").port()
}
