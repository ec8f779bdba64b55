//! What was seen so far of each VM.

use std::collections::{BTreeMap, VecDeque};

use api::{ClientError, VmStatus};

/// Looks kept for the sparkline; more than any terminal is wide.
const KEPT: usize = 512;

/// All VMs of the latest look, by name.
#[derive(Debug, Default)]
pub(super) struct History {
    rows: BTreeMap<String, Row>,
    /// What the daemon says of the host, where one runs.
    pub(super) host: Option<String>,
    /// What those said that did not answer.
    pub(super) complaints: Vec<String>,
}

/// One VM.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) latest: VmStatus,
    /// Of one host CPU, since the look before; what the VM says if there was none.
    pub(super) cpu_percent: f64,
    /// Working set of the last second at each look, oldest first; `len() <= KEPT`.
    pub(super) working_sets: VecDeque<u64>,
}

impl History {
    /// Adds a look. VMs that are not in it are forgotten.
    pub(super) fn add(&mut self, answers: &[Result<VmStatus, ClientError>]) {
        let mut before = std::mem::take(&mut self.rows);
        self.complaints.clear();
        for answer in answers {
            match answer {
                Ok(status) => {
                    let row = Row::new(before.remove(&status.name), status);
                    self.rows.insert(status.name.clone(), row);
                }
                Err(error) => self.complaints.push(error.to_string()),
            }
        }
    }

    /// The VM of that line.
    pub(super) fn name(&self, line: usize) -> Option<&str> {
        self.rows.keys().nth(line).map(String::as_str)
    }

    pub(super) fn rows(&self) -> impl ExactSizeIterator<Item = &Row> {
        self.rows.values()
    }
}

impl Row {
    fn new(before: Option<Self>, status: &VmStatus) -> Self {
        // The same name may be another VM by now.
        let before = before.filter(|before| before.latest.pid == status.pid);
        let cpu_percent = before
            .as_ref()
            .and_then(|before| cpu_between(&before.latest, status))
            .unwrap_or(status.guest_cpu_percent);
        let mut working_sets = before.map(|before| before.working_sets).unwrap_or_default();
        working_sets.extend(status.working_set.window_1s_bytes);
        while working_sets.len() > KEPT {
            working_sets.pop_front();
        }
        Self { latest: status.clone(), cpu_percent, working_sets }
    }
}

/// Our own difference: what the VM says is since anybody asked last, which need not be us.
fn cpu_between(before: &VmStatus, now: &VmStatus) -> Option<f64> {
    let wall = now.uptime_seconds - before.uptime_seconds;
    let cpu = now.guest_cpu_seconds - before.guest_cpu_seconds;
    (wall > 0.0 && cpu >= 0.0).then(|| 100.0 * cpu / wall)
}

#[cfg(test)]
mod tests {
    use api::WorkingSet;

    use super::*;

    fn look(pid: u32, uptime_seconds: f64, cpu: f64, used: u64) -> Result<VmStatus, ClientError> {
        Ok(VmStatus {
            name: "web".to_owned(),
            pid,
            uptime_seconds,
            guest_cpu_seconds: cpu,
            guest_cpu_percent: 7.0,
            working_set: WorkingSet { window_1s_bytes: Some(used), ..WorkingSet::default() },
            ..VmStatus::default()
        })
    }

    #[test]
    fn looks_add_up() {
        let mut history = History::default();
        history.add(&[look(1, 10.0, 1.0, 100)]);
        assert_eq!(history.rows().next().map(|row| row.cpu_percent), Some(7.0));
        history.add(&[look(1, 12.0, 2.0, 200)]);
        let row = history.rows().next().expect("row");
        assert_eq!((row.cpu_percent, Vec::from(row.working_sets.clone())), (50.0, vec![100, 200]));
    }

    #[test]
    fn another_vm_of_the_same_name_starts_anew() {
        let mut history = History::default();
        history.add(&[look(1, 10.0, 1.0, 100)]);
        history.add(&[look(2, 11.0, 0.0, 300)]);
        let row = history.rows().next().expect("row");
        assert_eq!((row.cpu_percent, row.working_sets.len()), (7.0, 1));
        history.add(&[Err(ClientError::Gone { name: "web".to_owned() })]);
        assert_eq!((history.rows().len(), history.complaints.len()), (0, 1));
    }

    #[test]
    fn old_looks_are_forgotten() {
        let mut history = History::default();
        for second in 0..2 * KEPT {
            history.add(&[look(1, second as f64, 0.0, second as u64)]);
        }
        let row = history.rows().next().expect("row");
        assert_eq!((row.working_sets.len(), row.working_sets[0]), (KEPT, KEPT as u64));
    }
}
