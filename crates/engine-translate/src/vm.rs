//! What the vCPUs of a VM share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use engine::{EngineError, Vcpu, Vm, VmSpec};
use memory::{FRAME_SIZE, FrameRange, Gpa, GuestMemory, MappingObserver, Revocation};
use translator::BlockCache;
use translator::native::Counts;
use x86::IoApicState;
use x86::model::Shown;

use crate::Observers;
use crate::apic::{Delivery, Inbox, IoApic, Message};
use crate::attention::{Attention, Forget, Generation};
use crate::cpuid;
use crate::fetch::CodeWatch;
use crate::kvmclock::KvmClock;
use crate::lately::Lately;
use crate::lockstep::Verified;
use crate::native::{self, Code};
use crate::options::{Options, Predict};
use crate::runs::Runs;
use crate::system::System;
use crate::vcpu::TranslateVcpu;

/// Bytes of decoded blocks kept for a VM.
const BLOCKS_LIMIT: usize = 64 << 20;
/// Bytes of those that are not hot, where hot ones become host code: what a booted Debian has run once or twice
/// would be three times as much.
const COLD_LIMIT: usize = 2 << 20;

/// One VM.
pub(crate) struct Shared {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) blocks: BlockCache<System>,
    /// What is not among them.
    pub(crate) runs: Runs,
    pub(crate) lately: Lately,
    pub(crate) code: Code,
    pub(crate) vcpus: Vec<Peer>,
    pub(crate) cpu: Shown,
    pub(crate) generation: Generation,
    io_apic: Mutex<IoApic>,
    pub(crate) clock: KvmClock,
    /// Held from marking a frame as code until its blocks are in the cache.
    pub(crate) code_watch: Mutex<CodeWatch>,
    /// Whether frames are on their way into and out of being code.
    pub(crate) code_moves: AtomicBool,
    /// Counts writes to frames with code, so that a decoder knows that it may have read old bytes.
    pub(crate) code_writes: AtomicU64,
    /// Blocks decoded so far.
    pub(crate) decoded: AtomicU64,
    /// Held while a locked access that crosses a page is made.
    pub(crate) split_lock: Mutex<()>,
}

/// What is known of a vCPU outside its thread.
#[derive(Debug, Default)]
pub(crate) struct Peer {
    pub(crate) attention: Attention,
    pub(crate) inbox: Arc<Inbox>,
    /// As of when it last came out.
    pub(crate) work: Mutex<Work>,
}

/// What a vCPU has done in guest code.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    pub(crate) interpreted: u64,
    pub(crate) native: Counts,
    /// Where generated code is compared with the interpreter.
    pub(crate) verified: Option<Verified>,
    /// Bytes kept to choose paths.
    pub(crate) choosing: usize,
}

impl Shared {
    pub(crate) fn new(
        spec: VmSpec,
        options: Options,
        observers: Observers,
    ) -> Result<Arc<Self>, EngineError> {
        let cold = if native::is_used(options) { COLD_LIMIT } else { BLOCKS_LIMIT };
        let code = Code::new(options, observers).map_err(|error| EngineError::Host {
            action: "map memory for generated code".into(),
            source: std::io::Error::other(error),
        })?;
        let vcpus = (0..spec.vcpus).map(|_| Peer::default()).collect();
        let shared = Arc::new(Self {
            memory: spec.memory,
            blocks: BlockCache::new(BLOCKS_LIMIT, cold),
            runs: Runs::new(),
            lately: Lately::new(options.predict != Predict::Nothing),
            code,
            vcpus,
            cpu: spec.cpu,
            generation: Generation::default(),
            io_apic: Mutex::default(),
            clock: KvmClock::new(),
            code_watch: Mutex::default(),
            code_moves: AtomicBool::new(false),
            code_writes: AtomicU64::new(0),
            decoded: AtomicU64::new(0),
            split_lock: Mutex::new(()),
        });
        shared.memory.set_observer(Arc::new(Observer(Arc::downgrade(&shared))));
        Ok(shared)
    }

    fn attentions(&self) -> impl Iterator<Item = &Attention> {
        self.vcpus.iter().map(|peer| &peer.attention)
    }

    /// Takes all translations back from every vCPU; returns when none is used any more. Not from inside.
    pub(crate) fn revoke_all(&self) {
        let generation = self.generation.advance(self.attentions());
        self.generation.wait(generation, self.attentions());
    }

    /// Takes the translations for writing back. vCPUs stand, and keep those for reading; should one be inside all the
    /// same, all are taken back from all.
    fn revoke_writes(&self) {
        // Of all, before the first look at the answers.
        let inside: Vec<bool> = self.attentions().map(Attention::want_writes).collect();
        if inside.contains(&true) {
            self.revoke_all();
        }
    }

