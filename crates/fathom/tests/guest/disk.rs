//! Disks: overlays, plain files, read-only files; what is flushed stays, what is discarded is gone.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::console::events;
use crate::kit;
use crate::sandbox::Sandbox;
use crate::vm::{Guest, Vm};

const MIB: usize = 1 << 20;
/// Of the test's own disks.
const SIZE: usize = 8 * MIB;
const PATTERN: u8 = 0xa5;

/// Debian's programs work from an overlay; the power fails; they work again, and what was flushed is there.
#[test]
fn debian_runs_from_an_overlay_that_survives_a_power_failure() {
    let sandbox = Sandbox::new();
    let image = kit::disk_image();
    let before = checksum(&image);
    let overlay = format!("{image},overlay={}", sandbox.path("overlay").display());

    let mut vm = start_and_check(&sandbox, 1, &overlay);
    vm.shell("echo one >/disk/kept && sync");
    vm.kill();

    let mut vm = start_and_check(&sandbox, 2, &overlay);
    assert_eq!(vm.shell("cat /disk/kept"), "one");
    vm.shell("echo two >>/disk/kept && umount -r /disk/dev /disk/proc /disk/sys /disk/tmp /disk");
    vm.type_line("poweroff -f");
    vm.ended().well();

    let mut vm = start(&sandbox, "fathom.run=exec:/bin/true", 1, &[overlay]);
    vm.shell("mkdir /d && mount -t ext4 -o ro /dev/vda /d");
    assert_eq!(vm.shell("cat /d/kept"), "one\ntwo");
    drop(vm);
    assert_eq!(checksum(&image), before, "the image under the overlay was written");
}

fn start_and_check<'a>(sandbox: &'a Sandbox, cpus: u32, disk: &str) -> Vm<'a> {
    let mut vm = start(sandbox, "fathom.run=disk:/check.sh", cpus, &[disk.to_owned()]);
    let log = vm.console.so_far();
    let exits = events(&log, "exit");
    assert_eq!(exits[0]["status"], 0, "{log}");
    assert_eq!(log.lines().filter(|line| line.starts_with("ok ")).count(), 10, "{log}");
    assert_eq!(vm.shell("nproc"), cpus.to_string());
    vm
}

/// A guest that does `work`, then takes commands.
fn start<'a>(sandbox: &'a Sandbox, work: &str, cpus: u32, disks: &[String]) -> Vm<'a> {
    let guest = Guest::new(&format!("{work} fathom.run=sh")).cpus(cpus);
    let guest = disks.iter().fold(guest, |guest, disk| guest.disk(disk.clone()));
    let mut vm = guest.start(sandbox);
    vm.wait_for_shell();
    vm
}

#[test]
fn plain_files_take_writes_and_discards_and_read_only_files_neither() {
    let sandbox = Sandbox::new();
    let plain = sandbox.file("plain", &[PATTERN; SIZE]);
    let fixed = sandbox.file("fixed", &[PATTERN; SIZE]);
    let disks = [plain.clone(), format!("{fixed},ro")];
    let mut vm = start(&sandbox, "fathom.run=boot", 1, &disks);

    assert_eq!(vm.shell("cat /sys/block/vda/ro /sys/block/vdb/ro"), "0\n1");
    assert_eq!(vm.shell("cat /sys/block/vda/queue/write_cache"), "write back");
    vm.shell("printf sector-two | dd of=/dev/vda bs=512 seek=2 conv=notrunc,fsync 2>/dev/null");
    vm.shell("! dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=notrunc,fsync 2>/dev/null");
    assert_eq!(vm.shell("head -c 512 /dev/vdb | md5sum | cut -c1-8"), "bd7c5e0b");
    assert_eq!(&read(&plain)[1024..1034], b"sector-two", "what is flushed is in the file");

    let blocks = blocks(&plain);
    vm.shell("blkdiscard -o 4194304 -l 2097152 /dev/vda");
    assert_eq!(
        vm.shell("dd if=/dev/vda bs=1M skip=4 count=2 2>/dev/null | tr -d '\\0' | wc -c"),
        "0"
    );
    assert_eq!(blocks - self::blocks(&plain), 4096, "blocks of 512 bytes that the host has back");
    vm.shell("! blkdiscard /dev/vdb 2>/dev/null");
    vm.type_line("poweroff -f");
    vm.ended().well();

    let mut expected = vec![PATTERN; SIZE];
    expected[1024..1034].copy_from_slice(b"sector-two");
    // The guest writes pages of its cache, sectors whole.
    expected[4 * MIB..6 * MIB].fill(0);
    assert!(read(&plain) == expected, "other bytes than those written have changed");
    assert!(read(&fixed) == [PATTERN; SIZE], "a read-only disk was written");
}

fn read(path: &str) -> Vec<u8> {
    fs::read(path).expect("the disk's file")
}

fn blocks(path: &str) -> u64 {
    Path::new(path).metadata().expect("the disk's file").blocks()
}

fn checksum(path: &str) -> u64 {
    let mut file = File::open(path).expect("the image");
    let (mut hasher, mut bytes) = (DefaultHasher::new(), vec![0; MIB]);
    while let length @ 1.. = file.read(&mut bytes).expect("the image") {
        hasher.write(&bytes[..length]);
    }
    hasher.finish()
}
