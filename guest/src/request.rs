//! What we are asked to do: the kernel's command line, or our own arguments.

use std::path::PathBuf;
use std::time::Duration;

/// How the machine ends when the work is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum End {
    #[default]
    PowerOff,
    Reboot,
    Halt,
    Panic,
    /// Run for ever: for tests that stop, pause or squeeze the machine from outside.
    Stay,
}

/// One piece of work: `name:args`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) name: String,
    pub(crate) args: String,
}

/// The whole request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) works: Vec<Work>,
    /// How long a phase of a workload lasts.
    pub(crate) phase: Duration,
    /// The size of the file that `phases` reads; none: as large as the disk allows.
    pub(crate) file_mib: u64,
    /// How much work benchmarks do.
    pub(crate) scale_percent: u64,
    /// A disk, or a folder, with a root file system of Debian's.
    pub(crate) root: PathBuf,
    /// A disk, or a file, whose content nobody needs.
    pub(crate) scratch: PathBuf,
    /// A disk for what is traced.
    pub(crate) trace: PathBuf,
    /// A disk that is a swap area.
    pub(crate) swap: PathBuf,
    pub(crate) load_modules: bool,
    /// Whether the host can have the machine do things, where it has vsock.
    pub(crate) agent: bool,
    pub(crate) end: End,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            works: Vec::new(),
            phase: Duration::from_secs(9),
            file_mib: 40,
            scale_percent: 100,
            root: "/dev/vda".into(),
            scratch: "/dev/vdb".into(),
            trace: "/dev/vdc".into(),
            swap: "/dev/vdd".into(),
            load_modules: true,
            agent: true,
            end: End::default(),
        }
    }
}

impl Request {
    /// From `/proc/cmdline`: words that begin with `fathom.`; others are the kernel's.
    pub(crate) fn from_cmdline(cmdline: &str) -> Self {
        let mut request = Self::default();
        for word in words(cmdline, '"') {
            if let Some((key, value)) = word.strip_prefix("fathom.").and_then(|w| w.split_once('='))
            {
                request.set(key, value);
            }
        }
        request
    }

    /// From our arguments: works, and `seconds=` and the like.
    pub(crate) fn from_arguments(arguments: &[String]) -> Self {
        let mut request = Self::default();
        for word in arguments {
            match word.split_once('=') {
                Some((key @ ("seconds" | "file" | "scale" | "root" | "scratch"), value)) => {
                    request.set(key, value);
                }
                _ => request.set("run", word),
            }
        }
        request
    }

    fn set(&mut self, key: &str, value: &str) {
        match key {
            "run" => self.works.push(Work::parse(value)),
            "seconds" => self.phase = value.parse().map_or(self.phase, Duration::from_secs),
            "file" => self.file_mib = value.parse().unwrap_or(self.file_mib),
            "scale" => self.scale_percent = value.parse().unwrap_or(self.scale_percent),
            "root" => self.root = value.into(),
            "scratch" => self.scratch = value.into(),
            "trace" => self.trace = value.into(),
            "swap" => self.swap = value.into(),
            "modules" => self.load_modules = value != "none",
            "agent" => self.agent = value != "off",
            "end" => self.end = end(value),
            _ => {}
        }
    }
}

impl Work {
    fn parse(text: &str) -> Self {
        let (name, args) = text.split_once(':').unwrap_or((text, ""));
        Self { name: name.to_owned(), args: args.to_owned() }
    }

    /// The arguments as numbers, separated by commas; what is no number is left out.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        self.args.split(',').filter_map(|n| n.trim().parse().ok()).collect()
    }

    pub(crate) fn number_or(&self, default: u64) -> u64 {
        self.numbers().first().copied().unwrap_or(default)
    }

    /// The arguments as a program and its words; single quotes hold a word together.
    pub(crate) fn command(&self) -> Vec<String> {
        words(&self.args, '\'')
    }
}

fn end(value: &str) -> End {
    match value {
        "reboot" => End::Reboot,
        "halt" => End::Halt,
        "panic" => End::Panic,
        "stay" => End::Stay,
        _ => End::PowerOff,
    }
}

/// Split at spaces outside quotes, as the kernel's `next_arg` does; the quotes go away.
fn words(text: &str, quote: char) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut any) = (Vec::new(), String::new(), false, false);
    for c in text.chars() {
        if c == quote {
            quoted = !quoted;
            any = true;
        } else if c.is_whitespace() && !quoted {
            if any {
                words.push(std::mem::take(&mut word));
            }
            any = false;
        } else {
            word.push(c);
            any = true;
        }
    }
    if any {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_of_a_kernel_holds_other_words_too() {
        let line = "console=ttyS0 fathom.run=phases:30,120 panic=-1 fathom.seconds=3 \
                    \"fathom.run=disk:/bin/sh -c 'echo a b'\" fathom.end=reboot\n";
        let request = Request::from_cmdline(line);
        assert_eq!(request.works[0].name, "phases");
        assert_eq!(request.works[0].numbers(), [30, 120]);
        assert_eq!(request.works[1].command(), ["/bin/sh", "-c", "echo a b"]);
        assert_eq!(request.phase, Duration::from_secs(3));
        assert_eq!(request.end, End::Reboot);
    }

    #[test]
    fn quotes_may_begin_inside_a_word() {
        let request = Request::from_cmdline("fathom.run=\"exec:ls -l\" quiet");
        assert_eq!(request.works, [Work { name: "exec".into(), args: "ls -l".into() }]);
    }

    #[test]
    fn nonsense_changes_nothing() {
        let request = Request::from_cmdline("fathom.seconds=soon fathom.x=1 fathom.");
        assert_eq!(request, Request::default());
    }
}
