//! The memory map that the kernel is told, in the form of the BIOS call of that name.

use std::ops::Range;

use super::error::BootError;
use super::layout::{DEVICE_HOLE, DEVICE_HOLE_END, EBDA_START, HIGH_MEMORY};

/// What a range of the map is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(super) enum E820Kind {
    /// The kernel may use it.
    Ram = 1,
    /// It must leave it alone.
    Reserved = 2,
}

/// One range of the map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct E820Entry {
    /// Guest-physical, not empty.
    pub(super) range: Range<u64>,
    /// What it is.
    pub(super) kind: E820Kind,
}

/// The map for a guest whose RAM is `ram`.
///
/// Device addresses are not in it: what no entry names is free for devices, and the ACPI tables say which
/// ones there are. An error if `ram` has not the shape that [`super::layout::ram_ranges`] gives: ascending,
/// from 0, past 1 MiB, out of the device hole.
pub(super) fn memory_map(ram: &[Range<u64>]) -> Result<Vec<E820Entry>, BootError> {
    if let Some(expected) = broken_rule(ram) {
        return Err(BootError::RamShape { found: ram.to_vec(), expected });
    }
    let usable = |range| E820Entry { range, kind: E820Kind::Ram };
    let mut map = vec![
        usable(0..EBDA_START),
        E820Entry { range: EBDA_START..HIGH_MEMORY, kind: E820Kind::Reserved },
        usable(HIGH_MEMORY..ram[0].end),
    ];
    map.extend(ram[1..].iter().cloned().map(usable));
    Ok(map)
}

/// The rule that `ram` breaks, if it breaks one.
fn broken_rule(ram: &[Range<u64>]) -> Option<&'static str> {
    let Some(first) = ram.first() else {
        return Some("at least one range");
    };
    if first.start != 0 || first.end <= HIGH_MEMORY {
        return Some("a first range from 0 to more than 1 MiB");
    }
    if ram.len() > 8 {
        return Some("at most 8 ranges");
    }
    if ram.iter().any(Range::is_empty) || ram.windows(2).any(|pair| pair[0].end > pair[1].start) {
        return Some("ascending ranges that do not overlap");
    }
    let in_hole = |range: &Range<u64>| range.start < DEVICE_HOLE_END && range.end > DEVICE_HOLE;
    ram.iter().any(in_hole).then_some("none between 0xc0000000 and 0x100000000")
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use super::*;
    use crate::boot::layout::ram_ranges;
    use proptest::prelude::*;

    #[test]
    fn a_large_guest_has_ram_on_both_sides_of_the_hole() {
        let map = memory_map(&ram_ranges(5 << 30)).unwrap();
        let ranges: Vec<_> = map.iter().map(|entry| entry.range.clone()).collect();
        assert_eq!(
            ranges,
            [
                0..0x9_fc00,
                0x9_fc00..0x10_0000,
                0x10_0000..0xc000_0000,
                0x1_0000_0000..0x1_8000_0000
            ]
        );
        assert_eq!(map[1].kind, E820Kind::Reserved);
    }

    #[test]
    fn ram_of_another_shape_is_refused() {
        let whole = 0..64 << 20;
        for ram in [
            vec![],
            vec![4096..64 << 20],
            vec![0..1 << 20],
            vec![whole.clone(), 32 << 20..96 << 20],
            vec![0..0xc000_1000],
            vec![whole.clone(), 0xd000_0000..0xd000_1000],
            vec![whole.clone(), 1 << 32..1 << 32],
        ] {
            assert!(memory_map(&ram).is_err(), "{ram:x?}");
        }
    }

    proptest! {
        #[test]
        fn all_ram_but_the_reserved_area_is_usable(size in (1u64 << 20) + 4096..1 << 40) {
            let map = memory_map(&ram_ranges(size)).unwrap();
            let length = |entry: &E820Entry| entry.range.end - entry.range.start;
            prop_assert_eq!(map.iter().map(length).sum::<u64>(), size);
            prop_assert!(map.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
        }
    }
}
