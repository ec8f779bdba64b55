//! The debugger's socket, spoken to byte by byte: what gdb would say, and what it never would.

mod machine;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use machine::{ENTRY, Host, REBOOT, SPIN};
use vmm::config::GdbConfig;
use vmm::{Outcome, RunState, VmHandle};

/// Counts in RBX for ever: `xor ebx, ebx; inc rbx; mov [rip+0x100], rbx; jmp -12`
const COUNT: &[u8] =
    &[0x31, 0xdb, 0x48, 0xff, 0xc3, 0x48, 0x89, 0x1d, 0x00, 0x01, 0x00, 0x00, 0xeb, 0xf4];
/// Of its INC.
const INC: u64 = ENTRY + 2;
/// Of the instruction behind the MOV.
const JMP: u64 = ENTRY + 12;
/// What the MOV writes.
const CELL: u64 = JMP + 0x100;

/// Bounds a failure only.
const PATIENCE: Duration = Duration::from_secs(60);

const RBX: usize = 1;
const RIP: usize = 16;

struct Debugged {
    host: Host,
    vm: VmHandle,
}

impl Debugged {
    fn start(code: &[u8], wait: bool) -> Self {
        let host = Host::new();
        let gdb = GdbConfig { socket: host.path("gdb"), wait };
        let vm = host.start_with(code, Some(gdb));
        Self { host, vm }
    }

    fn socket(&self) -> PathBuf {
        self.host.path("gdb")
    }

    fn stream(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        stream
    }

    fn attach(&self) -> Client {
        let mut client = Client(self.stream());
        assert!(client.ask("qSupported:multiprocess+").contains("PacketSize="));
        client
    }

    /// Waits until a client that has left is forgotten, and the guest runs.
    fn runs_again(&self) {
        while self.vm.status().state != RunState::Running {
            std::thread::yield_now();
        }
        let before = self.vm.status().guest_cpu_seconds;
        while self.vm.status().guest_cpu_seconds <= before {
            std::thread::yield_now();
        }
    }

    fn stop(self) {
        self.vm.stop();
        assert_eq!(self.vm.wait(), Ok(Outcome::Stopped));
        assert!(!self.socket().exists(), "the socket is removed");
    }
}

/// A client of the protocol.
struct Client(UnixStream);

impl Client {
    fn say(&mut self, packet: &str) {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        write!(self.0, "${packet}#{sum:02x}").expect("sent");
    }

    /// The next answer.
    fn hear(&mut self) -> String {
        let mut packet = String::new();
        while self.byte() != Some(b'$') {}
        loop {
            match self.byte().expect("an answer") {
                b'#' => break,
                b'*' => {
                    // Run-length encoding: the count is in the next byte.
                    let count = self.byte().expect("a count") - 29;
                    let last = packet.pop().expect("something to repeat");
                    packet.extend(std::iter::repeat_n(last, usize::from(count) + 1));
                }
                byte => packet.push(byte.into()),
            }
        }
        self.byte();
        self.byte();
        // After its last answer it may have gone.
        let _ = self.0.write_all(b"+");
        packet
    }

    fn ask(&mut self, packet: &str) -> String {
        self.say(packet);
        self.hear()
    }

    fn byte(&mut self) -> Option<u8> {
        let mut byte = [0];
        (self.0.read(&mut byte).expect("it answers") == 1).then_some(byte[0])
    }

    /// One of the first registers, which have 8 bytes each.
    fn register(&mut self, number: usize) -> u64 {
        let all = self.ask("g");
        little_endian(&all[16 * number..16 * (number + 1)])
    }

    fn ctrl_c(&mut self) -> String {
        self.0.write_all(&[3]).expect("sent");
        self.hear()
    }
}

fn little_endian(hex: &str) -> u64 {
    let byte = |index: usize| u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).expect("hex");
    u64::from_le_bytes(std::array::from_fn(byte))
}

