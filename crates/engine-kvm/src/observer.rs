//! What the frame table asks of this engine.

use std::sync::{Mutex, OnceLock, PoisonError, Weak};

use engine::EngineError;
use memory::{Access, FrameRange, Gpa, GuestMemory, MappingObserver, Revocation};

use crate::vm::Inner;

/// Stands between the frame table and the VM; holds the VM weakly, which holds the memory.
pub(crate) struct Observer {
    vm: OnceLock<Weak<Inner>>,
    memory: Weak<GuestMemory>,
    /// One look at a time: two would tell the same accesses in different epochs.
    looking: Mutex<()>,
}

impl Observer {
    pub(crate) fn new(memory: Weak<GuestMemory>) -> Self {
        Self { vm: OnceLock::new(), memory, looking: Mutex::default() }
    }

    pub(crate) fn connect(&self, vm: Weak<Inner>) {
        // Set once, by the VM's constructor.
        let _ = self.vm.set(vm);
    }

    fn look(&self, zap: bool) {
        let _one = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(vm) = self.vm.get().and_then(Weak::upgrade) else { return };
        let Some(memory) = self.memory.upgrade() else { return };
        if let Err(error) = tell(&vm, &memory, zap) {
            tracing::error!("look for accesses of the guest: {error}: the working set is unknown");
        }
        // Each vCPU says by which page tables it goes: once an epoch, by its own thread, without anybody waiting.
        if zap && memory.events().is_some() {
            vm.kickers.iter().filter_map(OnceLock::get).for_each(|kicker| kicker.ask());
        }
    }
}

fn tell(vm: &Inner, memory: &GuestMemory, zap: bool) -> Result<(), EngineError> {
    // The table knows each of these frames as resident or may take it for that: none is absent, since
    // an absent frame is resolved before the guest sees it. So `resolve` cannot fail.
    if memory.is_anonymous() {
        // Writes are not noted: KVM would map small pages from then on.
        return vm
            .ram
            .filled(|frame| memory.note(frame, Access::Read))
            .map_err(crate::error::host("read /proc/self/pagemap"));
    }
    vm.note_writes()?;
    vm.take_listed(|frame| memory.note(frame, Access::Write))?;
    vm.ram
        .accessed(zap, |frame| memory.note(frame, Access::Read))
        .map_err(crate::error::host("read /proc/self/pagemap"))
}

impl MappingObserver for Observer {
    /// Removing a frame's page from the file removes it from all mappings and from KVM. But a write
    /// that is listed and not told yet would later make the frame pass for resident, so the list is
    /// taken now. An epoch has ended already.
    fn revoke(&self, revoked: Revocation<'_>) {
        // Accesses are not told one by one here, so there is nothing to take back for who traces them.
        if revoked.is_asynchronous() {
            return;
        }
        let Some(vm) = self.vm.get().and_then(Weak::upgrade) else { return };
        let Some(memory) = self.memory.upgrade() else { return };
        if let Err(error) = vm.take_listed(|frame| memory.note(frame, Access::Write)) {
            tracing::error!("look for writes of the guest: {error}: some are not told");
        }
    }

    fn code_written(&self, _: Gpa, _: usize) {}

    fn report(&self) {
        self.look(false);
    }

    fn end_epoch(&self) {
        self.look(true);
    }

    fn moved_to_file(&self) {
        if let Some(vm) = self.vm.get().and_then(Weak::upgrade) {
            vm.cover();
        }
    }

    fn write_protect(&self) -> Result<(), String> {
        let Some(vm) = self.vm.get().and_then(Weak::upgrade) else { return Ok(()) };
        vm.protect(&self.memory).map_err(|error| error.to_string())
    }

    fn unprotect(&self, frames: FrameRange) {
        if let Some(vm) = self.vm.get().and_then(Weak::upgrade) {
            vm.unprotect(&self.memory, frames);
        }
    }

    fn maps_by_itself(&self) -> bool {
        true
    }

    fn before_absent(&self, ranges: &[FrameRange]) -> Result<(), String> {
        let (Some(vm), memory) = (self.vm.get().and_then(Weak::upgrade), &self.memory) else {
            return Ok(());
        };
        vm.watch_absent(memory, ranges).map_err(|error| error.to_string())
    }
}
