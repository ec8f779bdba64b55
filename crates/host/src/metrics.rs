//! The host's figures as Prometheus reads them, in the format of the VMs' own (`api`). Names begin with `fathom_host_`, so that
//! nothing is counted twice where VMs are asked, too.

use std::fmt::Write as _;

use policy::{MemoryState, Reason, VmFacts, VmVerdict};

use crate::window::{HostStatus, VmState};

pub(crate) fn text(status: &HostStatus) -> String {
    let mut text = Text(String::new());
    host(&mut text, status);
    vms(&mut text, status);
    text.0
}

fn host(text: &mut Text, status: &HostStatus) {
    let board = &status.board;
    let facts = &board.facts.host;
    let mut gauge = |name, help, value: f64| {
        text.family(name, "gauge", help);
        text.sample(name, "", value);
    };
    gauge("memory_limit_bytes", "What VMs may have in all.", facts.limit as f64);
    gauge("memory_used_bytes", "What VMs and their processes have.", status.used() as f64);
    gauge("memory_free_bytes", "What of the limit nobody has.", facts.free as f64);
    gauge("memory_supply_bytes", "What targets are made of.", board.verdict.supply as f64);
    gauge("idle_tax_ratio", "Of an idle page so much is taxed away.", board.settings.tax);
    gauge("decision_timestamp_seconds", "When it was decided last, since 1970.", board.at);
    gauge("vms", "VMs that run.", status.vms.len() as f64);
    gauge("swap_bytes", "What the swap stores take.", status.swap_bytes as f64);
    if let Some(limit) = status.swap_limit_bytes {
        gauge("swap_limit_bytes", "What they may take.", limit as f64);
    }
    if let Some(sharing) = status.sharing {
        let shared = "Guest memory in pages that several guests may have.";
        gauge("shared_bytes", shared, sharing.shared_bytes as f64);
        gauge("shared_pool_bytes", "What those pages take.", sharing.pool_bytes as f64);
        gauge("shared_saved_bytes", "What sharing saves.", sharing.saved_bytes as f64);
    }
    if let Some(pressure) = status.pressure {
        let name = "memory_pressure_ratio";
        let help =
            "Of the last ten seconds, the part in which some or all processes waited for memory.";
        text.family(name, "gauge", help);
        text.sample(name, &of_kind("some"), pressure.some);
        text.sample(name, &of_kind("full"), pressure.full);
        let name = "memory_pressure_seconds_total";
        text.family(name, "counter", "Time in which they did, since the host started.");
        text.sample(name, &of_kind("some"), pressure.some_seconds);
        text.sample(name, &of_kind("full"), pressure.full_seconds);
    }
    text.family("memory_state", "gauge", "1 for the state of the host's memory.");
    for state in MemoryState::ALL {
        let name = format!("{state:?}").to_lowercase();
        let is = f64::from(u8::from(state == board.verdict.state));
        text.sample("memory_state", &format!("state=\"{name}\""), is);
    }
}

/// What is told of each VM: name, help, value.
type Gauge = (&'static str, &'static str, fn(&VmFacts, &VmVerdict, &VmState) -> f64);

const GAUGES: [Gauge; 15] = [
    ("vm_shares", "Its weight against others.", |vm, _, _| f64::from(vm.shares)),
    ("vm_reservation_bytes", "What it has whatever others need.", |vm, _, _| vm.reservation as f64),
    ("vm_limit_bytes", "What it has at most.", |vm, _, _| vm.limit as f64),
    ("vm_target_bytes", "What its guest is to have.", |_, verdict, _| verdict.target as f64),
    ("vm_published_target_bytes", "By shares, bounds and idle tax alone.", |_, verdict, _| {
        verdict.published as f64
    }),
    ("vm_resident_bytes", "Guest memory that the host holds.", |vm, _, _| vm.resident as f64),
    ("vm_active_bytes", "Guest memory in use.", |vm, _, _| vm.active as f64),
    ("vm_unreclaimable_bytes", "What a balloon cannot have of it; 0: not known.", |vm, _, _| {
        vm.unreclaimable as f64
    }),
    ("vm_overhead_bytes", "What its process takes beside.", |vm, _, _| vm.overhead as f64),
    ("vm_idle_ratio", "The part of what it has that it does not use.", |_, verdict, _| {
        verdict.idle
    }),
    ("vm_idle_taxed", "Whether its target is what it is for idle memory.", |_, verdict, _| {
        f64::from(u8::from(matches!(verdict.reason, Reason::Idle { .. })))
    }),
    ("vm_balloon_works", "Whether its balloon does in time what it is asked.", |vm, _, _| {
        f64::from(u8::from(vm.balloon.works))
    }),
    ("vm_stopped", "Whether it stands for want of the host's memory.", |_, _, state| {
        f64::from(u8::from(state.stopped))
    }),
    ("vm_swap_bytes", "What its swap store takes.", |_, _, state| state.swap_bytes as f64),
    ("vm_shared_bytes", "Of its memory, what others may have, too.", |_, _, state| {
        state.shared_bytes as f64
    }),
];

