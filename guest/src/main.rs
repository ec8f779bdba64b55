//! The guest half of tests, demos and benchmarks: one static program, `/init` of the kit's
//! initramfs.
//!
//! As process 1 it mounts the kernel's file systems, loads the modules listed in
//! `/modules/order`, does what the kernel's command line asks and ends the machine:
//!
//! ```text
//! fathom.run=WORK[:ARGS]     what to do; may be given several times, done in order
//! fathom.without=TEST,TEST   self-tests to leave out
//! fathom.seconds=N           how long a phase lasts, 9 if not said
//! fathom.file=MIB            the size of the file that `phases` reads
//! fathom.scale=PERCENT        how much `bench`, `litmus` and `patching` do, 100 if not said
//! fathom.root=DEVICE          a disk with Debian on it, /dev/vda if not said
//! fathom.scratch=DEVICE       a disk that `bench` and `verify` may overwrite, /dev/vdb if not said
//! fathom.trace=DEVICE         where `cache` puts what it traces, /dev/vdc if not said
//! fathom.swap=DEVICE          a swap area for `cache`, /dev/vdd if not said
//! fathom.modules=none        load no modules
//! fathom.agent=off            start no agent; it is started where there is vsock
//! fathom.end=poweroff|reboot|halt|panic|stay
//! ip=dhcp, ip=CLIENT::..     an address for eth0, as the kernel has it
//! ```
//!
//! Words with spaces are quoted as for the kernel: `"fathom.run=disk:/bin/ls -l /"`.
//! Run by hand it takes the same works as arguments: `guest selftest`, `guest integer:100`;
//! a folder will do for a disk with Debian on it, and a file for one to overwrite.
//!
//! What it has to say it says in lines that begin with `@fathom `, one JSON object each:
//!
//! ```text
//! @fathom {"event":"phase","name":"touch","state":"begin","bytes":31457280,"uptime_ms":1234}
//! ```
//!
//! It is *not* a test of Linux: whatever fails here but not on the host is the machine's fault.

mod beat;
mod bench;
mod cache;
mod init;
mod litmus;
mod network;
mod patching;
mod random;
mod report;
mod request;
mod selftest;
mod sys;
mod work;

use request::Request;
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        init::run();
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.is_empty() || words.iter().any(|word| word.starts_with('-')) {
        eprintln!(
            "usage: guest WORK[:ARGS]... [seconds=N] [file=MIB] [scale=PERCENT] [root=FOLDER] \
             [scratch=FILE]\nworks: {}",
            work::NAMES
        );
        return ExitCode::from(2);
    }
    if work::run_all(&Request::from_arguments(&words)) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
