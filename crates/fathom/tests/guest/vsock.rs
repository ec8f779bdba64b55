//! Sockets between guest and host: much in both directions, many, and those who do not behave.
//!
//! The guest's end is Python, from the disk image: it comes to the guest as a disk.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};
use std::{fs, thread};

use crate::console::deadline;
use crate::engine::announce;
use crate::kit;
use crate::noise::Noise;
use crate::processor;
use crate::sandbox::{Sandbox, text};
use crate::vm::{Guest, Vm};

const PEER: &str = include_str!("vsock/peer.py");
const GREEDY: &str = include_str!("vsock/greedy.py");
/// Ports of `peer.py`.
const ECHO: u32 = 5000;
const COUNT: u32 = 5001;
const OPEN: u32 = 5002;

const CID: u32 = 42;
const MIB: usize = 1 << 20;
/// Bounds a failure only.
const PATIENCE: Duration = Duration::from_secs(300);

#[test]
fn guest_and_host_talk_over_vsock() {
    let sandbox = Sandbox::new();
    let mut vm = start(&sandbox);
    let host = Host(&sandbox);

    assert_eq!(python(&mut vm, "peer.py cid"), CID.to_string());
    vm.shell("{ chroot /disk python3 /tmp/peer.py serve >/tmp/log 2>&1 & }");
    vm.shell("until grep -q serving /tmp/log; do sleep 1; done");
    the_host_calls(&host);
    the_guest_calls(&host, &mut vm);
    nobody_answers(&host, &mut vm);
    a_half_is_closed(&host);
    many_connections(&host);
    a_host_leaves_midway(&host);
    assert_eq!(vm.shell("cat /tmp/log"), "serving");
    vm.shell("kill %1; wait");

    a_guest_ignores_credit(&host, &mut vm);
    // Linux has the device again.
    assert_eq!(python(&mut vm, "peer.py cid"), CID.to_string());
    the_guest_calls(&host, &mut vm);
    vm.type_line("poweroff -f");
    vm.ended().well();
    assert!(!sandbox.path("vsock").exists(), "the socket is removed");
}

/// Bytes in each direction. What the lab gives takes a minute for a hundred MiB.
fn much() -> usize {
    if processor::in_lab() { 4 * MIB } else { 100 * MIB }
}

/// More at a time than half of what a VM may have: the second time takes the places of the first.
fn connections() -> usize {
    if processor::in_lab() { 100 } else { 1000 }
}

fn start(sandbox: &Sandbox) -> Vm<'_> {
    let overlay = format!("{},overlay={}", kit::disk_image(), sandbox.path("overlay").display());
    let script = |name: &str, source: &str| {
        let mut bytes = source.as_bytes().to_vec();
        // Empty lines up to the sector's end.
        bytes.resize(bytes.len().next_multiple_of(512), b'\n');
        sandbox.file(name, &bytes)
    };
    let vsock = format!("cid={CID},socket={}", sandbox.path("vsock").display());
    let guest = Guest::new("fathom.run=disk:/bin/true fathom.run=sh").disk(overlay);
    let guest = guest.disk(script("peer.py", PEER)).disk(script("greedy.py", GREEDY));
    let mut vm = guest.arguments(&["--vsock", &vsock]).start(sandbox);
    vm.wait_for_shell();
    vm.shell("cat /dev/vdb >/disk/tmp/peer.py; cat /dev/vdc >/disk/tmp/greedy.py");
    vm
}

fn python(vm: &mut Vm<'_>, words: &str) -> String {
    vm.shell(&format!("chroot /disk python3 /tmp/{words}"))
}

/// The host's end.
struct Host<'a>(&'a Sandbox);

