use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use std::sync::Arc;

use memory::{DiskBlock, Event, Gpa};

use super::storage::Storage;
use super::*;
use crate::virtio::queue::GuestBuffer;
use crate::virtio::testing::*;
use crate::virtio::{DeviceMetrics, VirtioDevice};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

const SECTORS: u64 = 512;
const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 16;
const BUFFER: u64 = DATA + 0x1000;

/// An image whose every sector starts with its number.
fn image(folder: &Path) -> PathBuf {
    let path = folder.join("disk.img");
    let mut bytes = vec![0xab; (SECTORS * SECTOR) as usize];
    for (sector, bytes) in bytes.chunks_mut(SECTOR as usize).enumerate() {
        bytes[..8].copy_from_slice(&(sector as u64).to_le_bytes());
    }
    fs::write(&path, bytes).unwrap();
    path
}

fn config(path: PathBuf) -> DiskConfig {
    DiskConfig { path, serial: "serial-number".to_owned(), ..DiskConfig::default() }
}

fn disk(config: &DiskConfig) -> Driver {
    Driver::ready(Disk::new(config.plan().unwrap()), 0)
}

fn header(driver: &Driver, operation: u32, sector: u64) {
    let parts = [&operation.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()];
    driver.write(HEADER, &parts.concat());
    driver.write(STATUS, &[0xff]);
}

/// One request with `len` bytes at `BUFFER`; its status.
fn request(driver: &mut Driver, operation: u32, sector: u64, len: u32) -> u8 {
    header(driver, operation, sector);
    let write = matches!(operation, IN | GET_ID);
    let mut buffers = vec![(HEADER, 16, false)];
    if len > 0 {
        buffers.push((BUFFER, len, write));
    }
    buffers.push((STATUS, 1, true));
    let used = driver.request(0, &buffers);
    let status = driver.read(STATUS, 1)[0];
    let filled = if write && status == OK { len } else { 0 };
    assert!(used == filled + 1 || used == filled, "used {used} of {len}, status {status}");
    status
}

fn read_sector(driver: &mut Driver, sector: u64) -> Vec<u8> {
    assert_eq!(request(driver, IN, sector, 512), OK);
    driver.read(BUFFER, 512)
}

fn ranges(driver: &Driver, ranges: &[(u64, u32, u32)]) -> u32 {
    let bytes: Vec<u8> = ranges
        .iter()
        .flat_map(|(sector, count, flags)| {
            [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
        })
        .collect();
    driver.write(BUFFER, &bytes);
    bytes.len() as u32
}

#[test]
fn sectors_are_read_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path());
    let mut driver = disk(&config(path.clone()));
    assert_eq!(driver.get(0x100), SECTORS as u32);
    assert_eq!(read_sector(&mut driver, 7)[..8], 7_u64.to_le_bytes());
    driver.write(BUFFER, &[0x5a; 1024]);
    assert_eq!(request(&mut driver, OUT, 510, 1024), OK);
    assert_eq!(request(&mut driver, FLUSH, 0, 0), OK);
    assert_eq!(fs::read(&path).unwrap()[510 * 512..], [0x5a; 1024]);
    let DeviceMetrics::Block(metrics) = driver.transport.device_metrics() else { panic!() };
    assert_eq!((metrics.read_bytes, metrics.written_bytes, metrics.flushes), (512, 1024, 1));
}

#[test]
fn a_request_may_be_cut_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let mut driver = disk(&config(image(folder.path())));
    header(&driver, IN, 3);
    let used = driver.request(
        0,
        &[
            (HEADER, 5, false),
            (HEADER + 5, 11, false),
            (BUFFER, 1, true),
            (BUFFER + 1, 0, true),
            (BUFFER + 1, 511 + 1, true),
        ],
    );
    assert_eq!(used, 513);
    assert_eq!(driver.read(BUFFER, 8), 3_u64.to_le_bytes());
    assert_eq!(driver.read(BUFFER + 512, 1), [OK], "the status is the last byte");
}

#[test]
fn many_pieces_take_several_calls() {
    let folder = tempfile::tempdir().unwrap();
    let mut driver = disk(&config(image(folder.path())));
    header(&driver, IN, 0);
    let mut buffers = vec![(HEADER, 16, false)];
    buffers.extend((0..250).map(|i| (BUFFER + i * 1024, 1024, true)));
    buffers.push((STATUS, 1, true));
    assert_eq!(driver.request(0, &buffers), 250 * 1024 + 1);
    for sector in 0..500_u64 {
        assert_eq!(driver.read(BUFFER + sector * 512, 8), sector.to_le_bytes());
    }
}

