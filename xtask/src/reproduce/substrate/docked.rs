//! Substrates in a pool: what one, two, four and eight of different programs take, and a cluster that is made of one.

use super::guests::Subject;
use super::ours::{self, NAME};
use super::process::Vms;
use super::{Place, wait_for_beats};
use crate::command::output;
use crate::machine::{Next, Running};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::fs;
use std::time::{Duration, Instant};

/// Docked one after the other, a guest of each program in turn.
pub(super) const DOCKED: usize = 8;
/// Members of the cluster.
const MEMBERS: usize = 8;
const END_LONGEST: Duration = Duration::from_secs(60);

/// What so many in the pool take together.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Docked {
    pub(super) count: usize,
    /// The last one.
    pub(super) guest: String,
    /// From the command until it is in the pool.
    pub(super) seconds: f64,
    pub(super) bytes: u64,
    /// If each had all of its pages to itself.
    pub(super) apart_bytes: u64,
    /// Disk templates of the same guests, each image once however many guests are of it.
    pub(super) template_bytes: u64,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Cluster {
    pub(super) members: usize,
    /// From the command until all run and have told by their own `hostname` who they are.
    pub(super) seconds: f64,
    /// Since the command, of each: its guest moves, its agent has answered.
    running_ms: Vec<f64>,
    answered_ms: Vec<f64>,
}

/// `fathom pool --json`, as far as it is used.
#[derive(Deserialize)]
struct Listed {
    together_bytes: u64,
    apart_bytes: u64,
}

/// `fathom activate --cluster --json`, the same.
#[derive(Deserialize)]
struct Started {
    members: Vec<Member>,
}

#[derive(Deserialize)]
struct Member {
    pid: u32,
    running_ms: f64,
    run_ms: Option<f64>,
    run: Option<Ran>,
}

#[derive(Deserialize)]
struct Ran {
    output: String,
}

/// Starts and docks them, so many as [`DOCKED`] says or as there are `subjects` if `few`.
pub(super) fn dock(place: &Place<'_>, subjects: &[Subject], few: bool) -> Result<Vec<Docked>> {
    let pool = place.folder.join("pool");
    if pool.exists() {
        fs::remove_dir_all(&pool)?;
    }
    let mut rows = Vec::new();
    let (mut template_bytes, mut seen) = (0, Vec::new());
    let count = if few { 2 } else { DOCKED };
    for (number, subject) in (1..=count).zip(subjects.iter().cycle()) {
        if !seen.contains(&subject.load) {
            seen.push(subject.load);
            template_bytes += subject.template_bytes(place.kit)?;
        }
        let mut running = ours::start(place, subject, &[])?;
        wait_for_beats(&mut running)?;
        let begun = Instant::now();
        let name = format!("s{number}");
        let mut command = ours::command(place);
        output(command.args(["dock", NAME, "--as", &name, "--pool"]).arg(&pool))?;
        let seconds = begun.elapsed().as_secs_f64();
        ended(&mut running)?;
        let mut command = ours::command(place);
        let listed = output(command.args(["pool", "--json", "--pool"]).arg(&pool))?;
        let listed: Listed = serde_json::from_str(&listed).context("what `fathom pool` says")?;
        let (bytes, apart_bytes) = (listed.together_bytes, listed.apart_bytes);
        eprintln!(
            "docked {number}: {}, {:.1} MiB in all",
            subject.name(),
            bytes as f64 / 1048576.0
        );
        if number.is_power_of_two() {
            let guest = subject.name();
            rows.push(Docked { count: number, guest, seconds, bytes, apart_bytes, template_bytes });
        }
    }
    fs::remove_dir_all(&pool)?;
    Ok(rows)
}

fn ended(running: &mut Running) -> Result<()> {
    while let Next::Event(_) = running.next(END_LONGEST) {}
    running.check_end()
}

/// One guest saved, and a cluster made of it by one command: each is told its name and answers with it.
pub(super) fn cluster(place: &Place<'_>, subject: &Subject) -> Result<Cluster> {
    let path = place.folder.join("cluster.fathom");
    if path.exists() {
        fs::remove_dir_all(&path)?;
    }
    let socket = place.sockets.path().join("v");
    let vsock = ["--vsock".to_owned(), format!("cid=9,socket={}", socket.display())];
    let mut running = ours::start(place, subject, &vsock)?;
    wait_for_beats(&mut running)?;
    output(ours::command(place).args(["save", NAME]).arg(&path).arg("--stop"))?;
    ended(&mut running)?;
    let file = place.folder.join("cluster.toml");
    let path = path.display();
    let text = format!(
        "[[vm]]\nname = \"member\"\ncount = {MEMBERS}\nsubstrate = \"{path}\"\n\
         hostname = \"member{{n}}\"\nrun = \"cat /proc/sys/kernel/hostname\"\n"
    );
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    let begun = Instant::now();
    let mut command = ours::command(place);
    let said = output(command.args(["activate", "--json", "--cluster"]).arg(&file))?;
    let seconds = begun.elapsed().as_secs_f64();
    let started: Started = serde_json::from_str(&said).context("what `fathom activate` says")?;
    // They end with this.
    let _vms = Vms(started.members.iter().map(|member| member.pid).collect());
    ensure!(started.members.len() == MEMBERS, "{} members run", started.members.len());
    for (number, member) in (1..).zip(&started.members) {
        let said = member.run.as_ref().map_or("", |run| run.output.trim());
        ensure!(said == format!("member{number}"), "member {number} says that it is {said:?}");
    }
    let members = started.members.iter();
    Ok(Cluster {
        members: MEMBERS,
        seconds,
        running_ms: members.clone().map(|member| member.running_ms).collect(),
        answered_ms: members.filter_map(|member| member.run_ms).collect(),
    })
}
