//! The lab: real KVM on any machine.
//!
//! QEMU's translator emulates AMD's virtualization with nested paging, so a machine in it
//! (Debian's cloud kernel, busybox) has a working `/dev/kvm` whatever the host is. What runs
//! there comes with it: programs, their libraries and files, all at the paths they have here.
//! It is slow, so a speed seen there means something only by the side of another.

mod borrowed;
mod control;
mod direct;
mod image;
mod libraries;
mod machine;
mod port;
mod programs;
mod script;
mod standing;
mod suite;
mod tally;

pub(crate) use machine::Processors;
pub(crate) use standing::stand;

use crate::kit::Kit;
use crate::workspace;
use anyhow::{Result, bail};
use image::Image;
use machine::{Machine, Outcome};
use programs::Part;
use script::Step;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// What `cargo xtask lab` takes.
#[derive(clap::Args, Default)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct LabArgs {
    /// Only tests with this in their names; or what else test programs take, an option in one word
    filters: Vec<String>,
    /// Only these
    #[arg(long, value_enum, value_name = "PART")]
    only: Vec<Part>,
    /// Use the lab's machine on a host that has virtualization, too
    #[arg(long)]
    emulated: bool,
    /// Run this command in the lab's machine, as root, and end with its exit status. One word
    /// is for the machine's shell (busybox); of several, the first is the program. Words that
    /// name files of the host come along with the libraries they need, and have the same paths
    /// there; so has the current folder
    #[arg(long, value_name = "COMMAND", num_args = 1.., allow_hyphen_values = true)]
    #[arg(conflicts_with_all = ["filters", "only"])]
    shell: Vec<OsString>,
    /// Take this file (with the libraries it needs) or folder along, too
    #[arg(long, value_name = "PATH")]
    file: Vec<PathBuf>,
    /// Set this for the command, as NAME=VALUE; variables FATHOM_* and RUST_* are set as here
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    env: Vec<(String, OsString)>,
    /// Processors of each of the lab's machines, of which there are as many as this host has processors and memory
    /// for. Of two, QEMU's translator now and then mixes up what is a guest's and what its host's
    #[arg(long, value_enum, value_name = "COUNT", default_value_t)]
    processors: Processors,
    /// Give up after so many seconds, all attempts together
    #[arg(long, value_name = "SECONDS", default_value_t = TIMEOUT_S)]
    timeout: u64,
    /// The workspace's tests have been built as a whole just now.
    #[arg(skip)]
    whole: bool,
}

/// Continuous integration has so long for it: more than twice of what one attempt takes.
const TIMEOUT_S: u64 = 2700;

/// A soak may take so long.
const SOAK_S: u64 = 7200;

const EXAMPLES: &str = "\
Examples:
  cargo xtask lab
  cargo xtask lab --only conformance timers
  cargo xtask lab --only guest -- --exact vsock::guest_and_host_talk_over_vsock
  cargo xtask lab --shell 'dmesg | grep -i kvm; ls -l /dev/kvm'
  cargo xtask lab --shell target/debug/fathom doctor
  cargo xtask lab --shell target/debug/fathom run --engine kvm --kernel .kit/kernel/vmlinuz \\
      --initrd .kit/initramfs.cpio --cmdline 'console=ttyS0 panic=1'
  cargo xtask lab --file target/debug/fathom --shell 'target/debug/fathom list; uname -a'

Files written there are gone afterwards. The kernel is Debian's cloud kernel, with the modules
kvm-amd, tun, overlay and ext4; /tmp is on ext4, /dev/shm in memory, 3 GiB for all.";

pub(crate) fn run(args: &LabArgs) -> Result<ExitCode> {
    if args.shell.is_empty() {
        return suite::run(args);
    }
    let kit = Kit::open()?;
    let here = std::env::current_dir()?;
    let mut image = new_image(&kit, args)?;
    for file in files_named(&args.shell) {
        image.add(&file)?;
    }
    let environment = environment(&args.env);
    let step = Step { environment, ..Step::new("the command", &here, command(&args.shell)) };
    let limit = Duration::from_secs(args.timeout);
    let outcome = in_machine(&kit, image, &[step], limit, args.processors)?;
    match outcome.steps.as_slice() {
        [(_, status)] => Ok(ExitCode::from(*status)),
        _ => bail!("the lab's machine ran {} commands, not one", outcome.steps.len()),
    }
}

/// Fails where neither this host nor QEMU on it has KVM; what is missing is fetched.
pub(crate) fn available(kit: &Kit) -> Result<()> {
    if is_direct() {
        return Ok(());
    }
    Image::check_tools()?;
    kit.prepare_lab()?;
    kit.qemu().map(drop)
}

/// What must pass on KVM, but for what takes minutes there: `cargo xtask lab` has that, too.
pub(crate) fn run_short() -> Result<()> {
    let env = vec![("FATHOM_KVM".to_owned(), "short".into())];
    run_suite(&LabArgs { env, timeout: TIMEOUT_S, whole: true, ..LabArgs::default() })
}

/// What `cargo xtask soak` runs, `full` or `short`.
pub(crate) fn soak(how: &str, processors: Processors) -> Result<()> {
    let env = vec![("FATHOM_SOAK".to_owned(), how.into())];
    let (only, timeout) = (vec![Part::Soak], SOAK_S);
    run_suite(&LabArgs { only, env, timeout, processors, ..LabArgs::default() })
}

