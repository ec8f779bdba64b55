//! Guest memory by linear address. Breakpoints of the debugger do not show, and survive what it writes.

use memory::{DeviceView, FRAME_SIZE, Gpa};
use x86::VcpuState;

use super::breakpoints::MemoryBreakpoints;
use super::walk::{self, AddressError};

/// Guest memory as a vCPU sees it that stands in `state`.
pub(super) struct LinearMemory<'a> {
    pub(super) view: &'a DeviceView,
    pub(super) state: &'a VcpuState,
}

impl LinearMemory<'_> {
    /// Reads from `va` on; returns how many bytes could be read.
    pub(super) fn read(
        &self,
        va: u64,
        into: &mut [u8],
        breakpoints: &MemoryBreakpoints,
    ) -> Result<usize, AddressError> {
        let mut done = 0;
        while done < into.len() {
            let at = va.wrapping_add(done as u64);
            let len = in_page(at, into.len() - done);
            let part = &mut into[done..];
            let part = &mut part[..len];
            match self.read_part(at, part, breakpoints) {
                Ok(()) => done += len,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Writes from `va` on: all, or up to the page that cannot be written.
    pub(super) fn write(
        &self,
        va: u64,
        from: &[u8],
        breakpoints: &mut MemoryBreakpoints,
    ) -> Result<(), AddressError> {
        let mut done = 0;
        while done < from.len() {
            let at = va.wrapping_add(done as u64);
            let part = &from[done..][..in_page(at, from.len() - done)];
            let gpa = walk::translate(self.state, self.view, at)?;
            let mut bytes = part.to_vec();
            breakpoints.keep(gpa, &mut bytes);
            let written = self.view.write(Gpa(gpa), &bytes);
            written.map_err(|_| AddressError::NoRam { va: at, gpa })?;
            done += part.len();
        }
        Ok(())
    }

    fn read_part(
        &self,
        va: u64,
        into: &mut [u8],
        breakpoints: &MemoryBreakpoints,
    ) -> Result<(), AddressError> {
        let gpa = walk::translate(self.state, self.view, va)?;
        self.view.read(Gpa(gpa), into).map_err(|_| AddressError::NoRam { va, gpa })?;
        breakpoints.hide(gpa, into);
        Ok(())
    }
}

/// How many of `len` bytes at `va` are in one page.
fn in_page(va: u64, len: usize) -> usize {
    len.min(FRAME_SIZE - va as usize % FRAME_SIZE)
}
