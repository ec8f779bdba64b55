//! Breakpoints: INT3 in guest memory, and the four of the processor.

use std::collections::BTreeMap;

use engine::{BreakOn, HardwareBreakpoint};
use memory::{DeviceView, Gpa};
use x86::VcpuState;

use super::walk;

const INT3: u8 = 0xcc;

/// Most breakpoints in memory: gdb needs a handful.
const MOST: usize = 4096;

/// INT3s in guest memory, by guest-physical address: it is the frame that has them, whoever maps it.
#[derive(Debug, Default)]
pub(super) struct MemoryBreakpoints(BTreeMap<u64, Inserted>);

#[derive(Debug)]
struct Inserted {
    /// What the guest has there.
    original: u8,
    /// Under which linear addresses gdb knows it; not empty.
    vas: Vec<u64>,
}

impl MemoryBreakpoints {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts an INT3 at `gpa`. False: not RAM, or too many.
    pub(super) fn insert(&mut self, view: &DeviceView, va: u64, gpa: u64) -> bool {
        if let Some(there) = self.0.get_mut(&gpa) {
            let room = there.vas.len() < MOST;
            if room {
                there.vas.push(va);
            }
            return room;
        }
        let mut original = [0];
        if self.0.len() >= MOST || view.read(Gpa(gpa), &mut original).is_err() {
            return false;
        }
        if view.write(Gpa(gpa), &[INT3]).is_err() {
            return false;
        }
        self.0.insert(gpa, Inserted { original: original[0], vas: vec![va] });
        true
    }

    /// Takes out what was inserted at `va`. One that is not there any more is fine: a reboot took it.
    pub(super) fn remove(&mut self, view: &DeviceView, va: u64) {
        let known = self.0.iter_mut().find_map(|(gpa, there)| {
            let index = there.vas.iter().position(|known| *known == va)?;
            there.vas.swap_remove(index);
            Some((*gpa, there.vas.is_empty()))
        });
        if let Some((gpa, true)) = known
            && let Some(there) = self.0.remove(&gpa)
        {
            restore(view, gpa, &there);
        }
    }

    pub(super) fn remove_all(&mut self, view: &DeviceView) {
        for (gpa, there) in std::mem::take(&mut self.0) {
            restore(view, gpa, &there);
        }
    }

    /// Their memory is gone.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }

    /// Puts the guest's own bytes into what was read at `gpa`.
    pub(super) fn hide(&self, gpa: u64, bytes: &mut [u8]) {
        for (at, there) in self.0.range(gpa..gpa + bytes.len() as u64) {
            let byte = &mut bytes[(at - gpa) as usize];
            if *byte == INT3 {
                *byte = there.original;
            }
        }
    }

    /// Before `bytes` are written at `gpa`: they become what the guest has, and the INT3s stay.
    pub(super) fn keep(&mut self, gpa: u64, bytes: &mut [u8]) {
        for (at, there) in self.0.range_mut(gpa..gpa + bytes.len() as u64) {
            let byte = &mut bytes[(at - gpa) as usize];
            there.original = std::mem::replace(byte, INT3);
        }
    }

    /// Whether one is at RIP.
    pub(super) fn is_at(&self, state: &VcpuState, view: &DeviceView) -> bool {
        let gpa = walk::translate(state, view, linear_rip(state));
        gpa.is_ok_and(|gpa| self.0.contains_key(&gpa))
    }
}

/// CS has a base outside 64-bit mode only.
fn linear_rip(state: &VcpuState) -> u64 {
    if state.cs.is_long() && state.efer & x86::efer::LMA != 0 {
        return state.rip;
    }
    state.cs.base.wrapping_add(state.rip) & 0xffff_ffff
}

/// Unless the guest has written something else meanwhile.
fn restore(view: &DeviceView, gpa: u64, there: &Inserted) {
    let mut now = [0];
    if view.read(Gpa(gpa), &mut now).is_ok() && now == [INT3] {
        // Was written before, so it can be.
        let _ = view.write(Gpa(gpa), &[there.original]);
    }
}

/// What gdb asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Watch {
    Execute,
    Write,
    /// The processor has none of this kind: it stops on writes, too.
    Read,
    Access,
}

impl Watch {
    fn on(self) -> BreakOn {
        match self {
            Self::Execute => BreakOn::Execute,
            Self::Write => BreakOn::Write,
            Self::Read | Self::Access => BreakOn::Access,
        }
    }
}

/// The processor's breakpoints, and which of gdb's wishes each serves.
#[derive(Clone, Debug, Default)]
pub(super) struct HardwareBreakpoints([Option<Slot>; 4]);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Slot {
    /// As gdb knows it.
    wish: (Watch, u64, u64),
    breakpoint: HardwareBreakpoint,
}

impl HardwareBreakpoints {
    /// Sets what `len` bytes at `address` take: up to four aligned pieces. False: there are not so many.
    pub(super) fn insert(&mut self, watch: Watch, address: u64, len: u64) -> bool {
        let pieces = pieces(watch, address, len);
        let free = self.0.iter().filter(|slot| slot.is_none()).count();
        if pieces.is_empty() || pieces.len() > free {
            return false;
        }
        let empty = self.0.iter_mut().filter(|slot| slot.is_none());
        for (slot, breakpoint) in empty.zip(pieces) {
            *slot = Some(Slot { wish: (watch, address, len), breakpoint });
        }
        true
    }

