use std::sync::{Arc, Mutex};

use super::*;
use crate::bus::BusDevice;
use crate::power::PowerEvent;

#[test]
fn only_a_panic_is_an_event() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let device = PvPanic::new(Arc::new(move |event| sink.lock().unwrap().push(event)));
    let mut supported = [0];
    device.read(0, &mut supported);
    assert_eq!(supported, [3]);
    device.write(0, &[0]);
    device.write(0, &[2]);
    device.write(0, &[]);
    assert!(seen.lock().unwrap().is_empty());
    device.write(0, &[1]);
    assert_eq!(*seen.lock().unwrap(), [PowerEvent::Panic]);
}
