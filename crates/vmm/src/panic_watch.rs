//! Recognises a Linux kernel panic in what the guest prints on its console.
//!
//! A stock kernel has no panic device without modules, but it always prints the panic. A guest that
//! prints the words for fun changes nothing but its own exit status.

/// What panic() prints first (Linux `kernel/panic.c`).
const PANIC: &[u8] = b"Kernel panic - not syncing";
/// What it prints last, when it neither reboots nor returns.
const END: &[u8] = b"---[ end Kernel panic";

/// What a line of output revealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    Nothing,
    /// The kernel panicked; it may print more and then reset the machine.
    Panic,
    /// The kernel panicked and will do nothing any more.
    End,
}

/// Looks at one line of console output.
pub(crate) fn look_at(line: &[u8]) -> Seen {
    if contains(line, END) {
        Seen::End
    } else if contains(line, PANIC) {
        Seen::Panic
    } else {
        Seen::Nothing
    }
}

fn contains(line: &[u8], text: &[u8]) -> bool {
    line.windows(text.len()).any(|window| window == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_a_panic_and_its_end() {
        let line = b"[    1.234567] Kernel panic - not syncing: VFS: Unable to mount root fs";
        assert_eq!(look_at(line), Seen::Panic);
        assert_eq!(look_at(b"[ 2.0] ---[ end Kernel panic - not syncing: VFS ]---"), Seen::End);
    }

    #[test]
    fn ordinary_output_is_nothing() {
        assert_eq!(look_at(b"Kernel command line: panic=1"), Seen::Nothing);
        assert_eq!(look_at(b""), Seen::Nothing);
    }
}
