//! A machine that is saved goes on elsewhere, byte by byte; one that cannot be is refused.

mod machine;

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use machine::{Host, engine};
use memory::Frame;
use serde_json::Value;
use snapshot::{Compression, WorkingSet};
use vmm::config::{ConsoleConfig, EngineChoice, VmConfig, VmPlan, VsockConfig};
use vmm::saved::{
    Draft, DraftOptions, Kept, MachineState, Progress, SaveLanes, SaveOptions, Saved,
};
use vmm::{Keeper, Outcome, RestoreMode, RestoreOptions, VmError, VmHandle};
use x86::Gpr;

/// Prints the alphabet for ever: `mov dx, 0x3f8; a: mov al, 'a'; b: out dx, al; inc al; cmp al, 'z' + 1; jne b; jmp a`
const ALPHABET: &[u8] =
    &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'a', 0xee, 0xfe, 0xc0, 0x3c, b'z' + 1, 0x75, 0xf9, 0xeb, 0xf5];

/// Bounds a failure only.
const PATIENCE: Duration = Duration::from_secs(60);

fn save(host: &Host, vm: &VmHandle, name: &str, stop: bool) {
    save_as(host, vm, name, stop, DraftOptions { lanes: 2, ..DraftOptions::default() });
}

fn save_as(host: &Host, vm: &VmHandle, name: &str, stop: bool, options: DraftOptions) -> Kept {
    let (draft, sockets) = Draft::create(&host.path(name), 32 << 20, options).expect("a draft");
    let lanes = SaveLanes::new(sockets).expect("lanes");
    let (report, kept) = thread::scope(|scope| {
        let sent = scope.spawn(|| vm.save(&lanes, SaveOptions { stop, ..SaveOptions::default() }));
        let kept = draft.keep(&Progress::default()).expect("whole");
        (sent.join().expect("no panic").expect("saved"), kept)
    });
    assert!(report.frames_sent > 0 && report.frames == 8192, "{report:?}");
    kept
}

/// What a restore asks for by itself.
fn config(saved: &Saved, console: ConsoleConfig) -> VmConfig {
    VmConfig { console, engine: engine(), ..saved.state.config.clone() }
}

fn restore(host: &Host, saved: Saved, console: &str, paused: bool) -> Result<VmHandle, VmError> {
    restore_by(RestoreMode::default(), host, saved, console, paused)
}

fn restore_by(
    mode: RestoreMode,
    host: &Host,
    saved: Saved,
    console: &str,
    paused: bool,
) -> Result<VmHandle, VmError> {
    let config = config(&saved, ConsoleConfig::File(host.path(console)));
    let plan = VmPlan::new(config).expect("a plan");
    let outside = plan.open_outside()?;
    let options = RestoreOptions { mode, learning: None, asked: Instant::now() };
    vmm::restore_with(plan, outside, saved, options, paused)
}

fn options() -> RestoreOptions {
    RestoreOptions { mode: RestoreMode::Lazy, learning: None, asked: Instant::now() }
}

fn open(host: &Host, name: &str) -> Saved {
    Saved::open(&host.path(name)).expect("a snapshot")
}

/// Waits until so many bytes are printed.
fn printed(host: &Host, console: &str, bytes: usize) -> Vec<u8> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = fs::read(host.path(console)).unwrap_or_default();
        if text.len() >= bytes {
            return text;
        }
        assert!(Instant::now() < deadline, "{} of {bytes} bytes", text.len());
        thread::sleep(Duration::from_millis(5));
    }
}

fn stop(vm: &VmHandle) {
    vm.stop();
    assert_eq!(vm.wait(), Ok(Outcome::Stopped));
}

#[test]
fn it_goes_on_with_the_next_byte() {
    let host = Host::new();
    let vm = host.start(ALPHABET);
    printed(&host, "console", 1000);
    save(&host, &vm, "snapshot", true);
    assert_eq!(vm.wait(), Ok(Outcome::Stopped));
    let mut text = fs::read(host.path("console")).expect("console");
    let modes = [RestoreMode::Eager, RestoreMode::Lazy, RestoreMode::WorkingSet];
    for (life, mode) in modes.into_iter().enumerate() {
        let (console, name) = (format!("console{life}"), format!("snapshot{life}"));
        let from = if life == 0 { "snapshot".to_owned() } else { format!("snapshot{}", life - 1) };
        let vm = restore_by(mode, &host, open(&host, &from), &console, false).expect("restored");
        printed(&host, &console, 1000);
        save(&host, &vm, &name, true);
        assert_eq!(vm.wait(), Ok(Outcome::Stopped));
        text.extend(fs::read(host.path(&console)).expect("console"));
    }
    let expected: Vec<u8> = (b'a'..=b'z').cycle().take(text.len()).collect();
    assert!(text == expected, "the alphabet is not whole where it was saved");
}

