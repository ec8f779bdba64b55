//! What is in a pool, and what it costs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use snapshot::{Snapshot, SnapshotError};

use super::Pool;
use crate::failure::Failure;
use crate::list::print;
use crate::text;

/// A part that several may have in common begins so: docs/formats/snapshot.md.
const SHARED: &str = "shared-";

/// A substrate.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// Of the guest.
    memory_bytes: u64,
    /// What it has for itself.
    own_bytes: u64,
    /// What of its contents others have, or it has twice.
    shared_bytes: u64,
    /// Overlays of its disks.
    disks_bytes: u64,
    cpus: u32,
    /// Since 1970.
    saved_at_seconds: i64,
    /// Whether an agent has made it ready.
    agent: bool,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    word: &'static str,
}

/// All of them.
#[derive(Debug, Serialize)]
struct Listed {
    substrates: Vec<Row>,
    /// What the host has for them all, and for what removed ones have left to others.
    together_bytes: u64,
    /// What it would have if none had anything in common with another.
    apart_bytes: u64,
}

pub(super) fn list(pool: &Pool, json: bool) -> Result<(), Failure> {
    let rows: Vec<Row> = pool.names()?.iter().map(|name| row(pool, name)).collect();
    // By what files are, whatever their names.
    let mut files = BTreeMap::new();
    for name in pool.names()? {
        note_files(&pool.path.join(&name), |_| true, &mut files);
        for overlay in pool.overlays(&name) {
            note_file(&overlay, &mut files);
        }
    }
    let sum = |of: fn(&Row) -> u64| rows.iter().map(of).sum::<u64>();
    let listed = Listed {
        together_bytes: files.values().sum(),
        apart_bytes: sum(|row| row.own_bytes + row.shared_bytes + row.disks_bytes),
        substrates: rows,
    };
    print(&match json {
        true => serde_json::to_string(&listed).map_err(Failure::host)? + "\n",
        false => table(&listed),
    });
    Ok(())
}

type Files = BTreeMap<(u64, u64), u64>;

fn note_file(path: &Path, files: &mut Files) {
    if let Ok(found) = path.symlink_metadata() {
        files.insert((found.dev(), found.ino()), found.blocks() * 512);
    }
}

/// The files of a folder with such names.
fn note_files(folder: &Path, wanted: impl Fn(&str) -> bool, files: &mut Files) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if wanted(&entry.file_name().to_string_lossy()) {
            note_file(&entry.path(), files);
        }
    }
}

fn row(pool: &Pool, name: &str) -> Row {
    let path = pool.path.join(name);
    let (mut own, mut disks) = (Files::new(), Files::new());
    note_files(&path, |part| !part.starts_with(SHARED), &mut own);
    pool.overlays(name).iter().for_each(|overlay| note_file(overlay, &mut disks));
    let mut row = Row {
        name: name.to_owned(),
        memory_bytes: 0,
        own_bytes: own.values().sum(),
        shared_bytes: 0,
        disks_bytes: disks.values().sum(),
        cpus: 0,
        saved_at_seconds: 0,
        agent: false,
        error: None,
        word: "",
    };
    match Snapshot::open(&path) {
        Ok(snapshot) => {
            let vm = &snapshot.manifest().vm;
            row.memory_bytes = snapshot.layout().bytes();
            row.shared_bytes = u64::from(snapshot.shared_frames()) * memory::FRAME_SIZE as u64;
            (row.cpus, row.agent) = (vm.vcpus, vm.agent);
            row.saved_at_seconds = vm.saved_at.seconds;
        }
        Err(error) => {
            row.word = word(&error);
            row.error = Some(error.to_string());
        }
    }
    row
}

/// What is wrong, in a word.
fn word(error: &SnapshotError) -> &'static str {
    match error {
        SnapshotError::Corrupt { .. } | SnapshotError::Parent { .. } => "damaged",
        SnapshotError::Version { .. } | SnapshotError::Needs { .. } => "newer",
        SnapshotError::Host { error, .. } if error.kind() == std::io::ErrorKind::NotFound => {
            "incomplete"
        }
        _ => "unreadable",
    }
}

fn table(listed: &Listed) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let heads = ["NAME", "MEMORY", "OWN", "SHARED", "DISKS", "VCPUS", "AGENT", "AGE"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(listed.substrates.iter().map(|row| {
        let known = |text: String| if row.error.is_some() { "-".to_owned() } else { text };
        let age = text::duration((now - row.saved_at_seconds as f64).max(0.0));
        vec![
            row.name.clone(),
            known(text::bytes(row.memory_bytes)),
            text::bytes(row.own_bytes),
            known(text::bytes(row.shared_bytes)),
            text::bytes(row.disks_bytes),
            known(row.cpus.to_string()),
            known(if row.agent { "yes" } else { "no" }.to_owned()),
            if row.error.is_some() { row.word.to_owned() } else { age },
        ]
    }));
    let (together, apart) = (text::bytes(listed.together_bytes), text::bytes(listed.apart_bytes));
    text::table(&rows) + &format!("all: {together}; apart they would take {apart}\n")
}
