//! One VM from start to stop, through every command that takes its name, and three lives.

use std::thread;
use std::time::Duration;

use api::RunState;

use crate::confined::is_confined;
use crate::processor;
use crate::sandbox::Sandbox;
use crate::vm::{Guest, Vm};

#[test]
fn a_vm_obeys_from_start_to_stop() {
    let sandbox = Sandbox::new();
    // `reboot=t`: by a triple fault.
    let overlay = sandbox.path("overlay");
    let disk = sandbox.file("disk", &[0; 1 << 20]) + ",overlay=" + overlay.to_str().expect("text");
    let mut vm = Guest::new("reboot=t fathom.run=sh").cpus(2).disk(disk).start(&sandbox);
    vm.wait_for_shell();
    assert_eq!(vm.shell("echo $((6 * 7)) $(nproc)"), "42 2");
    processor::is_right(&vm.shell("/init tests || true"), 2);
    is_shown(&vm);
    is_confined(vm.pid());
    stands_while_paused(&mut vm);

    vm.type_line("reboot -f");
    comes_up_again(&mut vm);
    vm.shell("echo acpi >/sys/kernel/reboot/type");
    vm.type_line("reboot -f");
    comes_up_again(&mut vm);

    vm.type_line("halt -f");
    vm.console.wait_for("reboot: System halted");
    assert_eq!(vm.status().state, RunState::Running, "a halted machine is not an ended one");
    vm.tell("stop", &[]);
    assert_eq!(sandbox.success(&["list", "--json"]), "[]\n");
    let ended = vm.ended().stopped();
    assert_eq!(ended.report.pauses, 1);
    let faults = ended.errors.matches("triple fault").count();
    assert_eq!(faults, 1, "the first reboot was one, the second was not: {}", ended.errors);
}

fn is_shown(vm: &Vm<'_>) {
    let status = vm.top();
    assert_eq!(status.vcpus, 2);
    assert_eq!(status.state, RunState::Running);
    assert_eq!(status.configured_bytes, 256 << 20);
    assert!((16 << 20..128 << 20).contains(&status.resident_bytes), "{status:?}");
    let used = status.working_set.window_1s_bytes.expect("a working set");
    assert!((4096..=status.resident_bytes).contains(&used), "{status:?}");
    assert!(status.guest_cpu_seconds > 0.0 && status.exits["port_write"] > 0, "{status:?}");
}

fn stands_while_paused(vm: &mut Vm<'_>) {
    vm.shell("{ while :; do :; done & }");
    let busy = vm.status().guest_cpu_seconds;
    vm.wait_until("busy", |status| status.guest_cpu_seconds > busy + 0.5);
    vm.tell("pause", &[]);
    let paused = vm.status();
    assert_eq!(paused.state, RunState::Paused);
    thread::sleep(Duration::from_secs(1));
    vm.stood_since(&paused);
    vm.tell("resume", &[]);
    vm.wait_until("resumed", |status| status.guest_cpu_seconds > paused.guest_cpu_seconds + 0.5);
    vm.shell("kill $!");
}

fn comes_up_again(vm: &mut Vm<'_>) {
    let first = vm.status();
    vm.console.event("init");
    vm.wait_for_shell();
    let second = vm.status();
    assert!(second.guest_cpu_seconds > first.guest_cpu_seconds, "figures add up over lives");
    assert!(second.exits["port_write"] > first.exits["port_write"], "figures add up over lives");
    assert_eq!(vm.shell("cat /sys/block/vda/size"), "2048", "a disk goes from life to life");
}
