//! Pages of the kernel's ring buffer for traces (Linux, `events/header_page` and `events/header_event` of tracefs).
//!
//! A page begins with its time and the number of bytes that follow. An event's first word is 5 bits of its length
//! in words, and 27 bits of the time since the event before it.

use super::PAGE;
use anyhow::{Context, Result, bail};

const HEADER: usize = 16;
/// Of the word for a page's length, the bits that are one.
const LENGTH: u64 = (1 << 20) - 1;
/// Events were lost before this page.
const MISSED: u64 = 1 << 31;

const PADDING: u32 = 29;
const TIME_EXTEND: u32 = 30;
const TIME_STAMP: u32 = 31;
/// An absolute time has so many bits; the rest are those of the time before it.
const STAMP_BITS: u32 = 59;

/// One event as the kernel keeps it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Raw<'a> {
    pub(super) tsc: u64,
    pub(super) data: &'a [u8],
}

/// The events of a processor, which never go back in time.
pub(super) fn events(pages: &[u8]) -> Result<Vec<Raw<'_>>> {
    let mut events = Vec::new();
    for page in pages.chunks(PAGE) {
        read_page(page, &mut events)?;
    }
    if let Some(pair) = events.windows(2).find(|pair| pair[0].tsc > pair[1].tsc) {
        bail!("an event's time is {} after one of {}", pair[1].tsc, pair[0].tsc);
    }
    Ok(events)
}

fn read_page<'a>(page: &'a [u8], events: &mut Vec<Raw<'a>>) -> Result<()> {
    let mut tsc = long(page, 0)?;
    let commit = long(page, 8)?;
    if commit & MISSED != 0 {
        bail!("the kernel lost events: give it a larger buffer");
    }
    let mut rest = page
        .get(HEADER..HEADER + (commit & LENGTH) as usize)
        .context("a page is longer than it can be")?;
    while !rest.is_empty() {
        let head = word(rest, 0)?;
        let (kind, delta) = (head & 31, u64::from(head >> 5));
        let length = match kind {
            // The rest of the page is empty.
            PADDING if delta == 0 => return Ok(()),
            PADDING => 4 + word(rest, 4)? as usize,
            TIME_EXTEND => {
                tsc = tsc.wrapping_add(u64::from(word(rest, 4)?) << 27 | delta);
                8
            }
            TIME_STAMP => {
                let stamp = u64::from(word(rest, 4)?) << 27 | delta;
                tsc = tsc >> STAMP_BITS << STAMP_BITS | stamp;
                8
            }
            kind => {
                tsc = tsc.wrapping_add(delta);
                let (from, length) = if kind == 0 {
                    (8, 4 + word(rest, 4)? as usize)
                } else {
                    (4, 4 + kind as usize * 4)
                };
                let data = rest.get(from..length).context("an event is longer than its page")?;
                events.push(Raw { tsc, data });
                length
            }
        };
        rest = rest.get(length..).context("an event is longer than its page")?;
    }
    Ok(())
}

fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let bytes = bytes.get(at..at + 4).context("an event is cut off")?;
    Ok(u32::from_le_bytes(bytes.try_into()?))
}

fn long(bytes: &[u8], at: usize) -> Result<u64> {
    let bytes = bytes.get(at..at + 8).context("a page is cut off")?;
    Ok(u64::from_le_bytes(bytes.try_into()?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A page with events of the given times since the one before, as the kernel makes it.
    pub(in super::super) fn page(tsc: u64, events: &[(u32, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (delta, data) in events {
            body.extend((delta << 5 | (data.len() / 4) as u32).to_le_bytes());
            body.extend(*data);
        }
        finish(tsc, &body)
    }

    fn finish(tsc: u64, body: &[u8]) -> Vec<u8> {
        let mut page = tsc.to_le_bytes().to_vec();
        page.extend((body.len() as u64).to_le_bytes());
        page.extend(body);
        page.resize(PAGE, 0);
        page
    }

    #[test]
    fn times_add_up() {
        let pages =
            [page(100, &[(0, b"aaaa"), (7, b"bbbbbbbb")]), page(200, &[(1, b"cccc")])].concat();
        let raw = |tsc, data| Raw { tsc, data };
        let expected = [raw(100, b"aaaa".as_slice()), raw(107, b"bbbbbbbb"), raw(201, b"cccc")];
        assert_eq!(events(&pages).unwrap(), expected);
    }

    #[test]
    fn all_kinds_of_words_are_known() {
        let mut body = Vec::new();
        let mut push =
            |words: &[u32]| body.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        push(&[1 << 5 | TIME_EXTEND, 2]);
        push(&[3 << 5, 8, 0x1111_1111]);
        push(&[1 << 5 | PADDING, 12, 9, 9]);
        push(&[5 << 5 | TIME_STAMP, 4]);
        push(&[2 << 5 | 1, 0x2222_2222]);
        push(&[PADDING, 77]);
        let page = finish(1 << 60, &body);
        let seen: Vec<_> =
            events(&page).unwrap().into_iter().map(|raw| (raw.tsc, raw.data[0])).collect();
        assert_eq!(
            seen,
            [((1 << 60) + (2 << 27) + 4, 0x11), ((1 << 60 >> 59 << 59) + (4 << 27) + 7, 0x22)]
        );
    }

    #[test]
    fn what_is_lost_or_cut_off_is_told() {
        let mut missed = page(1, &[(0, b"aaaa")]);
        missed[11] |= 0x80;
        assert!(events(&missed).is_err());
        let mut long = page(1, &[(0, b"aaaa")]);
        long[16] |= 24;
        assert!(events(&long).is_err());
        assert!(events(&page(1, &[(0, b"aaaa")])[..19]).is_err());
        assert!(events(&[page(9, &[(0, b"aaaa")]), page(3, &[(0, b"aaaa")])].concat()).is_err());
    }
}
