//! Any bytes as a kernel: decoded and executed with every privilege. Only panics and hangs are wrong.
#![no_main]

#[path = "../../crates/engine-translate/tests/hostile/guest.rs"]
mod guest;

use std::sync::LazyLock;

use engine_translate::TranslateEngine;
use libfuzzer_sys::fuzz_target;

static ENGINE: LazyLock<TranslateEngine> =
    LazyLock::new(|| TranslateEngine::new().expect("the host can run generated code"));

fuzz_target!(|code: &[u8]| {
    if !code.is_empty() && code.len() <= 4096 {
        let seed = code.iter().fold(1, |sum: u64, byte| sum.wrapping_mul(31) + u64::from(*byte));
        guest::run(&*ENGINE, code, &mut guest::Noise(seed | 1));
    }
});
