//! What a guest prints, as it comes.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::children;
use crate::sandbox::text;

/// Bounds a failure only: on an idle machine nothing takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a Linux kernel prints when it finds itself wrong, or the machine.
const COMPLAINTS: [&str; 12] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "rcu: INFO:",
    "general protection fault",
    "unable to handle",
    "Unable to handle",
    "INFO: task",
    "Kernel panic",
    "nobody cared",
    "I/O error",
    "EXT4-fs error",
];

/// Output that somebody else reads into memory; what was waited for is behind us.
pub(crate) struct Console {
    shared: Arc<Shared>,
    /// What comes before has been looked at.
    position: usize,
    /// Output of somebody else, and what ends all waiting when it says it.
    alarm: Option<(Arc<Shared>, &'static str)>,
    /// Counts what the guest gets done elsewhere.
    pulse: Option<Arc<AtomicU64>>,
}

#[derive(Default)]
struct Shared {
    output: Mutex<Output>,
    more: Condvar,
}

#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    closed: bool,
}

impl Console {
    pub(crate) fn read(mut source: impl Read + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let reader = Arc::clone(&shared);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = source.read(&mut bytes) {
                reader.output.lock().expect("output").bytes.extend(&bytes[..length]);
                reader.more.notify_all();
            }
            reader.output.lock().expect("output").closed = true;
            reader.more.notify_all();
        });
        Self { shared, position: 0, alarm: None, pulse: None }
    }

    /// Waiting here fails as soon as `other` says `alarm`: what is waited for will not come.
    pub(crate) fn give_up_on(&mut self, other: &Console, alarm: &'static str) {
        self.alarm = Some((Arc::clone(&other.shared), alarm));
    }

    /// Waiting goes on for as long as `pulse` does: long work is given up when it stands still, not when it
    /// takes long.
    pub(crate) fn be_patient_while_counting(&mut self, pulse: Arc<AtomicU64>) {
        self.pulse = Some(pulse);
    }

    /// Waits for `wanted` and returns what came before it.
    pub(crate) fn wait_for(&mut self, wanted: &str) -> String {
        let start = self.position;
        let found = self.wait(&format!("{wanted:?}"), |new| {
            let at = new.windows(wanted.len()).position(|window| window == wanted.as_bytes())?;
            Some((at, at + wanted.len()))
        });
        let output = self.shared.output.lock().expect("output");
        text(&output.bytes[start..start + found])
    }

    /// Waits for the guest program to report such an event.
    pub(crate) fn event(&mut self, name: &str) -> Value {
        self.wait(&format!("event {name}"), |new| {
            let (mut at, wanted) = (0, |event: &Value| event["event"] == *name);
            for line in new.split_inclusive(|&byte| byte == b'\n') {
                at += line.len();
                if let Some(event) = parse(&text(line)).filter(wanted) {
                    return Some((event, at));
                }
            }
            None
        })
    }

    /// Waits for the end of the output and returns all of it.
    pub(crate) fn until_end(&mut self) -> String {
        let deadline = deadline();
        let mut output = self.shared.output.lock().expect("output");
        while !output.closed {
            if Instant::now() > deadline {
                let said = last(&output.bytes);
                drop(output);
                panic!("did not end; said last:\n{said}\nprocesses:\n{}", children());
            }
            output =
                self.shared.more.wait_timeout(output, Duration::from_secs(1)).expect("output").0;
        }
        text(&output.bytes)
    }

    /// What was to give up on, if it was said, with all that follows.
    fn alarm(&self) -> Option<String> {
        let (other, alarm) = self.alarm.as_ref()?;
        let said = &other.output.lock().expect("output").bytes;
        let begin = said.windows(alarm.len()).position(|window| window == alarm.as_bytes())?;
        Some(text(&said[begin..]))
    }

    /// All so far.
    pub(crate) fn so_far(&self) -> String {
        text(&self.shared.output.lock().expect("output").bytes)
    }

    /// Waits until `find` finds something in what is new, and goes as far as it says.
    fn wait<T>(&mut self, what: &str, find: impl Fn(&[u8]) -> Option<(T, usize)>) -> T {
        let count = || self.pulse.as_ref().map_or(0, |pulse| pulse.load(Relaxed));
        let (mut deadline, mut counted) = (deadline(), count());
        let mut output = self.shared.output.lock().expect("output");
        loop {
            if count() != counted {
                (deadline, counted) = (self::deadline(), count());
            }
            if let Some((found, length)) = find(&output.bytes[self.position..]) {
                self.position += length;
                return found;
            }
            let alarm = self.alarm();
            if output.closed || alarm.is_some() || Instant::now() > deadline {
                let said = last(&output.bytes);
                // The reader needs it still.
                drop(output);
                // More is said at once.
                let alarm = alarm.and_then(|_| {
                    thread::sleep(Duration::from_millis(500));
                    self.alarm()
                });
                let what = alarm.map_or(what.to_owned(), |alarm| format!("{what}, but: {alarm}"));
                panic!("never said {what}; said last:\n{said}\nprocesses:\n{}", children());
            }
            output =
                self.shared.more.wait_timeout(output, Duration::from_secs(1)).expect("output").0;
        }
    }
}

