//! The test programs that run in the lab, as cargo builds them.

use super::script::Step;
use crate::command::output;
use crate::workspace;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What there is to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Part {
    /// The tests of engine-kvm, with the suite that every engine must pass
    Conformance,
    /// Real guests, end to end
    Guest,
    /// Many starts, stops and pauses, and many VMs at once; not among those that run by default
    Soak,
}

impl Part {
    pub(super) const ALL: [Self; 2] = [Self::Conformance, Self::Guest];

    /// For `cargo test`.
    fn selection(self) -> &'static [&'static str] {
        match self {
            Self::Conformance => &["--package", "engine-kvm", "--lib", "--tests"],
            Self::Guest => &["--package", "fathom", "--test", "guest"],
            Self::Soak => {
                &["--package", "vmm", "--test", "leaks", "--package", "fathom", "--test", "guest"]
            }
        }
    }

    fn runs_fathom(self) -> bool {
        self != Self::Conformance
    }

    /// Whether the test program is among those that `selection` selects: `PACKAGE TARGET`.
    fn has(self, name: &str) -> bool {
        match self {
            Self::Conformance => name.starts_with("engine-kvm "),
            Self::Guest => name == "fathom guest",
            Self::Soak => ["vmm leaks", "fathom guest"].contains(&name),
        }
    }

    /// For the test programs.
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Conformance | Self::Guest => &[],
            Self::Soak => &crate::soak::OPTIONS,
        }
    }

    /// Tests have one of these in their names, unless others are asked for.
    fn filters(self) -> &'static [&'static str] {
        match self {
            Self::Conformance | Self::Guest => &[],
            Self::Soak => &crate::soak::TESTS,
        }
    }
}

/// What guests' tests run: `fathom`, and what it looks for beside itself.
const HELPERS: [&str; 2] = ["fathom", "fathom-store"];

/// Programs that cargo built for one part.
#[derive(Clone, Default)]
pub(super) struct Programs {
    /// For the test programs.
    options: Vec<String>,
    tests: Vec<Test>,
    /// What tests run: their paths are built into them.
    pub(super) helpers: Vec<PathBuf>,
}

#[derive(Clone)]
struct Test {
    /// `PACKAGE TARGET`
    name: String,
    program: PathBuf,
    /// The package's, where cargo would run it.
    folder: PathBuf,
    /// Of its tests, those that are to run.
    chosen: Vec<String>,
}

impl Programs {
    /// Build what `part` needs, and choose tests as `words` say, which are for the test programs; `whole`: build it with
    /// all else of the workspace, whose tests have been built as a whole before.
    pub(super) fn build(part: Part, words: &[String], whole: bool) -> Result<Self> {
        eprintln!("lab: building {part:?}");
        let json = ["--quiet", "--message-format=json-render-diagnostics"];
        let mut cargo = workspace::cargo();
        cargo.args(["test", "--no-run"]).args(json);
        let mut programs;
        if whole {
            programs = Self::parse(&output(cargo.arg("--workspace"))?)?;
            programs.keep(part);
        } else {
            programs = Self::parse(&output(cargo.args(part.selection()))?)?;
            if part.runs_fathom() {
                // Cargo builds programs of the tests' own packages only; this one `fathom` looks for beside itself.
                let mut cargo = workspace::cargo();
                cargo.arg("build").args(json);
                let store = Self::parse(&output(cargo.args(["--package", "objects"]))?)?;
                programs.helpers.extend(store.helpers);
            }
        }
        programs.choose(part, words)?;
        Ok(programs)
    }

    /// Ask the test programs which tests the words mean.
    fn choose(&mut self, part: Part, words: &[String]) -> Result<()> {
        self.options = part.options().iter().map(|&option| option.to_owned()).collect();
        let filters = if words.iter().any(|word| !is_option(word)) { &[] } else { part.filters() };
        for test in &mut self.tests {
            let mut list = Command::new(&test.program);
            list.args(&self.options).args(words).args(filters).args(["--list", "--format=terse"]);
            let names = output(list.current_dir(&test.folder))?;
            let names = names.lines().filter_map(|line| line.strip_suffix(": test"));
            test.chosen = names.map(str::to_owned).collect();
        }
        let chooses = |word: &String| ["--exact", "--skip"].iter().any(|w| word.starts_with(w));
        self.options.extend(words.iter().filter(|word| is_option(word) && !chooses(word)).cloned());
        Ok(())
    }

    /// How many tests are chosen.
    pub(super) fn count(&self) -> usize {
        self.tests.iter().map(|test| test.chosen.len()).sum()
    }

    /// Every `of`th of the chosen tests, from number `first` on.
    pub(super) fn share(&self, first: usize, of: usize) -> Self {
        let mut number = 0..;
        self.only(|_| number.next().is_some_and(|number: usize| number % of == first))
    }

    /// Of the chosen tests, those whose names are wanted.
    pub(super) fn only(&self, mut is_wanted: impl FnMut(&str) -> bool) -> Self {
        let mut programs = self.clone();
        for test in &mut programs.tests {
            test.chosen.retain(|name| is_wanted(name));
        }
        programs
    }

    /// Of all that the workspace has, what `part` runs.
    fn keep(&mut self, part: Part) {
        self.tests.retain(|test| part.has(&test.name));
        let is_run = |program: &Path| {
            let name = program.file_name().unwrap_or_default();
            part.runs_fathom() && HELPERS.iter().any(|helper| name == *helper)
        };
        self.helpers.retain(|program| is_run(program));
    }

