//! A machine whose memory is a window of this process.

use x86::{Exception, Vector};

use crate::insn::Insn;
use crate::interp::Core;
use crate::machine::{Machine, Stop, SystemOp, VectorKind, Word};

pub(super) struct Flat {
    window: std::ops::Range<u64>,
    pub(super) raised: Option<Exception>,
    /// The kind that the gate keeps out.
    pub(super) closed: Option<VectorKind>,
}

impl Flat {
    pub(super) fn new(window: std::ops::Range<u64>) -> Self {
        Self { window, raised: None, closed: None }
    }

    fn check(&mut self, va: u64, len: usize) -> Result<*mut u8, Stop> {
        if !x86::paging::is_canonical(va) {
            return Err(self.raise(Exception::GP0));
        }
        let end = va.wrapping_add(len as u64);
        if va >= self.window.start && va < end && end <= self.window.end {
            return Ok(va as *mut u8);
        }
        Err(self.raise(Exception::page_fault(va, 0)))
    }
}

impl Machine for Flat {
    fn load<T: Word>(&mut self, va: u64) -> Result<T, Stop> {
        let mut bytes = [0; 8];
        self.load_bytes(va, &mut bytes[..T::SIZE])?;
        Ok(T::cut(u64::from_le_bytes(bytes)))
    }

    fn store<T: Word>(&mut self, va: u64, value: T) -> Result<(), Stop> {
        self.store_bytes(va, &value.zext().to_le_bytes()[..T::SIZE])
    }

    fn load_for_store<T: Word>(&mut self, va: u64) -> Result<T, Stop> {
        self.load(va)
    }

    fn update<T: Word>(&mut self, va: u64, update: impl Fn(T) -> T) -> Result<T, Stop> {
        let old = self.load(va)?;
        self.store(va, update(old))?;
        Ok(old)
    }

    fn compare_exchange_16(&mut self, _: u64, _: u128, _: u128) -> Result<u128, Stop> {
        unreachable!("no vector instruction")
    }

    fn load_bytes(&mut self, va: u64, into: &mut [u8]) -> Result<(), Stop> {
        let from = self.check(va, into.len())?;
        // SAFETY: `check` found the range inside the window, which is mapped and not borrowed.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn store_bytes(&mut self, va: u64, from: &[u8]) -> Result<(), Stop> {
        let to = self.check(va, from.len())?;
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        Ok(())
    }

    fn probe_store(&mut self, va: u64, len: usize) -> Result<(), Stop> {
        self.check(va, len).map(|_| ())
    }

    fn copy(&mut self, _: u64, _: u64, _: u64) -> Result<u64, Stop> {
        unreachable!("no vector instruction")
    }

    fn fill(&mut self, _: u64, _: u64, _: usize, _: u64) -> Result<u64, Stop> {
        unreachable!("no vector instruction")
    }

    fn must_end(&mut self) -> bool {
        false
    }

    fn attention(&self) -> bool {
        false
    }

    fn vector_gate(&self, kind: VectorKind) -> Option<Exception> {
        (self.closed == Some(kind)).then_some(Exception::new(Vector::NM))
    }

    fn raise(&mut self, exception: Exception) -> Stop {
        self.raised = Some(exception);
        Stop::Fault
    }

    fn system(core: &mut Core<Self>, _: SystemOp, _: &Insn<Self>) -> Result<(), Stop> {
        Err(core.machine.raise(Exception::UD))
    }
}
