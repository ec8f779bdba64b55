//! Guests with more code than there is room for, on several vCPUs at once: full memory changes no result.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use engine::{Engine, Exit, Vm, VmSpec};
use engine_translate::{Options, Policy, TranslateEngine};
use memory::{DeviceView, Gpa, GuestMemory};
use translator::native;
use x86::model::Shown;
use x86::{DescriptorTable, Gpr, VcpuState, paging};

const RAM: u64 = 4 << 20;
const TABLES: u64 = 0x1000;
const GDT: u64 = 0x500;
const CODE: u64 = 0x10_0000;
const DONE: u16 = 0x80;

/// Blocks, each in a place of its own: 16 in a page.
const BLOCKS: u64 = 1024;
const PLACE: u64 = 256;
/// Times that all of them run.
const ROUNDS: u64 = 40;

/// Until something that depends on what else the host does has been seen.
const PATIENCE: Duration = Duration::from_secs(120);

/// Block `n` changes RAX in its own way and goes to the block `STEP` further, which is mostly in another page;
/// the last counts RCX down.
const STEP: u64 = 37;

fn guest(view: &DeviceView) {
    let set = |gpa: u64, bytes: &[u8]| view.write(Gpa(gpa), bytes).expect("guest memory");
    let bits = paging::PRESENT | paging::WRITABLE;
    set(TABLES, &((TABLES + 0x1000) | bits).to_le_bytes());
    set(TABLES + 0x1000, &(bits | paging::LARGE).to_le_bytes());
    set(GDT + 0x10, &0x00af_9b00_0000_ffffu64.to_le_bytes());
    for n in 0..BLOCKS {
        let block = n * STEP % BLOCKS;
        let next = (n + 1) * STEP % BLOCKS;
        let mut code = vec![0x48, 0x05]; // add rax, n
        code.extend((n as u32).to_le_bytes());
        code.extend([0x48, 0xc1, 0xc8, 7]); // ror rax, 7
        code.extend([0x75, 0]); // jne to the next
        let mut branch = |opcode: &[u8]| {
            code.extend(opcode);
            let from = block * PLACE + code.len() as u64 + 4;
            code.extend(((next * PLACE) as i32 - from as i32).to_le_bytes());
        };
        if n + 1 < BLOCKS {
            branch(&[0xe9]); // jmp next
        } else {
            branch(&[0x48, 0xff, 0xc9, 0x0f, 0x85]); // dec rcx; jnz first
            code.extend([0xe6, DONE as u8]); // out DONE, al
        }
        set(CODE + block * PLACE, &code);
    }
}

/// What each vCPU has in RAX at the end, and what the engine says of it.
fn run(engine: &TranslateEngine, vcpus: u32) -> (Vec<u64>, BTreeMap<&'static str, u64>) {
    let memory = Arc::new(GuestMemory::with_bytes(RAM).expect("memory"));
    guest(&DeviceView::new(Arc::clone(&memory)));
    let vm = engine.create_vm(VmSpec { memory, vcpus, cpu: Shown::default() }).expect("a VM");
    let vm_ref = &*vm;
    let results = thread::scope(|scope| {
        let start = |id| scope.spawn(move || run_vcpu(vm_ref, id));
        let threads: Vec<_> = (0..vcpus).map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("a vCPU")).collect()
    });
    (results, vm.translation())
}

fn run_vcpu(vm: &dyn Vm, id: u32) -> u64 {
    let mut state = VcpuState::long_mode();
    state.rip = CODE;
    state.cr3 = TABLES;
    state.gdtr = DescriptorTable { base: GDT, limit: 0x3f };
    state.gpr[Gpr::Rax as usize] = u64::from(id);
    state.gpr[Gpr::Rcx as usize] = ROUNDS;
    let mut vcpu = vm.create_vcpu(id).expect("a vCPU");
    vcpu.set_state(&state).expect("state");
    let exit = vcpu.run().expect("run");
    assert!(matches!(exit, Exit::PortWrite { port: DONE, .. }), "{exit:?}");
    vcpu.state().expect("state").gpr[Gpr::Rax as usize]
}

fn engine(options: Options) -> TranslateEngine {
    TranslateEngine::with(options).expect("the engine starts")
}

fn expected(id: u64) -> u64 {
    let blocks = (0..ROUNDS).flat_map(|_| 0..BLOCKS);
    blocks.fold(id, |rax, n| rax.wrapping_add(n).rotate_right(7))
}

