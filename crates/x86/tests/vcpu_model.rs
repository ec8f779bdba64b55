//! docs/vcpu-model.md says what the tables say. `UPDATE_DOCS=1 cargo test -p x86 --test vcpu_model` writes it.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use x86::cpuid::{Bit, Register};
use x86::model::{
    ARCH_CAPABILITIES, Exposure, FEATURES, Feature, FlawKind, Kind, LEAVES, MSRS, MsrRule, Presence,
};

const INTRODUCTION: &str = "\
# The processor that guests see

Written from the tables in `crates/x86/src/model` by `UPDATE_DOCS=1 cargo test -p x86 --test vcpu_model`; a test
compares the two.

There are two models. **common** is what both engines have: the table is the same on both engines of a host, on Intel's
and AMD's alike, and a guest that was started on one can go on on the other. **full** is all that the engine has and
nothing here forbids; on the translator it is the same as common. A feature that is in no list below is hidden.

A guest moves to another *host* only where that has every feature that the guest was shown: the translator has some that
an old processor lacks, and its vector units are its host's. `x86::model::differences` names what is missing.

The common model claims no more in IA32_ARCH_CAPABILITIES than the host's processor does, but its family and model are
not the host's: a guest kernel cannot know flaws that Linux finds by model number alone. On KVM that is one more reason
for full being the default.
";

fn document() -> String {
    let mut text = INTRODUCTION.to_owned();
    let of = |wanted: &[Exposure]| -> Vec<&Feature> {
        FEATURES.iter().filter(|feature| wanted.contains(&feature.exposure)).collect()
    };
    section(
        &mut text,
        "Features in both models",
        "Where the engine has them; no guest starts without those marked *required*.",
    );
    features(&mut text, &of(&[Exposure::Required, Exposure::Both, Exposure::Follows]));
    section(
        &mut text,
        "Features that only full adds, so only KVM",
        "Where KVM has them; the translator has none of them.",
    );
    features(&mut text, &of(&[Exposure::Full]));
    section(&mut text, "Hidden features", "By both models, whatever the engine has.");
    features(&mut text, &of(&[Exposure::Hidden]));
    section(&mut text, "Other leaves", "A leaf that is not named is all zero.");
    leaves(&mut text);
    section(
        &mut text,
        "IA32_ARCH_CAPABILITIES",
        "The translator says of itself what is marked: an interpreter does not speculate. KVM says what it finds on the host.",
    );
    flaws(&mut text);
    section(
        &mut text,
        "Model-specific registers",
        "Any other is #GP, to read and to write; but KVM shows every guest some more, whatever its CPUID says \
         (machine-check banks, a count of system-management interrupts), which nobody saves. *Saved* registers \
         are in `VcpuState::msrs`, in this order. A state that holds another value than that at reset for a \
         register that the processor does not have is refused.",
    );
    msrs(&mut text);
    text
}

fn section(text: &mut String, title: &str, about: &str) {
    write!(text, "\n## {title}\n\n{about}\n\n").expect("a string");
}

fn line(text: &mut String, cells: &[&str]) {
    writeln!(text, "| {} |", cells.join(" | ")).expect("a string");
}

fn head(text: &mut String, cells: &[&str]) {
    line(text, cells);
    writeln!(text, "|{}", "---|".repeat(cells.len())).expect("a string");
}

fn features(text: &mut String, features: &[&Feature]) {
    head(text, &["feature", "CPUID", "needs", "why"]);
    for feature in features {
        let mut needs: Vec<String> = feature.needs.iter().map(ToString::to_string).collect();
        if feature.components != 0 {
            needs.push(format!("XCR0 {:#x}", feature.components));
        }
        let why = match (feature.exposure, feature.why) {
            (Exposure::Required, "") => "*required*".to_owned(),
            (Exposure::Required, why) => format!("*required*; {why}"),
            (Exposure::Follows, why) => format!("follows: {why}"),
            (_, why) => why.to_owned(),
        };
        line(text, &[feature.name, &place(feature.at), &needs.join(", "), &why]);
    }
}

fn place(bit: Bit) -> String {
    let register = match bit.register {
        Register::Eax => "EAX",
        Register::Ebx => "EBX",
        Register::Ecx => "ECX",
        Register::Edx => "EDX",
    };
    let index = if bit.index == 0 { String::new() } else { format!(".{}", bit.index) };
    format!("{:#x}{index} {register} {}", bit.function, bit.bit)
}

fn leaves(text: &mut String) {
    head(text, &["leaf", "holds", "common", "full, on KVM"]);
    for rule in LEAVES {
        let (first, last) = rule.functions;
        let functions =
            if first == last { format!("{first:#x}") } else { format!("{first:#x} to {last:#x}") };
        line(text, &[&functions, rule.holds, rule.common, rule.full]);
    }
}

fn flaws(text: &mut String) {
    head(text, &["bit", "name", "shown", "translator"]);
    for row in ARCH_CAPABILITIES {
        let shown = match row.kind {
            FlawKind::Immune => "where there is no such flaw",
            FlawKind::Warning => "where it is so",
            FlawKind::Control => "never: the register that it tells of is hidden",
        };
        line(
            text,
            &[&row.bit.to_string(), row.name, shown, if row.translator { "set" } else { "" }],
        );
    }
}

fn msrs(text: &mut String) {
    head(text, &["register", "number", "where", "value", "at reset", "remarks"]);
    for rule in MSRS {
        let presence = match rule.presence {
            Presence::Always => "always".to_owned(),
            Presence::With(features) => format!("with {}", features.join(" or ")),
            Presence::Amd => "full, on AMD".to_owned(),
        };
        let kind = match rule.kind {
            Kind::Saved => "saved".to_owned(),
            Kind::Field(field) => format!("saved in `{field}`"),
            Kind::Constant => "constant".to_owned(),
            Kind::Command => "a command".to_owned(),
        };
        let reset =
            if rule.kind == Kind::Command { String::new() } else { format!("{:#x}", rule.reset) };
        line(text, &[rule.name, &numbers(rule), &presence, &kind, &reset, rule.why]);
    }
}

fn numbers(rule: &MsrRule) -> String {
    let last = rule.first + rule.count - 1;
    if rule.count == 1 { format!("{last:#x}") } else { format!("{:#x} to {last:#x}", rule.first) }
}

#[test]
fn the_document_is_what_the_tables_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/vcpu-model.md");
    let document = document();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &document).expect("write docs/vcpu-model.md");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = document.lines().zip(written.lines()).find(|(ours, theirs)| ours != theirs);
    assert!(
        document == written,
        "docs/vcpu-model.md is not of these tables (first: {differs:?}): \
         UPDATE_DOCS=1 cargo test -p x86 --test vcpu_model"
    );
}

/// Each leaf of feature bits that holds anything else has a rule.
#[test]
fn leaves_are_told_once() {
    let functions: Vec<_> =
        LEAVES.iter().flat_map(|rule| rule.functions.0..=rule.functions.1).collect();
    let unique: BTreeSet<_> = functions.iter().collect();
    assert_eq!(unique.len(), functions.len());
    assert!(functions.is_sorted_by_key(|function| *function));
}
