//! A host's side that vanishes, and comes back; a driver that comes late, and again.

use std::os::unix::net::UnixListener;
use std::time::Instant;

use super::*;

const CONFIGURATION: u32 = 2;

fn link_is_up(driver: &Driver) -> bool {
    driver.get(0x104) >> 16 & 1 == 1
}

#[test]
fn a_stream_that_ends_takes_the_link_down() {
    let (mut driver, theirs) = net(STATUS);
    assert!(link_is_up(&driver));
    let generation = driver.get(0xfc);
    drop(theirs);
    driver.run();
    assert!(!link_is_up(&driver));
    assert_ne!(driver.get(0xfc), generation);
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.get(0x60) & CONFIGURATION, CONFIGURATION);
    let len = write_packet(&driver, [0; HEADER_LEN], &frame(60, 1));
    assert_eq!(driver.request(TRANSMIT, &[(DATA, len, false)]), 0, "the guest goes on");
    let metrics = metrics(&driver);
    assert_eq!((metrics.links_lost, metrics.dropped_sent, metrics.sent_frames), (1, 1, 0));
}

#[test]
fn a_guest_that_is_held_back_goes_on_when_the_stream_ends() {
    let (mut driver, theirs) = net(STATUS);
    let len = write_packet(&driver, [0; HEADER_LEN], &frame(60_000, 9));
    for _ in 0..64 {
        driver.offer(TRANSMIT, &[(DATA, len, false)]);
    }
    driver.notify(TRANSMIT);
    let taken = driver.used(TRANSMIT).len();
    assert!(taken < 64);
    drop(theirs);
    driver.run();
    assert_eq!(taken + driver.used(TRANSMIT).len(), 64);
    assert!(!link_is_up(&driver));
}

#[test]
fn a_passt_that_is_back_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("passt.socket");
    let config =
        NetConfig { backend: NetBackend::Socket(path.clone()), mac: mac(), mtu: Some(1500) };
    let refused = config.plan().unwrap_err();
    assert!(matches!(refused, NetError::Connect { .. }), "{refused}");

    let listener = UnixListener::bind(&path).unwrap();
    let mut driver = Driver::ready(Net::new(config.plan().unwrap()), STATUS);
    let (first, _) = listener.accept().unwrap();
    drop((first, listener));
    driver.run();
    assert!(!link_is_up(&driver));

    std::fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    wait_for(&mut driver, link_is_up);
    assert_eq!(driver.interrupts(), 2, "down and up");
    let (mut second, _) = listener.accept().unwrap();
    let len = write_packet(&driver, [0; HEADER_LEN], &frame(60, 1));
    driver.request(TRANSMIT, &[(DATA, len, false)]);
    assert_eq!(receive_frame(&mut second), frame(60, 1));
}

/// Lets the I/O thread run until the device is as wanted. The limit is for failures only.
pub(super) fn wait_for(driver: &mut Driver, wanted: impl Fn(&Driver) -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !wanted(driver) {
        assert!(Instant::now() < limit, "it never happened");
        std::thread::sleep(Duration::from_millis(20));
        driver.run();
    }
}

#[test]
fn what_happens_without_a_driver_is_told_to_the_next_and_keeps_nobody_busy() {
    let (plan, mut theirs) = plan();
    let mut driver = Driver::new(Net::new(plan));
    send_frame(&mut theirs, &frame(60, 1));
    // It would never get idle if the frame were an event all the time.
    driver.run();
    driver.start(STATUS);
    assert!(link_is_up(&driver));
    offer_buffers(&mut driver, 1, 2048);
    assert_eq!(driver.used(RECEIVE), [(0, 72)]);

    driver.set(0x70, 0);
    drop(theirs);
    driver.run();
    driver.negotiate(STATUS);
    driver.set_up_queues();
    driver.set(0x70, DRIVER_OK);
    driver.run();
    assert!(!link_is_up(&driver));
    assert_eq!(driver.get(0x60) & CONFIGURATION, CONFIGURATION, "it was told");
}

/// A guest that reboots: a new device on the same plan, in the middle of a frame.
#[test]
fn the_next_device_goes_on_where_the_last_one_stopped() {
    let (plan, mut theirs) = plan();
    let mut first = Driver::ready(Net::new(plan.clone()), STATUS);
    let whole = frame(60, 1);
    theirs.write_all(&60_u32.to_be_bytes()).unwrap();
    theirs.write_all(&whole[..30]).unwrap();
    first.run();
    drop(first);
    let mut second = Driver::ready(Net::new(plan), STATUS);
    theirs.write_all(&whole[30..]).unwrap();
    offer_buffers(&mut second, 1, 2048);
    assert_eq!(second.used(RECEIVE), [(0, 72)]);
    assert_eq!(second.read(BUFFERS + HEADER_LEN as u64, 60), whole);
}
