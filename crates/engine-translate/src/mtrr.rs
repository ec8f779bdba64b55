//! Memory-type range registers: kept for the guest, for whom all memory is write-back whatever they say
//! (SDM volume 3, 12.11).

use x86::msr;

use crate::walk::PHYSICAL_BITS;

const FIXED_FIRST: u32 = msr::MTRR_FIX64K;
const FIXED: usize = (msr::MTRR_FIX4K + 8 - FIXED_FIRST) as usize;
const VARIABLE: usize = 16;

/// The registers of one vCPU; all zero, hence off, after a reset.
#[derive(Clone, Debug)]
pub(crate) struct Mtrrs {
    /// Base and mask by turns.
    variable: [u64; VARIABLE],
    /// By number, with gaps.
    fixed: [u64; FIXED],
    default_type: u64,
}

impl Mtrrs {
    pub(crate) fn new() -> Self {
        Self { variable: [0; VARIABLE], fixed: [0; FIXED], default_type: 0 }
    }

    /// `None`: no such register.
    pub(crate) fn read(&self, index: u32) -> Option<u64> {
        match place(index)? {
            Place::Variable(at) => Some(self.variable[at]),
            Place::Fixed(at) => Some(self.fixed[at]),
            Place::DefaultType => Some(self.default_type),
        }
    }

    /// False: no such register, or a value that it cannot take.
    pub(crate) fn write(&mut self, index: u32, value: u64) -> bool {
        let Some(place) = place(index) else { return false };
        if !is_valid(&place, value) {
            return false;
        }
        match place {
            Place::Variable(at) => self.variable[at] = value,
            Place::Fixed(at) => self.fixed[at] = value,
            Place::DefaultType => self.default_type = value,
        }
        true
    }
}

enum Place {
    Variable(usize),
    Fixed(usize),
    DefaultType,
}

fn place(index: u32) -> Option<Place> {
    const VARIABLE_LAST: u32 = msr::MTRR_VARIABLE + VARIABLE as u32 - 1;
    const FIX16K_LAST: u32 = msr::MTRR_FIX16K + 1;
    const FIX4K_LAST: u32 = msr::MTRR_FIX4K + 7;
    match index {
        msr::MTRR_DEF_TYPE => Some(Place::DefaultType),
        msr::MTRR_VARIABLE..=VARIABLE_LAST => {
            Some(Place::Variable((index - msr::MTRR_VARIABLE) as usize))
        }
        msr::MTRR_FIX64K | msr::MTRR_FIX16K..=FIX16K_LAST | msr::MTRR_FIX4K..=FIX4K_LAST => {
            Some(Place::Fixed((index - FIXED_FIRST) as usize))
        }
        _ => None,
    }
}

fn is_valid(place: &Place, value: u64) -> bool {
    const ENABLES: u64 = 0b11 << 10;
    const VALID: u64 = 1 << 11;
    let beyond = value >> PHYSICAL_BITS != 0;
    match place {
        Place::DefaultType => value & !(ENABLES | 0xff) == 0 && is_type(value as u8),
        Place::Fixed(_) => value.to_le_bytes().into_iter().all(is_type),
        Place::Variable(at) if at % 2 == 0 => !beyond && value & 0xf00 == 0 && is_type(value as u8),
        Place::Variable(_) => !beyond && value & 0xfff & !VALID == 0,
    }
}

/// UC, WC, WT, WP, WB.
fn is_type(kind: u8) -> bool {
    matches!(kind, 0 | 1 | 4..=6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_take_what_the_manual_says() {
        let mut mtrrs = Mtrrs::new();
        for (index, good, bad) in [
            (msr::MTRR_DEF_TYPE, 0xc06, 0x1006),
            (msr::MTRR_DEF_TYPE, 0x800, 0x802),
            (msr::MTRR_VARIABLE, 0x1_0000_0006, 0x1_0000_0106),
            (msr::MTRR_VARIABLE + 14, 0x1000, 1 << PHYSICAL_BITS),
            (msr::MTRR_VARIABLE + 15, 0x3fff_ffff_f800, 0x0001_f000_0000_0800),
            (msr::MTRR_VARIABLE + 1, 0x800, 0x400),
            (msr::MTRR_FIX64K, 0x0606_0606_0606_0606, 0x0602_0606_0606_0606),
            (msr::MTRR_FIX16K + 1, 0x0504_0100_0000_0000, 7),
            (msr::MTRR_FIX4K + 7, 0x0606_0606_0606_0600, 3 << 56),
        ] {
            assert!(mtrrs.write(index, good), "{index:#x} {good:#x}");
            assert!(!mtrrs.write(index, bad), "{index:#x} {bad:#x}");
            assert_eq!(mtrrs.read(index), Some(good), "{index:#x}");
        }
    }

    #[test]
    fn gaps_are_no_registers() {
        let mut mtrrs = Mtrrs::new();
        for index in [0x1ff, 0x210, 0x24f, 0x251, 0x257, 0x25a, 0x267, 0x270, 0x277, 0x300] {
            assert_eq!(mtrrs.read(index), None, "{index:#x}");
            assert!(!mtrrs.write(index, 0), "{index:#x}");
        }
    }
}
