//! Bad rings and chains, each through a whole device: it stops, and works again after a reset.

use super::*;
use crate::virtio::rng::Rng;
use crate::virtio::testing::*;

fn rng() -> Driver {
    Driver::ready(Rng::new(), 0)
}

/// The device stopped because of what is in queue 0, told the driver, and can be reset.
fn expect_stopped(mut driver: Driver, what: &str) {
    driver.notify(0);
    assert_eq!(driver.status(), DRIVER_OK | NEEDS_RESET, "{what}");
    assert_eq!(driver.interrupts(), 1, "{what}");
    assert_eq!(driver.get(0x60) & 2, 2, "{what}: a configuration change interrupt");
    driver.notify(0);
    assert_eq!(driver.transport.metrics().guest_errors, 1, "{what}: stopped means stopped");
    driver.start(0);
    driver.request(0, &[(DATA, 16, true)]);
}

#[test]
fn loops_end() {
    for next in [0, 1] {
        let mut driver = rng();
        driver.descriptor(0, 0, DATA, 16, WRITE | NEXT, 1);
        driver.descriptor(0, 1, DATA, 16, WRITE | NEXT, next);
        driver.make_available(0, 0);
        expect_stopped(driver, "loop");
    }
}

#[test]
fn bad_indices() {
    for head in [64, 0xffff] {
        let mut driver = rng();
        driver.make_available(0, head);
        expect_stopped(driver, "head");
    }
    let mut driver = rng();
    driver.descriptor(0, 0, DATA, 16, WRITE | NEXT, 64);
    driver.make_available(0, 0);
    expect_stopped(driver, "next");
}

#[test]
fn the_available_index_cannot_run_ahead() {
    let mut driver = rng();
    driver.set_available_index(0, 65);
    expect_stopped(driver, "available index");
}

#[test]
fn buffers_outside_memory() {
    for (address, len) in
        [(MEMORY_LEN, 1), (MEMORY_LEN - 8, 16), (u64::MAX - 8, 16), (u64::MAX, 0), (0, u32::MAX)]
    {
        let mut driver = rng();
        if (address, len) == (u64::MAX, 0) {
            // Empty, at the very end: nowhere, but nothing of it is touched either.
            driver.offer(0, &[(address, len, true), (DATA, 8, true)]);
            driver.notify(0);
            assert_eq!(driver.used(0), [(0, 8)]);
            continue;
        }
        driver.offer(0, &[(address, len, true)]);
        expect_stopped(driver, "buffer");
    }
}

#[test]
fn readable_parts_come_first() {
    let mut driver = rng();
    driver.offer(0, &[(DATA, 8, true), (DATA, 8, false)]);
    expect_stopped(driver, "order");
}

#[test]
fn chains_are_no_longer_than_the_queue() {
    let mut driver = rng();
    driver.offer(0, &[(DATA, 1, true); 64]);
    driver.notify(0);
    assert_eq!(driver.used(0), [(0, 64)]);

    let table: Vec<u8> =
        (1..=65).flat_map(|i| descriptor(DATA, 1, WRITE | (NEXT * u16::from(i < 65)), i)).collect();
    let mut driver = rng();
    driver.write(DATA + 0x1000, &table);
    driver.descriptor(0, 0, DATA + 0x1000, table.len() as u32, INDIRECT, 0);
    driver.make_available(0, 0);
    expect_stopped(driver, "indirect table of 65");
}

#[test]
fn an_indirect_chain_is_a_chain() {
    let mut driver = rng();
    let table = [descriptor(DATA, 8, WRITE | NEXT, 1), descriptor(DATA + 8, 24, WRITE, 0)];
    driver.write(DATA + 0x1000, &table.concat());
    driver.descriptor(0, 5, DATA + 0x1000, 32, INDIRECT, 0);
    driver.make_available(0, 5);
    driver.notify(0);
    assert_eq!(driver.used(0), [(5, 32)]);
    assert_ne!(driver.read(DATA, 32), [0; 32]);
}

#[test]
fn bad_indirect_tables() {
    // Address, length, what the first entry of the table is.
    let entry = descriptor(DATA, 8, WRITE, 0);
    let nested = descriptor(DATA + 0x2000, 16, INDIRECT, 0);
    let endless = descriptor(DATA, 8, WRITE | NEXT, 0);
    for (address, len, first) in [
        (DATA + 0x1000, 0, &entry),
        (DATA + 0x1000, 15, &entry),
        (DATA + 0x1000, 17, &entry),
        (DATA + 0x1000, 0xffff_fff0, &entry),
        (MEMORY_LEN, 16, &entry),
        (u64::MAX - 7, 16, &entry),
        (DATA + 0x1000, 16, &nested),
        (DATA + 0x1000, 16, &endless),
    ] {
        let mut driver = rng();
        driver.write(DATA + 0x1000, first);
        driver.descriptor(0, 0, address, len, INDIRECT, 0);
        driver.make_available(0, 0);
        expect_stopped(driver, &format!("table {address:#x}+{len:#x}"));
    }
}

