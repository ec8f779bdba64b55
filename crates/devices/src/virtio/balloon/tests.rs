use std::sync::{Arc, Mutex};

use memory::{FrameState, Gpa, GuestMemory};

use super::*;
use crate::virtio::testing::*;
use crate::virtio::{DeviceMetrics, RestoreError, VirtioDevice};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;

const F_STATISTICS: u64 = 1 << 1;
const F_REPORTING: u64 = 1 << 5;

const GUEST_PAGES: u32 = (MEMORY_LEN / PAGE_SIZE) as u32;

/// Remembers what it was asked for.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Requests>>);

type Requests = Vec<(&'static str, Vec<u64>)>;

impl Asked {
    fn note(&self, what: &'static str, pages: impl Iterator<Item = u64>) -> u64 {
        let pages: Vec<_> = pages.collect();
        let inside = pages.iter().filter(|&&page| page < u64::from(GUEST_PAGES)).count();
        self.0.lock().unwrap().push((what, pages));
        inside as u64
    }

    fn take(&self) -> Requests {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl BalloonMemory for Asked {
    fn inflate(&mut self, pages: &[PageNumber]) -> u64 {
        self.note("inflate", pages.iter().map(|page| page.0))
    }

    fn deflate(&mut self, pages: &[PageNumber]) -> u64 {
        self.note("deflate", pages.iter().map(|page| page.0))
    }

    fn report(&mut self, ranges: &[PageRange]) -> u64 {
        self.note("report", ranges.iter().flat_map(|r| r.first.0..r.first.0 + r.count))
    }
}

const CONFIG: BalloonConfig =
    BalloonConfig { guest_pages: GUEST_PAGES, deflate_on_oom: true, free_page_reporting: true };

fn balloon(features: u64) -> (Driver, BalloonHandle, Asked) {
    let asked = Asked::default();
    let balloon = Balloon::new(CONFIG, Box::new(asked.clone())).unwrap();
    let handle = balloon.handle();
    (Driver::ready(balloon, features), handle, asked)
}

fn write_pages(driver: &Driver, pages: &[u32]) -> u32 {
    let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
    driver.write(DATA, &bytes);
    bytes.len() as u32
}

fn metrics(driver: &Driver) -> BalloonMetrics {
    match driver.transport.device_metrics() {
        DeviceMetrics::Balloon(metrics) => metrics,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_target_reaches_the_guest_and_its_answer_comes_back() {
    let (mut driver, handle, _) = balloon(0);
    let generation = driver.get(0xfc);
    handle.set_target(100).unwrap();
    driver.run();
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.get(0x60), 2, "configuration change");
    assert_ne!(driver.get(0xfc), generation);
    assert_eq!(driver.get(0x100), 100);
    driver.set(0x104, 42);
    assert_eq!((handle.target(), handle.actual()), (100, 42));
    driver.set(0x100, 7);
    assert_eq!(handle.target(), 100, "the target is not the guest's to set");
}

#[test]
fn a_target_beyond_the_guest_is_refused() {
    let (_, handle, _) = balloon(0);
    let pages = GUEST_PAGES + 1;
    let error = handle.set_target(pages).unwrap_err();
    assert_eq!(error, BalloonError::TargetTooLarge { pages, limit: GUEST_PAGES });
    assert_eq!(handle.target(), 0);
}

#[test]
fn a_target_set_before_the_driver_is_there_waits() {
    let balloon = Balloon::new(CONFIG, Box::new(Asked::default())).unwrap();
    let handle = balloon.handle();
    let mut driver = Driver::new(balloon);
    handle.set_target(5).unwrap();
    driver.run();
    assert_eq!(driver.interrupts(), 0);
    driver.negotiate(0);
    driver.set_up_queues();
    driver.set(0x70, DRIVER_OK);
    driver.run();
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.get(0x100), 5);
}

#[test]
fn pages_go_in_and_out() {
    let (mut driver, _, asked) = balloon(0);
    let len = write_pages(&driver, &[5, 9, GUEST_PAGES, u32::MAX]);
    assert_eq!(driver.request(INFLATE, &[(DATA, len, false)]), 0);
    let len = write_pages(&driver, &[9]);
    driver.request(DEFLATE, &[(DATA, len, false)]);
    let all = vec![5, 9, u64::from(GUEST_PAGES), u64::from(u32::MAX)];
    assert_eq!(asked.take(), [("inflate", all), ("deflate", vec![9])]);
    let metrics = metrics(&driver);
    assert_eq!((metrics.inflated_pages, metrics.deflated_pages, metrics.bad_pages), (2, 1, 2));
}

#[test]
fn page_numbers_may_be_cut_anywhere() {
    let (mut driver, _, asked) = balloon(0);
    write_pages(&driver, &[1, 2, 3]);
    driver.request(INFLATE, &[(DATA, 5, false), (DATA + 5, 5, false)]);
    assert_eq!(asked.take(), [("inflate", vec![1, 2])]);
}

#[test]
fn too_many_pages_at_once_stop_the_device() {
    let (mut driver, _, asked) = balloon(0);
    driver.offer(INFLATE, &[(DATA, 1025 * 4, false)]);
    driver.notify(INFLATE);
    assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET);
    assert!(asked.take().is_empty());
}

#[test]
fn statistics_are_asked_for_and_read() {
    let (mut driver, handle, _) = balloon(F_STATISTICS);
    let entry = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    driver.write(DATA, &[entry(4, 1 << 20), entry(77, 5), entry(3, 12), vec![1, 2]].concat());
    driver.offer(STATISTICS, &[(DATA, 32, false)]);
    driver.notify(STATISTICS);
    let expected = GuestStatistics {
        free_bytes: Some(1 << 20),
        minor_faults: Some(12),
        ..GuestStatistics::default()
    };
    assert_eq!(handle.statistics(), Some(expected));
    assert_eq!(driver.used(STATISTICS), [], "the device holds the buffer");

    handle.request_statistics();
    driver.run();
    assert_eq!(driver.used(STATISTICS), [(0, 0)]);
    driver.write(DATA, &entry(4, 7));
    driver.offer(STATISTICS, &[(DATA, 10, false)]);
    driver.notify(STATISTICS);
    assert_eq!(handle.statistics().unwrap().free_bytes, Some(7));
    assert_eq!(driver.used(STATISTICS), [], "one question, one answer");
}

#[test]
fn a_question_waits_for_the_guest_and_a_second_buffer_goes_back() {
    let (mut driver, handle, _) = balloon(F_STATISTICS);
    handle.request_statistics();
    driver.run();
    driver.offer(STATISTICS, &[(DATA, 0, false)]);
    driver.notify(STATISTICS);
    assert_eq!(driver.used(STATISTICS), [(0, 0)]);
    driver.offer(STATISTICS, &[(DATA, 0, false)]);
    driver.offer(STATISTICS, &[(DATA, 0, false)]);
    driver.notify(STATISTICS);
    assert_eq!(driver.used(STATISTICS), [(1, 0)]);
}

#[test]
fn reports_give_whole_pages_back() {
    let (mut driver, _, asked) = balloon(F_STATISTICS | F_REPORTING);
    let page = PAGE_SIZE as u32;
    driver.request(
        4,
        &[(DATA, 2 * page, true), (DATA + 0x5800, page, true), (DATA + 0x8800, 2 * page, true)],
    );
    let first = DATA / PAGE_SIZE;
    assert_eq!(asked.take(), [("report", vec![first, first + 1, first + 9])]);
    assert_eq!(metrics(&driver).reported_pages, 3);
}

/// Linux numbers only the queues it negotiated; the specification numbers all of them.
#[test]
fn reports_are_found_by_either_numbering() {
    for (features, queue) in [(F_STATISTICS | F_REPORTING, 3), (F_REPORTING, 2)] {
        let asked = Asked::default();
        let balloon = Balloon::new(CONFIG, Box::new(asked.clone())).unwrap();
        let mut driver = Driver::new(balloon);
        driver.negotiate(features);
        driver.set_up_queues();
        for unused in queue + 1..5 {
            driver.set(0x30, unused as u32);
            driver.set(0x44, 0);
        }
        driver.set(0x70, DRIVER_OK);
        driver.run();
        driver.request(queue, &[(DATA, PAGE_SIZE as u32, true)]);
        assert_eq!(asked.take(), [("report", vec![DATA / PAGE_SIZE])]);
    }
}

#[test]
fn pages_really_leave_the_process() {
    let memory = Arc::new(GuestMemory::with_bytes(MEMORY_LEN).unwrap());
    let frames = FrameBalloon::new(Arc::clone(&memory));
    let balloon = Balloon::new(CONFIG, Box::new(frames)).unwrap();
    let mut driver = Driver::with_memory(Arc::clone(&memory), Box::new(balloon));
    driver.start(F_STATISTICS | F_REPORTING);
    let at = |page: u32| u64::from(page) * PAGE_SIZE;
    let pages: Vec<u32> = (512..768).collect();
    pages.iter().for_each(|&page| driver.write(at(page), &[1; 4096]));
    let len = write_pages(&driver, &pages);
    let before = memory.backed_bytes().unwrap();
    driver.request(INFLATE, &[(DATA, len, false)]);
    assert_eq!(before - memory.backed_bytes().unwrap(), 256 * PAGE_SIZE);
    let frame = memory.frame_of(Gpa(at(512))).unwrap();
    assert_eq!(memory.facts(frame).unwrap().state, FrameState::Ballooned);

    let len = write_pages(&driver, &[512]);
    driver.request(DEFLATE, &[(DATA, len, false)]);
    assert_eq!(memory.facts(frame).unwrap().state, FrameState::Untouched);
    assert_eq!(driver.read(at(512), 4), [0; 4]);

    driver.write(at(800), &[1; 4096]);
    let before = memory.backed_bytes().unwrap();
    driver.request(4, &[(at(800), PAGE_SIZE as u32, true)]);
    assert_eq!(before - memory.backed_bytes().unwrap(), PAGE_SIZE);
    assert_eq!(driver.read(at(800), 4), [0; 4]);
}

#[test]
fn what_is_offered_is_what_was_asked_for() {
    let config = BalloonConfig { deflate_on_oom: false, free_page_reporting: false, ..CONFIG };
    let plain = Balloon::new(config, Box::new(Asked::default())).unwrap();
    assert_eq!(plain.features(), 0b11);
    let full = Balloon::new(CONFIG, Box::new(Asked::default())).unwrap();
    assert_eq!(full.features(), 0b10_0111);
}

#[test]
fn state_is_saved_and_checked() {
    let (mut driver, handle, _) = balloon(F_STATISTICS);
    handle.set_target(9).unwrap();
    driver.set(0x104, 8);
    driver.offer(STATISTICS, &[(DATA, 0, false)]);
    driver.notify(STATISTICS);
    let state = driver.transport.state();
    let saved = BalloonState { target: 9, actual: 8, held_statistics: Some(0) };
    assert_eq!(state.device, crate::virtio::DeviceState::Balloon(saved));

    let balloon = Balloon::new(CONFIG, Box::new(Asked::default())).unwrap();
    let again = balloon.handle();
    let mut other = Driver::with_memory(Arc::clone(&driver.memory), Box::new(balloon));
    other.transport.restore(&state).unwrap();
    assert_eq!((again.target(), again.actual()), (9, 8));
    again.request_statistics();
    other.run();
    assert_eq!(driver.used(STATISTICS), [(0, 0)], "the held buffer goes back after a restore");

    let small = BalloonConfig { guest_pages: 8, ..CONFIG };
    let mut small = Balloon::new(small, Box::new(Asked::default())).unwrap();
    assert!(matches!(small.restore(&state.device), Err(RestoreError::Differs { .. })));
}

#[test]
fn a_queue_without_a_role_is_not_touched() {
    let (mut driver, _, asked) = balloon(0);
    driver.offer(3, &[(DATA, 8, true)]);
    driver.notify(3);
    assert_eq!(driver.used(3), []);
    assert!(asked.take().is_empty());
}
