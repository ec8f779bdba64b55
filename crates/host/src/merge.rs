//! Frames that guests on KVM have alike are merged by the host's kernel (docs/decisions/0017): VMs mark what is worth it,
//! while all of them have one owner, since KSM knows none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use api::{Client, ClientError, ShareRequest, SocketDirectory, VmStatus};

use crate::share::{has_ended, process};

/// What `VmStatus::engine` says of such a VM.
const KVM: &str = "kvm";
/// What the host's kernel tells of all that it merges, and takes from its administrator.
const KSM: &str = "/sys/kernel/mm/ksm";
/// What has it run.
const MEND: &str = "echo 1 | sudo tee /sys/kernel/mm/ksm/run";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether frames of this VM are the kernel's to share.
pub(crate) fn is_the_kernels(status: &VmStatus) -> bool {
    status.engine == KVM
}

/// Whether the host's kernel merges what is marked.
fn kernel_merges() -> bool {
    number("run") == Some(1)
}

fn number(name: &str) -> Option<u64> {
    fs::read_to_string(format!("{KSM}/{name}")).ok()?.trim().parse().ok()
}

/// VMs on KVM.
#[derive(Debug, Default)]
pub(crate) struct Merging {
    members: BTreeMap<String, Member>,
    /// Whose sockets are gone or are another's now, and that have not ended: what they have marked is merged still.
    silent: Vec<Member>,
    /// What the log said last of why nothing is shared.
    said: Option<Refusal>,
}

#[derive(Debug)]
struct Member {
    owner: String,
    process: OwnedFd,
    /// It may have marks.
    is_marked: bool,
    merged_frames: u32,
    marked_frames: u32,
    /// Why it cannot, as it said last.
    refused: Option<String>,
}

/// Why nothing is shared.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Refusal {
    /// Its administrator has not said that it should, or there is no KSM.
    Stopped,
    /// Of these, say.
    Owners(BTreeSet<String>),
}

impl Merging {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// Takes it in, whatever an earlier daemon has had it do.
    pub(crate) fn join(&mut self, name: &str, status: &VmStatus, owner: String) {
        let Ok(process) = process(status.pid) else { return };
        let member = Member {
            owner,
            process,
            is_marked: true,
            merged_frames: 0,
            marked_frames: 0,
            refused: None,
        };
        self.silent.extend(self.members.insert(name.to_owned(), member));
    }

    /// Asks each to go on, or to take its marks back. `unknown`: owners of VMs whose engine is not known.
    pub(crate) fn round(
        &mut self,
        sockets: &SocketDirectory,
        names: &[String],
        owner_of: impl Fn(&str) -> String,
        unknown: BTreeSet<String>,
        scan: u32,
    ) {
        let ended: Vec<String> = self
            .members
            .iter()
            .filter(|(name, member)| has_ended(&member.process) || !names.contains(name))
            .map(|(name, _)| name.clone())
            .collect();
        for name in ended {
            self.silent.extend(self.members.remove(&name));
        }
        self.silent.retain(|member| !has_ended(&member.process));
        for (name, member) in &mut self.members {
            member.owner = owner_of(name);
        }
        if self.members.is_empty() {
            return;
        }
        let refusal = self.refusal(kernel_merges(), unknown);
        self.say(&refusal);
        for (name, member) in &mut self.members {
            let client = sockets.client(name).with_timeout(ANSWER_TIMEOUT);
            let request = |merge, scan| ShareRequest { merge: Some(merge), scan, ..<_>::default() };
            match &refusal {
                None => member.ask(name, &client, request(true, scan)),
                Some(Refusal::Owners(_)) if member.is_marked => {
                    member.ask(name, &client, request(false, 0));
                }
                // Stopped, the kernel keeps what it has merged: to take marks back would copy that.
                Some(_) => {}
            }
        }
    }

    fn refusal(&self, runs: bool, unknown: BTreeSet<String>) -> Option<Refusal> {
        let members = self.members.values().chain(&self.silent);
        let mut owners: BTreeSet<String> = members.map(|member| member.owner.clone()).collect();
        owners.extend(unknown);
        if owners.len() > 1 {
            return Some(Refusal::Owners(owners));
        }
        (!runs).then_some(Refusal::Stopped)
    }

    fn say(&mut self, refusal: &Option<Refusal>) {
        if self.said == *refusal {
            return;
        }
        self.said.clone_from(refusal);
        match refusal {
            Some(Refusal::Stopped) => tracing::warn!(
                "guests on KVM share nothing: the host's kernel merges no pages: {MEND}"
            ),
            Some(Refusal::Owners(owners)) => {
                let names = owners.iter().map(|owner| match owner.as_str() {
                    "" => "nobody in particular",
                    owner => owner,
                });
                let names = names.collect::<Vec<_>>().join(", ");
                tracing::warn!(
                    "guests on KVM share nothing: they have several owners ({names}), and the kernel knows none"
                );
            }
            None => tracing::info!(
                "guests on KVM share by the host's kernel, which merges what any process of this host has marked"
            ),
        }
    }

    /// Frames that are merged now: each VM's.
    pub(crate) fn merged(&self) -> impl Iterator<Item = (&String, u64)> {
        self.members.iter().map(|(name, member)| (name, u64::from(member.merged_frames)))
    }

    /// Pages that all of them take, at most: the kernel tells it of all that it merges, also of others.
    pub(crate) fn pages(&self) -> u64 {
        let merged = self.merged().map(|(_, frames)| frames).sum();
        number("pages_shared").unwrap_or(0).min(merged)
    }
}

impl Member {
    fn ask(&mut self, name: &str, client: &Client, request: ShareRequest) {
        let wanted = request.merge == Some(true);
        // Whether it has done what was asked is not known if it does not say so.
        self.is_marked |= wanted;
        match client.share(&request, None) {
            Ok(report) if report.busy => {}
            Ok(report) => {
                self.merged_frames = report.shared_frames;
                self.marked_frames = report.marked_frames;
                self.is_marked = wanted;
                self.refused = None;
            }
            Err(ClientError::NotRunning { .. } | ClientError::Gone { .. }) => {}
            Err(error) => {
                self.merged_frames = 0;
                let error = error.to_string();
                if self.refused.as_ref() != Some(&error) {
                    tracing::warn!("{name}: {error}");
                    self.refused = Some(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(owner: &str) -> Member {
        let process = process(std::process::id()).expect("this process");
        Member {
            owner: owner.to_owned(),
            process,
            is_marked: true,
            merged_frames: 7,
            marked_frames: 16,
            refused: None,
        }
    }

    #[test]
    fn one_owner_shares_and_two_do_not() {
        let mut merging = Merging::default();
        let none = BTreeSet::new;
        merging.members.insert("a".to_owned(), member("shop"));
        merging.members.insert("b".to_owned(), member("shop"));
        assert_eq!(merging.refusal(true, none()), None);
        assert_eq!(merging.refusal(false, none()), Some(Refusal::Stopped));
        let both = Refusal::Owners(["bank", "shop"].map(str::to_owned).into());
        // One that does not answer may be on KVM, and have been marked by an earlier daemon.
        assert_eq!(merging.refusal(true, ["bank".to_owned()].into()), Some(both.clone()));
        assert_eq!(merging.refusal(true, ["shop".to_owned()].into()), None);
        merging.silent.push(member("bank"));
        assert_eq!(merging.refusal(true, none()), Some(both));
        assert_eq!(merging.merged().map(|(_, frames)| frames).sum::<u64>(), 14);
        assert!(merging.pages() <= 14);
    }
}
