//! Snapshots in object stores: what speaks to stores is another program, `fathom-store`, so that each VM's process has nothing of it.

pub(crate) mod restored;

use std::convert::Infallible;
use std::env;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::arguments::{PullArguments, PushArguments};
use crate::failure::Failure;

/// The program that has the stores.
const PROGRAM: &str = "fathom-store";

pub(crate) fn push(arguments: &PushArguments) -> Result<Infallible, Failure> {
    let PushArguments { path, url, replace, json } = arguments;
    become_it(&["push".as_ref(), "--".as_ref(), path.as_ref(), url.as_ref()], *replace, *json)
}

pub(crate) fn pull(arguments: &PullArguments) -> Result<Infallible, Failure> {
    let PullArguments { url, path, replace, json } = arguments;
    become_it(&["pull".as_ref(), "--".as_ref(), url.as_ref(), path.as_ref()], *replace, *json)
}

/// Returns only where it cannot.
fn become_it(arguments: &[&OsStr], replace: bool, json: bool) -> Result<Infallible, Failure> {
    let (verb, rest) = arguments.split_first().expect("a verb");
    let mut command = Command::new(program()?);
    command.arg(verb);
    command.args(replace.then_some("--replace")).args(json.then_some("--json")).args(rest);
    Err(Failure::host(command.exec()))
}

/// Where `fathom-store` is: beside this program, else where the shell finds programs.
fn program() -> Result<PathBuf, Failure> {
    let ours = env::current_exe().map_err(Failure::host)?;
    let beside = ours.parent().unwrap_or(Path::new("/")).to_owned();
    let path = env::var_os("PATH").unwrap_or_default();
    found([beside.clone()].into_iter().chain(env::split_paths(&path))).ok_or_else(|| {
        Failure::Host(format!(
            "{PROGRAM}, which reads and writes object stores, is not in {} nor in PATH: build it (cargo build --release) or \
             install it (cargo install --path crates/objects)",
            beside.display()
        ))
    })
}

fn found(mut folders: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    folders.find_map(|folder| {
        let program = folder.join(PROGRAM);
        // An empty folder of PATH would be the current one, where somebody else may have put one.
        let metadata = program.is_absolute().then(|| program.metadata().ok())??;
        (metadata.is_file() && metadata.permissions().mode() & 0o111 != 0).then_some(program)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_program_in_a_folder_with_an_absolute_path() {
        let sandbox = tempfile::tempdir().expect("a folder");
        let folder = |name: &str| {
            let folder = sandbox.path().join(name);
            std::fs::create_dir_all(&folder).expect("made");
            folder
        };
        let [empty, data, good] = ["empty", "data", "good"].map(folder);
        std::fs::create_dir(empty.join(PROGRAM)).expect("no program");
        std::fs::write(data.join(PROGRAM), "").expect("no program either");
        std::fs::write(good.join(PROGRAM), "").expect("made");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(good.join(PROGRAM), mode).expect("a program");
        let folders = [PathBuf::new(), empty.clone(), data, good.clone()];
        assert_eq!(found(folders.into_iter()), Some(good.join(PROGRAM)));
        assert_eq!(found([PathBuf::from("."), empty].into_iter()), None);
    }
}
