//! Rules about crates: who may use whom, who may be unsafe, who is described.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::PathBuf;

/// A crate may use those before it. Crates that do not exist yet have their place already.
const ORDER: [&str; 23] = [
    "x86",
    "confine",
    "tap",
    "memory",
    "engine",
    "translator",
    "engine-translate",
    "engine-kvm",
    "devices",
    "insight",
    "snapshot",
    "remote",
    "objects",
    "migration",
    "dump",
    "policy",
    "scheduler",
    "process",
    "vmm",
    "agent-wire",
    "api",
    "host",
    "fathom",
];

/// What the order alone would allow: user, used, why not.
const FORBIDDEN: [(&str, &str, &str); 10] = [
    ("translator", "memory", "the translator knows no VM's memory, only its `Machine`"),
    ("translator", "engine", "the translator knows x86, not VMs"),
    ("devices", "engine", "devices never name an engine"),
    ("devices", "engine-kvm", "devices never name an engine"),
    ("devices", "engine-translate", "devices never name an engine"),
    ("policy", "memory", "policy sees facts, never memory"),
    ("policy", "engine", "policy is pure"),
    ("migration", "engine", "migration is a state machine over plain data"),
    ("fathom", "objects", "TLS and HTTP are of `fathom-store`, not of each VM's process"),
    ("insight", "engine-translate", "insight sees events, not engines"),
];

/// Crates that may hold unsafe code; all others forbid it at their root.
const UNSAFE_ALLOWED: [&str; 11] = [
    "confine",
    "tap",
    "memory",
    "engine-kvm",
    "translator",
    "engine-translate",
    "process",
    "scheduler",
    "agent",
    "guest",
    "oracle",
];

/// Programs beside the product, outside the order: they may use anything.
const OUTSIDE: [&str; 4] = ["agent", "guest", "oracle", "xtask"];

#[derive(Deserialize)]
pub(super) struct Package {
    name: String,
    dependencies: Vec<Dependency>,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// Only crates of the workspace have one.
    path: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    src_path: PathBuf,
}

impl Package {
    pub(super) fn all(metadata: &str) -> Result<Vec<Self>> {
        #[derive(Deserialize)]
        struct Metadata {
            packages: Vec<Package>,
        }
        let metadata: Metadata = serde_json::from_str(metadata).context("read cargo metadata")?;
        Ok(metadata.packages)
    }

    fn uses(&self) -> impl Iterator<Item = &str> {
        self.dependencies.iter().filter(|used| used.path.is_some()).map(|used| used.name.as_str())
    }
}

/// Dependencies point one way only, tests' too: a test may not need what is above its crate.
pub(super) fn direction(packages: &[Package]) -> Vec<String> {
    let mut found = Vec::new();
    for package in packages.iter().filter(|package| !OUTSIDE.contains(&package.name.as_str())) {
        let user = package.name.as_str();
        let Some(place) = ORDER.iter().position(|name| *name == user) else {
            found.push(format!("{user}: has no place in tidy's order of crates"));
            continue;
        };
        for used in package.uses() {
            if !ORDER[..place].contains(&used) {
                found.push(format!("{user}: uses {used}, which is not below it"));
            }
            let forbidden = FORBIDDEN.iter().find(|rule| (rule.0, rule.1) == (user, used));
            found.extend(forbidden.map(|rule| format!("{user}: uses {used}: {}", rule.2)));
        }
    }
    found
}

pub(super) fn unsafe_allowed(packages: &[Package]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for package in packages.iter().filter(|p| !UNSAFE_ALLOWED.contains(&p.name.as_str())) {
        let ours = |target: &&Target| target.kind.iter().any(|kind| kind == "lib" || kind == "bin");
        for target in package.targets.iter().filter(ours) {
            let text = std::fs::read_to_string(&target.src_path)
                .with_context(|| format!("read {}", target.src_path.display()))?;
            found.extend(forbids_unsafe(&package.name, &text).err());
        }
    }
    Ok(found)
}

fn forbids_unsafe(package: &str, crate_root: &str) -> Result<(), String> {
    if crate_root.lines().any(|line| line.trim() == "#![forbid(unsafe_code)]") {
        return Ok(());
    }
    Err(format!("{package}: its root lacks #![forbid(unsafe_code)]"))
}

/// A paragraph of ARCHITECTURE.md begins with each crate's name in bold.
pub(super) fn named(packages: &[Package], architecture: &str) -> Vec<String> {
    let missing = packages.iter().filter(|p| !architecture.contains(&format!("**{}**", p.name)));
    missing.map(|p| format!("{}: ARCHITECTURE.md has no **{0}**", p.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, uses: &[&str]) -> Package {
        let dependencies = uses
            .iter()
            .map(|name| Dependency { name: (*name).into(), path: Some(PathBuf::new()) })
            .collect();
        Package { name: name.into(), dependencies, targets: Vec::new() }
    }

    #[test]
    fn a_crate_may_use_what_is_below_it() {
        let packages =
            [package("vmm", &["devices", "engine-translate"]), package("xtask", &["vmm"])];
        assert!(direction(&packages).is_empty());
    }

    #[test]
    fn upwards_unknown_and_forbidden_are_found() {
        let packages = [
            package("memory", &["engine"]),
            package("news", &[]),
            package("devices", &["engine"]),
            package("vmm", &["vmm"]),
        ];
        let found = direction(&packages);
        assert_eq!(found.len(), 4, "{found:?}");
    }

    #[test]
    fn crates_of_others_have_no_place_in_the_order() {
        let mut package = package("memory", &["rustix"]);
        package.dependencies[0].path = None;
        assert!(direction(&[package]).is_empty());
    }

    #[test]
    fn the_attribute_must_be_there_itself() {
        assert!(forbids_unsafe("x", "//! Doc.\n#![forbid(unsafe_code)]\n").is_ok());
        assert!(forbids_unsafe("x", "// #![forbid(unsafe_code)]\n").is_err());
    }

    #[test]
    fn a_crate_must_be_named_in_bold() {
        let packages = [package("memory", &[]), package("x86", &[])];
        assert_eq!(named(&packages, "- **memory**, and x86 in passing").len(), 1);
    }
}
