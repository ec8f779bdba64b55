//! The line that moves while the guest runs: what `fathom top` says, and what the guest does.

use super::phases::Phase;
use crate::machine::fathom_program;
use serde_json::Value;
use std::io::{IsTerminal, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

pub(super) struct Live {
    name: &'static str,
    /// On a terminal the line is drawn over itself; in a file, lines follow each other.
    terminal: bool,
    drawn: bool,
    /// When something was said last where nothing can be drawn over.
    said: Option<Duration>,
    /// What the guest does.
    doing: String,
}

/// Where lines follow each other.
const BETWEEN_LINES: Duration = Duration::from_secs(3);

/// A full bar.
const BAR_MIB: u64 = 160;
const BAR_WIDTH: u64 = 32;

impl Live {
    pub(super) fn new(name: &'static str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { name, terminal, drawn: false, said: None, doing: "boot".into() }
    }

    /// A line that stays.
    pub(super) fn say(&mut self, text: &str) {
        self.finish();
        eprintln!("{text}");
    }

    /// How things are; call it once a second.
    pub(super) fn show(&mut self, elapsed: Duration, phase: Option<&Phase>) {
        if let Some(phase) = phase {
            self.doing = phase.title();
        }
        if !self.terminal && self.said.is_some_and(|said| elapsed < said + BETWEEN_LINES) {
            return;
        }
        let top = top(self.name);
        let mib = |bytes: Option<u64>| bytes.map_or("?".to_owned(), |b| (b >> 20).to_string());
        let line = format!(
            "{:4} s  {:<18} working set {:>4} MiB {}  resident {:>4} MiB",
            elapsed.as_secs(),
            self.doing,
            mib(top.working_set),
            bar(top.working_set.unwrap_or(0) >> 20),
            mib(top.resident),
        );
        if self.terminal {
            eprint!("\r\x1b[K{line}");
            // A terminal that is gone needs no picture.
            let _ = std::io::stderr().flush();
            self.drawn = true;
        } else {
            self.said = Some(elapsed);
            eprintln!("{line}");
        }
    }

    pub(super) fn finish(&mut self) {
        if std::mem::take(&mut self.drawn) {
            eprintln!();
        }
    }
}

fn bar(mib: u64) -> String {
    let full = (mib * BAR_WIDTH / BAR_MIB).min(BAR_WIDTH) as usize;
    format!("[{}{}]", "#".repeat(full), ".".repeat(BAR_WIDTH as usize - full))
}

#[derive(Default)]
struct Top {
    working_set: Option<u64>,
    resident: Option<u64>,
}

/// Ask `fathom top`; what it does not say is left open.
fn top(name: &str) -> Top {
    let asked = Command::new(fathom_program())
        .args(["top", "--once", "--json"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let Ok(answer) = asked else { return Top::default() };
    let json: Value = serde_json::from_slice(&answer.stdout).unwrap_or_default();
    vm_named(&json, name).map_or_else(Top::default, |vm| Top {
        working_set: vm.pointer("/working_set/window_1s_bytes").and_then(Value::as_u64),
        resident: vm.get("resident_bytes").and_then(Value::as_u64),
    })
}

/// The object with that name, wherever in the answer it stands.
fn vm_named<'a>(json: &'a Value, name: &str) -> Option<&'a Value> {
    match json {
        Value::Array(items) => items.iter().find_map(|item| vm_named(item, name)),
        Value::Object(fields) if fields.get("name").and_then(Value::as_str) == Some(name) => {
            Some(json)
        }
        Value::Object(fields) => fields.values().find_map(|item| vm_named(item, name)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_found_by_its_name() {
        let json =
            serde_json::json!({"vms": [{"name": "a"}, {"name": "demo", "resident_bytes": 5}]});
        assert_eq!(vm_named(&json, "demo").unwrap()["resident_bytes"], 5);
        assert!(vm_named(&json, "b").is_none());
    }

    #[test]
    fn the_bar_never_overflows() {
        assert_eq!(bar(10_000).len(), bar(0).len());
    }
}
