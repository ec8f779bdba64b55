//! Requests that meet a guest in the instant of its reboot.

mod machine;

use std::os::unix::net::UnixStream;

use machine::{Host, REBOOT};
use vmm::{Outcome, RequestError, RunState};

#[test]
fn a_pause_in_the_instant_of_a_reboot_pauses_the_next_life() {
    let host = Host::new();
    let vm = host.start(REBOOT);
    for _ in 0..100 {
        vm.pause().expect("a VM that reboots has not ended");
        let paused = vm.status();
        assert_eq!(paused.state, RunState::Paused);
        assert_eq!(vm.status().exits, paused.exits, "a paused guest ran");
        vm.resume().expect("resumed");
        UnixStream::connect(host.path("vsock")).expect("the same socket in every life");
    }
    vm.stop();
    assert_eq!(vm.wait(), Ok(Outcome::Stopped));
    assert_eq!(vm.pause(), Err(RequestError::Ended));
    assert_eq!(vm.resume(), Err(RequestError::Ended));
}

#[test]
fn a_stop_in_the_instant_of_a_reboot_is_not_lost() {
    for _ in 0..20 {
        let host = Host::new();
        let vm = host.start(REBOOT);
        let lives = vm.status().exits.get("port_write").copied();
        while vm.status().exits.get("port_write").copied() == lives {
            std::thread::yield_now();
        }
        vm.stop();
        assert_eq!(vm.wait(), Ok(Outcome::Stopped));
    }
}
