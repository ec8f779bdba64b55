//! What `fathom inspect` reads out of a guest's memory is what its kernel says of itself in /proc and /sys.

use std::collections::BTreeMap;
use std::time::Instant;

use api::{KernelInfo, KernelSymbol, KernelType};

use crate::engine::announce;
use crate::kit;
use crate::sandbox::Sandbox;
use crate::vm::{Guest, Vm};

/// Of /proc/kpageflags (include/uapi/linux/kernel-page-flags.h, and `KPF_RESERVED`).
const SLAB: u64 = 1 << 7;
const BUDDY: u64 = 1 << 10;
const SWAP_BACKED: u64 = 1 << 14;
const ANONYMOUS: u64 = 1 << 12;
const TAIL: u64 = 1 << 16;
const NO_PAGE: u64 = 1 << 20;
const PAGE_TABLE: u64 = 1 << 26;
const RESERVED: u64 = 1 << 32;

#[test]
fn a_kernel_tells_what_it_says_in_proc() {
    let sandbox = Sandbox::new();
    let disk = format!("{},ro", kit::disk_image());
    let mut vm = Guest::new("fathom.run=sh").disk(disk).start(&sandbox);
    vm.wait_for_shell();
    // Files of a disk that somebody holds open stay in memory.
    vm.shell("mkdir -p /mnt && mount -o ro,noload /dev/vda /mnt");
    vm.shell("cat /mnt/bin/* >/dev/null");
    let kernel = inspect(&vm);
    assert_eq!(kernel.missing, [""; 0]);
    assert_eq!(kernel.release, vm.shell("uname -r"));
    symbols_are_where_proc_has_them(&mut vm, kernel.symbols);
    types_are_as_large_as_slab_says(&mut vm);
    processes_are_those_of_proc(&mut vm);
    classes_are_those_of_proc(&mut vm);
    is_the_same_while_it_stands(&vm);
    vm.type_line("poweroff -f");
    vm.ended().well();
}

fn inspect(vm: &Vm<'_>) -> KernelInfo {
    serde_json::from_str(&vm.tell("inspect", &["--json"])).expect("a kernel")
}

fn symbols_are_where_proc_has_them(vm: &mut Vm<'_>, count: Option<u64>) {
    // Modules have brackets.
    let own = vm.shell(r"grep -vc '\[' /proc/kallsyms");
    assert_eq!(count.map(|count| count.to_string()), Some(own));
    let lines =
        vm.shell(r"grep -E ' (_stext|schedule|vmemmap_base|init_task|__stop_BTF)$' /proc/kallsyms");
    assert_eq!(lines.lines().count(), 5, "{lines}");
    for line in lines.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [address, _, name] = words[..] else { panic!("{line}") };
        let address = u64::from_str_radix(address, 16).expect("an address");
        let symbol: KernelSymbol =
            serde_json::from_str(&vm.tell("inspect", &["--json", "--symbol", name])).expect("json");
        assert_eq!((symbol.address, symbol.offset), (address, 0), "{line}");
    }
    let schedule = vm.tell("inspect", &["--symbol", "schedule"]);
    let address = schedule.split(' ').next().expect("an address");
    assert_eq!(vm.tell("inspect", &["--symbol", address]), schedule);
}

fn types_are_as_large_as_slab_says(vm: &mut Vm<'_>) {
    for (cache, structure) in [("dentry", "dentry"), ("vm_area_struct", "vm_area_struct")] {
        let bytes = vm.shell(&format!("cat /sys/kernel/slab/{cache}/object_size"));
        let answer = vm.tell("inspect", &["--json", "--type", structure]);
        let structure: KernelType = serde_json::from_str(&answer).expect("json");
        assert_eq!((structure.bits / 8).to_string(), bytes, "{cache}");
    }
}