#[test]
fn the_guest_waits_steps_and_goes_on() {
    let debugged = Debugged::start(COUNT, true);
    let mut gdb = debugged.attach();
    assert_eq!(debugged.vm.status().state, RunState::Paused);
    assert_eq!(gdb.ask("?"), "T05thread:p01.01;");
    assert_eq!(gdb.ask("qfThreadInfo"), "mp01.01,p01.02");
    assert_eq!(gdb.register(RIP), ENTRY);
    assert!(gdb.ask("vCont;s:p1.1").starts_with("T05"));
    assert_eq!(gdb.register(RIP), INC);
    assert_eq!(gdb.ask(&format!("m{ENTRY:x},e")), hex(COUNT));
    // RBX, then its neighbours are as they were.
    assert_eq!(gdb.ask("P1=1032547698badcfe"), "OK");
    assert_eq!(gdb.register(RBX), 0xfedc_ba98_7654_3210);
    assert!(gdb.ask("vCont;s:p1.1").starts_with("T05"));
    assert_eq!(gdb.register(RBX), 0xfedc_ba98_7654_3211);
    while gdb.register(RBX) == 0xfedc_ba98_7654_3211 {
        gdb.say("vCont;c");
        assert!(gdb.ctrl_c().starts_with("T02"), "interrupted");
    }
    assert_eq!(gdb.ask("D;1"), "OK");
    debugged.runs_again();
    debugged.stop();
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn breakpoints_stop_do_not_show_and_are_gone_with_gdb() {
    let debugged = Debugged::start(COUNT, true);
    let mut gdb = debugged.attach();
    assert_eq!(gdb.ask(&format!("Z0,{INC:x},1")), "OK");
    assert!(gdb.ask("vCont;c").contains("swbreak"));
    assert_eq!(gdb.register(RIP), INC);
    assert_eq!(gdb.ask(&format!("m{ENTRY:x},e")), hex(COUNT));
    // As gdb goes on from a breakpoint: without it by a step, then with it.
    assert_eq!(gdb.ask(&format!("z0,{INC:x},1")), "OK");
    assert!(gdb.ask("vCont;s:p1.1").starts_with("T05"));
    assert_eq!(gdb.ask(&format!("Z0,{INC:x},1")), "OK");
    assert!(gdb.ask("vCont;c").contains("swbreak"));
    assert_eq!(gdb.register(RBX), 1);

    // Hardware: on code, and on data.
    assert_eq!(gdb.ask(&format!("z0,{INC:x},1")), "OK");
    assert_eq!(gdb.ask(&format!("Z1,{JMP:x},1")), "OK");
    assert!(gdb.ask("vCont;c").contains("hwbreak"));
    assert_eq!(gdb.register(RIP), JMP);
    assert_eq!(gdb.ask(&format!("z1,{JMP:x},1")), "OK");
    assert_eq!(gdb.ask(&format!("Z2,{CELL:x},8")), "OK");
    let stop = gdb.ask("vCont;c");
    assert!(stop.contains(&format!("watch:{CELL:08x}")), "{stop}");
    assert_eq!(gdb.register(RBX), 3);
    assert_eq!(little_endian(&gdb.ask(&format!("m{CELL:x},8"))), 3);

    // It goes without a word, and leaves breakpoints.
    assert_eq!(gdb.ask(&format!("Z0,{INC:x},1")), "OK");
    assert!(gdb.ask("vCont;c").contains("swbreak"));
    gdb.say("vCont;c");
    drop(gdb);
    debugged.runs_again();
    let mut gdb = debugged.attach();
    assert_eq!(gdb.ask(&format!("m{ENTRY:x},e")), hex(COUNT));
    drop(gdb);
    debugged.stop();
}

#[test]
fn what_cannot_be_is_an_error_and_no_more() {
    let debugged = Debugged::start(SPIN, true);
    let mut gdb = debugged.attach();
    // Not mapped, not canonical, device registers, the end of the address space.
    for address in [0x7000_0000_0000u64, 1 << 47, 0xfec0_0000, u64::MAX - 3] {
        assert!(gdb.ask(&format!("m{address:x},8")).starts_with('E'), "{address:#x}");
        assert!(gdb.ask(&format!("M{address:x},1:cc")).starts_with('E'), "{address:#x}");
        assert!(gdb.ask(&format!("Z0,{address:x},1")).starts_with('E'), "{address:#x}");
    }
    // More of them than the processor has; one of a length that takes more than four.
    assert!(gdb.ask(&format!("Z2,{:x},40", ENTRY + 1)).starts_with('E'));
    for index in 0..4 {
        assert_eq!(gdb.ask(&format!("Z1,{index:x},1")), "OK");
    }
    assert!(gdb.ask("Z1,9,1").starts_with('E'));
    // CR0, and a RIP that is not canonical.
    assert!(gdb.ask("P10=0000000000800000").starts_with('E'));
    assert!(gdb.ask("Hgp1.63").starts_with('E') || gdb.ask("g").starts_with('E'));
    drop(gdb);
    debugged.runs_again();
    debugged.stop();
}

#[test]
fn a_reboot_finds_the_debugger_at_the_first_instruction() {
    let debugged = Debugged::start(REBOOT, true);
    let mut gdb = debugged.attach();
    for _ in 0..3 {
        assert_eq!(gdb.ask(&format!("Z0,{:x},1", ENTRY + 4)), "OK");
        assert!(gdb.ask("vCont;c").starts_with("T05"));
        assert_eq!(gdb.ask(&format!("m{ENTRY:x},6")), hex(REBOOT));
        assert_eq!(gdb.register(RIP), ENTRY);
        assert_eq!(gdb.ask(&format!("z0,{:x},1", ENTRY + 4)), "OK");
    }
    assert_eq!(gdb.ask("D;1"), "OK");
    let lives = debugged.vm.status().exits["port_write"];
    while debugged.vm.status().exits["port_write"] < lives + 3 {
        std::thread::yield_now();
    }
    debugged.stop();
}

#[test]
fn one_at_a_time() {
    let debugged = Debugged::start(SPIN, false);
    debugged.runs_again();
    let mut gdb = debugged.attach();
    assert_eq!(debugged.vm.status().state, RunState::Paused);
    let mut other = debugged.stream();
    assert_eq!(other.read(&mut [0; 1]).expect("closed"), 0, "turned away");
    assert_eq!(gdb.register(RIP), ENTRY);
    // A pause is the user's, whatever gdb wants.
    debugged.vm.pause().expect("paused");
    assert_eq!(gdb.ask("D;1"), "OK");
    let mut gdb = debugged.attach();
    assert_eq!(debugged.vm.status().state, RunState::Paused);
    debugged.vm.resume().expect("resumed");
    assert_eq!(debugged.vm.status().state, RunState::Paused, "gdb holds it");
    assert_eq!(gdb.ask("D;1"), "OK");
    debugged.runs_again();
    debugged.stop();
}

#[test]
fn the_end_of_the_vm_is_told_and_not_held_up() {
    // While the guest runs, and while it stands.
    for stands in [false, true] {
        let debugged = Debugged::start(SPIN, true);
        let mut gdb = debugged.attach();
        if !stands {
            gdb.say("vCont;c");
            gdb.byte();
        }
        debugged.vm.stop();
        assert_eq!(debugged.vm.wait(), Ok(Outcome::Stopped));
        if stands {
            while gdb.byte().is_some() {}
        } else {
            assert_eq!(gdb.hear(), "W00");
        }
        assert!(!debugged.socket().exists());
    }
    // Nobody came.
    Debugged::start(SPIN, true).stop();
    let debugged = Debugged::start(SPIN, true);
    let mut gdb = debugged.attach();
    assert_eq!(gdb.ask("vKill;1"), "OK");
    assert_eq!(debugged.vm.wait(), Ok(Outcome::Stopped));
}

/// Bytes that no gdb would send: the VM survives, and the next gdb is served.
#[test]
fn hostile_bytes() {
    let debugged = Debugged::start(COUNT, true);
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for round in 0..200 {
        let mut stream = debugged.stream();
        let bytes = match round % 4 {
            0 => (0..random.below(4000)).map(|_| random.below(256) as u8).collect(),
            1 => packet(&(0..random.below(6000)).map(|_| random.printable()).collect::<Vec<_>>()),
            _ => (0..random.below(40)).flat_map(|_| nearly_right(&mut random)).collect::<Vec<_>>(),
        };
        // It may be refused in the middle.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let mut gdb = debugged.attach();
    assert_eq!(gdb.ask("qAttached"), "1");
    drop(gdb);
    debugged.runs_again();
    debugged.stop();
}

/// Packets as gdb sends them, with numbers and lengths of all sizes.
fn nearly_right(random: &mut Random) -> Vec<u8> {
    const KINDS: [&str; 26] = [
        "m",
        "M",
        "G",
        "g",
        "p",
        "P",
        "Z0,",
        "Z1,",
        "Z2,",
        "Z3,",
        "z0,",
        "z1,",
        "z2,",
        "vCont;c",
        "vCont;s:",
        "vCont;c:",
        "s",
        "c",
        "H",
        "qXfer:features:read:target.xml:",
        "qRcmd,",
        "X",
        "vCont;r",
        "T",
        "qThreadExtraInfo,",
        "?",
    ];
    let mut packet = KINDS[random.below(KINDS.len() as u64) as usize].as_bytes().to_vec();
    for _ in 0..random.below(4) {
        let number = match random.below(4) {
            0 => ENTRY + random.below(32),
            1 => random.below(64),
            2 => u64::MAX - random.below(16),
            _ => random.next(),
        };
        packet.extend(format!("{number:x}").bytes());
        packet.push(b",;:=."[random.below(5) as usize]);
    }
    let mut bytes = self::packet(&packet);
    if random.below(8) == 0 {
        bytes.push(3);
    }
    bytes
}

fn packet(body: &[u8]) -> Vec<u8> {
    let sum = body.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    [b"$", body, format!("#{sum:02x}").as_bytes()].concat()
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn printable(&mut self) -> u8 {
        b' ' + self.below(95) as u8
    }
}