    /// Asks every vCPU but `vcpu`, the caller, to drop its translations, and returns the generation that
    /// [`Shared::is_revoked`] tells the end of.
    pub(crate) fn begin_revocation_from(&self, vcpu: u32) -> u64 {
        let generation = self.generation.advance(self.attentions());
        self.generation.excuse(&self.vcpus[vcpu as usize].attention, generation);
        generation
    }

    /// Whether every vCPU but `vcpu` has done so.
    pub(crate) fn is_revoked(&self, generation: u64, vcpu: u32) -> bool {
        let own = &self.vcpus[vcpu as usize].attention;
        let mut others = self.attentions().filter(|attention| !std::ptr::eq(*attention, own));
        others.all(|attention| attention.has_dropped(generation))
    }

    /// Whether no store to the frame with code at `gpa` goes unseen, at least until the caller, a vCPU between two
    /// blocks, has passed the next block's end.
    ///
    /// A frame that stops being code after the first look waits for that; one that has become code but may still be
    /// written is told by the last.
    pub(crate) fn is_watched(&self, gpa: u64) -> bool {
        let moves = || self.code_moves.load(Ordering::SeqCst);
        let is_code =
            || self.memory.frame_of(Gpa(gpa)).is_none_or(|frame| self.memory.is_code(frame));
        !moves() && is_code() && !moves()
    }

    /// Bytes of a frame with code are in memory: drops the blocks decoded from them. Returns how many, and
    /// whether the frame still has code.
    pub(crate) fn code_written(&self, gpa: u64, len: usize) -> (usize, bool) {
        // Before the search: whoever inserts a block after it sees the count changed.
        self.code_writes.fetch_add(1, Ordering::SeqCst);
        let from = gpa as u32 & 0xfff;
        self.blocks.invalidate(gpa >> 12, from, from + len as u32)
    }

    fn drop_code(&self, ranges: &[FrameRange]) {
        for frame in ranges.iter().flat_map(memory::FrameRange::frames) {
            if let Some(gpa) = self.memory.gpa_of(frame) {
                self.code_written(gpa.0, FRAME_SIZE);
            }
        }
    }

    /// What became of guest code.
    fn translation(&self) -> BTreeMap<&'static str, u64> {
        let work = |peer: &Peer| *peer.work.lock().unwrap_or_else(PoisonError::into_inner);
        let interpreted = self.vcpus.iter().map(|peer| work(peer).interpreted).sum();
        let left = self.vcpus.iter().map(|peer| work(peer).native).sum::<Counts>();
        let made = self.code.stats();
        let verified = self.vcpus.iter().filter_map(|peer| work(peer).verified);
        let choosing: usize = self.vcpus.iter().map(|peer| work(peer).choosing).sum();
        let paths = self.blocks.path_bytes();
        // Blocks may have gone since.
        let decoded = self.blocks.bytes().saturating_sub(paths);
        let bookkeeping = made.bookkeeping_bytes + (choosing + paths) as u64;
        let mut counts = BTreeMap::from([
            ("blocks_foreseen", self.code.foreseen()),
            ("blocks_decoded", self.decoded.load(Ordering::Relaxed)),
            ("blocks_translated", made.blocks),
            ("bookkeeping_bytes", bookkeeping),
            ("called_for_access", left.accesses),
            ("called_for_instruction", left.instructions),
            ("code_bytes", made.code_bytes),
            ("code_memory_bytes", made.held_bytes),
            ("decoded_bytes", (decoded + self.runs.bytes() + self.lately.bytes()) as u64),
            ("entered", left.entered),
            ("evictions", made.evictions),
            ("fragments_translated", made.fragments),
            ("guest_bytes_translated", made.guest_bytes),
            ("instructions_interpreted", interpreted),
            ("instructions_translated", made.instructions),
            ("left_after_instruction", left.ended),
            ("left_at_guard", left.guard_misses),
            ("left_for_fault", left.faults),
            ("left_for_poll", left.polls),
            ("left_for_retry", left.retries),
            ("left_unlinked", left.unlinked),
            ("links_made", made.links),
            ("memory_peak_bytes", made.peak_bytes),
            ("stub_bytes", made.stub_bytes),
            ("translation_ns", self.code.translation_ns()),
        ]);
        counts.extend(verified.flat_map(Verified::named));
        counts
    }

    /// Delivers a message to the local APICs that it names.
    pub(crate) fn send(&self, message: Message, sender: Option<u32>) {
        let wanted = |id: &u32| message.destination.includes(*id, sender);
        let targets = (0..self.vcpus.len() as u32).filter(wanted);
        let one = matches!(message.delivery, Delivery::LowestPriority(_));
        for id in targets.take(if one { 1 } else { usize::MAX }) {
            let peer = &self.vcpus[id as usize];
            match message.delivery {
                Delivery::Fixed(vector) | Delivery::LowestPriority(vector) => {
                    peer.inbox.request(vector, message.level);
                }
                Delivery::Nmi => peer.inbox.request_nmi(),
                Delivery::Init => peer.inbox.request_init(),
                Delivery::StartUp(vector) => peer.inbox.request_start_up(vector),
            }
            peer.attention.raise();
        }
    }

    pub(crate) fn end_of_interrupt(&self, vector: u8) {
        let messages = self.io_apic().end_of_interrupt(vector);
        self.send_all(messages);
    }

    /// What the IO-APIC wants sent; it is not locked any more.
    fn send_all(&self, messages: impl IntoIterator<Item = Message>) {
        messages.into_iter().for_each(|message| self.send(message, None));
    }

    pub(crate) fn io_apic_read(&self, offset: u64) -> u32 {
        self.io_apic().read(offset)
    }

    pub(crate) fn io_apic_write(&self, offset: u64, value: u32) {
        let messages = self.io_apic().write(offset, value);
        self.send_all(messages);
    }

    fn io_apic(&self) -> MutexGuard<'_, IoApic> {
        self.io_apic.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The VM as its owner holds it.