#[test]
fn the_serial_number_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let mut driver = disk(&config(image(folder.path())));
    assert_eq!(request(&mut driver, GET_ID, 0, 20), OK);
    assert_eq!(driver.read(BUFFER, 20), *b"serial-number\0\0\0\0\0\0\0");
}

#[test]
fn what_cannot_be_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut driver = disk(&config(image(folder.path())));
    for (operation, sector, len) in [
        (IN, SECTORS, 512),
        (IN, SECTORS - 1, 1024),
        (OUT, u64::MAX, 512),
        (OUT, u64::MAX - 1, 512),
        (IN, 0, 511),
        (IN, 0, 0),
        (OUT, 0, 0),
        (DISCARD, 0, 0),
        (DISCARD, 0, 15),
        (WRITE_ZEROES, 0, 32),
    ] {
        let status = request(&mut driver, operation, sector, len);
        assert_eq!(status, IO_ERROR, "{operation} {sector} {len}");
    }
    for operation in [2, 3, 9, 10, 12, 14, 16, u32::MAX] {
        assert_eq!(request(&mut driver, operation, 0, 512), UNSUPPORTED, "{operation}");
    }
    assert_eq!(driver.status(), DRIVER_OK, "all of that has a status");
}

#[test]
fn a_request_that_cannot_be_answered_stops_the_device() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(image(folder.path()));
    for buffers in [
        &[(HEADER, 16, false)][..],
        &[(HEADER, 15, false), (STATUS, 1, true)],
        &[(STATUS, 1, true)],
        &[(HEADER, 16, false), (STATUS, 0, true)],
    ] {
        let mut driver = disk(&config);
        header(&driver, IN, 0);
        driver.offer(0, buffers);
        driver.notify(0);
        assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET, "{buffers:?}");
    }
}

#[test]
fn a_read_only_disk_takes_no_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path());
    let before = fs::read(&path).unwrap();
    let config = DiskConfig { read_only: true, ..config(path.clone()) };
    let disk_device = Disk::new(config.plan().unwrap());
    assert_eq!(disk_device.features() & (1 << 5), 1 << 5);
    let mut driver = Driver::ready(disk_device, 0);
    assert_eq!(request(&mut driver, OUT, 0, 512), IO_ERROR);
    let len = ranges(&driver, &[(0, 8, 0)]);
    assert_eq!(request(&mut driver, DISCARD, 0, len), IO_ERROR);
    assert_eq!(request(&mut driver, WRITE_ZEROES, 0, len), IO_ERROR);
    assert_eq!(request(&mut driver, FLUSH, 0, 0), OK);
    assert_eq!(read_sector(&mut driver, 1)[..8], 1_u64.to_le_bytes());
    assert_eq!(fs::read(&path).unwrap(), before);
    let _another = config.plan().unwrap();
}

#[test]
fn discarded_space_goes_back_to_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path());
    let before = fs::metadata(&path).unwrap().blocks();
    let mut driver = disk(&config(path.clone()));
    let len = ranges(&driver, &[(0, 128, 0), (256, 128, 0)]);
    assert_eq!(request(&mut driver, DISCARD, 0, len), OK);
    assert_eq!(before - fs::metadata(&path).unwrap().blocks(), 256);
    assert_eq!(read_sector(&mut driver, 300), [0; 512]);
    assert_eq!(read_sector(&mut driver, 200)[..8], 200_u64.to_le_bytes());
}

#[test]
fn zeroes_are_written_with_and_without_unmap() {
    let folder = tempfile::tempdir().unwrap();
    let mut driver = disk(&config(image(folder.path())));
    for (sector, flags) in [(3, 0), (20, 1)] {
        let len = ranges(&driver, &[(sector, 5, flags)]);
        assert_eq!(request(&mut driver, WRITE_ZEROES, 0, len), OK);
        assert_eq!(read_sector(&mut driver, sector), [0; 512]);
        assert_eq!(read_sector(&mut driver, sector + 4), [0; 512]);
        assert_eq!(read_sector(&mut driver, sector - 1)[..8], (sector - 1).to_le_bytes());
        assert_eq!(read_sector(&mut driver, sector + 5)[..8], (sector + 5).to_le_bytes());
    }
}

