use super::*;
use crate::virtio::DeviceMetrics;
use crate::virtio::testing::*;

#[test]
fn buffers_are_filled_with_different_bytes() {
    let mut driver = Driver::ready(Rng::new(), 0);
    assert_eq!(driver.request(0, &[(DATA, 10, true), (DATA + 0x1000, 300, true)]), 310);
    let (a, b) = (driver.read(DATA + 0x1000, 32), driver.read(DATA + 0x1020, 32));
    assert_ne!(a, b);
    assert_ne!(a, [0; 32]);
    let metrics = RngMetrics { requests: 1, bytes: 310, host_errors: 0 };
    assert_eq!(driver.transport.device_metrics(), DeviceMetrics::Rng(metrics));
}

#[test]
fn a_huge_request_is_answered_in_part() {
    let mut driver = Driver::ready(Rng::new(), 0);
    let len = driver.request(0, &[(DATA, 1 << 20, true)]);
    assert_eq!(u64::from(len), REQUEST_LIMIT);
    assert_eq!(driver.read(DATA + REQUEST_LIMIT, 64), [0; 64]);
}

#[test]
fn a_request_without_a_buffer_stops_the_device() {
    for buffer in [(DATA, 16, false), (DATA, 0, true)] {
        let mut driver = Driver::ready(Rng::new(), 0);
        driver.offer(0, &[buffer]);
        driver.notify(0);
        assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET);
    }
}

#[test]
fn there_is_no_configuration() {
    let driver = Driver::ready(Rng::new(), 0);
    driver.set(0x100, 0xffff_ffff);
    assert_eq!(driver.get(0x100), 0);
}
