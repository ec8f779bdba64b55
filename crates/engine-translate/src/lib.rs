//! A full x86-64 system CPU over the translator: MMU, exceptions, interrupt controllers, clocks.
//!
//! ```text
//!   Vcpu::run: look around -> deliver events -> run blocks -+-> Exit
//!                  ^                                        |
//!                  +----------------------------------------+
//!   run blocks: jump cache -> translator::Core::run_block -> System (impl Machine)
//!                                                              tlb -> walk -> memory::resolve
//! ```
//!
//! What it is *not*: it names no device (an access outside RAM is an exit), and it decodes nothing itself.
//! Long mode and what leads to it (real mode, unpaged protected mode) is all there is: no 32-bit paging, no
//! virtual-8086 mode, no task switches, no call gates, no breakpoints on I/O.

mod access;
mod alarm;
mod apic;
mod attention;
mod breakpoints;
mod clock;
mod cpuid;
mod exceptions;
mod fetch;
mod foresight;
mod heads;
mod host;
mod hot;
mod instructions;
mod kvmclock;
mod lately;
mod lockstep;
mod mtrr;
mod native;
mod options;
mod perf_map;
mod poll;
mod profile;
mod registers;
mod runs;
mod segments;
mod state;
mod system;
mod threshold;
mod tlb;
mod traced;
mod vcpu;
mod vm;
mod walk;

use std::fs::File;
use std::sync::{Arc, Mutex};

use engine::{Capabilities, Engine, EngineError, Tracking, Vm, VmSpec};

pub use crate::clock::begin_to_measure;
pub use crate::options::{Dump, Options, Predict};
use crate::perf_map::PerfMap;
use crate::profile::Recorder;
pub use crate::profile::{Profile, ProfileError};
use crate::vm::{Shared, TranslateVm};
pub use translator::native::Options as NativeOptions;
pub use translator::paths::Policy;

/// The most vCPUs of one VM: local APIC identifiers stay below the IO-APIC's broadcast address.
const MAX_VCPUS: u32 = 64;

/// The engine that needs nothing but an x86-64 Linux process.
#[derive(Debug)]
pub struct TranslateEngine {
    options: Options,
    observers: Observers,
}

/// Who is told of generated code, and who knows of it beforehand.
#[derive(Clone, Debug, Default)]
struct Observers {
    perf_map: Option<Arc<PerfMap>>,
    profile: Option<Arc<Profile>>,
    recorder: Option<Arc<Recorder>>,
}

impl TranslateEngine {
    /// Prepares what all VMs share: the generated code's memory, the handler of alarms, and the TSC's
    /// frequency. Once done, a process that is confined since can do it again.
    pub fn new() -> Result<Self, EngineError> {
        Self::with(Options::default())
    }

    /// The same, for VMs that are run as `options` say.
    pub fn with(options: Options) -> Result<Self, EngineError> {
        let prepared = translator::vector::prepare().and_then(|()| translator::native::prepare());
        prepared.map_err(|error| EngineError::Host {
            action: "map memory for generated code".into(),
            source: std::io::Error::other(error),
        })?;
        alarm::prepare().map_err(alarm::refused("install the handler of the alarm signal"))?;
        clock::tsc_hz();
        Ok(Self { options, observers: Observers::default() })
    }

    /// Has `file` filled with what `perf report` needs to name generated code. It looks for it at
    /// `/tmp/perf-PID.map`.
    #[must_use]
    pub fn with_perf_map(self, file: Arc<File>) -> Self {
        let perf_map = Some(Arc::new(PerfMap::new(file)));
        Self { observers: Observers { perf_map, ..self.observers }, ..self }
    }

    /// Has the blocks of `profile` translated when they run for the first time.
    #[must_use]
    pub fn with_profile(self, profile: Profile) -> Self {
        let profile = Some(Arc::new(profile));
        Self { observers: Observers { profile, ..self.observers }, ..self }
    }

    /// Has `file` filled with the profile of what is translated from now on.
    #[must_use]
    pub fn with_profile_out(self, file: Arc<File>) -> Self {
        let recorder = Some(Arc::new(Recorder::new(file)));
        Self { observers: Observers { recorder, ..self.observers }, ..self }
    }
}

impl Engine for TranslateEngine {
    fn name(&self) -> &'static str {
        "translate"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            counts_instructions: !native::is_used(self.options),
            access_tracking: Tracking::Exact,
            write_tracking: Tracking::Exact,
            max_vcpus: if self.options.verify { 1 } else { MAX_VCPUS },
        }
    }

    fn create_vm(&self, spec: VmSpec) -> Result<Arc<dyn Vm>, EngineError> {
        if !(1..=MAX_VCPUS).contains(&spec.vcpus) {
            return Err(EngineError::Unsupported(format!(
                "{} vcpus: this engine runs 1 to {MAX_VCPUS}",
                spec.vcpus
            )));
        }
        native::check_verify(self.options, spec.vcpus)?;
        let shared = Shared::new(spec, self.options, self.observers.clone())?;
        Ok(Arc::new(TranslateVm { shared, made: Mutex::default() }))
    }
}
