//! Guests that are nothing but noise: whatever they do, the engine answers with exceptions and exits, and
//! comes back when it is kicked.

#[allow(clippy::unwrap_used, reason = "a test, but not a function that says so")]
mod guest;

use engine_translate::{Options, Policy, TranslateEngine};
use guest::Noise;

#[test]
fn noise_ends_in_exits_and_never_in_a_panic_or_a_hang() {
    survives(&TranslateEngine::new().unwrap());
}

/// The same, and nothing is interpreted that can be translated.
#[test]
fn noise_as_code_at_once_ends_in_exits_too() {
    survives(&TranslateEngine::with(Options { hot: 1, ..Options::default() }).unwrap());
}

/// There is hardly room for code.
#[test]
fn noise_in_little_room_ends_in_exits_too() {
    let paths = Policy { scarce: 0, ..Policy::FATHOM };
    let options = Options { hot: 1, paths, code_bytes: Options::CODE_MIN, ..Options::default() };
    survives(&TranslateEngine::with(options).unwrap());
}

fn survives(engine: &TranslateEngine) {
    let cases = std::env::var("FATHOM_FUZZ_CASES").ok().and_then(|text| text.parse().ok());
    for seed in 1..=cases.unwrap_or(1000u64).min(100_000) {
        let mut noise = Noise(seed);
        let len = 16 + noise.next() as usize % 512;
        let mut code: Vec<u8> = (0..len).map(|_| noise.next() as u8).collect();
        // A third of the programs gets system instructions at random places.
        if seed.is_multiple_of(3) {
            for _ in 0..8 {
                let at = noise.next() as usize % (len - 3);
                let system: &[u8] = SYSTEM[noise.next() as usize % SYSTEM.len()];
                code[at..at + system.len()].copy_from_slice(system);
            }
        }
        guest::run(engine, &code, &mut noise);
    }
}

/// Encodings that noise seldom hits.
const SYSTEM: &[&[u8]] = &[
    &[0x0f, 0x22, 0xd8], // mov cr3, rax
    &[0x0f, 0x22, 0xe1], // mov cr4, rcx
    &[0x0f, 0x22, 0xc2], // mov cr0, rdx
    &[0x0f, 0x30],       // wrmsr
    &[0x0f, 0x32],       // rdmsr
    &[0x0f, 0x05],       // syscall
    &[0x48, 0x0f, 0x07], // sysretq
    &[0x48, 0xcf],       // iretq
    &[0x0f, 0x01, 0xf8], // swapgs
    &[0x0f, 0x01, 0x10], // lgdt [rax]
    &[0x0f, 0x01, 0x18], // lidt [rax]
    &[0x0f, 0x01, 0x38], // invlpg [rax]
    &[0x0f, 0x00, 0xd8], // ltr ax
    &[0x0f, 0x01, 0xd1], // xsetbv
    &[0xf3, 0xa4],       // rep movsb
    &[0xf3, 0x6c],       // rep insb
    &[0xfb, 0xf4],       // sti; hlt
    &[0x9d],             // popfq
    &[0xcd, 0x03],       // int 3
    &[0x8e, 0xd0],       // mov ss, eax
    &[0x0f, 0xae, 0x28], // xrstor [rax]
    &[0x0f, 0xae, 0x08], // fxrstor [rax]
];
