//! A daemon that is killed at any moment, and a VM that is: the others lose nothing by it.

use std::fs;
use std::thread;
use std::time::Duration;

use api::VmStatus;
use serde_json::Value;

use crate::balance::{Daemon, decided, wait};
use crate::engine::{announce, is_not_yet_on_kvm};
use crate::process::mib;
use crate::sandbox::Sandbox;
use crate::vm::{Guest, Vm, shown};

#[test]
fn guests_go_on_where_their_daemon_is_killed() {
    killed(10);
}

/// Kills it `times`, at random moments, while it takes memory from one guest by its balloon and from one without.
pub(crate) fn killed(times: u32) {
    if is_not_yet_on_kvm("memory that the host takes") {
        return;
    }
    let sandbox = Sandbox::new();
    let mut vms = [
        Guest::new("fathom.run=sh").beside_others("gives").start(&sandbox),
        Guest::new("fathom.run=sh")
            .word("module_blacklist=virtio_balloon")
            .beside_others("taken")
            .start(&sandbox),
    ];
    let right = vms.each_mut().map(work);
    fs::create_dir(sandbox.path("swap")).expect("a folder");
    let swap = sandbox.path("swap");
    // What both have by now: their processes are beyond it, and some is to stay free.
    let limit: u64 = vms.iter().map(|vm| vm.status().resident_bytes).sum();
    let limit = limit.to_string();
    let swap = swap.to_str().expect("text");
    let arguments = ["--memory", &limit, "--swap", swap, "--interval", "0.1"];

    let mut random = Random(u64::from(std::process::id()) | 1);
    announce(&format!("the daemon is killed {times} times; seed {}", random.0));
    for _ in 0..times {
        let daemon = Daemon::start_with(&sandbox, &arguments);
        thread::sleep(Duration::from_millis(random.below(600)));
        daemon.kill();
        assert_eq!(shown(&sandbox, &["list", "--json"]).len(), 2, "a VM went with its daemon");
    }
    let daemon = Daemon::start_with(&sandbox, &arguments);
    decided(&sandbox, daemon.pid());
    let taken = wait(&sandbox, "both have less", |vms| {
        let [gives, taken] = [&vms[0], &vms[1]];
        let written =
            |vm: &VmStatus| vm.reclaim.as_ref().map_or(0, |reclaim| reclaim.written_bytes);
        (gives.ballooned_bytes > 0 && written(taken) > 0)
            .then(|| [gives.ballooned_bytes, written(taken)].map(mib))
    });
    announce(&format!("MiB in the balloon, MiB written: {taken:.0?}"));
    for (vm, right) in vms.iter_mut().zip(&right) {
        vm.shell("echo >/tmp/sums; while [ $(wc -l </tmp/sums) -lt 3 ]; do sleep 1; done");
        assert_eq!(vm.shell("cat /tmp/wrong"), "", "of {right}");
    }

    // What a VM had that is killed is free, and the other one has it.
    let [mut gives, taken] = vms;
    taken.kill();
    wait(&sandbox, "its memory goes to the other", |vms| {
        let board = sandbox.fathom(&["balance", "--json"]).stdout;
        let board: Value = serde_json::from_slice(&board).ok()?;
        let (facts, verdict) = (board["facts"]["vms"].as_array()?, &board["verdict"]);
        let [target, supply] =
            [&verdict["vms"][0]["target"], &verdict["supply"]].map(Value::as_u64);
        // To the grain in which memory is given.
        let has_all = target? + policy::GRAIN >= supply?.min(vms[0].configured_bytes);
        (facts.len() == 1 && verdict["state"] == "high" && has_all).then_some(())
    });
    assert_eq!(fs::read_dir(swap).expect("the folder").count(), 0, "a store has a name");
    daemon.end();
    gives.shell("touch /tmp/stop; wait");
    assert_eq!(gives.shell("cat /tmp/wrong"), "");
    gives.tell("stop", &[]);
    gives.ended().stopped();
}

/// Has a guest check memory that nobody else has for as long as it runs. What is right.
pub(crate) fn work(vm: &mut Vm<'_>) -> String {
    vm.wait_for_shell();
    // A balloon that finds nothing to take says so between what the shell prints.
    vm.shell("dmesg -n 1");
    // Byte by byte, `yes` takes a minute for it.
    vm.shell("yes | head -c1m >/tmp/block");
    let blocks = "cat /tmp/block; ".repeat(24);
    vm.shell(&format!("(head -c24m /dev/urandom; {blocks}) >/tmp/file; rm /tmp/block"));
    let right = vm.shell("md5sum </tmp/file");
    let sum = right.split(' ').next().expect("a sum");
    vm.shell(">/tmp/wrong; >/tmp/sums");
    vm.shell(&format!(
        "while [ ! -e /tmp/stop ]; do set -- $(md5sum </tmp/file); echo $1 >>/tmp/sums; \
         [ $1 = {sum} ] || echo $1 >>/tmp/wrong; done & true"
    ));
    right
}

/// Marsaglia's xorshift of 64 bits: which moments does not matter, only that they differ.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