#[test]
fn a_chain_is_shorter_than_4_gib() {
    // Each descriptor covers all of memory, so this takes little of it.
    let memory = std::sync::Arc::new(memory::GuestMemory::with_bytes(128 << 20).unwrap());
    let mut driver = Driver::with_memory(memory, Box::new(Rng::new()));
    driver.start(0);
    driver.offer(0, &[(0, 128 << 20, true); 31]);
    driver.notify(0);
    assert_eq!(driver.used(0).len(), 1);
    driver.interrupts();
    driver.offer(0, &[(0, 128 << 20, true); 32]);
    expect_stopped(driver, "4 GiB");
}

#[test]
fn indices_wrap_around() {
    let mut driver = rng();
    for _ in 0..70_000 {
        driver.offer(0, &[(DATA, 1, true)]);
        driver.set(0x50, 0);
        driver.run_once();
    }
    assert_eq!(driver.status(), DRIVER_OK);
    assert_eq!(driver.used(0).len(), 70_000 % 65_536);
}

#[test]
fn segments_split_and_window() {
    let mut segments = Segments::default();
    for (address, len) in [(100, 10), (200, 0), (300, 5)] {
        segments.push(Segment { address: memory::Gpa(address), len });
    }
    assert_eq!(segments.len(), 15);
    let (front, back) = segments.clone().split_at(12);
    assert_eq!((front.len(), back.len()), (12, 3));
    assert_eq!(back.iter().next().unwrap().address.0, 302);
    let (front, back) = segments.clone().split_at(99);
    assert_eq!((front.len(), back.len()), (15, 0));

    let memory = std::sync::Arc::new(memory::GuestMemory::with_bytes(MEMORY_LEN).unwrap());
    let view = crate::DeviceView::new(memory);
    segments.write(&view, 8, b"abcde").unwrap();
    let mut bytes = [0; 5];
    segments.read(&view, 8, &mut bytes).unwrap();
    assert_eq!(&bytes, b"abcde");
    let error = segments.read(&view, 11, &mut bytes).unwrap_err();
    assert_eq!(error, QueueError::Short { want: 16, have: 15 });
}

/// A queue of 8 with three chains of one buffer available, and the view it lies in.
fn three_chains(event_index: bool) -> (Driver, VirtQueue) {
    let mut driver = rng();
    driver.set_up_queue(0, 8);
    let [desc, available, used] = rings(0);
    (0..3).for_each(|i| driver.descriptor(0, i, DATA, 4, WRITE, 0));
    (0..3).for_each(|i| driver.make_available(0, i));
    let setup = QueueState {
        size: 8,
        ready: true,
        desc,
        driver: available,
        device: used,
        ..QueueState::default()
    };
    let mut queue = VirtQueue::new(&setup, 8, &driver.view).unwrap();
    queue.set_event_index(event_index);
    (driver, queue)
}

fn heads(queue: &mut VirtQueue, view: &crate::DeviceView) -> Vec<u16> {
    std::iter::from_fn(|| queue.pop(view).unwrap()).map(|chain| chain.head).collect()
}

#[test]
fn what_is_put_back_comes_again() {
    let (driver, mut queue) = three_chains(false);
    assert_eq!(heads(&mut queue, &driver.view), [0, 1, 2]);
    queue.put_back(2);
    assert_eq!(heads(&mut queue, &driver.view), [1, 2]);
}

#[test]
fn several_chains_go_back_at_once() {
    let (mut driver, mut queue) = three_chains(false);
    heads(&mut queue, &driver.view);
    queue.push_all(&driver.view, &[(2, 4), (0, 3)]).unwrap();
    assert_eq!(driver.used(0), [(2, 4), (0, 3)]);
    queue.push(&driver.view, 1, 1).unwrap();
    assert_eq!(driver.used(0), [(1, 1)]);
    assert_eq!(queue.push(&driver.view, 8, 0), Err(QueueError::Chain { head: 8 }));
    assert_eq!(driver.used(0), []);
}

#[test]
fn an_index_passed_within_a_batch_interrupts() {
    for (waits_for, wanted) in [(0, true), (1, true), (2, true), (3, false), (7, false)] {
        let (driver, mut queue) = three_chains(true);
        heads(&mut queue, &driver.view);
        driver.set_used_event(0, waits_for);
        queue.push_all(&driver.view, &[(0, 0), (1, 0), (2, 0)]).unwrap();
        assert_eq!(queue.needs_interrupt(&driver.view), Ok(wanted), "{waits_for}");
        assert_eq!(queue.needs_interrupt(&driver.view), Ok(false), "nothing new");
    }
}
