//! What is emitted for one of each kind of instruction, as text that is kept: a change to it shows in a review. So
//! does a change to how much it is.
//!
//! With `FATHOM_BLESS=1` the tests write what they find into the files that they else compare with.

mod cases;
mod text;

use std::path::Path;
use std::{env, fs};

use iced_x86::{Decoder, DecoderOptions, Instruction};

use super::asm::Asm;
use super::lane::Lane;
use super::options::Options;
use super::thunks::Thunks;
use super::translate::{self, Code, Scratch};
use crate::block::Mode;
use crate::block::tests::Idle;
use crate::cpu::Width;
use crate::decode::decode_block;
use crate::paths::{self, Policy, Source};

/// Physical address of the guest's code.
const GUEST: u64 = 0x5400;
/// Place of the host's.
const HOST: u32 = 0x10_0000;
/// Follows instructions that are alone: nothing is emitted for it.
const NOP: u8 = 0x90;

/// A block and what became of it.
pub(super) struct Translated {
    guest: Vec<Instruction>,
    code: Code,
    thunks: Thunks,
}

impl Translated {
    fn new(source: &[u8]) -> Self {
        let thunks = Thunks::emit(&mut Asm::new(16));
        let mode = Mode { width: Width::Bits64 };
        let decoded = decode_block::<Idle>(source, mode, 64);
        assert!(decoded.insns.len() > 1, "{source:02x?} is one instruction");
        let bytes = &source[..decoded.len as usize];
        let first = (GUEST & 0xfff) as u32;
        let (path, source) = (paths::Path::run(first, decoded.len), Source { bytes, first });
        let (options, policy) = (Options::default(), Policy::default());
        let code = translate::translate(
            &path,
            source,
            HOST,
            &thunks,
            (options, &policy),
            None,
            &mut Scratch::new(),
        );
        let decoder = Decoder::with_ip(64, bytes, GUEST, DecoderOptions::FORCE_RESERVED_NOP);
        Self { guest: decoder.into_iter().collect(), code: code.expect("code"), thunks }
    }

    /// Of one instruction that is alone.
    fn alone(source: &[u8]) -> Self {
        // The first is nothing: a block of one that branches has two.
        Self::new(&[&[NOP], source, &[NOP]].concat())
    }
}

/// Whether what is emitted here is what is emitted everywhere.
fn is_usual() -> bool {
    let vectors = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let others = is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq");
    let usual = Lane::is_supported() && vectors && others;
    if !usual {
        eprintln!("not compared: this processor is of an older kind");
    }
    usual
}

fn bytes(hexadecimal: &str) -> Vec<u8> {
    let digits = |at| &hexadecimal[at..at + 2];
    let byte = |at| u8::from_str_radix(digits(at), 16).expect("a byte");
    (0..hexadecimal.len()).step_by(2).map(byte).collect()
}

/// Compares with the file, or writes it.
fn is_as_kept(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/native/snapshot").join(name);
    if env::var_os("FATHOM_BLESS").is_some() {
        return fs::write(&path, found).expect("written");
    }
    let kept = fs::read_to_string(&path).expect("the file with what is kept");
    let differing = kept.lines().zip(found.lines()).position(|(kept, found)| kept != found);
    let at = differing.unwrap_or(kept.lines().count().min(found.lines().count()));
    let around = |text: &str| {
        let lines: Vec<_> = text.lines().skip(at.saturating_sub(8)).take(16).collect();
        lines.join("\n")
    };
    assert!(
        kept == found,
        "{name} differs from line {} on; run again with FATHOM_BLESS=1 and review the change\nkept:\n{}\nfound:\n{}",
        at + 1,
        around(&kept),
        around(found)
    );
}

#[test]
fn emitted_code_is_as_kept() {
    if !is_usual() {
        return;
    }
    let alone = cases::INSTRUCTIONS.split_whitespace();
    let mut found: String =
        alone.map(|case| text::alone(&Translated::alone(&bytes(case)))).collect();
    for (what, case) in cases::BLOCKS {
        found += &text::block(what, &Translated::new(&bytes(case)));
    }
    is_as_kept("emitted.txt", &found);
}

#[test]
fn what_an_instruction_takes_is_as_kept() {
    if !is_usual() {
        return;
    }
    let head = "# Host instructions and bytes in line, and bytes behind the block, for one guest instruction.\n";
    let alone = cases::INSTRUCTIONS.split_whitespace();
    let lines = alone.map(|case| text::ledger(&Translated::alone(&bytes(case))));
    is_as_kept("ledger.txt", &(head.to_owned() + &lines.collect::<String>()));
}