fn processes_are_those_of_proc(vm: &mut Vm<'_>) {
    // The shell's own: what it starts comes and goes, and so do the kernel's workers.
    let listed = vm.shell("for p in /proc/[0-9]*; do echo ${p#/proc/}; done");
    let kernel = inspect(vm);
    let pids = |text: &str| text.lines().filter_map(|pid| pid.trim().parse::<u32>().ok()).collect();
    let listed: std::collections::BTreeSet<u32> = pids(&listed);
    let seen = kernel.processes.iter().map(|process| process.pid);
    let seen: std::collections::BTreeSet<u32> = seen.collect();
    let different = seen.symmetric_difference(&listed).count();
    assert!(listed.len() > 20 && different <= 3, "{seen:?} {listed:?}");
    let first = &kernel.processes[0];
    assert_eq!((first.pid, first.name.as_str()), (1, "init"));
    assert!(first.page_table.is_some() && kernel.processes[1].page_table.is_none());
}

/// Both are taken while the guest runs, and taking the one uses memory: what stands still is the same to the
/// frame, the rest about.
fn classes_are_those_of_proc(vm: &mut Vm<'_>) {
    let flags = vm.shell("od -An -v -t x8 -w8 /proc/kpageflags | sort | uniq -c");
    let meminfo = vm.shell("cat /proc/meminfo");
    let kernel = inspect(vm);
    let flags: Vec<(u64, u64)> = flags.lines().filter_map(frames_of_a_kind).collect();
    let with = |mask: u64, want: u64| {
        let frames = flags.iter().filter(|(_, flags)| flags & mask == want);
        frames.map(|(frames, _)| frames).sum::<u64>()
    };
    let classes: BTreeMap<&str, u64> =
        kernel.class_bytes.iter().map(|(class, bytes)| (class.as_str(), bytes / 4096)).collect();
    announce(&format!("frames by class: {classes:?}"));
    assert_eq!(classes.values().sum::<u64>(), (256 << 20) / 4096);
    assert_eq!(classes["unknown"], 0);
    assert_eq!(classes["reserved"], with(RESERVED | NO_PAGE, RESERVED));
    assert_eq!(classes["shared_memory"] * 4, kib(&meminfo, "Shmem"));
    let cached = kib(&meminfo, "Cached") + kib(&meminfo, "Buffers") - kib(&meminfo, "Shmem");
    assert!(cached > 1024, "something of the disk is in memory: {meminfo}");
    about("file_cache", classes["file_cache"], cached / 4, 16);
    let slab = with(SLAB, SLAB);
    about("slab", classes["slab"], slab, slab / 16);
    // What counted the flags took some of it meanwhile; what printed this takes a little, and gives it back to a
    // list of its CPU.
    about("free", classes["free"], kib(&meminfo, "MemFree") / 4, 700);
    assert!(classes["free"] >= with(BUDDY, BUDDY), "{classes:?}");
    // The programs that counted had some: each a page table or more, and memory of its own.
    let tables = with(PAGE_TABLE, PAGE_TABLE);
    assert!((10..=tables).contains(&classes["page_table"]), "{} {tables}", classes["page_table"]);
    let anonymous = with(ANONYMOUS | SWAP_BACKED | TAIL, ANONYMOUS | SWAP_BACKED);
    assert!(
        (10..=anonymous).contains(&classes["anonymous"]),
        "{} {anonymous}",
        classes["anonymous"]
    );
}

fn frames_of_a_kind(line: &str) -> Option<(u64, u64)> {
    let (frames, flags) = line.trim().split_once(' ')?;
    Some((frames.parse().ok()?, u64::from_str_radix(flags.trim(), 16).ok()?))
}

fn kib(meminfo: &str, name: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    kib.unwrap_or_else(|| panic!("{name} in {meminfo}"))
}

fn about(class: &str, frames: u64, proc: u64, tolerance: u64) {
    let off = frames.abs_diff(proc);
    assert!(off <= tolerance, "{class}: {frames} frames, by /proc {proc}");
}

fn is_the_same_while_it_stands(vm: &Vm<'_>) {
    vm.tell("pause", &[]);
    let resident = vm.status().resident_bytes;
    let before = inspect(vm);
    let start = Instant::now();
    assert_eq!(inspect(vm), before);
    announce(&format!("inspected in {:?}", start.elapsed()));
    assert_eq!(vm.status().resident_bytes, resident, "a look makes nothing resident");
    vm.tell("resume", &[]);
}
