//! What runs in the lab's machine, as a shell script.

use anyhow::{Context, Result};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// One program to run there. All have a name, by which their end is told.
pub(super) struct Step {
    pub(super) name: String,
    pub(super) folder: PathBuf,
    pub(super) environment: Vec<(String, OsString)>,
    /// Program and arguments.
    pub(super) words: Vec<OsString>,
}

impl Step {
    pub(super) fn new(name: &str, folder: &Path, words: Vec<OsString>) -> Self {
        let (name, folder) = (name.to_owned(), folder.to_owned());
        Self { name, folder, environment: Vec::new(), words }
    }

    /// A line for the machine's shell: `step NAME FOLDER env A=B... PROGRAM...`.
    fn line(&self) -> Result<String> {
        let mut words = vec![OsString::from("step"), (&self.name).into(), (&self.folder).into()];
        words.push("env".into());
        for (name, value) in &self.environment {
            let mut word = OsString::from(format!("{name}="));
            word.push(value);
            words.push(word);
        }
        words.extend_from_slice(&self.words);
        program(&words)
    }
}

/// One to run, with its arguments.
pub(super) fn program(words: &[impl AsRef<OsStr>]) -> Result<String> {
    let quoted: Result<Vec<String>> = words.iter().map(|word| quote(word.as_ref())).collect();
    Ok(quoted?.join(" "))
}

pub(super) fn lines(steps: &[Step]) -> Result<String> {
    steps.iter().map(|step| Ok(step.line()? + "\n")).collect()
}

/// As one word for a POSIX shell.
fn quote(word: &OsStr) -> Result<String> {
    let text = word.to_str().with_context(|| format!("{word:?} is not UTF-8"))?;
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_reads_the_very_words_back() {
        let words = ["plain", "two words", "it's", "$HOME `x` \"y\" \\", "", "line\nbreak"];
        let step = Step {
            environment: vec![("A".into(), "1 2".into())],
            ..Step::new("a name", Path::new("/some folder"), words.map(OsString::from).to_vec())
        };
        // Each word ends with a byte that none of them has.
        let script = format!("step() {{ printf '%s|' \"$@\"; }}\n{}", lines(&[step]).unwrap());
        let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
        let expected = ["a name", "/some folder", "env", "A=1 2"].into_iter().chain(words);
        let expected: String = expected.map(|word| format!("{word}|")).collect();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }
}
