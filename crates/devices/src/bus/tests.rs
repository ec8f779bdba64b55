use std::sync::Mutex;

use super::*;

/// Answers with its own number and records what it was asked.
struct Probe(u8, Mutex<Vec<(u64, Vec<u8>)>>);

impl Probe {
    fn new(number: u8) -> Arc<Self> {
        Arc::new(Self(number, Mutex::default()))
    }

    fn writes(&self) -> Vec<(u64, Vec<u8>)> {
        self.1.lock().unwrap().clone()
    }
}

impl BusDevice for Probe {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.0 + offset as u8 + i as u8;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.1.lock().unwrap().push((offset, data.to_vec()));
    }
}

#[test]
fn unclaimed_addresses_read_as_ones_and_swallow_writes() {
    let bus = Bus::port();
    let mut data = [0; 4];
    bus.read(0x3f8, &mut data);
    assert_eq!(data, [0xff; 4]);
    bus.write(0xffff, &[1, 2, 3, 4]);
    let bus = Bus::mmio();
    bus.read(u64::MAX, &mut data);
    assert_eq!(data, [0xff; 4]);
}

#[test]
fn an_access_reaches_the_device_that_claims_it() {
    let (a, b) = (Probe::new(0x10), Probe::new(0x20));
    let mut bus = Bus::port();
    bus.insert(0x70, 2, b.clone()).unwrap();
    bus.insert(0x60, 4, a.clone()).unwrap();
    let mut byte = [0];
    bus.read(0x63, &mut byte);
    assert_eq!(byte, [0x13]);
    bus.read(0x64, &mut byte);
    assert_eq!(byte, [0xff]);
    bus.write(0x71, &[9]);
    assert_eq!((a.writes(), b.writes()), (vec![], vec![(1, vec![9])]));
}

#[test]
fn an_access_over_an_edge_is_split() {
    let (a, b) = (Probe::new(0x10), Probe::new(0x20));
    let mut bus = Bus::mmio();
    bus.insert(0x1000, 4, a.clone()).unwrap();
    bus.insert(0x1006, 4, b.clone()).unwrap();
    let mut data = [0; 8];
    bus.read(0x1002, &mut data);
    assert_eq!(data, [0x12, 0x13, 0xff, 0xff, 0x20, 0x21, 0x22, 0x23]);
    bus.write(0xffe, &[1, 2, 3, 4]);
    assert_eq!(a.writes(), [(0, vec![3, 4])]);
}

#[test]
fn overlaps_and_bad_ranges_are_refused() {
    let probe = Probe::new(0);
    let mut bus = Bus::port();
    bus.insert(0x60, 4, probe.clone()).unwrap();
    for (base, len) in [(0x60, 4), (0x5f, 2), (0x63, 1), (0x50, 0x100)] {
        let error = bus.insert(base, len, probe.clone()).unwrap_err();
        assert_eq!(error, BusError::Overlap { space: Space::Port, base, len, other: 0x60 });
    }
    for (base, len) in [(0x70, 0), (0xffff, 2), (u64::MAX, 1), (1, u64::MAX)] {
        let error = bus.insert(base, len, probe.clone()).unwrap_err();
        assert_eq!(error, BusError::OutOfSpace { space: Space::Port, base, len });
    }
    bus.insert(0xffff, 1, probe).unwrap();
}
