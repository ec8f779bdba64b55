//! VMs whose kernel is a few bytes of code, on the engine that `FATHOM_ENGINE` names.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;
use vmm::VmHandle;
use vmm::config::{
    Bytes, ConsoleConfig, CpuModel, DiskConfig, EngineChoice, GdbConfig, TranslationConfig,
    VmConfig, VmPlan, VsockConfig,
};

/// `jmp $`
pub const SPIN: &[u8] = &[0xeb, 0xfe];
/// Pulses the reset line of the keyboard controller: `mov al, 0xfe; out 0x64, al; jmp $`
pub const REBOOT: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe];
/// Writes to the serial port for ever: `mov dx, 0x3f8; mov al, 'x'; out dx, al; jmp -3`
pub const PRINT: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xeb, 0xfd];

/// Where the code is loaded and entered.
pub const ENTRY: u64 = 0x100_0000;
/// Where a kernel is linked: in the upper half.
const LINKED: u64 = 0xffff_ffff_8100_0000;
const HEADERS: usize = 64 + 56;

/// Files for one VM.
pub struct Host {
    folder: TempDir,
}

impl Host {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("temporary directory") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A VM that runs `code` on vCPU 0, with a disk under an overlay, a vsock, and a console into a file.
    pub fn start(&self, code: &[u8]) -> VmHandle {
        self.start_with(code, None)
    }

    /// The same, with a debugger awaited.
    pub fn start_with(&self, code: &[u8], gdb: Option<GdbConfig>) -> VmHandle {
        fs::write(self.path("kernel"), elf(code)).expect("kernel");
        fs::write(self.path("disk"), vec![0; 1 << 20]).expect("disk");
        let disk = DiskConfig {
            path: self.path("disk"),
            read_only: true,
            overlay: Some(self.path("overlay")),
            no_host_cache: false,
        };
        let config = VmConfig {
            cpu_model: CpuModel::default(),
            name: Some("tiny".to_owned()),
            kernel: self.path("kernel"),
            initrd: None,
            cmdline: None,
            memory: Bytes(32 << 20),
            cpus: 2,
            disks: vec![disk],
            nets: Vec::new(),
            engine: engine(),
            console: ConsoleConfig::File(self.path("console")),
            report: None,
            cache_log: None,
            insight: true,
            host_cache: None,
            classes: false,
            estimate_log: None,
            gdb,
            vsock: Some(VsockConfig::new(3, self.path("vsock"))),
            translation: TranslationConfig::default(),
        };
        vmm::start(VmPlan::new(config).expect("plan")).expect("start")
    }
}

pub fn engine() -> EngineChoice {
    match std::env::var("FATHOM_ENGINE").as_deref() {
        Err(_) | Ok("translate") => EngineChoice::Translate,
        Ok("kvm") => EngineChoice::Kvm,
        Ok(other) => panic!("FATHOM_ENGINE={other}: write kvm or translate"),
    }
}

/// An ELF vmlinux of one segment.
fn elf(code: &[u8]) -> Vec<u8> {
    let mut file = vec![0; HEADERS];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &2u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(24, &ENTRY.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &1u16.to_le_bytes());
    put(64, &1u32.to_le_bytes());
    let length = code.len() as u64;
    let fields = [HEADERS as u64, LINKED, ENTRY, length, length, 0x1000];
    for (index, field) in fields.into_iter().enumerate() {
        put(72 + index * 8, &field.to_le_bytes());
    }
    file.extend(code);
    file
}
