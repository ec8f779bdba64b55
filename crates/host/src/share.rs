//! Frames that several guests have are in one page (docs/decisions/0016): a thread asks VMs which frames are worth it,
//! finds those that have the same, and puts their contents into a pool that the VMs can only read.
//!
//! ```text
//!   VM 1: frame 7, fingerprint F --> a hint
//!   VM 2: frame 9, fingerprint F --> its contents, into a slot of the pool
//!   "7 may be that slot", "9 may be that slot" --> each compares in full while nobody can write its frame, and switches
//! ```
//! Nothing that a VM says is believed by another: a fingerprint or contents that are wrong make others compare in vain.
//! VMs of different owners have different pools.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use api::{Client, ClientError, ShareRequest, SocketDirectory, Switch};
use memory::{FRAME_SIZE, PoolWriter, ZERO_SLOT};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::merge::{Merging, is_the_kernels};

/// Between two rounds.
const ROUND: Duration = Duration::from_millis(200);
/// Frames looked at in one, of all VMs: what takes less than a twentieth of a processor.
const SCAN: u32 = 8192;
const SCAN_LEAST: u32 = 256;
/// Given and switched at once, as the API has it.
const GIVE: usize = 256;
const SWITCH: usize = 1024;
/// Requests to one VM in one round at most.
const TURNS: usize = 8;
/// A pool has so many slots: 4 GiB, of which only what is written takes memory.
const SLOTS: u32 = 1 << 20;
/// Fingerprints known at a time, of one owner. Hints go when there are more.
const KNOWN_MAX: usize = 1 << 21;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two lines of the log.
const TOLD: Duration = Duration::from_secs(5);
/// What a frame of zeros has for a fingerprint.
const ZEROS: u64 = 0;

/// The thread, until drop. What is shared stays so.
#[derive(Debug)]
pub(crate) struct Sharing {
    shared: Arc<Told>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Told {
    ends: AtomicBool,
    /// Of VMs that have one.
    owners: Mutex<BTreeMap<String, String>>,
    figures: Mutex<SharedFrames>,
}

/// What sharing is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedFrames {
    /// Of guests' memory so much is in pools: bytes.
    pub shared_bytes: u64,
    /// What the pools take.
    pub pool_bytes: u64,
    /// What guests would take more, had each its own.
    pub saved_bytes: u64,
}

impl Told {
    fn owner_of(&self, name: &str) -> String {
        let owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.get(name).cloned().unwrap_or_default()
    }
}

impl Sharing {
    pub(crate) fn begin(sockets: SocketDirectory) -> io::Result<Self> {
        let shared = Arc::<Told>::default();
        let told = Arc::clone(&shared);
        let work = move || {
            let mut sharer = Sharer { told, ..Sharer::default() };
            while !sharer.told.ends.load(Ordering::Relaxed) {
                let begun = Instant::now();
                sharer.round(&sockets);
                thread::park_timeout(ROUND.saturating_sub(begun.elapsed()));
            }
        };
        let thread = Some(thread::Builder::new().name("share".into()).spawn(work)?);
        Ok(Self { shared, thread })
    }

    /// Who owns what; the rest is nobody's in particular, and that is one owner, too.
    pub(crate) fn set_owners(&self, owners: BTreeMap<String, String>) {
        *self.shared.owners.lock().unwrap_or_else(PoisonError::into_inner) = owners;
    }

    /// Of all pools.
    pub(crate) fn figures(&self) -> SharedFrames {
        *self.shared.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Sharing {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// Where contents are that have a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A VM had them in this frame.
    Hint { vm: u64, frame: u32 },
    /// In the pool.
    Slot(u32),
}

/// What VMs of one owner share.
#[derive(Debug)]
struct Domain {
    pool: PoolWriter,
    known: HashMap<u64, Place>,
    /// By slot: how many frames have it or are about to, and what it was found by.
    slots: Vec<(u32, u64)>,
    free: Vec<u32>,
}

impl Domain {
    fn new() -> io::Result<Self> {
        let pool = PoolWriter::new(SLOTS).map_err(io::Error::other)?;
        // Zeros are for ever.
        let (slots, known) = (vec![(1, ZEROS)], HashMap::from([(ZEROS, Place::Slot(ZERO_SLOT))]));
        Ok(Self { pool, known, slots, free: Vec::new() })
    }

    /// A slot with these contents, which nobody has yet.
    fn put(&mut self, print: u64, contents: &[u8; FRAME_SIZE]) -> Option<u32> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < SLOTS as usize => {
                self.slots.push((0, 0));
                self.slots.len() as u32 - 1
            }
            None => return None,
        };
        self.slots[slot as usize] = (0, print);
        self.pool.put(slot, contents);
        self.known.insert(print, Place::Slot(slot));
        Some(slot)
    }

