//! What the machine's script says on its control port, line by line.

/// A line of it.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    /// Linux runs there, and the first step begins.
    Ready,
    /// It still does.
    Alive,
    Start(String),
    /// A step ended, with its exit status as the shell has it.
    End {
        name: String,
        status: u8,
    },
    /// After the last step, with all output written.
    Done,
}

impl Said {
    pub(super) fn parse(line: &str) -> Option<Self> {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("ready", "") => Some(Self::Ready),
            ("alive", "") => Some(Self::Alive),
            ("done", "") => Some(Self::Done),
            ("start", name) => Some(Self::Start(name.to_owned())),
            ("end", rest) => {
                let (status, name) = rest.split_once(' ')?;
                Some(Self::End { name: name.to_owned(), status: status.parse().ok()? })
            }
            _ => None,
        }
    }
}

/// How far the machine has come, by all that it said.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) ready: bool,
    pub(super) running: Option<String>,
    pub(super) ended: Vec<(String, u8)>,
    pub(super) done: bool,
}

impl Progress {
    pub(super) fn hear(&mut self, said: Said) {
        match said {
            Said::Ready => self.ready = true,
            Said::Alive => {}
            Said::Start(name) => self.running = Some(name),
            Said::End { name, status } => {
                self.running = None;
                self.ended.push((name, status));
            }
            Said::Done => self.done = true,
        }
    }

    /// For the message when it goes no further.
    pub(super) fn place(&self) -> String {
        match (&self.running, self.ready) {
            (Some(step), _) => format!("in {step}"),
            (None, true) => "between its steps".to_owned(),
            (None, false) => "before it was up".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood_and_others_are_not() {
        assert_eq!(Said::parse("ready"), Some(Said::Ready));
        assert_eq!(Said::parse("alive"), Some(Said::Alive));
        assert_eq!(Said::parse("start two words"), Some(Said::Start("two words".into())));
        let end = Said::End { name: "two words".into(), status: 101 };
        assert_eq!(Said::parse("end 101 two words"), Some(end));
        assert_eq!(Said::parse("done"), Some(Said::Done));
        for torn in ["", "rea", "end", "end 1", "end x name", "end 256 name", "done x"] {
            assert_eq!(Said::parse(torn), None, "{torn:?}");
        }
    }

    #[test]
    fn progress_tells_where_it_stopped() {
        let mut progress = Progress::default();
        assert_eq!(progress.place(), "before it was up");
        for line in ["ready", "start a", "end 0 a", "alive", "start b"] {
            progress.hear(Said::parse(line).unwrap());
        }
        assert_eq!(progress.place(), "in b");
        assert_eq!(
            (progress.ended.as_slice(), progress.done),
            ([("a".into(), 0)].as_slice(), false)
        );
    }
}
