use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::Notifier;
use crate::bus::BusDevice;
use crate::input::InputSink;
use crate::output::Output;

const RBR: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const DATA_READY: u8 = 1;

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

struct Rig {
    serial: Serial,
    sink: Sink,
    interrupts: Arc<AtomicUsize>,
}

impl Rig {
    fn new() -> Self {
        let (sink, interrupts) = (Sink::default(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&interrupts);
        let irq = Arc::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let serial = Serial::new(irq, Output::new(sink.clone())).unwrap();
        Self { serial, sink, interrupts }
    }

    fn read(&self, register: u64) -> u8 {
        let mut data = [0];
        self.serial.read(register, &mut data);
        data[0]
    }

    fn write(&self, register: u64, value: u8) {
        self.serial.write(register, &[value]);
    }

    fn interrupts(&self) -> usize {
        self.interrupts.swap(0, Ordering::SeqCst)
    }
}

#[test]
fn what_the_guest_sends_comes_out() {
    let rig = Rig::new();
    for byte in b"hello" {
        rig.write(RBR, *byte);
    }
    assert_eq!(*rig.sink.0.lock().unwrap(), b"hello");
    assert_eq!(rig.serial.metrics().sent_bytes, 5);
}

#[test]
fn input_raises_an_interrupt_and_is_read_in_order() {
    let rig = Rig::new();
    rig.write(IER, 1);
    rig.interrupts();
    assert_eq!(rig.serial.push(b"abc"), 3);
    assert_eq!(rig.interrupts(), 1);
    assert_eq!(rig.read(IIR) & 0x0f, 0x04);
    let mut got = Vec::new();
    while rig.read(LSR) & DATA_READY != 0 {
        got.push(rig.read(RBR));
    }
    assert_eq!(got, b"abc");
    assert_eq!(rig.read(IIR) & 0x0f, 0x01);
}

#[test]
fn a_full_fifo_takes_no_more_and_tells_when_it_can() {
    let rig = Rig::new();
    let space = rig.serial.space();
    assert_eq!(rig.serial.push(&vec![7; space + 10]), space);
    assert_eq!(rig.serial.push(b"x"), 0);
    let notifier = rig.serial.space_notifier();
    notifier.take();
    for _ in 0..space {
        assert!(!notifier.take());
        assert_eq!(rig.read(RBR), 7);
    }
    assert!(notifier.take());
    assert_eq!(rig.serial.space(), space);
}

#[test]
fn loop_back_holds_input_back_instead_of_losing_it() {
    let rig = Rig::new();
    rig.write(MCR, 0x10);
    assert_eq!(rig.serial.push(b"typed"), 0);
    rig.write(RBR, 0x55);
    assert_eq!(rig.read(RBR), 0x55);
    let notifier = rig.serial.space_notifier();
    notifier.take();
    rig.write(MCR, 0);
    assert!(notifier.take());
    assert_eq!(rig.serial.push(b"typed"), 5);
    assert_eq!(rig.sink.0.lock().unwrap().len(), 0);
}

#[test]
fn two_causes_are_identified_one_after_the_other() {
    let rig = Rig::new();
    rig.serial.push(b"k");
    rig.write(IER, 3);
    rig.interrupts();
    assert_eq!(rig.read(IIR) & 0x0f, 0x04, "received data comes first");
    assert_eq!(rig.interrupts(), 1, "the other cause raises its own edge");
    assert_eq!(rig.read(IIR) & 0x0f, 0x02, "then the empty transmitter");
    assert_eq!(rig.read(IIR) & 0x0f, 0x01);
}

#[test]
fn wide_accesses_reach_consecutive_registers() {
    let rig = Rig::new();
    rig.write(LCR, 0x80);
    rig.serial.write(0, &[0x34, 0x12]);
    let mut data = [0; 2];
    rig.serial.read(0, &mut data);
    assert_eq!(data, [0x34, 0x12]);
}

#[test]
fn state_survives_saving() {
    let rig = Rig::new();
    rig.write(IER, 1);
    rig.write(7, 0xa5);
    rig.serial.push(b"later");
    let state = rig.serial.state();
    let irq = Arc::new(|| {});
    let notifier = Notifier::new().unwrap();
    let again = Serial::restore(&state, irq, Output::new(io::sink()), notifier).unwrap();
    assert_eq!(again.state(), state);
    let mut data = [0];
    again.read(RBR, &mut data);
    assert_eq!(data, [b'l']);

    let damaged = SerialState { input: vec![0; 1000], ..state };
    let irq = Arc::new(|| {});
    let error = Serial::restore(&damaged, irq, Output::new(io::sink()), Notifier::new().unwrap())
        .unwrap_err();
    assert_eq!(error, SerialError::Input { bytes: 1000 });
}

#[test]
fn any_sequence_of_accesses_is_survived() {
    let mut value = 12345_u32;
    let mut next = || {
        value = value.wrapping_mul(1_103_515_245).wrapping_add(12345);
        (value >> 16) as u8
    };
    let rig = Rig::new();
    for _ in 0..100_000 {
        match next() % 4 {
            0 => {
                rig.serial.push(&[next(); 9]);
            }
            1 => drop(rig.read(u64::from(next() % 8))),
            _ => rig.write(u64::from(next() % 8), next()),
        }
    }
}
