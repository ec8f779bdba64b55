//! Where the guests of an experiment run: on the translator, on this host's KVM, or on KVM in the lab's machine.
//!
//! In that machine this very program runs once more, with the same arguments and `--here`. What it prints is printed
//! here, and what it writes to [`lab::RESULTS`] comes back as the file of `--json`.

use crate::kit::{self, GuestArgs, Kit};
use crate::lab::{self, Processors};
use crate::machine::{self, Vmm, build_fathom};
use crate::workspace;
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An experiment that takes longer in the lab hangs.
const LONGEST: Duration = Duration::from_secs(3600);
/// The lab's machine is about so many times slower, on a busy host.
const SLOWER: u32 = 6;
/// Its processor breaks a guest now and then (see `lab`).
const ATTEMPTS: u32 = 3;

#[derive(clap::Args, Clone)]
pub(super) struct Place {
    /// What runs the guests; `kvm`: in the lab's machine where this host has none for any guest
    #[arg(long, value_enum, default_value = "translate")]
    engine: Engine,
    /// With --engine kvm: processors of the lab's machine, as with `cargo xtask lab`
    #[arg(long, value_enum, value_name = "COUNT", default_value_t)]
    lab_processors: Processors,
    /// This is the lab's machine, with all that it takes
    #[arg(long, hide = true)]
    here: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(super) enum Engine {
    Translate,
    Kvm,
}

impl Place {
    /// This host, without KVM.
    pub(super) fn translator() -> Self {
        Self { engine: Engine::Translate, lab_processors: Processors::One, here: false }
    }

    pub(super) fn is_kvm(&self) -> bool {
        self.engine == Engine::Kvm
    }

    pub(super) fn vmm(&self) -> Vmm {
        if self.is_kvm() { Vmm::FathomKvm } else { Vmm::Fathom }
    }

    /// The kit and Fathom, made unless they came along.
    pub(super) fn kit(&self, args: &GuestArgs) -> Result<Kit> {
        if self.here {
            return Kit::open();
        }
        let kit = kit::prepare(args)?;
        build_fathom()?;
        Ok(kit)
    }

    /// Whether guests are to run in a machine that is yet to be started: see [`Place::run_in_lab`].
    pub(super) fn is_in_lab(&self) -> bool {
        self.is_kvm() && !self.here && !lab::is_direct()
    }

    /// Does there what was asked for here. `files`: what guests have beside kernel and initramfs.
    pub(super) fn run_in_lab(
        &self,
        kit: &Kit,
        files: &[PathBuf],
        json: Option<&Path>,
    ) -> Result<()> {
        let this = std::env::current_exe().context("find this program")?;
        let mut along = vec![this.clone(), machine::fathom_program()];
        along.extend([kit.kernel().image(), kit.initramfs()]);
        along.extend_from_slice(files);
        let mut target = OsString::from("CARGO_TARGET_DIR=");
        target.push(workspace::target());
        let mut words: Vec<OsString> = vec!["env".into(), target, this.into()];
        words.extend(std::env::args_os().skip(1));
        words.push("--here".into());
        eprintln!("on KVM in a machine of QEMU's translator");
        let program = lab::Program { words, files: &along, results: json };
        lab::run_program(kit, program, LONGEST, self.lab_processors)
    }

    /// Where to write all figures.
    pub(super) fn json<'a>(&self, asked: Option<&'a Path>) -> Option<&'a Path> {
        if self.here { asked.and(Some(Path::new(lab::RESULTS))) } else { asked }
    }

    /// How long a guest may take here that elsewhere may take so long.
    pub(super) fn patience(&self, elsewhere: Duration) -> Duration {
        if self.is_kvm() { elsewhere * SLOWER } else { elsewhere }
    }

    /// What a guest has to say; in the lab another one, if the first did not come to its end.
    pub(super) fn attempt<T>(&self, guest: impl Fn() -> Result<T>) -> Result<T> {
        let mut made = 1;
        loop {
            match guest() {
                Err(error) if self.here && made < ATTEMPTS => {
                    eprintln!("another attempt, since {error:#}");
                    made += 1;
                }
                done => return done,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn place(engine: Engine, here: bool) -> Place {
        Place { engine, lab_processors: Processors::One, here }
    }

    #[test]
    fn only_the_lab_has_further_attempts_and_results_of_its_own() {
        for (here, expected) in [(true, ATTEMPTS), (false, 1)] {
            let place = place(Engine::Kvm, here);
            let made = Cell::new(0);
            let failed = place.attempt(|| {
                made.set(made.get() + 1);
                anyhow::bail!("no luck") as Result<()>
            });
            assert!(failed.is_err());
            assert_eq!(made.get(), expected);
            let results = if here { lab::RESULTS } else { "/a" };
            assert_eq!(place.json(Some(Path::new("/a"))), Some(Path::new(results)));
            assert_eq!(place.json(None), None);
        }
        assert!(!place(Engine::Kvm, true).is_in_lab());
        assert!(!place(Engine::Translate, false).is_in_lab());
    }
}