pub(crate) struct TranslateVm {
    pub(crate) shared: Arc<Shared>,
    /// vCPUs made so far.
    pub(crate) made: Mutex<Vec<u32>>,
}

impl Vm for TranslateVm {
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, EngineError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if id as usize >= self.shared.vcpus.len() || made.contains(&id) {
            return Err(EngineError::Unsupported(format!(
                "vcpu {id}: the VM has vcpus 0 to {}, each made once",
                self.shared.vcpus.len() - 1
            )));
        }
        let processor = cpuid::processor(&self.shared.cpu, id, self.shared.vcpus.len() as u32)?;
        made.push(id);
        Ok(Box::new(TranslateVcpu::new(Arc::clone(&self.shared), id, processor)))
    }

    fn translation(&self) -> BTreeMap<&'static str, u64> {
        self.shared.translation()
    }

    fn set_irq(&self, gsi: u32, high: bool) {
        let message = self.shared.io_apic().set_input(gsi, high);
        self.shared.send_all(message);
    }

    fn pulse_irq(&self, gsi: u32) {
        let message = self.shared.io_apic().pulse(gsi);
        self.shared.send_all(message);
    }

    fn io_apic(&self) -> Result<IoApicState, EngineError> {
        Ok(self.shared.io_apic().state())
    }

    fn set_io_apic(&self, state: &IoApicState) -> Result<(), EngineError> {
        state.check().map_err(|what| EngineError::State(format!("io-apic: {what}")))?;
        let messages = self.shared.io_apic().set_state(state);
        self.shared.send_all(messages);
        Ok(())
    }

    fn clock_ns(&self) -> Result<u64, EngineError> {
        Ok(self.shared.clock.now_ns())
    }

    fn set_clock_ns(&self, ns: u64) -> Result<(), EngineError> {
        self.shared.clock.set_ns(ns);
        Ok(())
    }

    fn kick(&self, id: u32) {
        if let Some(peer) = self.shared.vcpus.get(id as usize) {
            peer.attention.kick();
        }
    }
}

/// Carries revocations from the memory to the vCPUs. Weak: the memory outlives the VM.
struct Observer(Weak<Shared>);

impl MappingObserver for Observer {
    fn revoke(&self, revoked: Revocation<'_>) {
        let Some(shared) = self.0.upgrade() else { return };
        match revoked {
            Revocation::Epoch(_) => {
                shared.generation.advance(shared.attentions());
            }
            Revocation::Traced => {
                shared.attentions().for_each(|vcpu| vcpu.raise_forget(Forget::TRACED));
            }
            Revocation::Watched => {
                shared.attentions().for_each(|vcpu| vcpu.raise_forget(Forget::WATCHED));
            }
            Revocation::All => {
                shared.blocks.clear();
                shared.revoke_all();
            }
            Revocation::Frames(ranges) => {
                shared.drop_code(ranges);
                shared.revoke_all();
                // A vCPU may have decoded such a frame until it let go.
                shared.drop_code(ranges);
            }
        }
    }

    fn write_protect(&self) -> Result<(), String> {
        if let Some(shared) = self.0.upgrade() {
            shared.revoke_writes();
        }
        Ok(())
    }

    fn code_written(&self, gpa: Gpa, len: usize) {
        let Some(shared) = self.0.upgrade() else { return };
        shared.code_written(gpa.0, len);
    }
}
