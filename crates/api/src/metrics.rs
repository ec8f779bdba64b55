//! A VM's figures as Prometheus reads them: its text format, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>), in base units, a family for each quantity. Names follow
//! KubeVirt's (docs/observability/metrics.md there) where it has the same quantity.

use std::fmt::Write as _;

use insight::FrameClass;
use insight::picture::{IDLE_SECONDS, Picture};

use crate::control::{ControlError, VmControl};
use crate::wire::{RunState, VmStatus};

/// Of the answer.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Asks the VM. Who asks has its accesses watched for the next minute, as by `top`: without it there would be no working
/// set to tell.
pub(crate) fn text(control: &dyn VmControl) -> Result<String, ControlError> {
    control.watch()?;
    Ok(shown(&control.status()?, &control.memory()?))
}

fn shown(status: &VmStatus, picture: &Picture) -> String {
    let mut text = Text { name: label(&status.name), text: String::new() };
    info(&mut text, status);
    memory(&mut text, status, picture);
    cache(&mut text, picture);
    curve(&mut text, picture);
    text.text
}

fn info(text: &mut Text, status: &VmStatus) {
    text.family("vm_info", "gauge", "1; labels say what the VM is.");
    let engine = label(&status.engine);
    text.sample("vm_info", &format!(",engine=\"{engine}\",vcpus=\"{}\"", status.vcpus), 1.0);
    let running = f64::from(u8::from(status.state == RunState::Running));
    text.one("vm_running", "gauge", "Whether its vCPUs run.", running);
    text.one("vm_uptime_seconds", "gauge", "Since it was started.", status.uptime_seconds);
    let cpu = status.guest_cpu_seconds;
    text.one("vcpu_seconds_total", "counter", "Host CPU time of its vCPUs.", cpu);
    text.family("vcpu_exits_total", "counter", "Times that a vCPU left guest code, by kind.");
    for (kind, &count) in &status.exits {
        text.sample("vcpu_exits_total", &format!(",kind=\"{}\"", label(kind)), count as f64);
    }
}

fn memory(text: &mut Text, status: &VmStatus, picture: &Picture) {
    let mut gauge = |name, help, bytes: u64| text.one(name, "gauge", help, bytes as f64);
    gauge("memory_domain_bytes", "Guest memory as configured.", status.configured_bytes);
    gauge("memory_resident_bytes", "Guest memory that the host holds.", status.resident_bytes);
    gauge("memory_actual_balloon_bytes", "Given to the balloon.", status.ballooned_bytes);
    let target = status.balloon_target_bytes;
    gauge("memory_target_balloon_bytes", "What the balloon was asked to hold.", target);
    let unused = picture.part(FrameClass::Untouched).bytes + picture.part(FrameClass::Free).bytes;
    gauge("memory_unused_bytes", "Never used, or given back; not the balloon's.", unused);
    if let Some(cache) = picture.cache {
        gauge("memory_cached_bytes", "Blocks of disks, by inference.", cache.cached_bytes);
    }
    if let Some(shareable) = picture.shareable_bytes() {
        gauge("memory_shareable_bytes", "Equal to other pages of the VM.", shareable);
    }
    gauge("shared_bytes", "In pages that other guests may have, too.", status.shared_bytes);
    if let Some(reclaim) = &status.reclaim {
        gauge("reclaim_wanted_bytes", "To be taken by the host.", reclaim.wanted_bytes);
        gauge("reclaim_store_bytes", "What its swap store takes.", reclaim.store_bytes);
        gauge("reclaim_store_frames", "Frames in its swap store.", reclaim.slots);
        let mut counter = |name, help, bytes: u64| text.one(name, "counter", help, bytes as f64);
        counter("reclaim_taken_bytes_total", "Taken by the host.", reclaim.taken_bytes);
        counter("reclaim_written_bytes_total", "Of that, written.", reclaim.written_bytes);
        let dropped = reclaim.zero_bytes + reclaim.disk_bytes + reclaim.unchanged_bytes;
        counter("reclaim_dropped_bytes_total", "Of that, not written.", dropped);
        counter("reclaim_returned_bytes_total", "Wanted again.", reclaim.returned_bytes);
        counter("reclaim_prefetched_bytes_total", "Came with that.", reclaim.prefetched_bytes);
    }
    let windows = status.working_set;
    let windows = [
        ("1", windows.window_1s_bytes),
        ("10", windows.window_10s_bytes),
        ("60", windows.window_60s_bytes),
    ];
    text.family("memory_workingset_bytes", "gauge", "Accessed in the last seconds, by window.");
    for (seconds, bytes) in windows {
        if let Some(bytes) = bytes {
            let labels = format!(",window_seconds=\"{seconds}\"");
            text.sample("memory_workingset_bytes", &labels, bytes as f64);
        }
    }
    text.family("memory_class_bytes", "gauge", "Guest memory by what it is: the sum is all of it.");
    for (part, figures) in &picture.parts {
        let labels = format!(",class=\"{}\"", part.name());
        text.sample("memory_class_bytes", &labels, figures.bytes as f64);
    }
    idle(text, picture);
}

