//! `fathom activate --cluster`: VMs that a file describes, each knowing all others by name.
//!
//! ```text
//!   file --> groups, read and checked line by line --> members: names, addresses, changes
//!        --> snapshots, each opened and checked once --> all started in parallel --> a table
//! ```

mod file;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use agent_wire::Host;
use api::SocketDirectory;
use serde::Serialize;

use crate::arguments::{CloneHow, PoolPlace};
use crate::clone::{self, Clone, Memory, Substrate};
use crate::failure::{Failure, SUCCESS};
use crate::identity::{self, Change};
use crate::list::print;
use file::{Group, Mistake};

/// Nobody describes more by hand.
const FILE_MAX: u64 = 1 << 20;

/// What was done, for scripts.
#[derive(Debug, Serialize)]
struct Done {
    /// From the command to the last member.
    seconds: f64,
    members: Vec<Clone>,
}

/// A group with its members.
struct Members {
    group: Group,
    changes: Vec<Change>,
}

/// `disks`: the folder for copies of overlays.
pub(crate) fn activate(
    path: &Path,
    how: &CloneHow,
    pool: &PoolPlace,
    disks: Option<&Path>,
    begun: Instant,
) -> Result<ExitCode, Failure> {
    let text = read(path)?;
    let mistake = |mistake: Mistake| {
        Failure::Usage(format!(
            "cluster {}, line {}: {}",
            path.display(),
            mistake.line,
            mistake.why
        ))
    };
    let groups = file::groups(&text).map_err(mistake)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut substrates = BTreeMap::new();
    for group in &groups {
        let place = place(folder, &group.substrate);
        if let Entry::Vacant(vacant) = substrates.entry(place) {
            let opened = Substrate::find(vacant.key(), pool)
                .map_err(|error| mistake(group.mistake("substrate", error.to_string())))?;
            vacant.insert(opened);
        }
    }
    let substrate = |group: &Group| &substrates[&place(folder, &group.substrate)];
    let mut members = Vec::new();
    for group in groups {
        let config = substrate(&group).config();
        let changes = identity::changes(&group.asked, config, &group.names)
            .map_err(|wrong| mistake(group.mistake(wrong.option, wrong.why)))?;
        if how.paused && changes.iter().any(Change::needs_agent) {
            let why = "a guest that stands has no agent that answers: start it without --paused";
            return Err(mistake(group.mistake("name", why.to_owned())));
        }
        members.push(Members { group, changes });
    }
    differ(&members).map_err(mistake)?;
    not_running(&members).map_err(|error| match error {
        Taken::Name(taken) => mistake(taken),
        Taken::Failure(failure) => failure,
    })?;
    introduce(&mut members);
    // Read from end to end: the longest part of it, and the last one that can refuse.
    let mut memories = BTreeMap::new();
    for of in &members {
        let key = (place(folder, &of.group.substrate), of.group.asked.net.is_some());
        if let Entry::Vacant(vacant) = memories.entry(key) {
            let (place, own_nets) = vacant.key();
            let memory = substrates[place]
                .memory(*own_nets)
                .map_err(|error| mistake(of.group.mistake("substrate", error.to_string())))?;
            vacant.insert(memory);
        }
    }
    let memory =
        |group: &Group| &memories[&(place(folder, &group.substrate), group.asked.net.is_some())];
    let started = start(how, &members, disks, begun, |group| (substrate(group), memory(group)))?;
    tell(how, Done { seconds: begun.elapsed().as_secs_f64(), members: started })
}

fn read(path: &Path) -> Result<String, Failure> {
    let refused = |why: String| Failure::Usage(format!("cluster {}: {why}", path.display()));
    let length = fs::metadata(path).map_err(|error| refused(error.to_string()))?.len();
    if length > FILE_MAX {
        return Err(refused(format!("{length} bytes are too many, {FILE_MAX} can be")));
    }
    fs::read_to_string(path).map_err(|error| refused(error.to_string()))
}