/// When to give up waiting.
pub(crate) fn deadline() -> Instant {
    Instant::now() + patience()
}

/// How long to wait: longer where `FATHOM_PATIENCE` asks for it.
pub(crate) fn patience() -> Duration {
    let factor = std::env::var("FATHOM_PATIENCE").map_or(1.0, |text| {
        text.parse().unwrap_or_else(|_| panic!("FATHOM_PATIENCE={text}: write a number"))
    });
    PATIENCE.mul_f64(factor)
}

fn last(bytes: &[u8]) -> String {
    text(&bytes[bytes.len().saturating_sub(3000)..])
}

/// All events of a name.
pub(crate) fn events(console: &str, name: &str) -> Vec<Value> {
    console.lines().filter_map(parse).filter(|event| event["event"] == *name).collect()
}

/// The kernel's own messages may stand before it on the line. A line without its end is no event yet.
fn parse(line: &str) -> Option<Value> {
    serde_json::from_str(line.split_once("@fathom ")?.1.trim_end()).ok()
}

/// Linux 6.1 breaks virtio queues on its way to a reboot, whether or not it reports free pages just then, and
/// warns of the report that fails.
const OF_A_REBOOT: &str = "virtballoon_free_page_report+";

/// Lines with which the kernel says that something is wrong.
pub(crate) fn complaints(console: &str) -> Vec<&str> {
    let complains = |line: &&str| COMPLAINTS.iter().any(|word| line.contains(word));
    console.lines().filter(complains).filter(|line| !line.contains(OF_A_REBOOT)).collect()
}

#[test]
fn a_warning_is_a_complaint() {
    let log = "[    0.1] Linux version 6.1\r\n[    1.5] WARNING: CPU: 0 PID: 1 at mm/slub.c:1\r\n[ 2.0] ok";
    assert_eq!(complaints(log), ["[    1.5] WARNING: CPU: 0 PID: 1 at mm/slub.c:1"]);
    assert!(complaints("Warning: this is what programs say; a bug: too").is_empty());
}

#[test]
#[should_panic(expected = "never said \"b\", but: it broke")]
fn waiting_ends_with_an_alarm() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut console = Console::read(reader);
    let mut errors = Console::read(std::io::Cursor::new("it works\nit broke\n"));
    console.give_up_on(&errors, "it broke");
    errors.wait_for("it works");
    console.wait_for("b");
    drop(writer);
}

#[test]
fn waiting_goes_forward() {
    let said = "a\n@fathom {\"event\":\"x\",\"n\":1}\nb\n@fathom {\"event\":\"x\",\"n\":2}\n";
    let mut console = Console::read(std::io::Cursor::new(said));
    assert_eq!(console.event("x")["n"], 1);
    assert_eq!(console.wait_for("b"), "");
    assert_eq!(console.event("x")["n"], 2);
    assert_eq!(events(&console.until_end(), "x").len(), 2);
}