#[test]
fn bad_ranges_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path());
    let before = fs::read(&path).unwrap();
    let mut driver = disk(&config(path.clone()));
    for (operation, range, status) in [
        (DISCARD, (0, 8, 1), UNSUPPORTED),
        (DISCARD, (0, 8, 2), UNSUPPORTED),
        (WRITE_ZEROES, (0, 8, 2), UNSUPPORTED),
        (DISCARD, (0, 0, 0), IO_ERROR),
        (DISCARD, (SECTORS, 1, 0), IO_ERROR),
        (DISCARD, (u64::MAX, 8, 0), IO_ERROR),
        (WRITE_ZEROES, (0, u32::MAX, 0), IO_ERROR),
    ] {
        let len = ranges(&driver, &[range]);
        assert_eq!(request(&mut driver, operation, 0, len), status, "{operation} {range:?}");
    }
    let len = ranges(&driver, &[(0, 8, 0), (SECTORS, 8, 0)]);
    assert_eq!(request(&mut driver, DISCARD, 0, len), IO_ERROR, "all or nothing");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_disk_that_cannot_be_used_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.img");
    let plan = |path: &Path| config(path.to_path_buf()).plan().unwrap_err().to_string();

    assert!(plan(&path).contains("open: No such file"), "{}", plan(&path));
    assert!(plan(folder.path()).contains("open: Is a directory"));
    for size in [0, 1, 511, 513] {
        fs::write(&path, vec![0; size]).unwrap();
        assert!(plan(&path).contains(&format!("size {size} is not a positive multiple of 512")));
    }
    fs::write(&path, [b"QFI\xfb".to_vec(), vec![0; 508]].concat()).unwrap();
    assert!(plan(&path).contains("a qcow2 image"));
    assert!(plan(Path::new("/dev/null")).contains("not a file or block device"));

    let path = image(folder.path());
    let _running = config(path.clone()).plan().unwrap();
    assert!(plan(&path).contains("in use by another VM"));
    let both =
        DiskConfig { read_only: true, overlay: Some(folder.path().join("o")), ..config(path) };
    assert!(both.plan().unwrap_err().to_string().contains("exclude each other"));
}

/// Fails every operation.
struct Broken;

impl Storage for Broken {
    fn read(&self, _: u64, _: &GuestBuffer<'_>) -> io::Result<()> {
        Err(ErrorKind::UnexpectedEof.into())
    }

    fn read_host(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Err(ErrorKind::UnexpectedEof.into())
    }

    fn write(&mut self, _: u64, _: &GuestBuffer<'_>) -> io::Result<()> {
        Err(ErrorKind::StorageFull.into())
    }

    fn write_host(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(ErrorKind::Other.into())
    }

    fn discard(&mut self, _: u64, _: u64) -> io::Result<()> {
        Err(ErrorKind::Other.into())
    }

    fn write_zeroes(&mut self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Err(ErrorKind::Other.into())
    }
}

#[test]
fn the_guest_sees_the_hosts_errors() {
    let plan = DiskPlan {
        storage: Box::new(Broken),
        sectors: 8,
        read_only: false,
        id: [0; 20],
        number: 0,
        page_cache: PageCache::Used,
    };
    let mut driver = Driver::ready(Disk::new(plan), 0);
    for (operation, len) in [(IN, 512), (OUT, 512), (FLUSH, 0)] {
        assert_eq!(request(&mut driver, operation, 0, len), IO_ERROR);
    }
    for operation in [DISCARD, WRITE_ZEROES] {
        let len = ranges(&driver, &[(0, 8, 0)]);
        assert_eq!(request(&mut driver, operation, 0, len), IO_ERROR);
    }
    let DeviceMetrics::Block(metrics) = driver.transport.device_metrics() else { panic!() };
    assert_eq!((metrics.host_errors, metrics.refused), (5, 0));
    assert!(driver.transport.flush().is_err());
    assert_eq!(driver.status(), DRIVER_OK);
}

#[test]
fn an_image_that_shrinks_is_an_error_to_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path());
    let mut driver = disk(&config(path.clone()));
    File::options().write(true).open(&path).unwrap().set_len(512).unwrap();
    assert_eq!(request(&mut driver, IN, 0, 1024), IO_ERROR);
    assert_eq!(request(&mut driver, IN, 0, 512), OK);
}