#[test]
fn full_memory_changes_no_result() {
    let interpreted = run(&engine(Options { translate: false, ..Options::default() }), 1);
    assert_eq!(interpreted.0, [expected(0)]);
    assert_eq!(interpreted.1["blocks_translated"], 0);
    // However often: not only what runs oftener than what has gone.
    let all = Policy { scarce: 0, ..Policy::default() };
    for (vcpus, hot) in [(1, 1), (1, 3), (2, 1), (2, 3)] {
        // While one vCPU waits for a processor, the other interprets what there is no room for: then nothing is
        // driven out, and the guest has to run again.
        let (begun, mut evictions, mut links) = (Instant::now(), 0, 0);
        loop {
            let counts = run_with_little_room(vcpus, hot, all);
            if !native::Lane::is_supported() {
                break;
            }
            evictions += counts["evictions"];
            links += counts["links_made"];
            if evictions > 5 && links > BLOCKS {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "{vcpus} vCPUs, hot={hot}: {counts:?}");
        }
    }
}

/// What is driven out before it has run often is not translated again and again.
#[test]
fn less_is_translated_where_there_is_no_room() {
    let impatient = Policy { scarce: 0, ..Policy::default() };
    let [fewer, more] =
        [Policy::default(), impatient].map(|paths| run_with_little_room(1, 1, paths));
    if native::Lane::is_supported() {
        assert!(fewer["blocks_translated"] < more["blocks_translated"] / 2, "{fewer:?} {more:?}");
    }
}

/// What the engine says at the end of a guest for which [`Options::CODE_MIN`] is too little.
fn run_with_little_room(vcpus: u32, hot: u32, paths: Policy) -> BTreeMap<&'static str, u64> {
    let options = Options { hot, paths, code_bytes: Options::CODE_MIN, ..Options::default() };
    let (results, counts) = run(&engine(options), vcpus);
    let expected: Vec<_> = (0..u64::from(vcpus)).map(expected).collect();
    assert_eq!(results, expected, "{vcpus} vCPUs, hot={hot}");
    counts
}

/// Code, stubs and bookkeeping together, however paths are chosen.
#[test]
fn no_more_memory_is_taken_than_is_given() {
    if !native::Lane::is_supported() {
        return;
    }
    for paths in Policy::NAMED {
        for code_bytes in [Options::CODE_MIN, 2 * Options::CODE_MIN] {
            let paths = Policy { scarce: 0, ..paths };
            let options = Options { hot: 1, paths, code_bytes, ..Options::default() };
            let (results, counts) = run(&engine(options), 1);
            assert_eq!(results, [expected(0)], "{}", paths.name);
            let (peak, most) = (counts["memory_peak_bytes"], code_bytes as u64);
            assert!(peak <= most && peak > most / 2, "{}: {peak} of {most}", paths.name);
            assert!(counts["evictions"] > 1, "{}: {counts:?}", paths.name);
        }
    }
}

#[test]
fn what_is_counted_is_what_happened() {
    if !native::Lane::is_supported() {
        return;
    }
    let (results, counts) = run(&engine(Options { hot: 1, ..Options::default() }), 1);
    assert_eq!(results, [expected(0)]);
    // A conditional branch ends a block: each place has two, and the last three.
    assert_eq!(counts["blocks_decoded"], 2 * BLOCKS + 1, "{counts:?}");
    assert_eq!(counts["blocks_translated"], 2 * BLOCKS + 1, "{counts:?}");
    assert_eq!(counts["evictions"], 0);
    assert_eq!(counts["called_for_access"], 0);
    assert_eq!(counts["called_for_instruction"], 1, "OUT");
    assert!((1..5 * BLOCKS).contains(&counts["entered"]), "links hold: {counts:?}");
    let options = native::Options { link: false, ..native::Options::default() };
    let (_, unlinked) = run(&engine(Options { hot: 1, native: options, ..Options::default() }), 1);
    assert_eq!(unlinked["links_made"], 0);
    assert!(unlinked["left_unlinked"] >= BLOCKS * ROUNDS, "{unlinked:?}");
}

#[test]
fn perf_learns_the_names() {
    if !native::Lane::is_supported() {
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("map");
    let file = Arc::new(fs::File::create(&path).expect("map"));
    let engine = engine(Options { hot: 1, ..Options::default() }).with_perf_map(file);
    let (_, counts) = run(&engine, 1);
    let map = fs::read_to_string(&path).expect("map");
    let named = |part: &str| map.lines().filter(|line| line.contains(part)).count() as u64;
    assert_eq!(named(" guest_"), counts["blocks_translated"]);
    assert_eq!((named(" guest_100000+c"), named(" fathom_enter")), (1, 1));
    for line in map.lines() {
        let numbers: Vec<_> = line.split(' ').map(|part| u64::from_str_radix(part, 16)).collect();
        assert!(matches!(numbers[..], [Ok(1..), Ok(1..), Err(_)]), "{line}");
    }
}