fn vms(text: &mut Text, status: &HostStatus) {
    let (facts, verdicts) = (&status.board.facts.vms, &status.board.verdict.vms);
    for (name, help, value) in GAUGES {
        text.family(name, "gauge", help);
        for ((facts, verdict), state) in facts.iter().zip(verdicts).zip(&status.vms) {
            text.sample(name, &name_label(&facts.name), value(facts, verdict, state));
        }
    }
    let name = "vm_restarts_total";
    text.family(name, "counter", "Times that this daemon started it again, of VMs with files.");
    for (vm, restarts) in &status.restarts {
        text.sample(name, &name_label(vm), *restarts as f64);
    }
}

fn of_kind(kind: &str) -> String {
    format!("kind=\"{kind}\"")
}

/// Backslash, quote and line feed are written with a backslash.
fn name_label(name: &str) -> String {
    let name = name.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
    format!("name=\"{name}\"")
}

struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ =
            writeln!(self.0, "# HELP fathom_host_{name} {help}\n# TYPE fathom_host_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(self.0, "fathom_host_{name}{labels} {value}");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::window::tests::status;

    /// Samples by name with labels; panics where a line is none, a family is told twice, or two samples are one.
    fn samples(text: &str) -> BTreeMap<String, f64> {
        let (mut families, mut samples) = (BTreeSet::new(), BTreeMap::new());
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let words: Vec<&str> = comment.splitn(3, ' ').collect();
                assert!(["HELP", "TYPE"].contains(&words[0]) && words.len() == 3, "{line}");
                let new = words[0] == "TYPE" && !families.insert(words[1].to_owned());
                assert!(!new, "a family is told once: {line}");
                continue;
            }
            let (series, value) = line.rsplit_once(' ').expect("a sample");
            let family = series.split('{').next().expect("a name");
            assert!(families.contains(family), "{family} has a type");
            let before = samples.insert(series.to_owned(), value.parse().expect("a number"));
            assert_eq!(before, None, "{line}");
        }
        samples
    }

    #[test]
    fn every_figure_of_the_host_and_its_vms_is_there() {
        let status = status();
        let samples = samples(&text(&status));
        let value = |series: &str| {
            let found = samples.get(&format!("fathom_host_{series}"));
            *found.unwrap_or_else(|| panic!("{series} in {samples:#?}"))
        };
        let mib = f64::from(1 << 20);
        assert_eq!(value("memory_limit_bytes"), 410.0 * mib);
        assert_eq!(value("memory_used_bytes"), 410.0 * mib);
        let shared = ["shared_bytes", "shared_pool_bytes", "shared_saved_bytes"].map(value);
        assert_eq!(shared, [9.0 * mib, 2.0 * mib, 7.0 * mib]);
        assert_eq!(value("memory_free_bytes"), 2.0 * mib);
        assert_eq!(value("memory_state{state=\"low\"}"), 1.0);
        assert_eq!(value("memory_state{state=\"high\"}"), 0.0);
        assert_eq!(value("idle_tax_ratio"), 0.75);
        assert_eq!(value("memory_pressure_ratio{kind=\"full\"}"), 0.125);
        assert_eq!(value("memory_pressure_seconds_total{kind=\"some\"}"), 3.5);
        assert_eq!((value("vms"), value("swap_limit_bytes")), (2.0, 100.0 * mib));
        // A name cannot end its label.
        let strange = r#"{name="<b>\"x\\\n"}"#;
        let of = |figure: &str, labels: &str| value(&format!("vm_{figure}{labels}"));
        assert_eq!((of("idle_ratio", strange), of("idle_taxed", strange)), (0.9, 1.0));
        assert_eq!((of("stopped", strange), of("swap_bytes", strange)), (1.0, 30.0 * mib));
        let busy = "{name=\"busy\"}";
        assert_eq!((of("shares", busy), of("stopped", busy)), (1000.0, 0.0));
        assert_eq!(of("shared_bytes", busy), 9.0 * mib);
        let (resident, active) = (of("resident_bytes", busy), of("active_bytes", busy));
        assert_eq!((resident, active), (200.0 * mib, 200.0 * mib));
        assert_eq!(of("target_bytes", busy), status.board.verdict.vms[0].target as f64);
        assert_eq!(of("restarts_total", busy), 3.0);
        assert_eq!(of("restarts_total", "{name=\"gone\"}"), 9.0, "it does not run");
    }

    #[test]
    fn a_host_without_vms_has_metrics() {
        let mut status = status();
        status.board.facts.vms.clear();
        status.board.verdict.vms.clear();
        (status.vms, status.restarts, status.sharing) = (Vec::new(), BTreeMap::new(), None);
        assert_eq!(samples(&text(&status))["fathom_host_memory_used_bytes"], 0.0);
    }
}