    /// Of cargo's messages, one object a line, those about programs.
    fn parse(messages: &str) -> Result<Self> {
        let mut programs = Self::default();
        for line in messages.lines() {
            let message: Message = serde_json::from_str(line)
                .with_context(|| format!("cargo said what it should not: {line}"))?;
            let (Some(target), Some(program)) = (message.target, message.executable) else {
                continue;
            };
            if !message.profile.is_some_and(|profile| profile.test) {
                programs.helpers.push(program);
                continue;
            }
            let manifest = message.manifest_path.unwrap_or_default();
            let folder = manifest.parent().unwrap_or(Path::new("/")).to_owned();
            let package = folder.file_name().unwrap_or_default().to_string_lossy();
            let name = format!("{package} {}", target.name);
            programs.tests.push(Test { name, program, folder, chosen: Vec::new() });
        }
        Ok(programs)
    }

    /// One step a test program of which a test is chosen.
    pub(super) fn steps(&self, environment: &[(String, OsString)]) -> Vec<Step> {
        let tests = self.tests.iter().filter(|test| !test.chosen.is_empty()).map(|test| {
            let mut words = vec![test.program.clone().into_os_string()];
            words.extend(self.options.iter().map(OsString::from));
            words.push("--exact".into());
            words.extend(test.chosen.iter().map(OsString::from));
            let environment = environment.to_vec();
            Step { environment, ..Step::new(&test.name, &test.folder, words) }
        });
        tests.collect()
    }
}

fn is_option(word: &str) -> bool {
    word.starts_with('-')
}

#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: &str = concat!(
        r#"{"reason":"compiler-artifact","manifest_path":"/s/crates/vmm/Cargo.toml","#,
        r#""target":{"name":"vmm"},"profile":{"test":false},"executable":null}"#,
        "\n",
        r#"{"reason":"compiler-artifact","manifest_path":"/s/crates/fathom/Cargo.toml","#,
        r#""target":{"name":"fathom"},"profile":{"test":false},"executable":"/t/fathom"}"#,
        "\n",
        r#"{"reason":"compiler-artifact","manifest_path":"/s/crates/fathom/Cargo.toml","#,
        r#""target":{"name":"guest"},"profile":{"test":true},"executable":"/t/guest-1"}"#,
        "\n",
        r#"{"reason":"build-finished","success":true}"#,
    );

    #[test]
    fn test_programs_are_told_from_what_they_run_and_from_libraries() {
        let mut programs = Programs::parse(MESSAGES).unwrap();
        assert_eq!(programs.helpers, [PathBuf::from("/t/fathom")]);
        assert!(programs.steps(&[]).is_empty(), "nothing is chosen");
        programs.tests[0].chosen = vec!["disk::one".into()];
        let steps = programs.steps(&[("A".into(), "b".into())]);
        let [step] = steps.as_slice() else { panic!("{} steps", steps.len()) };
        assert_eq!(
            (step.name.as_str(), step.folder.as_path()),
            ("fathom guest", Path::new("/s/crates/fathom"))
        );
        assert_eq!(step.words, ["/t/guest-1", "--exact", "disk::one"].map(OsString::from));
        assert_eq!(step.environment, [("A".into(), OsString::from("b"))]);
    }

    #[test]
    fn of_a_whole_workspace_only_what_runs_comes_along() {
        let more = MESSAGES.replace("fathom", "xtask").replace("guest", "cli");
        let both = format!("{}\n{more}", MESSAGES.replace("/s/crates/xtask", "/s/xtask"));
        let mut programs = Programs::parse(&both).unwrap();
        assert_eq!((programs.tests.len(), programs.helpers.len()), (2, 2));
        programs.keep(Part::Guest);
        assert_eq!(programs.helpers, [PathBuf::from("/t/fathom")]);
        assert_eq!(programs.tests.len(), 1);
        assert_eq!(programs.tests[0].name, "fathom guest");
        programs.keep(Part::Conformance);
        assert_eq!((programs.tests.len(), programs.helpers.len()), (0, 0));
    }

    #[test]
    fn shares_are_parts_and_together_the_whole() {
        let mut programs = Programs::parse(MESSAGES).unwrap();
        programs.tests.push(programs.tests[0].clone());
        programs.tests[0].chosen = ["a", "b", "c"].map(str::to_owned).to_vec();
        programs.tests[1].chosen = ["d", "e"].map(str::to_owned).to_vec();
        let chosen = |programs: &Programs| -> Vec<String> {
            programs.tests.iter().map(|test| test.chosen.concat()).collect()
        };
        assert_eq!(chosen(&programs.share(0, 2)), ["ac", "e"]);
        assert_eq!(chosen(&programs.share(1, 2)), ["b", "d"]);
        assert_eq!(chosen(&programs.only(|name| name == "b")), ["b", ""]);
        assert_eq!((programs.count(), programs.share(1, 2).count()), (5, 2));
    }

    #[test]
    fn tests_are_chosen_by_their_program() {
        let this = std::env::current_exe().unwrap();
        let test = |program: &Path| Test {
            name: "xtask xtask".into(),
            program: program.to_owned(),
            folder: "/".into(),
            chosen: Vec::new(),
        };
        let mut programs = Programs { tests: vec![test(&this)], ..Programs::default() };
        let words = ["--nocapture", "tests_are_chosen", "--skip=nothing"].map(str::to_owned);
        programs.choose(Part::Guest, &words).unwrap();
        assert_eq!(programs.count(), 1);
        assert_eq!(programs.options, ["--nocapture"]);
        programs.tests.push(test(Path::new("/bin/false")));
        assert!(programs.choose(Part::Guest, &[]).is_err(), "a program that cannot list its tests");
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        assert!(Programs::parse("error: no such package\n").is_err());
    }
}