/// One that goes on while it is saved, and one that does not run between two saves.
#[test]
fn a_save_changes_nothing() {
    let host = Host::new();
    let vm = host.start(ALPHABET);
    printed(&host, "console", 100);
    save(&host, &vm, "running", false);
    printed(&host, "console", fs::read(host.path("console")).expect("console").len() + 100);
    vm.pause().expect("paused");
    save(&host, &vm, "first", false);
    save(&host, &vm, "second", false);
    assert_eq!(vm.status().state, vmm::RunState::Paused);
    vm.resume().expect("resumed");
    stop(&vm);
    let memory = |name: &str| fs::read(host.path(name).join("memory")).expect("an image");
    assert!(memory("first") == memory("second"), "memory changed while the VM stood");

    // Restored and standing it is the same again, but for its generation.
    let vm = restore(&host, open(&host, "second"), "console1", true).expect("restored");
    assert_eq!(vm.status().state, vmm::RunState::Paused);
    save(&host, &vm, "third", true);
    assert_eq!(vm.wait(), Ok(Outcome::Stopped));
    let (before, after) = (memory("second"), memory("third"));
    let changed: Vec<usize> = (0..before.len()).filter(|&at| before[at] != after[at]).collect();
    let id = vmm::boot::layout::GENERATION_ID as usize;
    assert!(!changed.is_empty(), "the same generation twice");
    assert!(changed.iter().all(|at| (id..id + 16).contains(at)), "{changed:x?}");
    let [first, second] = ["second", "third"].map(|name| open(&host, name).state);
    assert_eq!(first.vcpus[0].gpr, second.vcpus[0].gpr);
    assert_eq!((first.vcpus[0].rip, &first.io_apic), (second.vcpus[0].rip, &second.io_apic));
    assert_eq!(first.board, second.board);
    assert!(second.clock.kvmclock_ns > first.clock.kvmclock_ns, "time went on");
    let passed = second.clock.unix_ns - first.clock.unix_ns;
    let clock = second.clock.kvmclock_ns - first.clock.kvmclock_ns;
    assert!(clock.abs_diff(passed) < passed / 10 + 50_000_000, "{clock} ns in {passed} ns");
}

/// What a machine touched after a restore is told, and comes first in the next one.
#[test]
fn the_working_set_is_learnt() {
    let host = Host::new();
    let vm = host.start(ALPHABET);
    printed(&host, "console", 100);
    save(&host, &vm, "snapshot", true);
    assert_eq!(vm.wait(), Ok(Outcome::Stopped));
    assert!(open(&host, "snapshot").snapshot().working_set().expect("readable").is_none());
    let told = host.path("told");
    for life in 0..2 {
        let saved = open(&host, "snapshot");
        let mut keeper = Command::new("sh");
        keeper.arg("-c").arg(format!("cat >{}", told.display())).stdin(Stdio::piped());
        let learning = Some(Keeper::Process(keeper.spawn().expect("a keeper")));
        let console = format!("console{life}");
        let config = config(&saved, ConsoleConfig::File(host.path(&console)));
        let plan = VmPlan::new(config).expect("a plan");
        let outside = plan.open_outside().expect("opened");
        let options = RestoreOptions { learning, ..options() };
        let vm = vmm::restore_with(plan, outside, saved, options, false).expect("restored");
        printed(&host, &console, 100);
        // It tells what it knows when it ends.
        stop(&vm);
        let bytes = fs::read(&told).expect("told");
        let (words, rest) = bytes.as_chunks();
        assert!(rest.is_empty() && !words.is_empty());
        let frames: Vec<_> = words.iter().map(|word| Frame(u32::from_le_bytes(*word))).collect();
        let snapshot = open(&host, "snapshot");
        let snapshot = snapshot.snapshot();
        // Before the second life, so that it has one to add to.
        WorkingSet::replace(snapshot, &frames, Compression::None).expect("replaced");
        let set = snapshot.working_set().expect("readable").expect("learnt");
        assert_eq!(set.frames().len(), frames.len(), "each frame once, and all with contents");
    }
}

