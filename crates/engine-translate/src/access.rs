//! Accesses that the TLB does not answer: page walks, devices, page crossings, translated code, locks.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use engine::{EngineError, Exit};
use memory::{Access, FRAME_SIZE, Frame, Gpa};
use translator::{Machine, Stop, Word};
use x86::{Exception, Vector, paging};

use crate::apic::{IO_APIC_BASE, IO_APIC_SIZE};
use crate::host;
use crate::system::System;
use crate::walk::{self, Failed, Kind};

const PAGE: u64 = FRAME_SIZE as u64;

/// Where an access goes.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    /// Bytes of RAM at this host address; `code` where blocks may have been decoded from the frame.
    Ram { host: usize, gpa: u64, code: bool },
    /// No RAM there.
    Device { gpa: u64 },
}

impl System {
    /// Translates for an access of `len` bytes within one page, and fills the TLB.
    pub(crate) fn target(&mut self, va: u64, kind: Kind, user: bool) -> Result<Target, Stop> {
        let target = self.target_of(va, kind, user)?;
        let code = matches!(target, Target::Ram { code: true, .. }) && kind == Kind::Write;
        let once = code || matches!(target, Target::Device { .. });
        if once && self.journal.is_on() { Err(self.refuse()) } else { Ok(target) }
    }

    fn target_of(&mut self, va: u64, kind: Kind, user: bool) -> Result<Target, Stop> {
        if self.regs.long_mode() && !paging::is_canonical(va) {
            let stop = self.raise(Exception::GP0);
            self.fault_is_address = true;
            return Err(stop);
        }
        let walked = walk::translate(&self.shared.memory, self.regs.paging(), va, kind, user);
        let translation = match walked {
            Ok(translation) => translation,
            Err(Failed::Fault(exception)) => return Err(self.raise(exception)),
            Err(Failed::Table(gpa)) => return Err(self.lost_memory(gpa)),
        };
        let gpa = translation.gpa;
        let Some(frame) = self.shared.memory.frame_of(Gpa(gpa)) else {
            return Ok(Target::Device { gpa });
        };
        let access = if kind == Kind::Write { Access::Write } else { Access::Read };
        let Ok(page) = self.shared.memory.resolve(frame, access) else {
            return Err(self.lost_memory(gpa));
        };
        if let Some(events) = self.shared.memory.events() {
            events.note_owner(frame, access, kind == Kind::Fetch, translation.user);
            if events.note_access(frame, access, user, translation.writable) {
                self.traced.remember(va);
            }
        }
        let page = page.as_ptr() as usize;
        let code = self.shared.memory.is_code(frame);
        if kind == Kind::Fetch {
            self.tlb.insert_fetch(va, gpa, user, translation.leaf);
        } else if !self.breakpoints.watches_page(va) {
            let write = kind == Kind::Write && translation.writable && !code;
            self.tlb.insert(va, page, user, write, translation.leaf);
        }
        Ok(Target::Ram { host: page + (gpa & (PAGE - 1)) as usize, gpa, code })
    }

