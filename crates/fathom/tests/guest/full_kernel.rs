//! The kernel for ordinary machines, and the console that virtual ones have.

use crate::kit::Kernel;
use crate::sandbox::Sandbox;
use crate::vm::Guest;

#[test]
fn the_ordinary_kernel_boots_and_talks_over_a_virtio_console() {
    let sandbox = Sandbox::new();
    let guest = Guest::new("console=hvc0 fathom.run=sh").kernel(Kernel::Full).cpus(2);
    let mut vm = guest.start(&sandbox);
    vm.wait_for_shell();
    let release = vm.shell("uname -r");
    assert!(release.ends_with("-amd64") && !release.contains("cloud"), "{release}");
    assert_eq!(vm.shell("tty"), "/dev/hvc0");
    assert_eq!(vm.shell("yes 0123456789 | head -n 2000 | wc -l"), "2000");
    let long = vm.shell("yes 0123456789 | head -n 2000");
    assert_eq!(long.lines().filter(|line| *line == "0123456789").count(), 2000);
    vm.type_line("poweroff -f");
    vm.ended().well();
}
