//! Saves that leave out what can be read again from a disk.

use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::clones::{Clones, lines, output};
use crate::engine::{self, announce};
use crate::processor;
use crate::sandbox::Sandbox;
use crate::vm::{Guest, Vm};

const MIB: usize = 1 << 20;
/// Of each disk; the guest has it all in its page cache.
pub(crate) fn size() -> usize {
    if processor::in_lab() { 8 * MIB } else { 24 * MIB }
}

fn frames_of_a_disk() -> u64 {
    (size() / 4096) as u64
}

/// Whatever way its memory comes back, the guest has its page cache, without reading its disks again.
#[test]
fn page_cache_is_read_again_from_disks_that_nobody_writes() {
    // It has passed once there, in two minutes.
    if engine::is_not_yet_on_kvm("page cache read again") {
        return;
    }
    let sandbox = Sandbox::new();
    let (image, fixed) = (sandbox.file("image", &noise(1)), sandbox.file("fixed", &noise(2)));
    let written = sandbox.file("written", &noise(3));
    let overlay = sandbox.path("overlay");
    let mut vm = Guest::new("fathom.run=sh")
        .disk(format!("{image},overlay={}", overlay.display()))
        .disk(format!("{fixed},ro"))
        .disk(written)
        .start(&sandbox);
    vm.wait_for_shell();
    // A slow host has the kernel complain in the middle of a line.
    vm.shell("dmesg -n 1");
    // Linux drops what it has of a disk that nobody has open.
    vm.shell("exec 7</dev/vda 8</dev/vdb 9</dev/vdc");
    // Some blocks of the first are in its overlay, from whose frames they must come.
    vm.shell(
        "head -c1m /dev/urandom | dd of=/dev/vda bs=4k seek=512 conv=notrunc,fsync 2>/dev/null",
    );
    let sums = vm.shell("md5sum /dev/vda /dev/vdb /dev/vdc");
    let path = |name: &str| sandbox.path(name).to_str().expect("text").to_owned();
    let save = |vm: &Vm<'_>, name: &str, options: &[&str]| -> Value {
        let path = path(name);
        let said = vm.tell("save", &[&[path.as_str(), "--json"][..], options].concat());
        announce(&format!("{name}: {}", said.trim_end()));
        serde_json::from_str(&said).expect("json")
    };
    let frames = |said: &Value, kind: &str| said["frames"][kind].as_u64().expect("a number");
    let all = save(&vm, "all", &["--all"]);
    assert_eq!(frames(&all, "disk"), 0);
    let plain = save(&vm, "plain", &[]);
    let left_out = frames(&plain, "disk");
    // Not the blocks that were written, nor the disk that the guest writes to itself.
    assert!(
        (2 * frames_of_a_disk() - 600..=2 * frames_of_a_disk() - 256).contains(&left_out),
        "{left_out} left out"
    );
    assert!(frames(&plain, "stored") + left_out <= frames(&all, "stored"));
    assert!(frames(&save(&vm, "live", &["--live", "--compress", "lz4"]), "disk") >= left_out - 100);
    let parent = path("all");
    let child = save(&vm, "child", &["--incremental", &parent, "--stop"]);
    assert!(frames(&child, "disk") >= left_out - 100);

    for (name, mode) in [
        ("plain", "eager"),
        ("plain", "lazy"),
        ("plain", "working-set"),
        ("live", "lazy"),
        ("child", "working-set"),
        ("all", "working-set"),
    ] {
        vm.begin_again(&path(name), &["--mode", mode]);
        let read = "cat /sys/block/vd[ab]/stat | awk '{ sum += $1 } END { print sum }'";
        let before = vm.shell(read);
        assert_eq!(vm.shell("md5sum /dev/vda /dev/vdb /dev/vdc"), sums, "{name}, {mode}");
        assert_eq!(vm.shell(read), before, "{name}, {mode}: it was in the guest's page cache");
        if (name, mode) == ("plain", "lazy") {
            // What came from a disk need not be saved now, either.
            let again = save(&vm, "again", &["--watch", "0", "--trace", "0"]);
            assert!(frames(&again, "disk") >= left_out - 100, "{again}");
        }
        vm.tell("stop", &[]);
    }
    refused_once_the_image_is_another(&sandbox, &path("plain"), &image);
    vm.begin_again(&path("all"), &["--paused"]);
    vm.tell("stop", &[]);
}

/// VMs that have their memory in common have that of the disk in common, too.
#[test]
fn a_snapshot_without_its_page_cache_is_activated() {
    let sandbox = Sandbox::new();
    let fixed = sandbox.file("fixed", &noise(4));
    let mut vm = Guest::new("fathom.run=sh").disk(format!("{fixed},ro")).start(&sandbox);
    vm.wait_for_shell();
    vm.shell("exec 7</dev/vda");
    let sum = vm.shell("md5sum </dev/vda | cut -c1-32");
    let again = "echo sum $(md5sum </dev/vda | cut -c1-32) >/dev/console";
    vm.shell(&format!("{{ while :; do sleep 1; {again}; done & }}"));
    let path = sandbox.path("snapshot").to_str().expect("text").to_owned();
    let said = vm.tell("save", &[&path, "--json", "--stop"]);
    let said: Value = serde_json::from_str(&said).expect("json");
    assert_eq!(said["frames"]["disk"], frames_of_a_disk());
    let _clones = Clones(&sandbox);
    let folder = output(&sandbox);
    sandbox.success(&["activate", &path, "--count", "2", "--output", &folder]);
    for name in ["guest-1", "guest-2"] {
        let sums = lines(&sandbox, name, "sum ", 2);
        assert!(sums.iter().all(|found| *found == sum), "{name}: {sums:?}, not {sum}");
        sandbox.success(&["stop", name]);
    }
    vm.begin_again(&path, &["--paused"]);
    vm.tell("stop", &[]);
}

fn refused_once_the_image_is_another(sandbox: &Sandbox, path: &str, image: &str) {
    let modified = fs::metadata(image).and_then(|metadata| metadata.modified()).expect("a time");
    let set = |time: SystemTime| {
        File::options()
            .write(true)
            .open(image)
            .expect("the image")
            .set_modified(time)
            .expect("set");
    };
    set(modified + Duration::from_secs(1));
    let refused = sandbox.refusal(2, &["restore", path]);
    assert!(refused.contains("has been written since"), "{refused}");
    // Its overlay says so, too, of what the guest reads later; that is a file of its own.
    set(modified);
    let mut bytes = fs::read(image).expect("the image");
    bytes[100 * 4096] ^= 1;
    fs::write(image, bytes).expect("written");
    set(modified);
    let refused = sandbox.refusal(2, &["restore", path, "--mode", "eager"]);
    assert!(refused.contains("checksum of a block"), "{refused}");
    let mut bytes = fs::read(image).expect("the image");
    bytes[100 * 4096] ^= 1;
    fs::write(image, bytes).expect("written");
    set(modified);
}

/// Bytes of which no page is another's.
pub(crate) fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed << 32;
    let words = (0..size() / 8).flat_map(|_| {
        // Vigna's splitmix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ word >> 31).to_le_bytes()
    });
    words.collect()
}