    /// Memory that cannot be had: a source failed, or tables are outside RAM. The vCPU comes back: for good, where
    /// hardware would answer with a machine check, or until the source is back.
    #[cold]
    #[inline(never)]
    pub(crate) fn lost_memory(&mut self, gpa: u64) -> Stop {
        let memory = &self.shared.memory;
        // Asked again, so that whoever waits finds the reason there.
        let asked = memory.frame_of(Gpa(gpa)).map(|frame| (frame, memory.retry(frame)));
        self.broken = Some(match asked {
            None => Err(EngineError::Memory(format!("there is none at {gpa:#x}"))),
            Some((_, Err(error))) if !error.may_pass() => {
                Err(EngineError::Memory(error.to_string()))
            }
            Some((frame, _)) => Ok(Exit::Unavailable { frame }),
        });
        self.raise(Exception::new(Vector::MC))
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn load_slow<T: Word>(&mut self, va: u64) -> Result<T, Stop> {
        self.check_alignment(va, T::SIZE)?;
        if self.journal.records() {
            return self.recorded_load(va, Kind::Read);
        }
        if crosses(va, T::SIZE) {
            let mut bytes = [0; 8];
            self.read_bytes(va, &mut bytes[..T::SIZE])?;
            return Ok(T::cut(u64::from_le_bytes(bytes)));
        }
        let target = self.target(va, Kind::Read, self.user)?;
        self.note_access(va, T::SIZE, false);
        match target {
            // SAFETY: `target` resolved the frame; the access lies within the page.
            Target::Ram { host, .. } => Ok(unsafe { host::load(host) }),
            Target::Device { gpa } => self.device_load(gpa),
        }
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn store_slow<T: Word>(&mut self, va: u64, value: T) -> Result<(), Stop> {
        self.check_alignment(va, T::SIZE)?;
        if self.journal.records() {
            return self.recorded_store(va, value);
        }
        if crosses(va, T::SIZE) {
            return self.write_bytes(va, &value.zext().to_le_bytes()[..T::SIZE]);
        }
        let target = self.target(va, Kind::Write, self.user)?;
        self.note_access(va, T::SIZE, true);
        match target {
            Target::Ram { host, gpa, code } => {
                // SAFETY: `target` resolved the frame for writing; the access lies within the page.
                unsafe { host::store(host, value) };
                if code {
                    self.code_written(gpa, T::SIZE);
                }
            }
            Target::Device { gpa } => self.device_store(gpa, T::SIZE, value.zext()),
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn load_for_store_slow<T: Word>(&mut self, va: u64) -> Result<T, Stop> {
        self.check_alignment(va, T::SIZE)?;
        if self.journal.records() {
            return self.recorded_load(va, Kind::Write);
        }
        if crosses(va, T::SIZE) {
            self.probe(va, T::SIZE)?;
            let mut bytes = [0; 8];
            self.read_bytes(va, &mut bytes[..T::SIZE])?;
            return Ok(T::cut(u64::from_le_bytes(bytes)));
        }
        match self.target(va, Kind::Write, self.user)? {
            // SAFETY: as in `load_slow`.
            Target::Ram { host, .. } => Ok(unsafe { host::load(host) }),
            Target::Device { gpa } => self.device_load(gpa),
        }
    }

    /// Locked read-modify-write.
    pub(crate) fn update_locked<T: Word>(
        &mut self,
        va: u64,
        update: impl Fn(T) -> T,
    ) -> Result<T, Stop> {
        if let Some(host) = self.tlb.write(va, T::SIZE) {
            // SAFETY: as in `Machine::store` of this type.
            return Ok(unsafe { exchange(host, update) });
        }
        self.check_alignment(va, T::SIZE)?;
        if self.journal.records() {
            let old = self.recorded_load(va, Kind::Write)?;
            self.recorded_store(va, update(old))?;
            return Ok(old);
        }
        if crosses(va, T::SIZE) {
            return self.update_split(va, update);
        }
        let target = self.target(va, Kind::Write, self.user)?;
        self.note_access(va, T::SIZE, true);
        match target {
            Target::Ram { host, gpa, code } => {
                // SAFETY: `target` resolved the frame for writing.
                let old = unsafe { exchange(host, update) };
                if code {
                    self.code_written(gpa, T::SIZE);
                }
                Ok(old)
            }
            Target::Device { gpa } => {
                let old: T = self.device_load(gpa)?;
                self.device_store(gpa, T::SIZE, update(old).zext());
                Ok(old)
            }
        }
    }

    /// A locked access over a page border is one among its like, by one lock for the VM; of its two parts it
    /// replaces each only while that is what was read, so that nothing others do to one of them is lost. Who reads
    /// both may see one replaced and the other not yet. Linux makes none (it enables split-lock detection where it
    /// can); hardware would lock the bus.
    fn update_split<T: Word>(&mut self, va: u64, update: impl Fn(T) -> T) -> Result<T, Stop> {
        let shared = std::sync::Arc::clone(&self.shared);
        self.probe(va, T::SIZE)?;
        let _locked = shared.split_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let border = va.wrapping_add(first_part(va, T::SIZE) as u64);
        let (first, second) = (va & !7, border);
        let in_memory = self.is_memory(first)? && self.is_memory(second)?;
        loop {
            let mut bytes = [0; 8];
            self.read_bytes(va, &mut bytes[..T::SIZE])?;
            let old = T::cut(u64::from_le_bytes(bytes));
            let new = update(old).zext().to_le_bytes();
            if !in_memory {
                self.write_bytes(va, &new[..T::SIZE])?;
                return Ok(old);
            }
            let parts = border.wrapping_sub(va) as usize;
            let (from, to) = (bytes[..T::SIZE].split_at(parts), new[..T::SIZE].split_at(parts));
            if !self.replace(second, 0, from.1, to.1)? {
                continue;
            }
            if self.replace(first, (va & 7) as usize, from.0, to.0)? {
                return Ok(old);
            }
            self.replace(second, 0, to.1, from.1)?;
        }
    }

    fn is_memory(&mut self, va: u64) -> Result<bool, Stop> {
        Ok(matches!(self.target(va, Kind::Write, self.user)?, Target::Ram { .. }))
    }

    /// Bytes of the eight at `word`, which is aligned, if they are `from`; whether they were.
    fn replace(&mut self, word: u64, at: usize, from: &[u8], to: &[u8]) -> Result<bool, Stop> {
        let is_same = |bytes: [u8; 8]| bytes[at..at + from.len()] == *from;
        let before: u64 = self.update_locked(word, |value: u64| {
            let mut bytes = value.to_le_bytes();
            if is_same(bytes) {
                bytes[at..at + to.len()].copy_from_slice(to);
            }
            u64::from_le_bytes(bytes)
        })?;
        Ok(is_same(before.to_le_bytes()))
    }

    pub(crate) fn exchange_16(&mut self, va: u64, old: u128, new: u128) -> Result<u128, Stop> {
        if !va.is_multiple_of(16) {
            return Err(self.raise(Exception::GP0));
        }
        if self.journal.records() {
            return self.recorded_exchange_16(va, old, new);
        }
        if let Some(host) = self.tlb.cached(va, 16, self.user, true) {
            // SAFETY: as in `Machine::store` of this type; 16 aligned bytes lie in one page.
            return Ok(unsafe { host::compare_exchange_16(host, old, new) });
        }
        let target = self.target(va, Kind::Write, self.user)?;
        self.note_access(va, 16, true);
        match target {
            Target::Ram { host, gpa, code } => {
                // SAFETY: `target` resolved the frame for writing; 16 aligned bytes lie in one page.
                let found = unsafe { host::compare_exchange_16(host, old, new) };
                if code {
                    self.code_written(gpa, 16);
                }
                Ok(found)
            }
            Target::Device { .. } => Ok(u128::MAX),
        }
    }

    pub(crate) fn read_bytes(&mut self, va: u64, into: &mut [u8]) -> Result<(), Stop> {
        self.read_bytes_as(va, into, self.user)
    }

    /// Reads with the privilege given: the processor reads descriptor tables as supervisor.
    pub(crate) fn read_bytes_as(
        &mut self,
        va: u64,
        into: &mut [u8],
        user: bool,
    ) -> Result<(), Stop> {
        if self.journal.records() {
            return self.recorded_read(va, into, Kind::Read, user);
        }
        if let Some(host) = self.tlb.cached(va, into.len(), user, false) {
            // SAFETY: as in `Machine::load` of this type, for all bytes.
            unsafe { host::load_bytes(host, into) };
            return Ok(());
        }
        let len = into.len();
        let (first, second) = into.split_at_mut(first_part(va, len));
        let next = va.wrapping_add(first.len() as u64);
        let a = self.target(va, Kind::Read, user)?;
        let b = if second.is_empty() { a } else { self.target(next, Kind::Read, user)? };
        self.note_access(va, len, false);
        for (target, part) in [(a, first), (b, second)] {
            self.read_part(target, part)?;
        }
        Ok(())
    }

    fn read_part(&mut self, target: Target, into: &mut [u8]) -> Result<(), Stop> {
        match target {
            // SAFETY: resolved, and the part lies within the page.
            Target::Ram { host, .. } => unsafe { host::load_bytes(host, into) },
            Target::Device { gpa } if into.len().is_power_of_two() && into.len() <= 8 => {
                let value = self.device_read(gpa, into.len())?;
                into.copy_from_slice(&value.to_le_bytes()[..into.len()]);
            }
            // Vector and odd-sized reads of device registers: nobody answers.
            Target::Device { .. } => into.fill(0xff),
        }
        Ok(())
    }

    pub(crate) fn write_bytes(&mut self, va: u64, from: &[u8]) -> Result<(), Stop> {
        self.write_bytes_as(va, from, self.user)
    }

    pub(crate) fn write_bytes_as(&mut self, va: u64, from: &[u8], user: bool) -> Result<(), Stop> {
        if self.journal.records() {
            return self.recorded_write(va, from, user);
        }
        if let Some(host) = self.tlb.cached(va, from.len(), user, true) {
            // SAFETY: as in `Machine::store` of this type, for all bytes.
            unsafe { host::store_bytes(host, from) };
            return Ok(());
        }
        let (first, second) = from.split_at(first_part(va, from.len()));
        let next = va.wrapping_add(first.len() as u64);
        let a = self.target(va, Kind::Write, user)?;
        let b = if second.is_empty() { a } else { self.target(next, Kind::Write, user)? };
        self.note_access(va, from.len(), true);
        for (target, part) in [(a, first), (b, second)] {
            self.write_part(target, part);
        }
        Ok(())
    }

    fn write_part(&mut self, target: Target, from: &[u8]) {
        match target {
            Target::Ram { host, gpa, code } => {
                // SAFETY: resolved for writing, and the part lies within the page.
                unsafe { host::store_bytes(host, from) };
                if code {
                    self.code_written(gpa, from.len());
                }
            }
            Target::Device { gpa } => {
                for (index, chunk) in from.chunks(8).enumerate() {
                    let mut bytes = [0; 8];
                    bytes[..chunk.len()].copy_from_slice(chunk);
                    let at = gpa + index as u64 * 8;
                    self.device_store(
                        at,
                        chunk.len().next_power_of_two(),
                        u64::from_le_bytes(bytes),
                    );
                }
            }
        }
    }

    pub(crate) fn probe(&mut self, va: u64, len: usize) -> Result<(), Stop> {
        if self.tlb.cached(va, len, self.user, true).is_some() {
            return Ok(());
        }
        self.target(va, Kind::Write, self.user)?;
        if crosses(va, len) {
            self.target(va.wrapping_add(len as u64 - 1) & !(PAGE - 1), Kind::Write, self.user)?;
        }
        Ok(())
    }

    pub(crate) fn copy_chunk(&mut self, to: u64, from: u64, len: u64) -> Result<u64, Stop> {
        let len = len.min(PAGE - from % PAGE).min(PAGE - to % PAGE);
        // Over what is watched an instruction goes element by element.
        let watched = self.breakpoints.watches(to, len) || self.breakpoints.watches(from, len);
        if len == 0 || watched {
            return Ok(0);
        }
        if self.journal.records() {
            return self.recorded_copy(to, from, len);
        }
        let source = match self.tlb.cached(from, len as usize, self.user, false) {
            Some(host) => host,
            None => match self.target(from, Kind::Read, self.user)? {
                Target::Ram { host, .. } => host,
                Target::Device { .. } => return Ok(0),
            },
        };
        let Some(destination) = self.writable(to)? else { return Ok(0) };
        // SAFETY: both were translated just now (nothing is revoked before this vCPU acknowledges), and
        // `len` bytes stay within both pages.
        unsafe { host::copy(destination, source, len as usize) };
        let by_kernel = (to & from) >> 63 != 0 && !self.user;
        if len == PAGE && by_kernel {
            self.note_copy(destination, source);
        }
        Ok(len)
    }

    /// The kernel has copied a page, to and from these addresses of the host.
    fn note_copy(&self, destination: usize, source: usize) {
        let memory = &self.shared.memory;
        let Some(events) = memory.events() else { return };
        if let (Some(from), Some(to)) = (memory.frame_at(source), memory.frame_at(destination)) {
            events.note_copy(from, to);
        }
    }

    pub(crate) fn fill_chunk(
        &mut self,
        to: u64,
        value: u64,
        size: usize,
        count: u64,
    ) -> Result<u64, Stop> {
        let count = count.min((PAGE - to % PAGE) / size as u64);
        if count == 0 || self.breakpoints.watches(to, count * size as u64) {
            return Ok(0);
        }
        if self.journal.records() {
            return self.recorded_fill(to, value, size, count);
        }
        let Some(host) = self.writable(to)? else { return Ok(0) };
        // SAFETY: translated for writing just now, and `count` elements stay within the page.
        unsafe { host::fill(host, value, size, count as usize) };
        Ok(count)
    }

    /// The host address of a page that may be written without further ado.
    fn writable(&mut self, va: u64) -> Result<Option<usize>, Stop> {
        if let Some(host) = self.tlb.cached(va, 1, self.user, true) {
            return Ok(Some(host));
        }
        match self.target(va, Kind::Write, self.user)? {
            Target::Ram { host, code: false, .. } => Ok(Some(host)),
            _ => Ok(None),
        }
    }

    /// #AC, where alignment is checked (SDM volume 3, 6.15, interrupt 17).
    fn check_alignment(&mut self, va: u64, size: usize) -> Result<(), Stop> {
        if self.align && !va.is_multiple_of(size as u64) {
            return Err(self.raise(Exception::new(Vector::AC)));
        }
        Ok(())
    }

    /// Bytes of a frame with code were written: drops the blocks they were decoded into, and ends the one
    /// that runs. It may be hit without being found, where it runs once or was dropped by another vCPU.
    pub(crate) fn code_written(&mut self, gpa: u64, len: usize) {
        let (_, code_left) = self.shared.code_written(gpa, len);
        self.end = true;
        if !code_left {
            self.clear_code(gpa);
        }
    }

    /// Lets stores to a frame without code be fast again, unless somebody is decoding just now. The other
    /// vCPUs must have ended the blocks of the frame that they run: a block that writes its own code has to
    /// notice.
    fn clear_code(&self, gpa: u64) {
        let shared = &self.shared;
        let Ok(mut watch) = shared.code_watch.try_lock() else { return };
        let page = gpa >> 12;
        if shared.blocks.invalidate(page, 0, 0).1 {
            return;
        }
        if shared.vcpus.len() > 1 {
            shared.code_moves.store(true, Ordering::SeqCst);
            let generation = watch.begin_leaving(page, || shared.begin_revocation_from(self.id));
            if !shared.is_revoked(generation, self.id) {
                return;
            }
        }
        watch.forget(page);
        if let Some(frame) = self.frame(gpa) {
            shared.memory.clear_code(frame);
        }
        shared.code_moves.store(watch.moves(), Ordering::SeqCst);
    }

    pub(crate) fn frame(&self, gpa: u64) -> Option<Frame> {
        self.shared.memory.frame_of(Gpa(gpa))
    }

    fn device_load<T: Word>(&mut self, gpa: u64) -> Result<T, Stop> {
        self.device_read(gpa, T::SIZE).map(T::cut)
    }

    fn device_read(&mut self, gpa: u64, size: usize) -> Result<u64, Stop> {
        if let Some(offset) = io_apic(gpa) {
            return Ok(u64::from(self.shared.io_apic_read(offset)));
        }
        let value = self.ask(Exit::MmioRead { gpa, size: size as u8 })?;
        self.end = true;
        Ok(value)
    }

    fn device_store(&mut self, gpa: u64, size: usize, value: u64) {
        match io_apic(gpa) {
            Some(offset) => self.shared.io_apic_write(offset, value as u32),
            None => self.report(Exit::MmioWrite { gpa, size: size as u8, value }),
        }
    }
}

fn io_apic(gpa: u64) -> Option<u64> {
    gpa.checked_sub(IO_APIC_BASE).filter(|&offset| offset < IO_APIC_SIZE)
}

const fn crosses(va: u64, len: usize) -> bool {
    va % PAGE + len as u64 > PAGE
}

pub(crate) const fn first_part(va: u64, len: usize) -> usize {
    let room = (PAGE - va % PAGE) as usize;
    if len < room { len } else { room }
}

/// Compare-exchange until nobody was in between.
///
/// # Safety
/// As for [`host::store`].
unsafe fn exchange<T: Word>(host: usize, update: impl Fn(T) -> T) -> T {
    // SAFETY: the caller's promise.
    let mut old: T = unsafe { host::load(host) };
    loop {
        // SAFETY: the caller's promise.
        let found = unsafe { host::compare_exchange(host, old, update(old)) };
        if found == old {
            return old;
        }
        old = found;
    }
}
