//! A console that nobody reads.

mod machine;

use std::fs::File;
use std::io::Read;
use std::thread;
use std::time::Duration;

use devices::output::SHUT_AT;
use machine::{Host, PRINT};
use rustix::fs::{CWD, Mode, OFlags, mkfifoat, open};
use vmm::Outcome;

/// What Linux holds in a pipe.
const PIPE: usize = 64 << 10;

#[test]
fn a_console_that_nobody_reads_holds_up_neither_guest_nor_user() {
    let host = Host::new();
    let path = host.path("console");
    mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).expect("fifo");
    let unread = open(&path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).expect("open");
    let vm = host.start(PRINT);
    let printed = || vm.status().exits.get("port_write").copied().unwrap_or(0) as usize;
    let wait_for = |bytes| {
        while printed() < bytes {
            thread::sleep(Duration::from_millis(10));
        }
    };
    // The guest waits a while when the buffer is full, and goes on.
    wait_for(PIPE + SHUT_AT + 1000);
    vm.pause().expect("paused");
    vm.resume().expect("resumed");

    let mut bytes = [0; 4096];
    let length = File::from(unread).read(&mut bytes).expect("the first of it");
    assert!(length > 0 && bytes[..length].iter().all(|&byte| byte == b'x'));
    // Now the reader is gone.
    wait_for(printed() + 1000);
    vm.stop();
    assert_eq!(vm.wait(), Ok(Outcome::Stopped));
}