/// Beside the file, or as it is said.
fn place(folder: &Path, substrate: &str) -> PathBuf {
    let beside = folder.join(substrate);
    if beside.exists() { beside } else { PathBuf::from(substrate) }
}

/// No two members have the same.
fn differ(members: &[Members]) -> Result<(), Mistake> {
    let mut taken = BTreeMap::new();
    for Members { group, .. } in members {
        for name in &group.names {
            if let Some(first) = taken.insert(name, group) {
                let other = first.line("name");
                let why = format!("name: `{name}` is that of line {other} already");
                return Err(group.mistake_without_key("name", why));
            }
        }
    }
    let all: Vec<(&Group, &Change)> =
        members.iter().flat_map(|of| of.changes.iter().map(|change| (&of.group, change))).collect();
    match identity::differ(all.iter().map(|(_, change)| *change)) {
        None => Ok(()),
        Some((option, what, first, second)) => {
            let other = all[first].0.line(option);
            let why = format!("{what} is that of line {other} already");
            Err(all[second].0.mistake(option, why))
        }
    }
}

enum Taken {
    Name(Mistake),
    Failure(Failure),
}

fn not_running(members: &[Members]) -> Result<(), Taken> {
    let directory = SocketDirectory::open().map_err(|error| Taken::Failure(error.into()))?;
    for Members { group, .. } in members {
        if let Some(name) = group.names.iter().find(|name| directory.is_running(name)) {
            let why = format!("a VM `{name}` runs already: stop it, or name this one otherwise");
            return Err(Taken::Name(group.mistake("name", why)));
        }
    }
    Ok(())
}

/// Each is told the names and addresses of all.
fn introduce(members: &mut [Members]) {
    let mut hosts: Vec<Host> = Vec::new();
    for Members { group, changes } in &*members {
        for (name, change) in group.names.iter().zip(changes) {
            hosts.extend(change.hosts(name));
        }
    }
    if !hosts.is_empty() {
        let changes = members.iter_mut().flat_map(|of| &mut of.changes);
        changes.for_each(|change| change.set_hosts(&hosts));
    }
}

/// All at once. Where one fails those that run stay, and the error names them.
fn start<'a>(
    how: &CloneHow,
    members: &'a [Members],
    disks: Option<&Path>,
    begun: Instant,
    of: impl Fn(&Group) -> (&'a Substrate, &'a Memory),
) -> Result<Vec<Clone>, Failure> {
    let results = thread::scope(|scope| {
        let start = |members: &'a Members| {
            let (substrate, memory) = of(&members.group);
            let (names, changes) = (&members.group.names, &members.changes);
            scope.spawn(move || {
                clone::activate_all(how, substrate, memory, names, changes, disks, begun)
            })
        };
        let threads: Vec<_> = members.iter().map(start).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().map(join).collect::<Vec<Result<Vec<Clone>, Failure>>>()
    });
    let mut started = Vec::new();
    let mut failed = None;
    for result in results {
        match result {
            Ok(clones) => started.extend(clones),
            Err(error) => drop(failed.get_or_insert(error)),
        }
    }
    match failed {
        None => Ok(started),
        Some(error) if started.is_empty() => Err(error),
        Some(error) => {
            let names: Vec<&str> =
                started.iter().filter_map(Clone::became).map(|(name, _)| name).collect();
            Err(Failure::Host(format!(
                "{error}; besides, {} run: {}",
                names.len(),
                names.join(", ")
            )))
        }
    }
}

fn tell(how: &CloneHow, done: Done) -> Result<ExitCode, Failure> {
    if how.json {
        print(&(serde_json::to_string(&done).map_err(Failure::host)? + "\n"));
    } else {
        print(&identity::table(done.members.iter().filter_map(Clone::became)));
        print(&format!("{} in {:.0} ms\n", done.members.len(), done.seconds * 1e3));
    }
    Ok(ExitCode::from(SUCCESS))
}
