//! Memory that a guest gives up really leaves the process, and comes back when it is needed.
//!
//! The same guest first finds its processor in order.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use crate::console::deadline;
use crate::engine::announce;
use crate::kit;
use crate::process::{Resident, cpu_time, mib};
use crate::processor;
use crate::sandbox::Sandbox;
use crate::vm::{Guest, Vm};

const MIB: u64 = 1 << 20;
/// The product's target.
const OVERHEAD_MAX: u64 = 40 * MIB;
/// In ten seconds: what an engine can do by itself (timers, IPIs, HLT, doorbells) is no exit.
const IDLE_EXITS_MAX: u64 = 50;

type Exits = BTreeMap<String, u64>;

#[test]
fn a_guest_takes_no_more_than_it_uses() {
    let sandbox = Sandbox::new();
    let overlay = sandbox.path("overlay");
    let disk = format!("{},overlay={}", kit::disk_image(), overlay.display());
    // The whole log for once: it must be free of complaints, and of what upsets a serial port.
    let words = "ignore_loglevel fathom.run=tests fathom.run=sh";
    let mut vm = Guest::new(words).disk(disk).start(&sandbox);
    vm.wait_for_shell();
    vm.shell("echo N >/sys/module/printk/parameters/ignore_loglevel");
    processor::is_right(&vm.console.so_far(), 1);
    assert_eq!(
        vm.shell("grep -c 'hres_active.*: 1' /proc/timer_list"),
        "1",
        "Linux trusts its timer"
    );
    costs_little_when_idle(&vm);
    free_pages_are_reported(&mut vm);
    the_balloon_takes_memory(&mut vm);
    the_balloon_gives_way_before_programs_die(&mut vm);
    the_balloon_gives_memory_back(&mut vm);
    vm.type_line("poweroff -f");
    let ended = vm.ended().well();
    assert!(!ended.console.contains("Killed process"), "{}", ended.console);
    processor::is_plausible(&ended.report);
}

fn costs_little_when_idle(vm: &Vm<'_>) {
    let exits = vm.status().exits;
    let (start, before) = (Instant::now(), cpu_time(vm.pid()));
    thread::sleep(Duration::from_secs(10));
    let steady = since(&exits, &vm.status().exits);
    let busy = (cpu_time(vm.pid()) - before).as_secs_f64() / start.elapsed().as_secs_f64();
    let resident = Resident::of(vm.pid());
    announce(&format!("idle: {:.2} % of a CPU, watched by --report", busy * 100.0));
    announce(&format!("idle: exits in 10 s: {steady:?}"));
    announce(&format!(
        "overhead: {:.1} MiB beside {:.1} MiB",
        mib(resident.overhead),
        mib(resident.guest)
    ));
    assert!(steady.values().sum::<u64>() <= IDLE_EXITS_MAX, "{steady:?}");
    assert!(resident.overhead <= OVERHEAD_MAX, "{resident:?}");
}

/// Exits by kind between two looks.
fn since(before: &Exits, after: &Exits) -> Exits {
    let count = |kind: &String, sum: &u64| sum - before.get(kind).unwrap_or(&0);
    after.iter().map(|(kind, sum)| (kind.clone(), count(kind, sum))).collect()
}

fn free_pages_are_reported(vm: &mut Vm<'_>) {
    vm.type_line("/init alloc-free:128 seconds=10");
    while vm.console.event("alloc-free")["state"] != "touched" {}
    let touched = agreed(vm);
    assert!(touched >= 128 * MIB, "{}", mib(touched));
    vm.wait_for_shell();
    vm.wait_until("smaller again", |status| status.resident_bytes + 100 * MIB <= touched);
    announce(&format!("128 MiB freed: from {:.1} to {:.1} MiB", mib(touched), mib(agreed(vm))));
}

fn the_balloon_takes_memory(vm: &mut Vm<'_>) {
    // For as long as somebody has the disk open, the page cache keeps what was read: memory that only a balloon
    // gets back. After that Linux drops it, and reports it as free two seconds later.
    vm.shell("exec 3</dev/vda");
    vm.shell("dd if=/dev/vda of=/dev/null bs=1M count=120 2>/dev/null");
    let before = agreed(vm);
    assert!(before >= 120 * MIB, "{}", mib(before));
    vm.tell("balloon", &["160M"]);
    vm.wait_until("inflated", |status| status.ballooned_bytes == 160 * MIB);
    let after = agreed(vm);
    announce(&format!("balloon of 160 MiB: from {:.1} to {:.1} MiB", mib(before), mib(after)));
    assert!(after <= 96 * MIB && after + 40 * MIB <= before);
    assert_eq!(vm.tell("balloon", &[]), "160M of 160M\n");
    vm.shell("exec 3<&-");
}

fn the_balloon_gives_way_before_programs_die(vm: &mut Vm<'_>) {
    vm.shell("/init alloc-free:100 seconds=1");
    let status = vm.status();
    assert!(status.ballooned_bytes < 160 * MIB, "{status:?}");
}

fn the_balloon_gives_memory_back(vm: &mut Vm<'_>) {
    vm.tell("balloon", &["0"]);
    vm.wait_until("deflated", |status| status.ballooned_bytes == 0);
    vm.shell("/init alloc-free:150 seconds=1");
    agreed(vm);
}

/// Resident guest memory, as the VM and the host's kernel both have it: soon, since the guest runs on between two
/// looks.
fn agreed(vm: &Vm<'_>) -> u64 {
    let deadline = deadline();
    loop {
        let (status, resident) = (vm.status(), Resident::of(vm.pid()));
        assert!(
            status.resident_bytes + status.ballooned_bytes <= status.configured_bytes,
            "{status:?}"
        );
        if status.resident_bytes.abs_diff(resident.guest) <= MIB {
            return resident.guest;
        }
        assert!(
            Instant::now() < deadline,
            "the VM says {}, the host {}",
            status.resident_bytes,
            resident.guest
        );
        thread::sleep(Duration::from_millis(200));
    }
}