/// By the least number of seconds that it was not accessed.
fn idle(text: &mut Text, picture: &Picture) {
    text.family("memory_idle_bytes", "gauge", "Resident and not accessed for so long or longer.");
    for seconds in IDLE_SECONDS {
        if let Some(bytes) = picture.idle_bytes(seconds) {
            let labels = format!(",seconds=\"{seconds}\"");
            text.sample("memory_idle_bytes", &labels, bytes as f64);
        }
    }
}

fn cache(text: &mut Text, picture: &Picture) {
    let lost = picture.lost_events as f64;
    let help = "Events of memory that came too fast: then what is inferred may be off.";
    text.one("memory_events_lost_total", "counter", help, lost);
    let Some(cache) = picture.cache else { return };
    let mut counter = |name, help, count: u64| text.one(name, "counter", help, count as f64);
    counter("cache_inserts_total", "Blocks of 4096 bytes that came into memory.", cache.inserted);
    counter("cache_evictions_total", "Blocks that left, and may be wanted again.", cache.evicted);
    counter("cache_drops_total", "Blocks that left for good.", cache.dropped);
    counter("cache_refaults_total", "Blocks read again after an eviction.", cache.ghost_hits);
}

fn curve(text: &mut Text, picture: &Picture) {
    let Some(recommended) = &picture.curve.recommendation else { return };
    let help = "Memory that the VM would use well.";
    text.one("memory_demand_bytes", "gauge", help, recommended.bytes as f64);
    let help = "How sure that is, from 0 to 1.";
    text.one("memory_demand_confidence_ratio", "gauge", help, recommended.confidence);
}

struct Text {
    /// Of the VM.
    name: String,
    text: String,
}

impl Text {
    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, "", value);
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP fathom_{name} {help}\n# TYPE fathom_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let _ = writeln!(self.text, "fathom_{name}{{name=\"{}\"{labels}}} {value}", self.name);
    }
}

/// A label's value: backslash, quote and line feed are written with a backslash.
fn label(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeVm;

    /// Samples by name with labels; panics where a line is none.
    fn samples(text: &str) -> Vec<(String, f64)> {
        let mut families = std::collections::BTreeSet::new();
        let mut samples = Vec::new();
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
            samples.push((series.to_owned(), value.parse().expect("a number")));
        }
        samples
    }

    #[test]
    fn every_line_is_a_sample_of_a_family() {
        let vm = FakeVm::new("web");
        let samples = samples(&text(&vm).expect("metrics"));
        let value = |series: &str| {
            let found = samples.iter().find(|(name, _)| name == series);
            found.unwrap_or_else(|| panic!("{series} in {samples:#?}")).1
        };
        let mib = f64::from(1 << 20);
        assert_eq!(value("fathom_memory_domain_bytes{name=\"web\"}"), 256.0 * mib);
        assert_eq!(value("fathom_memory_idle_bytes{name=\"web\",seconds=\"60\"}"), 30.0 * mib);
        assert_eq!(value("fathom_cache_evictions_total{name=\"web\"}"), 9000.0);
        let classes = samples.iter().filter(|(name, _)| name.contains("memory_class_bytes"));
        assert_eq!(classes.map(|(_, bytes)| bytes).sum::<f64>(), 256.0 * mib);
    }

    #[test]
    fn names_cannot_end_a_label() {
        assert_eq!(label("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
        let reclaim = Some(crate::wire::ReclaimStatus::default());
        let status = VmStatus { name: "x\"} 1\n".to_owned(), reclaim, ..VmStatus::default() };
        samples(&shown(&status, &Picture::default()));
    }
}
