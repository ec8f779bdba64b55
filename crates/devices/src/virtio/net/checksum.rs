//! The Internet checksum (RFC 1071), where the guest left it to the device.

/// Finishes the checksum of `frame`, which lies `offset` bytes behind `start` and holds the sum of
/// the pseudo-header; false if that is outside the frame (virtio 1.2, 5.1.6.2).
pub(super) fn finish(frame: &mut [u8], start: u16, offset: u16) -> bool {
    let at = usize::from(start) + usize::from(offset);
    if at + 2 > frame.len() {
        return false;
    }
    // Zero says "no checksum" in UDP, and its other form is as good for all.
    let sum = match !sum(&frame[usize::from(start)..]) {
        0 => u16::MAX,
        sum => sum,
    };
    frame[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
    true
}

/// The one's complement sum of 16-bit words, in the host's byte order: the sum of swapped words is
/// the swapped sum (RFC 1071, 2), so nothing is swapped.
fn sum(bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<4>();
    // A frame has less than 2^16 bytes, so the sum stays far below 2^64.
    let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    fold(sum + u64::from(u32::from_ne_bytes(last)))
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Word by word, in network order, as the RFC says it.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn any_length_sums_as_the_rfc_says() {
        let bytes: Vec<u8> = (0..997_u32).map(|i| ((i * i) >> 3) as u8).collect();
        for len in (0..20).chain([996, 997]) {
            assert_eq!(u16::from_be(sum(&bytes[..len])), plain(&bytes[..len]), "{len}");
        }
        assert_eq!(sum(&[0xff; 65536]), 0xffff, "carries");
    }

    #[test]
    fn a_finished_checksum_is_correct() {
        for len in [20, 21, 60, 1501] {
            let mut frame: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            assert!(finish(&mut frame, 6, 4));
            // Whatever the field held is in the sum, as a pseudo-header's sum is; the rest checks out.
            let held = plain(&[frame[10], frame[11]]);
            frame[10..12].copy_from_slice(&[70, 77]);
            let whole = u32::from(plain(&frame[6..])) + u32::from(held);
            assert_eq!((whole & 0xffff) + (whole >> 16), 0xffff, "{len}");
        }
    }

    #[test]
    fn zero_is_sent_as_its_other_form() {
        let mut frame = [0xff, 0xff, 0, 0];
        assert!(finish(&mut frame, 0, 2));
        assert_eq!(frame, [0xff; 4]);
    }

    #[test]
    fn a_checksum_outside_the_frame_is_refused() {
        let mut frame = [0; 10];
        for (start, offset) in [(10, 0), (9, 0), (0, 9), (5, 4), (u16::MAX, u16::MAX)] {
            assert!(!finish(&mut frame, start, offset), "{start}+{offset}");
        }
        assert_eq!(frame, [0; 10]);
        assert!(finish(&mut frame, 4, 4));
    }
}
