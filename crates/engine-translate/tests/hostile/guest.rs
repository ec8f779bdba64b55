//! A guest of nothing but noise, and a machine to run it on. Shared by the test and the fuzz target.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use engine::{Engine, Exit, VmSpec};
use memory::{DeviceView, Gpa, GuestMemory};
use x86::model::Shown;
use x86::{DescriptorTable, Gpr, VcpuState, paging};

const RAM: u64 = 4 << 20;
const CODE: u64 = 0x10_0000;
const TABLES: u64 = 0x1000;
const IDT: u64 = 0x8000;
/// Exits after which a program has shown enough.
const EXITS: usize = 200;

/// xorshift64*, seeded: a failure names its seed.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Runs `code` in 64-bit mode at privilege 0 with identity-mapped, user-accessible, writable memory, and an
/// IDT whose handlers are in the same noise.
pub(crate) fn run(engine: &dyn Engine, code: &[u8], noise: &mut Noise) {
    let memory = Arc::new(GuestMemory::with_bytes(RAM).unwrap());
    let vm = engine
        .create_vm(VmSpec { memory: Arc::clone(&memory), vcpus: 1, cpu: Shown::default() })
        .unwrap();
    let view = DeviceView::new(memory);
    let set = |gpa: u64, value: u64| view.write(Gpa(gpa), &value.to_le_bytes()).unwrap();
    let bits = paging::PRESENT | paging::WRITABLE | paging::USER;
    set(TABLES, (TABLES + 0x1000) | bits);
    set(TABLES + 0x1000, bits | paging::LARGE);
    for vector in 0..32 {
        let handler = CODE + noise.next() % code.len() as u64;
        set(
            IDT + vector * 16,
            handler & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (handler >> 16) << 48,
        );
    }
    view.write(Gpa(0x500 + 0x10), &0x00af_9b00_0000_ffffu64.to_le_bytes()).unwrap();
    view.write(Gpa(CODE), code).unwrap();

    let mut state = VcpuState::long_mode();
    state.rip = CODE;
    state.cr3 = TABLES;
    state.gdtr = DescriptorTable { base: 0x500, limit: 0x3f };
    state.idtr = DescriptorTable { base: IDT, limit: 0x1ff };
    for register in &mut state.gpr {
        *register = if noise.next().is_multiple_of(2) { noise.next() } else { noise.next() % RAM };
    }
    state.gpr[Gpr::Rsp as usize] = 0x20_0000;
    let mut vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_state(&state).unwrap();

    let kicker = Arc::clone(&vm);
    let watchdog = thread::spawn(move || {
        thread::sleep(Duration::from_millis(5));
        kicker.kick(0);
    });
    for _ in 0..EXITS {
        match vcpu.run() {
            Ok(Exit::PortRead { .. } | Exit::MmioRead { .. }) => vcpu.complete_read(noise.next()),
            Ok(Exit::Kicked | Exit::TripleFault) | Err(_) => break,
            Ok(_) => {}
        }
    }
    // Whatever state the noise has made can be saved.
    assert_eq!(vcpu.state().expect("state").gpr.len(), 16);
    watchdog.join().unwrap();
}
