//! Disks: overlays, plain files, read-only files; what is flushed stays, what is discarded is gone. And the
//! kernel for ordinary machines, with the console that virtual ones have.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::console::events;
use crate::kit::{self, Kernel};
use crate::sandbox::Sandbox;
use crate::vm::{Guest, Vm};

const MIB: usize = 1 << 20;
/// Of the test's own disks.
const SIZE: usize = 8 * MIB;
const PATTERN: u8 = 0xa5;

/// Debian's programs work from an overlay; the power fails; they work again on another kernel, and what was
/// flushed is there.
#[test]
fn debian_runs_from_an_overlay_that_survives_a_power_failure() {
    let sandbox = Sandbox::new();
    let image = kit::disk_image();
    let before = checksum(&image);
    let overlay = format!("{image},overlay={}", sandbox.path("overlay").display());
    let files = Files::new(&sandbox);

    let disks = [overlay.clone(), files.plain.clone(), format!("{},ro", files.fixed)];
    let mut vm = start_and_check(&sandbox, Guest::new(""), 1, &disks);
    files.take_writes_and_discards(&mut vm);
    vm.shell("echo one >/disk/kept && sync");
    vm.kill();
    files.are_as_written();

    let ordinary = Guest::new("console=hvc0").kernel(Kernel::Full);
    let mut vm = start_and_check(&sandbox, ordinary, 2, &[overlay]);
    is_the_ordinary_kernel_on_a_virtio_console(&mut vm);
    assert_eq!(vm.shell("cat /disk/kept"), "one");
    vm.shell("echo two >>/disk/kept && umount -r /disk/dev /disk/proc /disk/sys /disk/tmp /disk");
    vm.shell("echo 3 >/proc/sys/vm/drop_caches; mount -t ext4 -o ro /dev/vda /disk");
    assert_eq!(vm.shell("cat /disk/kept"), "one\ntwo");
    vm.type_line("poweroff -f");
    vm.ended().well();

    assert_eq!(checksum(&image), before, "the image under the overlay was written");
}

/// A guest that has run Debian's programs from its first disk, and takes commands.
fn start_and_check<'a>(sandbox: &'a Sandbox, guest: Guest, cpus: u32, disks: &[String]) -> Vm<'a> {
    let guest = guest.word("fathom.run=disk:/check.sh").word("fathom.run=sh").cpus(cpus);
    let guest = disks.iter().fold(guest, |guest, disk| guest.disk(disk.clone()));
    let mut vm = guest.start(sandbox);
    vm.wait_for_shell();
    let log = vm.console.so_far();
    let exits = events(&log, "exit");
    assert_eq!(exits[0]["status"], 0, "{log}");
    assert_eq!(log.lines().filter(|line| line.starts_with("ok ")).count(), 10, "{log}");
    assert_eq!(vm.shell("nproc"), cpus.to_string());
    vm
}

/// Files of the host as a guest's second and third disk.
struct Files {
    plain: String,
    fixed: String,
}

impl Files {
    fn new(sandbox: &Sandbox) -> Self {
        let file = |name| sandbox.file(name, &[PATTERN; SIZE]);
        Self { plain: file("plain"), fixed: file("fixed") }
    }

    fn take_writes_and_discards(&self, vm: &mut Vm<'_>) {
        assert_eq!(vm.shell("cat /sys/block/vdb/ro /sys/block/vdc/ro"), "0\n1");
        assert_eq!(vm.shell("cat /sys/block/vdb/queue/write_cache"), "write back");
        vm.shell("printf sector-two | dd of=/dev/vdb bs=512 seek=2 conv=notrunc,fsync 2>/dev/null");
        vm.shell("! dd if=/dev/zero of=/dev/vdc bs=512 count=1 conv=notrunc,fsync 2>/dev/null");
        assert_eq!(vm.shell("head -c 512 /dev/vdc | md5sum | cut -c1-8"), "bd7c5e0b");
        assert_eq!(&read(&self.plain)[1024..1034], b"sector-two", "what is flushed is in the file");

        let before = blocks(&self.plain);
        vm.shell("blkdiscard -o 4194304 -l 2097152 /dev/vdb");
        let others = "dd if=/dev/vdb bs=1M skip=4 count=2 2>/dev/null | tr -d '\\0' | wc -c";
        assert_eq!(vm.shell(others), "0");
        let given_back = before - blocks(&self.plain);
        assert_eq!(given_back, 4096, "blocks of 512 bytes that the host has back");
        vm.shell("! blkdiscard /dev/vdc 2>/dev/null");
    }

    fn are_as_written(&self) {
        let mut expected = vec![PATTERN; SIZE];
        expected[1024..1034].copy_from_slice(b"sector-two");
        // The guest writes pages of its cache, sectors whole.
        expected[4 * MIB..6 * MIB].fill(0);
        assert!(read(&self.plain) == expected, "other bytes than those written have changed");
        assert!(read(&self.fixed) == [PATTERN; SIZE], "a read-only disk was written");
    }
}

fn is_the_ordinary_kernel_on_a_virtio_console(vm: &mut Vm<'_>) {
    let release = vm.shell("uname -r");
    assert!(release.ends_with("-amd64") && !release.contains("cloud"), "{release}");
    assert_eq!(vm.shell("tty"), "/dev/hvc0");
    assert_eq!(vm.shell("yes 0123456789 | head -n 2000 | wc -l"), "2000");
    // What the kernel has to say of a busy host would stand in the middle of a line.
    vm.shell("dmesg -n 1");
    let long = vm.shell("yes 0123456789 | head -n 2000");
    let other: Vec<_> = long.lines().filter(|line| *line != "0123456789").collect();
    assert!(other.is_empty(), "{} others: {other:?}", other.len());
    assert_eq!(long.lines().count(), 2000);
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
