use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use super::*;
use crate::bus::Bus;
use crate::power::{PowerEvent, PowerSink};

fn rig() -> (Bus, Receiver<PowerEvent>) {
    let (sender, events) = channel();
    let sender = Mutex::new(sender);
    let sink: PowerSink = Arc::new(move |event| sender.lock().unwrap().send(event).unwrap());
    let mut bus = Bus::port();
    let reset = Arc::new(Reset::new(Arc::clone(&sink)));
    bus.insert(SLEEP_CONTROL_PORT.into(), PORT_COUNT, reset).unwrap();
    bus.insert(I8042_COMMAND_PORT.into(), I8042_PORT_COUNT, Arc::new(I8042::new(sink))).unwrap();
    (bus, events)
}

#[test]
fn soft_off_needs_the_type_and_the_enable_bit() {
    let (bus, events) = rig();
    bus.write(SLEEP_CONTROL_PORT.into(), &[SLEEP_TYPE_S5 << 2]);
    bus.write(SLEEP_CONTROL_PORT.into(), &[1 << 5 | 3 << 2]);
    bus.write(SLEEP_STATUS_PORT.into(), &[1 << 5 | SLEEP_TYPE_S5 << 2]);
    assert!(events.try_recv().is_err());
    bus.write(SLEEP_CONTROL_PORT.into(), &[1 << 5 | SLEEP_TYPE_S5 << 2]);
    assert_eq!(events.try_recv(), Ok(PowerEvent::Poweroff));
}

#[test]
fn reset_takes_its_own_value_only() {
    let (bus, events) = rig();
    bus.write(RESET_PORT.into(), &[RESET_VALUE + 1]);
    assert!(events.try_recv().is_err());
    bus.write(RESET_PORT.into(), &[RESET_VALUE]);
    assert_eq!(events.try_recv(), Ok(PowerEvent::Reboot));
}

#[test]
fn the_keyboard_controller_resets_and_is_never_busy() {
    let (bus, events) = rig();
    let mut status = [0xff];
    bus.read(I8042_COMMAND_PORT.into(), &mut status);
    assert_eq!(status, [0]);
    bus.write(I8042_COMMAND_PORT.into(), &[0xd1]);
    assert!(events.try_recv().is_err());
    bus.write(I8042_COMMAND_PORT.into(), &[0xfe]);
    assert_eq!(events.try_recv(), Ok(PowerEvent::Reboot));
}

#[test]
fn the_guest_reads_that_it_is_awake() {
    let (bus, _events) = rig();
    let mut data = [0xaa; 2];
    bus.read(SLEEP_CONTROL_PORT.into(), &mut data);
    assert_eq!(data, [0, 0]);
    bus.write(SLEEP_CONTROL_PORT.into(), &[0xff; 8]);
}
