//! The data files, as they are written.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Having;

/// One file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rules {
    /// For the reader.
    #[allow(dead_code, reason = "every file says what its thread does")]
    about: String,
    #[serde(default)]
    pub(super) includes: Vec<Include>,
    #[serde(default)]
    pub(super) starts: Vec<Include>,
    pub(super) allow: Vec<Allow>,
    #[serde(default)]
    pub(super) refuse: Vec<Refuse>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Include {
    Always(String),
    When(Conditional),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Conditional {
    pub(super) file: String,
    pub(super) when: Having,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Allow {
    pub(super) call: String,
    #[allow(dead_code, reason = "every rule says who needs it")]
    why: String,
    #[serde(default, rename = "where")]
    pub(super) conditions: Vec<Condition>,
}

/// What must hold of an argument.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Condition {
    pub(super) argument: u8,
    #[serde(default)]
    pub(super) is: Vec<String>,
    #[serde(default)]
    pub(super) has: Vec<String>,
    #[serde(default)]
    pub(super) lacks: Vec<String>,
    #[serde(default)]
    pub(super) null: bool,
    #[serde(default, rename = "self")]
    pub(super) own_process: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Refuse {
    pub(super) call: String,
    pub(super) error: String,
    #[allow(dead_code, reason = "every rule says who needs it")]
    why: String,
}

macro_rules! files {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("../../seccomp/", $name, ".json")))),*]
    };
}

const FILES: &[(&str, &str)] = files! {
    "api" "common" "connections" "console" "disk" "gdb" "gdb-socket" "guest-memory" "io" "kvm-guest-memory"
    "kvm-interrupts" "kvm-kick" "kvm-machine" "kvm-vcpu" "kvm-vcpu-state" "main" "process" "restore" "signals" "sockets"
    "start-threads" "supervisor" "translate-vcpu" "userfault" "vcpu" "working-set"
};

/// All files by name.
///
/// # Errors
/// A file is not as it should be: a mistake in it, found by any test.
pub(super) fn all() -> Result<BTreeMap<&'static str, Rules>, String> {
    let read = |(name, text): &(&'static str, &str)| {
        let rules = serde_json::from_str(text).map_err(|error| format!("{name}.json: {error}"))?;
        Ok((*name, rules))
    };
    FILES.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_folder_is_compiled_in() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("seccomp");
        let mut there: Vec<String> = std::fs::read_dir(folder)
            .expect("folder")
            .filter_map(|entry| entry.expect("entry").file_name().into_string().ok())
            .filter_map(|name| name.strip_suffix(".json").map(str::to_owned))
            .collect();
        there.sort();
        let known: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
        assert_eq!(there, known);
    }

    #[test]
    fn every_rule_says_who_needs_it() {
        for (name, rules) in all().expect("files") {
            assert!(!rules.about.is_empty(), "{name}");
            assert!(rules.allow.iter().all(|rule| rule.why.len() >= 4), "{name}");
            assert!(rules.refuse.iter().all(|rule| rule.why.len() >= 4), "{name}");
        }
    }
}