    fn take(&mut self, slot: u32) {
        self.slots[slot as usize].0 += 1;
    }

    fn release(&mut self, slot: u32, times: u32) {
        let (users, print) = &mut self.slots[slot as usize];
        *users = users.saturating_sub(times);
        if *users == 0 && slot != ZERO_SLOT {
            self.known.remove(print);
            self.free.push(slot);
        }
    }

    fn used(&self) -> u64 {
        (self.slots.len() - self.free.len()) as u64
    }
}

/// A VM that has a pool.
#[derive(Debug)]
struct Member {
    id: u64,
    owner: String,
    pid: u32,
    /// Its process. While it lives, its guest may see what it has, whatever becomes of its socket.
    process: OwnedFd,
    outbox: File,
    /// How often it has each slot.
    holds: HashMap<u32, u32>,
    /// Frames whose contents are wanted, and their fingerprints.
    wanted: Vec<(u32, u64)>,
    /// Frames that may be slots, which are taken for them.
    pending: Vec<(u32, u32)>,
    shared_frames: u32,
    /// What it has is not certain any more: it gets its pool again, and has nothing of it then.
    lost: bool,
}

#[derive(Debug, Default)]
struct Sharer {
    told: Arc<Told>,
    domains: BTreeMap<String, Domain>,
    members: BTreeMap<String, Member>,
    /// That do not answer any more, and have not ended.
    silent: Vec<Member>,
    /// Those on KVM, which have no pool.
    merging: Merging,
    ids: u64,
    /// What the log said last of what is saved: bytes.
    said: Option<(u64, Instant)>,
}

impl Sharer {
    fn round(&mut self, sockets: &SocketDirectory) {
        let Ok(names) = sockets.names() else { return };
        let gone: Vec<String> =
            self.members.keys().filter(|name| !names.contains(name)).cloned().collect();
        gone.iter().for_each(|name| self.forget(name));
        for member in self.silent.extract_if(.., |member| has_ended(&member.process)) {
            release_all(&mut self.domains, &member);
        }
        let scan = (SCAN / names.len().max(1) as u32).max(SCAN_LEAST);
        let mut unknown = BTreeSet::new();
        for name in &names {
            if self.told.ends.load(Ordering::Relaxed) {
                return;
            }
            let client = sockets.client(name).with_timeout(ANSWER_TIMEOUT);
            if self.merging.has(name) {
                continue;
            }
            if !self.members.contains_key(name) {
                match client.status() {
                    Ok(status) if is_the_kernels(&status) => {
                        self.merging.join(name, &status, self.owner_of(name));
                        continue;
                    }
                    Ok(_) | Err(ClientError::NotRunning { .. } | ClientError::Gone { .. }) => {}
                    Err(_) => {
                        unknown.insert(self.owner_of(name));
                    }
                }
            }
            self.look_after(name, &client, scan);
        }
        let told = Arc::clone(&self.told);
        self.merging.round(sockets, &names, |name| told.owner_of(name), unknown, scan);
        self.tell();
    }

    fn owner_of(&self, name: &str) -> String {
        self.told.owner_of(name)
    }

    fn look_after(&mut self, name: &str, client: &Client, scan: u32) {
        let owner = self.owner_of(name);
        let is_in = |member: &Member| !member.lost && member.owner == owner;
        if !self.members.get(name).is_some_and(is_in)
            && let Err(error) = self.attach(name, client, owner)
        {
            tracing::debug!("{name}: {error}: its memory is not shared");
            return;
        }
        for turn in 0..TURNS {
            match self.ask(name, client, if turn == 0 { scan } else { 0 }) {
                Ok(true) => {}
                Ok(false) => return,
                Err(ClientError::NotRunning { .. } | ClientError::Gone { .. }) => {
                    return self.forget(name);
                }
                Err(error) => {
                    tracing::debug!("{name}: {error}");
                    // Whether it has done what was asked is not known.
                    if let Some(member) = self.members.get_mut(name) {
                        member.lost = true;
                    }
                    return;
                }
            }
        }
    }

