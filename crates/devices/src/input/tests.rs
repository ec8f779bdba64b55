use std::io::Write;

use event_manager::{EventManager, SubscriberOps};

use super::*;

/// Takes up to `limit` bytes at a time, until it is drained.
struct Small {
    limit: usize,
    held: Mutex<Vec<u8>>,
    space: Notifier,
}

impl Small {
    fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, held: Mutex::default(), space: Notifier::new().unwrap() })
    }

    fn drain(&self) -> Vec<u8> {
        self.space.signal();
        std::mem::take(&mut *self.held.lock().unwrap())
    }
}

impl InputSink for Small {
    fn space(&self) -> usize {
        self.limit - self.held.lock().unwrap().len()
    }

    fn push(&self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.space());
        self.held.lock().unwrap().extend_from_slice(&bytes[..n]);
        n
    }

    fn space_notifier(&self) -> Notifier {
        self.space.clone()
    }
}

fn run(manager: &mut EventManager<Arc<InputPump>>) {
    for _ in 0..4 {
        manager.run_with_timeout(0).unwrap();
    }
}

/// Everything that reaches the sink while somebody drains it.
fn drain_all(manager: &mut EventManager<Arc<InputPump>>, sink: &Small) -> Vec<u8> {
    let mut got = Vec::new();
    loop {
        run(manager);
        let part = sink.drain();
        if part.is_empty() {
            return got;
        }
        got.extend(part);
    }
}

#[test]
fn a_paste_larger_than_the_console_arrives_whole() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let sink = Small::new(7);
    let mut manager = EventManager::new().unwrap();
    manager.add_subscriber(Arc::new(InputPump::new(reader.into(), sink.clone())));
    let paste: Vec<u8> = (0..=255).cycle().take(5000).collect();
    writer.write_all(&paste).unwrap();
    run(&mut manager);
    assert_eq!(sink.space(), 0, "the pump fills the console");
    assert_eq!(drain_all(&mut manager, &sink), paste);
}

#[test]
fn a_regular_file_is_read_to_its_end() {
    let mut file = tempfile::tempfile().unwrap();
    let text = vec![b'y'; 100_000];
    file.write_all(&text).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let sink = Small::new(64);
    let mut manager = EventManager::new().unwrap();
    manager.add_subscriber(Arc::new(InputPump::new(file.into(), sink.clone())));
    assert_eq!(drain_all(&mut manager, &sink), text);
}

#[test]
fn a_closed_pipe_ends_the_input_and_does_not_spin() {
    let (reader, writer) = std::io::pipe().unwrap();
    let sink = Small::new(64);
    let mut manager = EventManager::new().unwrap();
    manager.add_subscriber(Arc::new(InputPump::new(reader.into(), sink.clone())));
    drop(writer);
    run(&mut manager);
    assert_eq!(manager.run_with_timeout(0).unwrap(), 0, "nothing is ready any more");
}

#[test]
fn escape_is_told_apart_from_input() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let sink = Small::new(64);
    let left = Notifier::new().unwrap();
    let signal = left.clone();
    let pump = InputPump::new(reader.into(), sink.clone()).with_escape(move || signal.signal());
    let mut manager = EventManager::new().unwrap();
    manager.add_subscriber(Arc::new(pump));
    writer.write_all(b"ls\x01").unwrap();
    run(&mut manager);
    assert!(!left.take());
    writer.write_all(b"x").unwrap();
    run(&mut manager);
    assert!(left.take());
    assert_eq!(sink.drain(), b"ls");
}
