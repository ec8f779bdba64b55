//! Recognises a Linux kernel panic in what the guest prints on its console.
//!
//! A stock kernel has no panic device without modules, but it always prints the panic. A guest that
//! prints the words for fun changes nothing but its own exit status.

/// What panic() prints first (Linux `kernel/panic.c`).
const PANIC: &[u8] = b"Kernel panic - not syncing";
/// What it prints last, when it neither reboots nor returns.
const END: &[u8] = b"---[ end Kernel panic";

/// A scanner for a byte stream; matches may be split over calls.
#[derive(Debug, Default)]
pub(crate) struct PanicWatch {
    line: Vec<u8>,
}

/// What a piece of output revealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    Nothing,
    /// The kernel panicked; it may print more and then reset the machine.
    Panic,
    /// The kernel panicked and will do nothing any more.
    End,
}

/// Bytes of a line that are looked at: both texts come after a time stamp of under 20 bytes.
const LINE_MAX: usize = 128;

impl PanicWatch {
    /// Looks at the next bytes of output.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Seen {
        let mut seen = Seen::Nothing;
        for &byte in bytes {
            match byte {
                b'\n' | b'\r' => self.line.clear(),
                _ if self.line.len() < LINE_MAX => {
                    self.line.push(byte);
                    if self.line.ends_with(END) {
                        return Seen::End;
                    }
                    if self.line.ends_with(PANIC) {
                        seen = Seen::Panic;
                    }
                }
                _ => {}
            }
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_a_panic_split_anywhere() {
        let text = b"[    1.234567] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n";
        for at in 0..text.len() {
            let mut watch = PanicWatch::default();
            let seen = [watch.feed(&text[..at]), watch.feed(&text[at..])];
            assert!(seen.contains(&Seen::Panic), "split at {at}");
            assert_eq!(watch.feed(b"[ 2.0] ---[ end Kernel panic - not syncing"), Seen::End);
        }
    }

    #[test]
    fn ordinary_output_is_nothing() {
        let mut watch = PanicWatch::default();
        assert_eq!(watch.feed(b"Kernel command line: panic=1\nKernel panic \nnot syncing"), Seen::Nothing);
        assert_eq!(watch.feed(&[b'x'; 10_000]), Seen::Nothing);
    }
}
