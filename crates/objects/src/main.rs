//! `fathom-store`: what `fathom` starts to reach object stores. It is a program of its own so that TLS and HTTP, with their
//! tables, are not in the process of each VM.
#![forbid(unsafe_code)]

#[path = "program/carry.rs"]
mod carry;
#[path = "program/failure.rs"]
mod failure;
#[path = "program/supervise.rs"]
mod supervise;

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use objects::{Location, Place};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use failure::Failure;

#[derive(Parser)]
#[command(name = "fathom-store", version, about = "Reads and writes object stores for fathom")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// `fathom push`
    Push(PushArguments),
    /// `fathom pull`
    Pull(PullArguments),
    /// Has the questions of one VM answered, which come on standard input, a socket: by another process, and if that dies, by
    /// the next
    Serve {
        /// The snapshot
        url: String,
    },
    /// Is that process
    #[command(hide = true)]
    Answer {
        /// The snapshot
        url: String,
        /// Another one has died
        #[arg(long)]
        again: bool,
        /// Of which snapshots it had answers
        #[arg(long, requires = "again")]
        identities: Option<String>,
    },
}

#[derive(Args)]
struct PushArguments {
    /// The snapshot
    path: PathBuf,
    /// Where it goes
    url: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct PullArguments {
    /// Where it is
    url: String,
    /// Where the snapshot is made
    path: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Common {
    /// Replace the snapshot that is there, once this one is whole
    #[arg(long)]
    replace: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::builder()
        .with_env_var("FATHOM_LOG")
        .with_default_directive(LevelFilter::WARN.into())
        .from_env_lossy();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    log.with_ansi(io::stderr().is_terminal()).init();
    let done = match &arguments.command {
        Command::Push(it) => carry::push(&it.path, &it.url, &it.common),
        Command::Pull(it) => carry::pull(&it.url, &it.path, &it.common),
        Command::Serve { url } => supervise::serve(url),
        Command::Answer { url, again, identities } => answer(url, *again, identities.as_ref()),
    };
    done.map_or_else(|failure| failure.report(), |()| ExitCode::SUCCESS)
}

fn answer(url: &str, again: bool, identities: Option<&String>) -> Result<(), Failure> {
    let location = Location::parse(url)?;
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(Failure::host)?;
    let tell = |identities: &str| carry::print(&format!("{identities}\n"));
    let place = match again {
        true => Place::After(identities.cloned()),
        false => Place::First(Box::new(tell)),
    };
    Ok(objects::serve(&location, socket, place)?)
}
