//! From data files to programs for the kernel.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::rules::{Allow, Condition, Include, Rules};
use super::{Having, Thread, calls, rules, values};

/// What the kernel runs before each call of a thread. The strictest answer counts.
#[derive(Debug)]
pub(super) struct Programs(pub(super) Vec<BpfProgram>);

/// Rules of one thread, gathered from its files.
#[derive(Default)]
struct Gathered {
    /// By number; no rule means always.
    allowed: BTreeMap<i64, Vec<SeccompRule>>,
    /// Number and error.
    refused: BTreeMap<i64, u32>,
}

/// The programs of the process, and of each kind of thread.
///
/// # Errors
/// A mistake in a data file, found by any test.
pub(super) fn all(having: &[Having]) -> Result<(Programs, BTreeMap<Thread, Programs>), String> {
    let files = rules::all()?;
    let compiled = |name: &str| Gathered::of(name, &files, having)?.programs();
    let threads = Thread::ALL.into_iter().map(|thread| Ok((thread, compiled(thread.file())?)));
    Ok((compiled("process")?, threads.collect::<Result<_, String>>()?))
}

impl Gathered {
    fn of(
        name: &str,
        files: &BTreeMap<&'static str, Rules>,
        having: &[Having],
    ) -> Result<Self, String> {
        let mut gathered = Self::default();
        let (mut left, mut seen) = (vec![name], BTreeSet::new());
        while let Some(name) = left.pop() {
            if !seen.insert(name) {
                continue;
            }
            let rules = files.get(name).ok_or_else(|| format!("{name}.json is not there"))?;
            gathered.add(rules).map_err(|error| format!("{name}.json: {error}"))?;
            let files = rules.includes.iter().chain(&rules.starts);
            left.extend(files.filter_map(|include| include.file(having)));
        }
        Ok(gathered)
    }

    fn add(&mut self, rules: &Rules) -> Result<(), String> {
        for allow in &rules.allow {
            let (number, new) = (number(&allow.call)?, alternatives(allow)?);
            match self.allowed.get_mut(&number) {
                None => drop(self.allowed.insert(number, new)),
                Some(old) if old.is_empty() || new.is_empty() => old.clear(),
                Some(old) => old.extend(new),
            }
        }
        for refuse in &rules.refuse {
            let error = u32::try_from(value(&refuse.error)?).map_err(|error| error.to_string())?;
            self.refused.insert(number(&refuse.call)?, error);
        }
        Ok(())
    }

    /// A refused call is one that the first program lets through and another answers.
    fn programs(mut self) -> Result<Programs, String> {
        let mut by_error: BTreeMap<u32, BTreeMap<i64, Vec<SeccompRule>>> = BTreeMap::new();
        for (number, error) in self.refused {
            if let Entry::Vacant(vacant) = self.allowed.entry(number) {
                vacant.insert(Vec::new());
                by_error.entry(error).or_default().insert(number, Vec::new());
            }
        }
        let mut programs = vec![program(self.allowed, SeccompAction::Trap, SeccompAction::Allow)?];
        for (error, calls) in by_error {
            programs.push(program(calls, SeccompAction::Allow, SeccompAction::Errno(error))?);
        }
        Ok(Programs(programs))
    }
}

impl Include {
    fn file(&self, having: &[Having]) -> Option<&str> {
        match self {
            Self::Always(file) => Some(file),
            Self::When(it) => having.contains(&it.when).then_some(&it.file),
        }
    }
}

fn program(
    calls: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    these: SeccompAction,
) -> Result<BpfProgram, String> {
    SeccompFilter::new(calls, otherwise, these, TargetArch::x86_64)
        .and_then(BpfProgram::try_from)
        .map_err(|error| error.to_string())
}

/// The rules, one of which must hold; none: always.
fn alternatives(allow: &Allow) -> Result<Vec<SeccompRule>, String> {
    if allow.conditions.is_empty() {
        return Ok(Vec::new());
    }
    let mut all = vec![Vec::new()];
    for condition in &allow.conditions {
        let these = condition.alternatives()?;
        let with = |one: &Vec<SeccompCondition>| {
            let one = one.clone();
            these.iter().map(move |more| one.iter().chain(more).cloned().collect())
        };
        all = all.iter().flat_map(with).collect();
    }
    let rule = |conditions| SeccompRule::new(conditions).map_err(|error| error.to_string());
    all.into_iter().map(rule).collect()
}

impl Condition {
    /// Each is a list of what must hold together.
    fn alternatives(&self) -> Result<Vec<Vec<SeccompCondition>>, String> {
        let mut always = Vec::new();
        for (names, wanted) in [(&self.has, u64::MAX), (&self.lacks, 0)] {
            if !names.is_empty() {
                let bits = value(&names.join("|"))?;
                always.push(self.low(SeccompCmpOp::MaskedEq(bits), bits & wanted)?);
            }
        }
        if self.null {
            always.push(self.compare(SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?);
        }
        if self.own_process {
            always.push(self.low(SeccompCmpOp::Eq, std::process::id().into())?);
        }
        if self.is.is_empty() {
            return match always.is_empty() {
                true => Err(format!("argument {}: nothing is asked of it", self.argument)),
                false => Ok(vec![always]),
            };
        }
        let with = |name: &String| {
            let one = self.low(SeccompCmpOp::Eq, value(name)?)?;
            Ok(always.iter().cloned().chain([one]).collect())
        };
        self.is.iter().map(with).collect()
    }

    /// Of the low half: what is above it in the register of an `int` means nothing.
    fn low(&self, op: SeccompCmpOp, value: u64) -> Result<SeccompCondition, String> {
        self.compare(SeccompCmpArgLen::Dword, op, value)
    }

    fn compare(
        &self,
        length: SeccompCmpArgLen,
        op: SeccompCmpOp,
        value: u64,
    ) -> Result<SeccompCondition, String> {
        SeccompCondition::new(self.argument, length, op, value).map_err(|error| error.to_string())
    }
}

fn number(call: &str) -> Result<i64, String> {
    calls::number(call).ok_or_else(|| format!("no system call {call}"))
}

fn value(name: &str) -> Result<u64, String> {
    values::value(name).ok_or_else(|| format!("no value {name}"))
}

#[cfg(test)]
mod tests;
