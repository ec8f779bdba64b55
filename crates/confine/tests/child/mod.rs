//! The program that confines itself.

use std::process::Command;

/// The example that cargo has built beside this test: as `cargo test` does, but not `cargo test --test`.
pub(crate) fn confined() -> Command {
    let test = std::env::current_exe().expect("path of this test");
    let built = test.ancestors().nth(2).expect("target folder").join("examples/confined");
    assert!(built.is_file(), "{}: not there: cargo build -p confine --examples", built.display());
    Command::new(built)
}
