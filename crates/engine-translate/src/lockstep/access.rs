//! Accesses of a piece that is recorded. All come here: the TLB sends them to the slow path meanwhile.

use translator::{Stop, SystemOp, Word};

use crate::access::{Target, first_part};
use crate::system::System;
use crate::walk::Kind;

impl System {
    /// Reads an integer; `kind` is write where it is going to be written.
    pub(crate) fn recorded_load<T: Word>(&mut self, va: u64, kind: Kind) -> Result<T, Stop> {
        let mut bytes = [0; 8];
        self.recorded_read(va, &mut bytes[..T::SIZE], kind, self.user)?;
        Ok(T::cut(u64::from_le_bytes(bytes)))
    }

    pub(crate) fn recorded_store<T: Word>(&mut self, va: u64, value: T) -> Result<(), Stop> {
        self.recorded_write(va, &value.zext().to_le_bytes()[..T::SIZE], self.user)
    }

    pub(crate) fn recorded_read(
        &mut self,
        va: u64,
        into: &mut [u8],
        kind: Kind,
        user: bool,
    ) -> Result<(), Stop> {
        let len = into.len();
        let (first, second) = into.split_at_mut(first_part(va, len));
        let [a, b] = self.places(va, [first.len(), second.len()], kind, user)?;
        // SAFETY: translated just now, and each part lies in its page.
        unsafe {
            self.journal.read(a, first);
            self.journal.read(b, second);
        }
        Ok(())
    }

    pub(crate) fn recorded_write(&mut self, va: u64, from: &[u8], user: bool) -> Result<(), Stop> {
        let (first, second) = from.split_at(first_part(va, from.len()));
        let [a, b] = self.places(va, [first.len(), second.len()], Kind::Write, user)?;
        // SAFETY: as in `recorded_read`, for writing.
        unsafe {
            self.journal.write(a, va, first);
            self.journal.write(b, va.wrapping_add(first.len() as u64), second);
        }
        Ok(())
    }

    pub(crate) fn recorded_exchange_16(
        &mut self,
        va: u64,
        old: u128,
        new: u128,
    ) -> Result<u128, Stop> {
        let mut bytes = [0; 16];
        self.recorded_read(va, &mut bytes, Kind::Write, self.user)?;
        let found = u128::from_le_bytes(bytes);
        let after = if found == old { new } else { found };
        self.recorded_write(va, &after.to_le_bytes(), self.user)?;
        Ok(found)
    }

    /// As [`translator::Machine::copy`]; ranges that overlap go element by element.
    pub(crate) fn recorded_copy(&mut self, to: u64, from: u64, len: u64) -> Result<u64, Stop> {
        if to.wrapping_sub(from) < len || from.wrapping_sub(to) < len {
            return Ok(0);
        }
        let mut bytes = vec![0; len as usize];
        self.recorded_read(from, &mut bytes, Kind::Read, self.user)?;
        self.recorded_write(to, &bytes, self.user)?;
        Ok(len)
    }

    /// As [`translator::Machine::fill`].
    pub(crate) fn recorded_fill(
        &mut self,
        to: u64,
        value: u64,
        size: usize,
        count: u64,
    ) -> Result<u64, Stop> {
        let bytes = value.to_le_bytes()[..size].repeat(count as usize);
        self.recorded_write(to, &bytes, self.user)?;
        Ok(count)
    }

    /// Host addresses of an access, in a page and perhaps the next.
    fn places(
        &mut self,
        va: u64,
        lens: [usize; 2],
        kind: Kind,
        user: bool,
    ) -> Result<[usize; 2], Stop> {
        let first = self.place(va, lens[0], kind, user)?;
        if lens[1] == 0 {
            return Ok([first; 2]);
        }
        Ok([first, self.place(va.wrapping_add(lens[0] as u64), lens[1], kind, user)?])
    }

    fn place(&mut self, va: u64, len: usize, kind: Kind, user: bool) -> Result<usize, Stop> {
        if let Some(host) = self.tlb.cached(va, len, user, kind == Kind::Write) {
            return Ok(host);
        }
        match self.target(va, kind, user)? {
            Target::Ram { host, .. } => Ok(host),
            Target::Device { .. } => Err(self.refuse()),
        }
    }

    /// Stops a piece before what must not be executed twice.
    pub(crate) fn refuse(&mut self) -> Stop {
        self.journal.refuse();
        Stop::Retry
    }

    /// Whether an instruction may be executed as part of a piece: it changes nothing but registers and memory,
    /// and finds the same the second time. Not PUSHF: undefined flags may differ.
    pub(crate) fn is_repeatable(op: SystemOp) -> bool {
        use SystemOp as Op;
        matches!(
            op,
            Op::Undefined
                | Op::Cli
                | Op::MovFromSeg
                | Op::Rdfsbase
                | Op::Rdgsbase
                | Op::Wrfsbase
                | Op::Wrgsbase
        )
    }
}
