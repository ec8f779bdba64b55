//! The way out of a raw terminal.

/// The byte that starts an escape: Ctrl-A.
pub const ESCAPE: u8 = 0x01;

/// Finds Ctrl-A x in a stream of typed bytes. Ctrl-A twice sends one Ctrl-A; Ctrl-A with any other
/// key sends both.
#[derive(Clone, Copy, Debug, Default)]
pub struct Escape {
    started: bool,
}

impl Escape {
    /// Appends to `out` what is meant for the guest; true if the user asked to leave.
    pub fn filter(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> bool {
        let mut leave = false;
        for &byte in bytes {
            match (self.started, byte) {
                (false, ESCAPE) => self.started = true,
                (false, _) => out.push(byte),
                (true, b'x' | b'X') => (self.started, leave) = (false, true),
                (true, ESCAPE) => {
                    self.started = false;
                    out.push(ESCAPE);
                }
                (true, _) => {
                    self.started = false;
                    out.extend([ESCAPE, byte]);
                }
            }
        }
        leave
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(parts: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut escape, mut out) = (Escape::default(), Vec::new());
        let mut leave = false;
        for part in parts {
            leave |= escape.filter(part, &mut out);
        }
        (out, leave)
    }

    #[test]
    fn only_ctrl_a_x_leaves() {
        assert_eq!(typed(&[b"exit\x03"]), (b"exit\x03".to_vec(), false));
        assert_eq!(typed(&[b"a\x01\x01xb"]), (b"a\x01xb".to_vec(), false));
        assert_eq!(typed(&[b"a\x01cb"]), (b"a\x01cb".to_vec(), false));
        assert_eq!(typed(&[b"a\x01", b"x"]), (b"a".to_vec(), true));
    }
}
