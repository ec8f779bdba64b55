use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use super::*;
use crate::input::InputSink;
use crate::output::{Output, OutputBuffer, SHUT_AT};
use crate::virtio::testing::*;
use crate::virtio::{DeviceMetrics, DeviceState};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn console() -> (Driver, Arc<ConsoleInput>, Sink) {
    let sink = Sink::default();
    let console = Console::new(Output::new(sink.clone())).unwrap();
    let input = console.input();
    (Driver::ready(console, 0), input, sink)
}

#[test]
fn output_comes_out_in_order() {
    let (mut driver, _, sink) = console();
    driver.write(DATA, b"hello world");
    driver.offer(TRANSMIT, &[(DATA, 6, false), (DATA + 6, 5, false)]);
    driver.offer(TRANSMIT, &[(DATA, 1, false)]);
    driver.notify(TRANSMIT);
    assert_eq!(*sink.0.lock().unwrap(), b"hello worldh");
    assert_eq!(driver.used(TRANSMIT), [(0, 0), (2, 0)]);
}

#[test]
fn input_waits_for_a_buffer() {
    let (mut driver, input, _) = console();
    assert_eq!(input.push(b"typed"), 5);
    driver.run();
    assert_eq!(driver.used(RECEIVE), []);
    assert_eq!(driver.request(RECEIVE, &[(DATA, 64, true)]), 5);
    assert_eq!(driver.read(DATA, 5), b"typed");
}

#[test]
fn a_buffer_waits_for_input() {
    let (mut driver, input, _) = console();
    driver.offer(RECEIVE, &[(DATA, 3, true)]);
    driver.offer(RECEIVE, &[(DATA + 0x100, 64, true)]);
    driver.notify(RECEIVE);
    assert_eq!(driver.used(RECEIVE), []);
    input.push(b"typed");
    driver.run();
    assert_eq!(driver.used(RECEIVE), [(0, 3), (1, 2)]);
    assert_eq!(driver.read(DATA + 0x100, 2), b"ed");
}

#[test]
fn input_is_bounded_and_never_lost() {
    let (mut driver, input, _) = console();
    let typed: Vec<u8> = (0..=255).cycle().take(3 * INPUT_LIMIT).collect();
    let (mut pushed, mut got) = (0, Vec::new());
    while got.len() < typed.len() {
        pushed += input.push(&typed[pushed..]);
        assert!(pushed - got.len() <= INPUT_LIMIT);
        let len = driver.request(RECEIVE, &[(DATA, 1000, true)]);
        got.extend(driver.read(DATA, len as usize));
    }
    assert_eq!(got, typed);
}

#[test]
fn too_much_output_at_once_stops_the_device() {
    let (mut driver, _, sink) = console();
    driver.offer(TRANSMIT, &[(0, MEMORY_LEN as u32, false)]);
    driver.notify(TRANSMIT);
    assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET);
    assert!(sink.0.lock().unwrap().is_empty());
}

#[test]
fn input_survives_reset_and_saving() {
    let (mut driver, input, _) = console();
    input.push(b"kept");
    driver.start(0);
    let state = driver.transport.state();
    assert_eq!(state.device, DeviceState::Console(ConsoleState { input: b"kept".to_vec() }));
    let (mut other, ..) = console();
    other.transport.restore(&state).unwrap();
    other.start(0);
    assert_eq!(other.request(RECEIVE, &[(DATA, 64, true)]), 4);
    let DeviceMetrics::Console(metrics) = other.transport.device_metrics() else { panic!() };
    assert_eq!(metrics.received_bytes, 4);
}

#[test]
fn a_reader_who_is_behind_holds_up_the_queue_until_he_reads() {
    let buffer = OutputBuffer::new();
    let console = Console::new(Output::buffered(buffer.clone())).unwrap();
    let mut driver = Driver::ready(console, 0);
    buffer.push(&[b'a'; SHUT_AT]);
    driver.write(DATA, b"late");
    driver.offer(TRANSMIT, &[(DATA, 4, false)]);
    driver.notify(TRANSMIT);
    assert_eq!(driver.used(TRANSMIT), []);
    buffer.taken(SHUT_AT);
    driver.run();
    assert_eq!(driver.used(TRANSMIT), [(0, 0)]);
    assert_eq!(buffer.next().as_deref(), Some(b"late".as_slice()));
}
