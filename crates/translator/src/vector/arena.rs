//! Where thunks live.
//!
//! One for the process, of fixed size. A thunk stays where it is, so running one takes no lock. When the
//! arena is full (a guest that makes up encodings), an instruction without a place runs from a scratch
//! slot, emitted anew each time: slow, bounded, and right.

use std::collections::HashMap;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::io::Errno;

use super::emit;
use super::encoding::Encoding;
use super::plan::Plan;
use crate::cpu::Cpu;
use crate::executable::{self, Mappings};

/// Bytes for thunks: about 150 000 of them. Only touched pages cost memory.
const SIZE: usize = 16 << 20;
/// Bytes of the scratch slot at the end, more than any thunk.
const SCRATCH: usize = 4096;
/// Thunks start at multiples of this, so that short ones do not share a fetch window badly.
const ALIGN: usize = 16;

/// Why there can be no thunks.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum ArenaError {
    /// No memory.
    #[error("map memory for generated code: {0}: allow more address space (ulimit -v)")]
    Create(Errno),
    /// None that can be executed.
    #[error("map generated code to be executed: {0}: allow executable shared mappings")]
    Map(Errno),
}

/// Reserves the arena. Must have happened before a seccomp filter forbids executable mappings; otherwise
/// the first vector instruction decoded does it.
///
/// # Errors
/// The host refuses. Vector and x87 instructions are then undefined for the guest.
pub fn prepare() -> Result<(), ArenaError> {
    arena().map(|_| ())
}

/// A thunk: `(image, cpu, unused, unused, buffer)`. It reads and writes `cpu` and `image` as its plan says,
/// and the memory operand's bytes at `buffer`.
type Thunk = unsafe extern "sysv64" fn(*mut u8, *mut Cpu, u64, u64, *mut u8);

/// Place of a thunk in the arena; 0 where there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place(pub(super) u32);

/// The thunk for `encoding`, emitted if need be. `None` where it cannot be run here at all.
pub(super) fn find(encoding: Encoding) -> Option<(Plan, Place)> {
    let arena = arena().ok()?;
    let mut inner = arena.lock();
    if let Some(&known) = inner.known.get(&encoding) {
        return Some(known);
    }
    let (plan, code) = emit::thunk(encoding)?;
    let Some(place) = arena.append(&mut inner, &code) else { return Some((plan, Place(0))) };
    inner.known.insert(encoding, (plan, place));
    Some((plan, place))
}

/// Runs the instruction.
///
/// # Safety
/// `place` and `encoding` are from one call of [`find`], `buffer` is valid for reads and writes of the
/// plan's operand size, and MXCSR in the image is acceptable to the host with all exceptions masked where
/// the plan says that the instruction uses it.
#[inline(always)]
pub(super) unsafe fn run(encoding: Encoding, place: Place, cpu: &mut Cpu, buffer: *mut u8) {
    if place.0 == 0 {
        // SAFETY: as the caller promises.
        return unsafe { run_scratch(encoding, cpu, buffer) };
    }
    let base = EXECUTE.load(Ordering::Relaxed);
    let image = cpu.fpu.image.as_mut_ptr();
    // SAFETY: `find` gave a place, so the arena is mapped at `base` for ever and a complete thunk, never
    // changed, is at the place; the Mutex that `find` held orders its bytes before this thread's use of the
    // place. The thunk touches what its plan says: `cpu`, `image`, `buffer`, all exclusively borrowed or
    // promised, and leaves MXCSR, x87 and vector registers as the ABI demands.
    unsafe {
        let thunk: Thunk = std::mem::transmute(base.add(place.0 as usize));
        thunk(image, cpu, 0, 0, buffer);
    }
}

/// The executable mapping, once there is one.
static EXECUTE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

struct Arena {
    write: *mut u8,
    inner: Mutex<Inner>,
}

// SAFETY: `write` is a mapping that lives as long as the process; it is written only under `inner`.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

struct Inner {
    used: usize,
    known: HashMap<Encoding, (Plan, Place)>,
}

fn arena() -> Result<&'static Arena, ArenaError> {
    static ARENA: OnceLock<Result<Arena, ArenaError>> = OnceLock::new();
    ARENA.get_or_init(Arena::new).as_ref().map_err(|error| *error)
}

impl Arena {
    fn new() -> Result<Self, ArenaError> {
        let Mappings { write, execute } = executable::map(SIZE)?;
        EXECUTE.store(execute, Ordering::Release);
        // Place 0 means none.
        Ok(Self { write, inner: Mutex::new(Inner { used: ALIGN, known: HashMap::new() }) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic leaves at worst bytes that no place names.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, inner: &mut Inner, code: &[u8]) -> Option<Place> {
        let place = inner.used;
        let end = place + code.len();
        if end > limit() {
            return None;
        }
        // SAFETY: inside the mapping, behind every thunk that a place names, under the lock.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), self.write.add(place), code.len()) };
        inner.used = end.next_multiple_of(ALIGN);
        Some(Place(place as u32))
    }
}

fn limit() -> usize {
    SIZE - SCRATCH
}

/// Emits into the scratch slot and runs it there, under the lock.
///
/// # Safety
/// As [`run`].
#[cold]
unsafe fn run_scratch(encoding: Encoding, cpu: &mut Cpu, buffer: *mut u8) {
    let arena = arena().expect("a plan exists, so the arena does");
    let _inner = arena.lock();
    let (_, code) = emit::thunk(encoding).expect("a plan exists for this encoding");
    assert!(code.len() <= SCRATCH);
    // SAFETY: the slot is inside the mapping and nobody else runs or writes it while the lock is held.
    unsafe { ptr::copy_nonoverlapping(code.as_ptr(), arena.write.add(limit()), code.len()) };
    // Code written through another linear address needs a serialising instruction before it is fetched
    // (SDM volume 3, 9.1.3).
    std::arch::x86_64::__cpuid(0);
    // SAFETY: the slot holds a whole thunk now; the rest as the caller promises.
    unsafe { run(encoding, Place(limit() as u32), cpu, buffer) };
}