/// Frames that are not there yet are saved, too: from where they are.
#[test]
fn a_save_of_a_restore_has_all_of_it() {
    let host = Host::new();
    let vm = host.start(ALPHABET);
    printed(&host, "console", 100);
    save(&host, &vm, "first", true);
    assert_eq!(vm.wait(), Ok(Outcome::Stopped));
    for live in [false, true] {
        let saved = open(&host, "first");
        let vm = restore_by(RestoreMode::Lazy, &host, saved, &format!("console{live}"), true);
        let vm = vm.expect("restored");
        let name = format!("second{live}");
        let (draft, sockets) =
            Draft::create(&host.path(&name), 32 << 20, DraftOptions::default()).expect("a draft");
        let lanes = SaveLanes::new(sockets).expect("lanes");
        let options = SaveOptions { live, ..SaveOptions::default() };
        thread::scope(|scope| {
            let sent = scope.spawn(|| vm.save(&lanes, options));
            draft.keep(&Progress::default()).expect("whole");
            sent.join().expect("no panic").expect("saved");
        });
        stop(&vm);
        let memory = |name: &str| fs::read(host.path(name).join("memory")).expect("an image");
        let (before, after) = (memory("first"), memory(&name));
        let id = vmm::boot::layout::GENERATION_ID as usize;
        let differs = |at: &usize| before[*at] != after[*at] && !(id..id + 16).contains(at);
        assert_eq!((0..before.len()).find(differs), None, "live: {live}");
    }
}

#[test]
fn changed_disks_are_refused() {
    let host = Host::new();
    let vm = host.start(ALPHABET);
    save(&host, &vm, "snapshot", false);
    // It has the disk still.
    let mut saved = open(&host, "snapshot");
    saved.state.config.vsock = Some(VsockConfig::new(3, host.path("vsock1")));
    let refused = restore(&host, saved, "console1", false).err();
    let refused = refused.expect("two VMs with one overlay").to_string();
    assert!(refused.contains("in use"), "{refused}");
    stop(&vm);
    let overlay = fs::OpenOptions::new().write(true).open(host.path("overlay")).expect("overlay");
    overlay.set_modified(std::time::SystemTime::now()).expect("touched");
    let refused = restore(&host, open(&host, "snapshot"), "console1", false).err();
    let refused = refused.expect("it was written").to_string();
    assert!(refused.contains("written since") && refused.contains("overlay"), "{refused}");
}