    /// Gives it a pool. What it had of another it has not any more.
    fn attach(&mut self, name: &str, client: &Client, owner: String) -> io::Result<()> {
        if !self.domains.contains_key(&owner) {
            self.domains.insert(owner.clone(), Domain::new()?);
        }
        let status = client.status().map_err(io::Error::other)?;
        if is_the_kernels(&status) {
            // Another VM has the name now.
            self.forget(name);
            return Err(io::ErrorKind::NotFound.into());
        }
        let pid = status.pid;
        let process = process(pid)?;
        let pool = self.domains[&owner].pool.descriptor()?;
        let outbox = rustix::fs::memfd_create("fathom-share-outbox", MemfdFlags::CLOEXEC)?;
        let descriptors = [pool.as_fd(), outbox.as_fd()];
        let report = client.share(&ShareRequest::default(), Some(descriptors));
        let report = report.map_err(io::Error::other)?;
        if report.busy || !report.attached {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        match self.members.remove(name) {
            // Of what it had it has copies now.
            Some(before) if before.pid == pid => release_all(&mut self.domains, &before),
            Some(another) => self.silent.push(another),
            None => {}
        }
        self.ids += 1;
        let member = Member {
            id: self.ids,
            owner,
            pid,
            process,
            outbox: File::from(outbox),
            holds: HashMap::new(),
            wanted: Vec::new(),
            pending: Vec::new(),
            shared_frames: 0,
            lost: false,
        };
        self.members.insert(name.to_owned(), member);
        Ok(())
    }

    /// It answers no more. What it has is nobody else's before its process has ended.
    fn forget(&mut self, name: &str) {
        self.silent.extend(self.members.remove(name));
    }

    /// One request, and what follows from its answer. False: nothing is left to ask for.
    fn ask(&mut self, name: &str, client: &Client, scan: u32) -> Result<bool, ClientError> {
        let Some(member) = self.members.get_mut(name) else { return Ok(false) };
        let Some(domain) = self.domains.get_mut(&member.owner) else { return Ok(false) };
        let wanted: Vec<_> = member.wanted.drain(..member.wanted.len().min(GIVE)).collect();
        let switch = member.pending[..member.pending.len().min(SWITCH)].to_vec();
        let give = wanted.iter().map(|(frame, _)| *frame).collect();
        let request = ShareRequest { scan, give, switch, merge: None };
        let report = client.share(&request, None)?;
        if !report.attached {
            // Its guest was started again, say.
            member.lost = true;
            return Ok(false);
        }
        if report.busy {
            return Ok(false);
        }
        member.shared_frames = report.shared_frames;
        let switch: Vec<_> = member.pending.drain(..request.switch.len()).collect();
        for (index, (_, slot)) in switch.into_iter().enumerate() {
            match report.switched.get(index) {
                Some(Switch::Shared) => *member.holds.entry(slot).or_default() += 1,
                _ => domain.release(slot, 1),
            }
        }
        for slot in report.released {
            if let Some(times) = member.holds.get_mut(&slot).filter(|times| **times > 0) {
                *times -= 1;
                domain.release(slot, 1);
            }
        }
        member.holds.retain(|_, times| *times > 0);
        let id = member.id;
        let mut contents = [0; FRAME_SIZE];
        let mut found = Vec::new();
        for (index, (frame, print)) in wanted.into_iter().enumerate() {
            let is_given = report.given.get(index) == Some(&true);
            let at = (index * FRAME_SIZE) as u64;
            if is_given && member.outbox.read_exact_at(&mut contents, at).is_ok() {
                found.extend(match domain.known.get(&print).copied() {
                    Some(Place::Slot(slot)) => vec![(id, frame, slot)],
                    place => domain.put(print, &contents).map_or_else(Vec::new, |slot| {
                        let hint = match place {
                            Some(Place::Hint { vm, frame }) => Some((vm, frame, slot)),
                            _ => None,
                        };
                        [Some((id, frame, slot)), hint].into_iter().flatten().collect()
                    }),
                });
            }
        }
        for (frame, print) in report.candidates {
            match domain.known.get(&print) {
                Some(&Place::Slot(slot)) => found.push((id, frame, slot)),
                Some(&Place::Hint { vm, frame: other }) if (vm, other) != (id, frame) => {
                    member.wanted.push((frame, print));
                }
                Some(Place::Hint { .. }) => {}
                None => {
                    domain.known.insert(print, Place::Hint { vm: id, frame });
                }
            }
        }
        if domain.known.len() > KNOWN_MAX {
            domain.known.retain(|_, place| matches!(place, Place::Slot(_)));
        }
        let mut members: HashMap<u64, &mut Member> =
            self.members.values_mut().map(|member| (member.id, member)).collect();
        for (vm, frame, slot) in found {
            if let Some(member) = members.get_mut(&vm) {
                domain.take(slot);
                member.pending.push((frame, slot));
            }
        }
        let left = self.members.get(name);
        Ok(left.is_some_and(|member| !member.wanted.is_empty() || !member.pending.is_empty()))
    }

    fn tell(&mut self) {
        let backed = self.domains.values().filter_map(|domain| domain.pool.backed_bytes().ok());
        let backed: u64 = backed.sum();
        let bytes = |frames: u64| frames * FRAME_SIZE as u64;
        let of =
            |(name, member): (&'_ String, &Member)| (name.clone(), u64::from(member.shared_frames));
        let mut each: Vec<(String, u64)> = self.members.iter().map(of).collect();
        each.extend(self.merging.merged().map(|(name, frames)| (name.clone(), frames)));
        let shared: u64 = each.iter().map(|(_, frames)| frames).sum();
        let merged = self.merging.pages();
        let pool_bytes = backed + bytes(merged);
        let used = self.domains.values().map(Domain::used).sum::<u64>() + merged;
        let saved = bytes(shared).saturating_sub(bytes(used));
        let figures = SharedFrames { shared_bytes: bytes(shared), pool_bytes, saved_bytes: saved };
        *self.told.figures.lock().unwrap_or_else(PoisonError::into_inner) = figures;
        let (before, since) = self.said.unwrap_or_else(|| (0, Instant::now() - TOLD));
        if before.abs_diff(saved) >= 1 << 20 && since.elapsed() >= TOLD {
            let of =
                |(name, frames): &(String, u64)| format!("{name} {} KiB", bytes(*frames) >> 10);
            let each: Vec<String> = each.iter().map(of).collect();
            tracing::info!(
                "shared: {} in {} KiB, {} KiB are saved",
                each.join(", "),
                bytes(used) >> 10,
                saved >> 10
            );
            self.said = Some((saved, Instant::now()));
        }
    }
}

/// It has nothing of a pool any more.
fn release_all(domains: &mut BTreeMap<String, Domain>, member: &Member) {
    let Some(domain) = domains.get_mut(&member.owner) else { return };
    member.holds.iter().for_each(|(&slot, &times)| domain.release(slot, times));
    member.pending.iter().for_each(|&(_, slot)| domain.release(slot, 1));
}

pub(crate) fn process(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// pidfd_open(2): it can be read when the process has.
pub(crate) fn has_ended(process: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    matches!(rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_to_have_ended() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().expect("started");
        let process = process(child.id()).expect("there");
        assert!(!has_ended(&process));
        child.kill().expect("killed");
        child.wait().expect("ended");
        assert!(has_ended(&process));
        assert!(super::process(0).is_err());
    }

    #[test]
    fn a_slot_that_nobody_has_gets_other_contents() {
        let mut domain = Domain::new().expect("a pool");
        let slot = domain.put(77, &[1; FRAME_SIZE]).expect("a slot");
        domain.take(slot);
        domain.take(slot);
        assert_eq!((slot, domain.known.get(&77)), (1, Some(&Place::Slot(1))));
        domain.release(slot, 1);
        assert_eq!((domain.used(), domain.known.get(&77)), (2, Some(&Place::Slot(1))));
        domain.release(slot, 1);
        assert_eq!((domain.used(), domain.known.get(&77)), (1, None));
        assert_eq!(domain.put(78, &[2; FRAME_SIZE]), Some(1));
        domain.release(ZERO_SLOT, 9);
        assert_eq!(domain.known.get(&ZEROS), Some(&Place::Slot(ZERO_SLOT)));
    }
}