#[test]
fn one_turn_does_a_bounded_amount() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.img");
    File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let mut driver = disk(&config(path));
    header(&driver, IN, 0);
    // 63 MiB a request into 3 MiB of memory.
    let mut table: Vec<u8> = descriptor(HEADER, 16, NEXT, 1);
    for next in 2..23 {
        table.extend(descriptor(BUFFER, 0x2f_0000 & !511, WRITE | NEXT, next));
    }
    table.extend(descriptor(STATUS, 1, WRITE, 0));
    driver.write(DATA + 0x800, &table);
    driver.descriptor(0, 0, DATA + 0x800, table.len() as u32, INDIRECT, 0);
    for _ in 0..4 {
        driver.make_available(0, 0);
    }
    driver.set(0x50, 0);
    let mut served = Vec::new();
    while driver.run_once() > 0 {
        served.push(driver.used(0).len());
    }
    assert_eq!(served.iter().sum::<usize>(), 4);
    assert!(served.len() > 1, "others got their turn in between: {served:?}");
}

#[test]
fn an_overlay_keeps_writes_and_leaves_the_image_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path());
    let before = fs::read(&path).unwrap();
    let overlay =
        |name: &str| DiskConfig { overlay: Some(folder.path().join(name)), ..config(path.clone()) };
    let mut one = disk(&overlay("one"));
    let mut two = disk(&overlay("two"));
    one.write(BUFFER, &[0x11; 512]);
    assert_eq!(request(&mut one, OUT, 9, 512), OK);
    assert_eq!(read_sector(&mut one, 9), [0x11; 512]);
    assert_eq!(read_sector(&mut one, 8)[..8], 8_u64.to_le_bytes(), "the rest of the cluster");
    assert_eq!(read_sector(&mut two, 9)[..8], 9_u64.to_le_bytes(), "another machine's disk");
    let len = ranges(&one, &[(16, 8, 0)]);
    assert_eq!(request(&mut one, DISCARD, 0, len), OK);
    one.transport.flush().unwrap();
    drop(one);

    let mut again = disk(&overlay("one"));
    assert_eq!(read_sector(&mut again, 9), [0x11; 512]);
    assert_eq!(read_sector(&mut again, 10)[..8], 10_u64.to_le_bytes());
    assert_eq!(read_sector(&mut again, 17), [0; 512]);
    assert_eq!(fs::read(&path).unwrap(), before);
    assert!(fs::metadata(folder.path().join("one")).unwrap().blocks() < 64, "sparse");
}

#[test]
fn whole_blocks_are_told_of_and_parts_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let config = DiskConfig { number: 3, ..config(image(folder.path())) };
    let mut driver = disk(&config);
    let memory = Arc::clone(driver.view.memory());
    let events = memory.listen(64);
    let mut inbox = memory::Inbox::default();
    let mut told =
        || -> Vec<Event> { std::iter::from_fn(|| inbox.take(events)).map(|e| e.event).collect() };
    let block = |block| DiskBlock { disk: 3, block };
    let frame = memory.frame_of(Gpa(BUFFER)).unwrap();
    let next = memory.frame_of(Gpa(BUFFER + 4096)).unwrap();

    assert_eq!(request(&mut driver, IN, 16, 8192), OK);
    let reads = [(frame, 2), (next, 3)];
    let read = |(frame, at)| Event::Read { frame, from: block(at), changed: false };
    assert_eq!(told(), reads.map(read));
    assert_eq!(request(&mut driver, OUT, 8, 4096), OK);
    let starts = [16, 0, 0, 0];
    assert_eq!(told(), [Event::Written { frame, to: block(1), starts }]);
    // Of a block the last half, and of the next the first.
    assert_eq!(request(&mut driver, IN, 20, 4096), OK);
    assert_eq!(told(), [Event::Overwritten { frame }]);
    assert_eq!(request(&mut driver, OUT, 20, 512), OK);
    assert_eq!(told(), []);
    let len = ranges(&driver, &[(7, 26, 0), (64, 7, 0)]);
    assert_eq!(request(&mut driver, DISCARD, 0, len), OK);
    assert_eq!(told(), [Event::Discarded { first: block(1), count: 3 }]);
    // What fails is told by nobody.
    assert_eq!(request(&mut driver, IN, SECTORS, 4096), IO_ERROR);
    assert_eq!(told(), []);
}
