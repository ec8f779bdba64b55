//! What the user sees of a guest's memory, from outside: `explain`, `curve`, `top`, metrics and the report.

use std::fs::File;

use api::{CurveOf, FrameClass, MemoryCurve, Picture};
use serde_json::Value;

use crate::engine::{Engine, announce};
use crate::sandbox::Sandbox;
use crate::vm::{Guest, Vm};

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 256 * MIB;
/// Read from a disk, which somebody holds open so that it stays in memory.
const READ_MIB: u64 = 120;

#[test]
fn a_guests_memory_is_accounted_for() {
    let sandbox = Sandbox::new();
    // Its contents do not matter.
    let disk = File::create(sandbox.path("disk")).expect("a disk");
    disk.set_len((READ_MIB + 8) * MIB).expect("a disk");
    let disk = format!("{},ro", sandbox.path("disk").display());
    let mut vm =
        Guest::new("fathom.run=sh").disk(disk).arguments(&["--insight", "on"]).start(&sandbox);
    vm.wait_for_shell();
    vm.shell("exec 3</dev/vda");
    let read = format!("dd if=/dev/vda of=/dev/null bs=1M count={READ_MIB} 2>/dev/null");
    vm.shell(&read);
    explain_knows_the_cache(&mut vm);
    // Takes memory that the cache had; then some of it is read again.
    vm.shell("/init alloc-free:150 seconds=1");
    vm.shell(&read);
    curve_knows_what_was_read_again(&vm, &sandbox);
    metrics_say_the_same(&sandbox);
    let status = vm.top();
    assert!(status.memory_use.cache_bytes.is_some_and(|cache| cache >= 40 * MIB), "{status:?}");
    vm.type_line("poweroff -f");
    let ended = vm.ended().well();
    sums_up(&ended.report.memory);
    let history = &ended.report.memory.history;
    assert!(history.len() >= 2, "one a second: {history:?}");
    assert_eq!(ended.report.cache["events_lost"], ended.report.memory.lost_events);
}

fn explain_knows_the_cache(vm: &mut Vm<'_>) {
    let meminfo = vm.shell("grep -E '^(Buffers|Cached|Shmem):' /proc/meminfo");
    let json = vm.tell("explain", &["--json"]);
    let account: Value = serde_json::from_str(&json).expect("json");
    let parts = account["parts"].as_array().expect("parts");
    let bytes = |part: &Value, what: &str| part[what].as_u64().unwrap_or(0);
    let sum: u64 = parts.iter().map(|part| bytes(part, "bytes")).sum();
    assert_eq!((sum, account["memory_bytes"].as_u64()), (MEMORY, Some(MEMORY)), "{json}");
    let resident: u64 = parts.iter().map(|part| bytes(part, "resident_bytes")).sum();
    assert_eq!(Some(resident), account["resident_bytes"].as_u64());
    assert!(account["idle_seconds"].as_u64().is_some(), "it was watched: {json}");
    let part = |name: &str| {
        parts.iter().find(|part| part["part"] == name).map_or(0, |part| bytes(part, "bytes"))
    };
    let cached = kib(&meminfo, "Buffers") + kib(&meminfo, "Cached") - kib(&meminfo, "Shmem");
    announce(&format!("file cache: {} KiB, by meminfo {cached}", part("file_cache") / 1024));
    assert!(cached * 1024 >= (READ_MIB - 16) * MIB, "{meminfo}");
    // The kernel drops some when it likes, and what it has dropped is seen when it is used for something else.
    let off = part("file_cache").abs_diff(cached * 1024);
    assert!(off <= cached * 1024 / 20, "{} is not {cached} KiB", part("file_cache"));
    let text = vm.tell("explain", &[]);
    for line in ["VM `guest` has 256M", "file cache", "never used", "  To take it: ", "all  "] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

fn kib(meminfo: &str, name: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    kib.unwrap_or_else(|| panic!("{name} in {meminfo}"))
}

fn curve_knows_what_was_read_again(vm: &Vm<'_>, sandbox: &Sandbox) {
    let curve: MemoryCurve = serde_json::from_str(&vm.tell("curve", &["--json"])).expect("a curve");
    assert_eq!(curve.allocation_bytes, MEMORY);
    let first = curve.points.first().expect("misses");
    let last = curve.points.last().expect("misses");
    match curve.of {
        // Accesses are seen one by one.
        CurveOf::References => assert!(first.bytes == 0 && first.miss_ratio > 0.5, "{first:?}"),
        CurveOf::Misses => assert_eq!((first.bytes, first.miss_ratio), (MEMORY, 1.0)),
    }
    let expected =
        if Engine::under_test() == Engine::Kvm { CurveOf::Misses } else { CurveOf::References };
    assert_eq!(curve.of, expected);
    let now = curve.points.iter().rfind(|point| point.bytes <= MEMORY).expect("the present size");
    let left = last.miss_ratio / now.miss_ratio;
    assert!(left < 0.95, "more memory would have helped: {curve:?}");
    announce(&format!("misses left with much more memory: {left:.2} of today's"));
    let recommended = curve.recommendation.expect("watched for some seconds");
    assert!(recommended.bytes > 8 * MIB && recommended.bytes <= 2 * MEMORY, "{recommended:?}");
    assert!(vm.tell("curve", &[]).contains("The guest has 256M now"));
    let svg = sandbox.path("curve.svg");
    vm.tell("curve", &["--svg", svg.to_str().expect("text")]);
    assert!(std::fs::read_to_string(svg).expect("a picture").contains("<polyline"));
}

fn metrics_say_the_same(sandbox: &Sandbox) {
    let client = sandbox.sockets().client("guest");
    let text = client.metrics().expect("metrics");
    let class = |line: &str| {
        let rest = line.strip_prefix("fathom_memory_class_bytes{")?;
        rest.rsplit_once(' ')?.1.parse::<f64>().ok()
    };
    assert_eq!(text.lines().filter_map(class).sum::<f64>(), MEMORY as f64, "{text}");
    for name in ["memory_workingset_bytes", "memory_cached_bytes", "cache_refaults_total"] {
        assert!(text.contains(&format!("\nfathom_{name}{{name=\"guest\"")), "{name}: {text}");
    }
    sums_up(&client.memory().expect("a picture"));
}

fn sums_up(picture: &Picture) {
    assert_eq!(picture.memory_bytes, MEMORY);
    assert_eq!(picture.parts.values().map(|part| part.bytes).sum::<u64>(), MEMORY);
    for (part, figures) in &picture.parts {
        let aged = figures.by_idle_age.iter().sum::<u64>() + figures.age_unknown_bytes;
        assert_eq!(aged, figures.resident_bytes, "{part:?}");
    }
    assert!(picture.part(FrameClass::FileCache).bytes >= 40 * MIB, "{picture:?}");
}
