use super::*;
use crate::bus::BusDevice;
use crate::virtio::rng::Rng;
use crate::virtio::testing::*;
use crate::virtio::{DeviceKind, RestoreError};

fn rng() -> Driver {
    Driver::ready(Rng::new(), 0)
}

#[test]
fn identification() {
    let driver = Driver::new(Rng::new());
    assert_eq!(driver.get(0x000).to_le_bytes(), *b"virt");
    assert_eq!(driver.get(0x004), 2);
    assert_eq!(driver.get(0x008), 4);
    assert_eq!(driver.transport.kind(), DeviceKind::Rng);
    assert_eq!(driver.get(0x0b0), u32::MAX, "no shared memory");
}

#[test]
fn features_are_shown_in_halves() {
    let driver = Driver::new(Rng::new());
    driver.set(0x14, 0);
    assert_eq!(driver.get(0x10), 1 << 28 | 1 << 29);
    driver.set(0x14, 1);
    assert_eq!(driver.get(0x10), 1);
    driver.set(0x14, 2);
    assert_eq!(driver.get(0x10), 0);
}

#[test]
fn features_that_do_not_fit_are_refused() {
    for (half, value) in [(0, 1), (1, 3), (2, 1), (1, 0)] {
        let driver = Driver::new(Rng::new());
        driver.set(0x70, 3);
        driver.set(0x24, 1);
        driver.set(0x20, 1);
        driver.set(0x24, half);
        driver.set(0x20, value);
        driver.set(0x70, 11);
        assert_eq!(driver.status(), 3, "half {half}, value {value}");
        driver.set(0x70, 15);
        assert_eq!(driver.status() & 4, 0, "no DRIVER_OK without FEATURES_OK");
    }
}

#[test]
fn features_are_fixed_once_agreed() {
    let mut driver = Driver::new(Rng::new());
    driver.negotiate(0);
    driver.set(0x24, 1);
    driver.set(0x20, 0xffff_ffff);
    driver.set(0x70, DRIVER_OK);
    assert_eq!(driver.status(), DRIVER_OK);
    assert_eq!(driver.transport.metrics().bad_accesses, 1);
}

#[test]
fn status_bits_are_taken_back_by_reset_only() {
    let driver = rng();
    driver.set(0x70, 3);
    assert_eq!(driver.status(), DRIVER_OK);
    driver.set(0x70, 0x100);
    assert_eq!(driver.status(), DRIVER_OK);
    driver.set(0x70, DRIVER_OK | NEEDS_RESET);
    assert_eq!(driver.status(), DRIVER_OK, "NEEDS_RESET is the device's");
    driver.set(0x70, 0);
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.get(0x44), 0, "queues are gone");
}

#[test]
fn a_request_is_served_and_interrupts_once() {
    let mut driver = rng();
    driver.request(0, &[(DATA, 16, true)]);
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.get(0x60), 1);
    driver.set(0x64, 1);
    assert_eq!(driver.get(0x60), 0);
}

#[test]
fn nothing_is_served_before_driver_ok_and_nothing_is_lost() {
    let mut driver = Driver::new(Rng::new());
    driver.negotiate(0);
    driver.set_up_queues();
    driver.offer(0, &[(DATA, 16, true)]);
    driver.notify(0);
    assert_eq!(driver.used(0), []);
    driver.set(0x70, DRIVER_OK);
    driver.run();
    assert_eq!(driver.used(0).len(), 1);
}

#[test]
fn a_failed_driver_is_left_alone() {
    let mut driver = rng();
    driver.set(0x70, DRIVER_OK | 0x80);
    driver.offer(0, &[(DATA, 16, true)]);
    driver.notify(0);
    assert_eq!(driver.used(0), []);
}

#[test]
fn the_driver_can_go_without_interrupts() {
    let mut driver = rng();
    driver.set_available_flags(0, 1);
    driver.request(0, &[(DATA, 16, true)]);
    assert_eq!(driver.interrupts(), 0);
    driver.set_available_flags(0, 0);
    driver.request(0, &[(DATA, 16, true)]);
    assert_eq!(driver.interrupts(), 1);
}