fn run_suite(args: &LabArgs) -> Result<()> {
    if suite::run(args)? == ExitCode::SUCCESS {
        return Ok(());
    }
    bail!("tests on KVM failed: run them again by `cargo xtask lab`");
}

/// Whether [`run_program`] needs no machine of its own.
pub(crate) fn is_direct() -> bool {
    direct::has_kvm()
}

/// What a program in the lab's machine writes here comes back.
pub(crate) const RESULTS: &str = "/lab/results";

/// One to run there.
pub(crate) struct Program<'a> {
    /// It and its arguments.
    pub(crate) words: Vec<OsString>,
    /// What it needs.
    pub(crate) files: &'a [PathBuf],
    /// Where its [`RESULTS`] go.
    pub(crate) results: Option<&'a Path>,
}

/// Run one program in a machine with KVM; fails unless it succeeds.
pub(crate) fn run_program(
    kit: &Kit,
    program: Program<'_>,
    limit: Duration,
    processors: Processors,
) -> Result<()> {
    kit.prepare_lab()?;
    let Program { words, files, results } = program;
    let mut image = Image::new(&workspace::target(), &kit.busybox())?;
    files.iter().try_for_each(|file| image.add(file))?;
    let environment = vec![("FATHOM_KIT".to_owned(), kit.folder().into())];
    let step = Step { environment, ..Step::new("the program", &workspace::root(), words) };
    put_steps(&mut image, &[step])?;
    let outcome = run_machine(Machine::start(kit, image, processors, results)?, limit)?;
    if outcome.steps.iter().any(|(_, status)| *status != 0) {
        bail!("it failed in the lab's machine");
    }
    Ok(())
}

/// With the files that were asked for.
fn new_image(kit: &Kit, args: &LabArgs) -> Result<Image> {
    kit.prepare_lab()?;
    let mut image = Image::new(&workspace::target(), &kit.busybox())?;
    args.file.iter().try_for_each(|file| image.add(file))?;
    Ok(image)
}

fn in_machine(
    kit: &Kit,
    mut image: Image,
    steps: &[Step],
    limit: Duration,
    processors: Processors,
) -> Result<Outcome> {
    put_steps(&mut image, steps)?;
    run_machine(Machine::start(kit, image, processors, None)?, limit)
}

fn put_steps(image: &mut Image, steps: &[Step]) -> Result<()> {
    image.write("/lab/init", 0o755, include_str!("root.sh"))?;
    let this = std::env::current_exe()?;
    image.add(&this)?;
    image.write(
        "/lab/standing",
        0o644,
        &script::program(&[this.as_os_str(), "standing-vm".as_ref()])?,
    )?;
    image.write("/lab/steps", 0o644, &script::lines(steps)?)?;
    steps.iter().try_for_each(|step| image.make_folder(&step.folder))
}

fn run_machine(machine: Machine, limit: Duration) -> Result<Outcome> {
    let outcome = machine.finish(limit)?;
    if !outcome.complaints.is_empty() {
        eprintln!("lab: the machine's kernel complained:\n{}", outcome.complaints.concat());
    }
    Ok(outcome)
}

/// One word is a script.
fn command(words: &[OsString]) -> Vec<OsString> {
    match words {
        [script] => vec!["sh".into(), "-c".into(), script.clone()],
        words => words.to_vec(),
    }
}

/// Words that are files here: what is for the machine alone (devices, processes) is not taken.
fn files_named(words: &[OsString]) -> Vec<PathBuf> {
    let script = match words {
        [script] => script.to_str(),
        _ => None,
    };
    let words: Vec<PathBuf> = match script {
        Some(script) => script.split_whitespace().map(PathBuf::from).collect(),
        None => words.iter().map(PathBuf::from).collect(),
    };
    let own = ["/dev", "/proc", "/sys"].map(Path::new);
    words
        .into_iter()
        .filter(|word| word.is_file() && !own.iter().any(|folder| word.starts_with(folder)))
        .collect()
}

/// What is set here for us and Rust, then what was asked for.
fn environment(asked: &[(String, OsString)]) -> Vec<(String, OsString)> {
    let ours = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        let passed = ["FATHOM_", "RUST_"].iter().any(|start| name.starts_with(start));
        passed.then_some((name, value))
    });
    ours.chain(asked.iter().cloned()).collect()
}

fn name_and_value(text: &str) -> Result<(String, OsString), String> {
    let (name, value) = text.split_once('=').ok_or("not NAME=VALUE")?;
    Ok((name.to_owned(), value.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn one_word_is_a_script_and_more_are_a_program() {
        assert_eq!(command(&words(&["ls; ls"])), words(&["sh", "-c", "ls; ls"]));
        assert_eq!(command(&words(&["ls", "-l"])), words(&["ls", "-l"]));
    }

    #[test]
    fn files_of_the_host_are_found_among_words() {
        let this = std::env::current_exe().unwrap();
        let this = this.to_str().unwrap();
        let found = files_named(&words(&[this, "--engine", "/dev/null", "/proc/self/stat", "/"]));
        assert_eq!(found, [PathBuf::from(this)]);
        assert_eq!(files_named(&words(&[&format!("true; {this} x")])), [PathBuf::from(this)]);
    }
}
