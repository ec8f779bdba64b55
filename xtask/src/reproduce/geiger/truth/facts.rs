//! What it takes to read the events, from the guest's text (guest/src/cache/facts.rs).

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::ops::Range;

/// A moment by the guest's time-stamp counter and by its clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Moment {
    pub(in super::super) tsc: u64,
    pub(in super::super) nanoseconds: u64,
}

/// One kind of event: its number, and the places of its fields.
#[derive(Clone, Debug, Default)]
pub(super) struct Layout {
    pub(super) id: u16,
    fields: BTreeMap<String, Range<usize>>,
}

/// Pages of a file that lie one after the other on the disk, as it was at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) tsc: u64,
    pub(super) first: u64,
    pub(super) block: u64,
    pub(super) count: u64,
}

#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) begin: Moment,
    pub(super) end: Moment,
    pub(super) lost: u64,
    pub(super) layouts: BTreeMap<String, Layout>,
    pub(super) symbols: BTreeMap<String, Range<u64>>,
    /// Of virtio disks, the device and which it is: 0 for vda.
    pub(super) disks: BTreeMap<u64, u32>,
    /// By a swap area's number, its device.
    pub(super) swaps: BTreeMap<u64, u64>,
    pub(super) file_system: String,
    /// By device and inode.
    pub(super) extents: BTreeMap<(u64, u64), Vec<Extent>>,
    /// The kernel's counters when the load began and when it ended.
    pub(super) counters: BTreeMap<String, [u64; 2]>,
    /// Frames that nobody had after the end.
    pub(super) free: Vec<Range<u64>>,
}

impl Layout {
    /// A field's number; none if the event has no such field.
    pub(super) fn number(&self, data: &[u8], field: &str) -> Option<u64> {
        let bytes = data.get(self.fields.get(field)?.clone())?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

impl Facts {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut facts = Self::default();
        for line in text.lines() {
            facts.line(line).with_context(|| format!("no fact: {line}"))?;
        }
        Ok(facts)
    }

    fn line(&mut self, line: &str) -> Option<()> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words.get(at)?.parse::<u64>().ok();
        match *words.first()? {
            "begin" => self.begin = Moment { tsc: number(1)?, nanoseconds: number(2)? },
            "end" => self.end = Moment { tsc: number(1)?, nanoseconds: number(2)? },
            "lost" => self.lost = number(1)?,
            "event" => {
                self.layouts.insert((*words.get(1)?).to_owned(), layout(words.get(2..)?)?);
            }
            "symbol" => {
                let address = |at: usize| u64::from_str_radix(words.get(at)?, 16).ok();
                self.symbols.insert((*words.get(1)?).to_owned(), address(2)?..address(3)?);
            }
            "disk" => {
                if let Some(disk) = disk_number(words.get(1)?) {
                    self.disks.insert(number(2)?, disk);
                }
            }
            "mount" => self.file_system = (*words.get(2)?).to_owned(),
            "swap" => {
                self.swaps.insert(number(1)?, number(2)?);
            }
            "extent" => {
                let extent = Extent {
                    tsc: number(3)?,
                    first: number(4)?,
                    block: number(5)?,
                    count: number(6)?,
                };
                self.extents.entry((number(1)?, number(2)?)).or_default().push(extent);
            }
            "free" => self.free.push(number(1)?..number(1)?.checked_add(number(2)?)?),
            "vmstat" => {
                let counter = self.counters.entry((*words.get(2)?).to_owned()).or_default();
                counter[usize::from(*words.get(1)? == "end")] = number(3)?;
            }
            _ => return None,
        }
        Some(())
    }
}

/// `ID FIELD:OFFSET:SIZE ..`.
fn layout(words: &[&str]) -> Option<Layout> {
    let mut layout = Layout { id: words.first()?.parse().ok()?, ..Layout::default() };
    for field in &words[1..] {
        let mut parts = field.split(':');
        let (name, offset) = (parts.next()?, parts.next()?.parse::<usize>().ok()?);
        let size = parts.next()?.parse::<usize>().ok()?;
        layout.fields.insert(name.to_owned(), offset..offset.checked_add(size)?);
    }
    Some(layout)
}

fn disk_number(name: &str) -> Option<u32> {
    match name.strip_prefix("vd")?.as_bytes() {
        [letter @ b'a'..=b'z'] => Some(u32::from(letter - b'a')),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_a_fact() {
        let text = "begin 5 6\nend 7 8\nvmstat begin pgpgin 3\nvmstat end pgpgin 9\nlost 0\n\
                    event add 497 common_type:0:2 pfn:8:8 order:16:1\nsymbol f ff10 ff20\n\
                    disk vdb 266338320\ndisk loop0 7340032\nmount 266338320 ext4 /scratch\n\
                    free 7 3\nfree 12 1\nswap 0 266338352\nextent 266338320 12 99 0 1000 5\n";
        let facts = Facts::parse(text).unwrap();
        assert_eq!(
            (facts.begin.tsc, facts.end.nanoseconds, facts.counters["pgpgin"]),
            (5, 8, [3, 9])
        );
        assert_eq!((facts.disks.len(), facts.disks[&266_338_320]), (1, 1));
        assert_eq!(facts.symbols["f"], 0xff10..0xff20);
        assert_eq!(
            facts.extents[&(266_338_320, 12)],
            [Extent { tsc: 99, first: 0, block: 1000, count: 5 }]
        );
        assert_eq!(facts.free, [7..10, 12..13]);
        assert_eq!((facts.swaps[&0], facts.file_system.as_str()), (266_338_352, "ext4"));
        let mut data = [0; 17];
        (data[8], data[9], data[16]) = (0x34, 0x12, 9);
        let layout = &facts.layouts["add"];
        assert_eq!(layout.number(&data, "pfn"), Some(0x1234));
        assert_eq!(layout.number(&data, "order"), Some(9));
        assert_eq!((layout.number(&data, "none"), layout.number(&data[..10], "pfn")), (None, None));
    }

    #[test]
    fn a_line_that_is_none_is_told() {
        for line in [
            "begin 5",
            "what 1",
            "event add x",
            "event add 1 pfn:8",
            "extent 1 2 3",
            "swap a b",
            "free 1",
        ] {
            assert!(Facts::parse(line).is_err(), "{line}");
        }
    }
}