impl Host<'_> {
    /// Connects to a port of the guest's, if it is taken.
    fn try_call(&self, port: u32) -> Option<UnixStream> {
        let mut stream = UnixStream::connect(self.0.path("vsock")).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("timeout");
        writeln!(stream, "CONNECT {port}").expect("asked");
        let answer = line(&mut stream)?;
        let host_port = answer.strip_prefix("OK ").expect(&answer);
        host_port.parse::<u32>().expect("a port");
        Some(stream)
    }

    fn call(&self, port: u32) -> UnixStream {
        self.try_call(port).expect("somebody listens there")
    }

    fn listen(&self, port: u32) -> UnixListener {
        let path = self.0.path(&format!("vsock_{port}"));
        // That of an earlier one.
        let _ = fs::remove_file(&path);
        UnixListener::bind(path).expect("a socket")
    }

    /// How many connections the guest's end has.
    fn open(&self) -> usize {
        let open = line(&mut self.call(OPEN)).expect("a number");
        open.parse().expect("a number")
    }

    /// Waits until the guest's end has so many.
    fn has_open(&self, wanted: usize) {
        let deadline = deadline();
        loop {
            let open = self.open();
            if open == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "{open} are open, not {wanted}");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Up to the line feed; none if the stream has ended.
fn line(stream: &mut UnixStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) if byte == *b"\n" => return Some(text(&bytes)),
            Ok(1) => bytes.extend(byte),
            Ok(_) => return None,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Sends noise to who echoes, and has all of it back, each byte as it was.
fn exchange(stream: &UnixStream, bytes: usize) {
    const CHUNK: usize = 64 << 10;
    let mut writer = stream.try_clone().expect("a stream");
    let sender = thread::spawn(move || {
        let (mut noise, mut chunk) = (Noise::default(), vec![0; CHUNK]);
        for _ in 0..bytes / CHUNK {
            noise.fill(&mut chunk);
            writer.write_all(&chunk).expect("sent");
        }
        writer.shutdown(Shutdown::Write).expect("shut");
    });
    let (mut noise, mut expected, mut chunk) = (Noise::default(), vec![0; CHUNK], vec![0; CHUNK]);
    let mut reader = stream;
    for at in 0..bytes / CHUNK {
        noise.fill(&mut expected);
        reader.read_exact(&mut chunk).expect("echoed");
        assert!(chunk == expected, "bytes {} and on came back differently", at * CHUNK);
    }
    assert_eq!(reader.read(&mut chunk).expect("the end"), 0);
    sender.join().expect("sent");
}

fn the_host_calls(host: &Host<'_>) {
    let begun = Instant::now();
    exchange(&host.call(ECHO), much());
    announce(&format!("{} MiB there and back: {:?}", much() / MIB, begun.elapsed()));
}

fn the_guest_calls(host: &Host<'_>, vm: &mut Vm<'_>) {
    let begun = Instant::now();
    let listener = host.listen(1024);
    let end = thread::spawn(move || exchange(&listener.accept().expect("called").0, much()));
    assert_eq!(python(vm, "peer.py call 1024"), much().to_string());
    end.join().expect("exchanged");
    announce(&format!("{} MiB there and back: {:?}", much() / MIB, begun.elapsed()));
}

fn nobody_answers(host: &Host<'_>, vm: &mut Vm<'_>) {
    assert!(host.try_call(4999).is_none());
    assert_eq!(python(vm, "peer.py call 1025"), "ECONNRESET");
}

/// The guest hears the end and answers then.
fn a_half_is_closed(host: &Host<'_>) {
    let mut stream = host.call(COUNT);
    stream.write_all(&[7; 100_000]).expect("sent");
    stream.shutdown(Shutdown::Write).expect("shut");
    assert_eq!(line(&mut stream).as_deref(), Some("100000"));
    assert_eq!(line(&mut stream), None);
}

/// All at a time, twice: the places of the first are free again.
fn many_connections(host: &Host<'_>) {
    for _ in 0..2 {
        let mut streams: Vec<_> = (0..connections()).map(|_| host.call(ECHO)).collect();
        host.has_open(connections());
        for (number, stream) in streams.iter_mut().enumerate() {
            writeln!(stream, "{number}").expect("sent");
        }
        for (number, stream) in streams.iter_mut().enumerate() {
            assert_eq!(line(stream), Some(number.to_string()));
        }
        drop(streams);
        host.has_open(0);
    }
}

/// In the middle of what it sends and without having read what it was sent. The guest waits for room then, and must
/// hear of the end however much of its own is on its way.
fn a_host_leaves_midway(host: &Host<'_>) {
    for _ in 0..if processor::in_lab() { 3 } else { 100 } {
        let mut stream = host.call(ECHO);
        stream.write_all(&[7; MIB / 2]).expect("sent");
        drop(stream);
        host.has_open(0);
    }
}

/// It loses the connection, and nobody anything else.
fn a_guest_ignores_credit(host: &Host<'_>, vm: &mut Vm<'_>) {
    let listener = host.listen(1026);
    let called = thread::spawn(move || listener.accept().expect("called").0);
    let said = python(vm, "greedy.py 1026");
    let numbers: Vec<usize> =
        said.strip_prefix("reset ").expect(&said).split(' ').map(|n| n.parse().expect(n)).collect();
    let [room, sent, status] = numbers[..] else { panic!("{said}") };
    assert_eq!(status, 15, "the device works");
    assert!(room > 0 && sent > room && sent < 2 * MIB, "{said}");
    let mut taken = Vec::new();
    // The end, by whatever name.
    let _ = called.join().expect("called").read_to_end(&mut taken);
    assert!(taken.len() < sent && taken.iter().all(|&byte| byte == b'g'), "{}", taken.len());
}
