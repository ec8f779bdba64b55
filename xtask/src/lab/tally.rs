//! How many tests ran and which failed, by what their programs print.

/// Counts the summaries in an output that comes in pieces.
#[derive(Default, Debug, PartialEq)]
pub(super) struct Tally {
    pub(super) passed: u64,
    pub(super) failed: u64,
    /// Names of those that failed.
    pub(super) failures: Vec<String>,
    /// The output is at the names of tests that failed.
    among_failures: bool,
    /// Of the line that is not complete, as much as a summary may have.
    line: Vec<u8>,
}

/// Longer lines are no summaries.
const LINE_MAX: usize = 256;

impl Tally {
    pub(super) fn hear(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                let line = String::from_utf8_lossy(&line);
                self.count(&line);
                self.note_failure(&line);
            } else if self.line.len() < LINE_MAX {
                self.line.push(byte);
            }
        }
    }

    /// Rust's test runner ends with `test result: ok. 3 passed; 0 failed; ...`.
    fn count(&mut self, line: &str) {
        let Some((_, counts)) =
            line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for part in counts.split("; ") {
            match part.split_once(' ').map(|(number, what)| (number.parse::<u64>(), what)) {
                Some((Ok(number), "passed")) => self.passed += number,
                Some((Ok(number), "failed")) => self.failed += number,
                _ => {}
            }
        }
    }

    /// Before the summary stands `failures:`, and the names below it, each further in.
    fn note_failure(&mut self, line: &str) {
        let name = line.strip_prefix("    ").filter(|name| !name.contains(' '));
        match name.filter(|_| self.among_failures) {
            Some(name) => self.failures.push(name.to_owned()),
            None => self.among_failures = line == "failures:",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\nrunning 2 tests\ntest a ... ok\ntest m::b ... said\n    m::c\nFAILED\n\n\
        failures:\n\nfailures:\n    m::b\n\n\
        test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 1.5s\n\
        test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out\n";

    #[test]
    fn summaries_are_added_however_the_output_is_cut() {
        for size in [1, 7, 4096] {
            let mut tally = Tally::default();
            OUTPUT.as_bytes().chunks(size).for_each(|piece| tally.hear(piece));
            assert_eq!((tally.passed, tally.failed), (13, 3), "pieces of {size}");
            assert_eq!(tally.failures, ["m::b"], "pieces of {size}");
        }
    }

    #[test]
    fn nothing_else_counts_and_no_line_is_kept_whole() {
        let mut tally = Tally::default();
        tally.hear(b"said: test result: ok. 5 passed; 0 failed\ntest result: 9 passed\n");
        tally.hear(&[b'x'; 10_000]);
        assert_eq!((tally.passed, tally.failed, tally.line.len()), (0, 0, LINE_MAX));
    }
}