    pub(super) fn remove(&mut self, watch: Watch, address: u64, len: u64) {
        let gone = |slot: &Slot| slot.wish == (watch, address, len);
        self.0.iter_mut().filter(|slot| slot.as_ref().is_some_and(gone)).for_each(|s| *s = None);
    }

    /// For the engine.
    pub(super) fn control(&self) -> [Option<HardwareBreakpoint>; 4] {
        self.0.map(|slot| slot.map(|slot| slot.breakpoint))
    }

    /// Kind and address, as gdb knows them, of the one that stopped.
    pub(super) fn wish(&self, index: u8) -> Option<(Watch, u64)> {
        let slot = self.0.get(usize::from(index))?.as_ref()?;
        Some((slot.wish.0, slot.wish.1))
    }
}

/// The largest aligned pieces; none where four do not suffice.
fn pieces(watch: Watch, address: u64, len: u64) -> Vec<HardwareBreakpoint> {
    let on = watch.on();
    if on == BreakOn::Execute {
        return vec![HardwareBreakpoint { address, on, size: 1 }];
    }
    let mut pieces = Vec::new();
    let (mut at, mut left) = (address, len);
    while left > 0 {
        if pieces.len() == 4 {
            return Vec::new();
        }
        let aligned = 1u64 << at.trailing_zeros().min(3);
        let size = aligned.min(1 << left.ilog2());
        pieces.push(HardwareBreakpoint { address: at, on, size: size as u8 });
        at = at.wrapping_add(size);
        left -= size;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use memory::GuestMemory;

    use super::*;

    fn sizes(address: u64, len: u64) -> Vec<(u64, u8)> {
        let pieces = pieces(Watch::Write, address, len);
        pieces.iter().map(|piece| (piece.address, piece.size)).collect()
    }

    #[test]
    fn what_is_watched_is_cut_into_aligned_pieces() {
        assert_eq!(sizes(0x1000, 8), [(0x1000, 8)]);
        assert_eq!(sizes(0x1001, 8), [(0x1001, 1), (0x1002, 2), (0x1004, 4), (0x1008, 1)]);
        assert_eq!(sizes(0x1004, 16), [(0x1004, 4), (0x1008, 8), (0x1010, 4)]);
        assert_eq!(sizes(0x1000, 32).len(), 4);
        assert_eq!(sizes(u64::MAX, 1), [(u64::MAX, 1)]);
        assert!(sizes(0x1001, 32).is_empty() && sizes(0, u64::MAX).is_empty());
        assert!(sizes(0x1000, 0).is_empty());
    }

    #[test]
    fn four_slots_are_shared_out() {
        let mut slots = HardwareBreakpoints::default();
        assert!(slots.insert(Watch::Execute, 0x11, 1) && slots.insert(Watch::Read, 0x1002, 6));
        assert!(!slots.insert(Watch::Write, 0x2001, 2));
        assert!(slots.insert(Watch::Access, 0x2000, 1));
        assert!(!slots.insert(Watch::Write, 0x3000, 1));
        assert_eq!(slots.wish(2), Some((Watch::Read, 0x1002)));
        assert_eq!(slots.control()[1].map(|slot| (slot.on, slot.size)), Some((BreakOn::Access, 2)));
        slots.remove(Watch::Read, 0x1002, 6);
        assert_eq!(slots.wish(1), None);
        assert_eq!(slots.wish(3), Some((Watch::Access, 0x2000)));
        assert_eq!(slots.wish(4), None);
    }

    #[test]
    fn int3s_are_hidden_and_taken_out() {
        let view = DeviceView::new(Arc::new(GuestMemory::with_bytes(16 << 20).expect("memory")));
        let read = |gpa: u64| {
            let mut bytes = [0; 4];
            view.read(Gpa(gpa), &mut bytes).expect("inside RAM");
            bytes
        };
        view.write(Gpa(0x1000), &[1, 2, 3, 4]).expect("inside RAM");
        let mut all = MemoryBreakpoints::default();
        // One frame under two addresses.
        assert!(all.insert(&view, 0x5001, 0x1001) && all.insert(&view, 0x7001, 0x1001));
        assert!(all.insert(&view, 0x5002, 0x1002) && all.insert(&view, 0x5003, 0x1003));
        assert!(!all.insert(&view, 0, 1 << 40));
        assert_eq!(read(0x1000), [1, 0xcc, 0xcc, 0xcc]);
        let mut seen = read(0x1000);
        all.hide(0x1000, &mut seen);
        assert_eq!(seen, [1, 2, 3, 4]);
        let mut written = [9, 8];
        all.keep(0x1000, &mut written);
        assert_eq!(written, [9, 0xcc]);
        all.remove(&view, 0x5001);
        assert_eq!(read(0x1000)[1], 0xcc);
        all.remove(&view, 0x7001);
        assert_eq!(read(0x1000)[1], 8);
        all.remove(&view, 0x7001);
        // What the guest wrote over it stays.
        view.write(Gpa(0x1002), &[7]).expect("inside RAM");
        all.remove_all(&view);
        assert_eq!(read(0x1000), [1, 8, 7, 4]);
        assert!(all.is_empty());
    }
}