#[test]
fn the_driver_can_say_when_to_interrupt() {
    let mut driver = Driver::ready(Rng::new(), EVENT_INDEX);
    driver.set_used_event(0, 2);
    driver.request(0, &[(DATA, 16, true)]);
    driver.request(0, &[(DATA, 16, true)]);
    assert_eq!(driver.interrupts(), 0);
    driver.request(0, &[(DATA, 16, true)]);
    assert_eq!(driver.interrupts(), 1);
}

#[test]
fn a_queue_that_cannot_be_is_refused() {
    let good = rings(0);
    let bad: [(u32, [u64; 3]); 10] = [
        (0, good),
        (3, good),
        (128, good),
        (0x1_0040, good),
        (8, [good[0] + 1, good[1], good[2]]),
        (8, [good[0], good[1] + 1, good[2]]),
        (8, [good[0], good[1], good[2] + 2]),
        (8, [MEMORY_LEN - 16, good[1], good[2]]),
        (8, [good[0], u64::MAX - 1, good[2]]),
        (8, [good[0], 0, good[2]]),
    ];
    for (size, [desc, available, used]) in bad {
        let mut driver = Driver::new(Rng::new());
        driver.negotiate(0);
        driver.set(0x30, 0);
        driver.set(0x38, size);
        for (register, address) in [(0x80, desc), (0x90, available), (0xa0, used)] {
            driver.set(register, address as u32);
            driver.set(register + 4, (address >> 32) as u32);
        }
        driver.set(0x44, 1);
        assert_eq!(driver.get(0x44), 0, "size {size}, rings {desc:#x} {available:#x} {used:#x}");
        assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET);
        driver.start(0);
        driver.request(0, &[(DATA, 16, true)]);
    }
}

#[test]
fn a_running_queue_cannot_be_moved() {
    let mut driver = rng();
    driver.set(0x80, 0);
    driver.set(0x38, 2);
    driver.request(0, &[(DATA, 16, true)]);
    assert_eq!(driver.transport.metrics().bad_accesses, 2);
}

#[test]
fn queues_that_do_not_exist_are_ignored() {
    let mut driver = rng();
    for queue in [1, 7, u32::MAX] {
        driver.set(0x30, queue);
        assert_eq!(driver.get(0x34), 0);
        assert_eq!(driver.get(0x44), 0);
        driver.set(0x38, 8);
        driver.set(0x44, 1);
        driver.set(0x50, queue);
    }
    driver.run();
    driver.request(0, &[(DATA, 16, true)]);
}

#[test]
fn registers_are_32_bits_wide() {
    let driver = rng();
    for (offset, len) in [(0, 1), (0, 2), (1, 4), (2, 2), (0, 8), (0x70, 1)] {
        let mut data = vec![0xaa; len];
        driver.transport.read(offset, &mut data);
        assert_eq!(data, vec![0; len]);
        driver.transport.write(offset, &vec![0; len]);
    }
    assert_eq!(driver.status(), DRIVER_OK);
}

#[test]
fn a_saved_device_goes_on() {
    let mut driver = rng();
    driver.request(0, &[(DATA, 16, true)]);
    let state = driver.transport.state();
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<TransportState>(&text).unwrap(), state);

    let other = Driver::with_memory(driver.memory.clone(), Box::new(Rng::new()));
    other.transport.restore(&state).unwrap();
    assert_eq!(other.transport.state(), state);
    // The same rings, the same driver, another device.
    driver.offer(0, &[(DATA, 16, true)]);
    let mut other = other;
    other.notify(0);
    assert_eq!(driver.used(0).len(), 1);
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let driver = rng();
    let good = driver.transport.state();
    let mut state = good.clone();
    state.queues.push(state.queues[0]);
    let refused = driver.transport.restore(&state).unwrap_err();
    assert_eq!(refused, RestoreError::Queues { saved: 2, expected: 1 });
    let mut state = good.clone();
    state.driver_features |= 1;
    assert!(matches!(driver.transport.restore(&state), Err(RestoreError::Differs { .. })));
    let mut state = good;
    state.queues[0].desc = u64::MAX;
    assert!(matches!(driver.transport.restore(&state), Err(RestoreError::Queue(_))));
    assert_eq!(driver.status(), 0, "reset");
}