/// Every state that says what cannot be ends in a line that names it, or in a guest that is the guest's own fault.
#[test]
fn hostile_states_are_refused_or_run() {
    type Change = fn(&mut Saved);
    let refused: [(Change, &str); 12] = [
        (|saved| saved.state.board.serial.input = vec![0; 100_000], "board.serial"),
        (|saved| drop(saved.state.board.virtio.pop()), "board.virtio: "),
        (|saved| saved.state.board.virtio.swap(0, 1), "board.virtio[0]"),
        (|saved| saved.state.board.virtio[0].driver_features = u64::MAX, "board.virtio[0]"),
        (|saved| saved.state.board.virtio[0].queues.truncate(0), "board.virtio[0]"),
        (
            |saved| {
                let queue = &mut saved.state.board.virtio[0].queues[0];
                (queue.ready, queue.size) = (true, 3);
            },
            "queue size 3",
        ),
        (
            |saved| {
                let queue = &mut saved.state.board.virtio[0].queues[0];
                (queue.ready, queue.size, queue.desc) = (true, 8, 1 << 40);
            },
            "0x10000000000",
        ),
        (|saved| saved.state.vcpus[1].apic.registers.truncate(3), "vcpus[1]"),
        (|saved| saved.state.vcpus[0].xstate.truncate(3), "vcpus[0]"),
        (|saved| saved.state.vcpus[0].cr4 = u64::MAX, "vcpus[0]"),
        (|saved| saved.state.vcpus[0].efer = 1 << 63, "vcpus[0]"),
        (
            |saved| {
                let leaf = saved.state.processor.cpuid.leaves.iter_mut();
                leaf.filter(|leaf| leaf.function == 7).for_each(|leaf| leaf.ebx = u32::MAX);
            },
            "avx512",
        ),
    ];
    let host = Host::new();
    let vm = host.start(ALPHABET);
    save(&host, &vm, "snapshot", true);
    assert_eq!(vm.wait(), Ok(Outcome::Stopped));
    for (change, words) in refused {
        let mut saved = open(&host, "snapshot");
        change(&mut saved);
        let error = restore(&host, saved, "console1", false).err();
        let error = error.unwrap_or_else(|| panic!("{words}: taken")).to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
    let taken: [Change; 6] = [
        |saved| saved.state.vcpus[0].rip = 0xffff_ffff_ffff_fff0,
        |saved| saved.state.vcpus[0].cr3 = u64::MAX << 12 >> 12,
        |saved| saved.state.vcpus[0].gpr[Gpr::Rsp as usize] = u64::MAX,
        |saved| saved.state.vcpus[0].apic.registers.fill(u32::MAX),
        |saved| saved.state.io_apic.entries.fill(u64::MAX),
        |saved| (saved.state.clock.kvmclock_ns, saved.state.clock.unix_ns) = (u64::MAX, u64::MAX),
    ];
    for change in taken {
        let mut saved = open(&host, "snapshot");
        change(&mut saved);
        // Whatever becomes of the guest, it can be stopped.
        if let Ok(vm) = restore(&host, saved, "console1", false) {
            thread::sleep(Duration::from_millis(20));
            vm.stop();
            let _ = vm.wait();
        }
    }
    // All of that left the snapshot as good as it was.
    let vm = restore(&host, open(&host, "snapshot"), "console2", false).expect("restored");
    printed(&host, "console2", 100);
    stop(&vm);
    assert_ne!(engine(), EngineChoice::Auto);
}

/// Any number of a state may be any other: it is refused, or the guest runs with it. Nothing panics.
#[test]
fn any_number_may_be_any_other() {
    const CHANGES: u64 = 150;
    let host = Host::new();
    let vm = host.start(ALPHABET);
    save(&host, &vm, "snapshot", true);
    assert_eq!(vm.wait(), Ok(Outcome::Stopped));
    let machine = open(&host, "snapshot").snapshot().machine().expect("state");
    let good: Value = serde_json::from_slice(&machine).expect("json");
    let mut random = 0x5eed;
    let (mut refused, mut taken) = (0, 0);
    for _ in 0..CHANGES {
        let mut json = good.clone();
        let path = change_a_number(&mut json, &mut random);
        let state = serde_json::from_value(json).map_err(io::Error::other);
        let state = state.map_err(|error| VmError::Host("read it".to_owned(), error));
        let restored = state.and_then(|state: MachineState| {
            state.check()?;
            let mut saved = open(&host, "snapshot");
            saved.state = state;
            let config = config(&saved, ConsoleConfig::None);
            let plan = VmPlan::new(config).map_err(|error| {
                VmError::Host(error.to_string(), std::io::ErrorKind::Other.into())
            })?;
            let outside = plan.open_outside()?;
            vmm::restore_with(plan, outside, saved, options(), false)
        });
        match restored {
            Err(_) => refused += 1,
            Ok(vm) => {
                taken += 1;
                thread::sleep(Duration::from_millis(2));
                vm.stop();
                let end = vm.wait();
                assert!(!matches!(&end, Err(what) if what.contains("panic")), "{path}: {end:?}");
            }
        }
    }
    assert!(refused > 0 && taken > 0, "{refused} refused, {taken} taken");
}

/// Which.
fn change_a_number(json: &mut Value, random: &mut u64) -> String {
    let mut paths = Vec::new();
    numbers(json, &mut String::new(), &mut paths);
    let path = paths[next(random) as usize % paths.len()].clone();
    let values = [0, 1, 7, 255, 4096, u64::from(u32::MAX), 1 << 63, u64::MAX, next(random)];
    let value = values[next(random) as usize % values.len()];
    *json.pointer_mut(&path).expect("a number is there") = value.into();
    path
}

fn numbers(json: &Value, path: &mut String, found: &mut Vec<String>) {
    let length = path.len();
    let mut inside = |name: String, value: &Value| {
        path.push('/');
        path.push_str(&name);
        numbers(value, path, found);
        path.truncate(length);
    };
    match json {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| inside(name.clone(), value));
        }
        // The bytes of a vector register are all alike.
        Value::Array(values) if values.len() > 100 => {}
        Value::Array(values) => {
            values.iter().enumerate().for_each(|(index, value)| inside(index.to_string(), value));
        }
        Value::Number(_) => found.push(path.clone()),
        _ => {}
    }
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}
