use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::bus::BusDevice;

fn read(rtc: &Rtc, register: u8) -> u8 {
    rtc.write(0, &[register]);
    let mut data = [0];
    rtc.read(1, &mut data);
    data[0]
}

/// century, year, month, day, weekday, hour, minute, second: as BCD reads in hexadecimal.
fn registers(unix_seconds: u64) -> [u8; 8] {
    let clock = move || UNIX_EPOCH + Duration::from_secs(unix_seconds);
    let rtc = Rtc::with_clock(Box::new(clock));
    [CENTURY_REGISTER, 9, 8, 7, 6, 4, 2, 0].map(|register| read(&rtc, register))
}

#[test]
fn known_moments() {
    // Each pair is checked against `date -u -d @SECONDS`.
    assert_eq!(registers(0), [0x19, 0x70, 0x01, 0x01, 5, 0, 0, 0]);
    assert_eq!(registers(951_782_399), [0x20, 0x00, 0x02, 0x28, 2, 0x23, 0x59, 0x59]);
    assert_eq!(registers(951_782_400), [0x20, 0x00, 0x02, 0x29, 3, 0, 0, 0]);
    assert_eq!(registers(1_735_689_599), [0x20, 0x24, 0x12, 0x31, 3, 0x23, 0x59, 0x59]);
    assert_eq!(registers(1_735_689_600), [0x20, 0x25, 0x01, 0x01, 4, 0, 0, 0]);
    assert_eq!(registers(4_107_542_400), [0x21, 0x00, 0x03, 0x01, 2, 0, 0, 0]);
}

#[test]
fn the_time_is_valid_and_never_updating() {
    let rtc = Rtc::new();
    assert_eq!(read(&rtc, 0x0a) & 0x80, 0);
    assert_eq!(read(&rtc, 0x0b) & 0x06, 0x02, "24 hours, BCD");
    assert_eq!(read(&rtc, 0x0d) & 0x80, 0x80);
}

#[test]
fn the_index_ignores_the_nmi_bit_and_is_saved() {
    let rtc = Rtc::new();
    rtc.write(0, &[0x8d]);
    assert_eq!(rtc.state(), RtcState { index: 0x0d });
    let again = Rtc::new();
    again.restore(rtc.state());
    let mut data = [0; 2];
    again.read(0, &mut data);
    assert_eq!(data, [0xff, 0x80]);
}

#[test]
fn every_register_can_be_read_and_written() {
    for index in 0..=255 {
        let rtc = Rtc::new();
        rtc.write(1, &[0xff]);
        rtc.write(0, &[index, 0xff, 0xff, 0xff]);
        read(&rtc, index);
    }
}
