//! What is known when it is decided.

use serde::{Deserialize, Serialize};

use crate::curve::{Curve, CurveError};
use crate::state::{MemoryState, Thresholds};

/// A host and its VMs at one moment. Sizes are bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// The host.
    pub host: HostFacts,
    /// Its VMs; no two have one name.
    pub vms: Vec<VmFacts>,
}

/// The host's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostFacts {
    /// What VMs may have in all.
    pub limit: u64,
    /// What of that nobody has.
    pub free: u64,
    /// The state that was decided last.
    #[serde(default)]
    pub state: MemoryState,
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmFacts {
    /// By which verdicts name it.
    pub name: String,
    /// Its weight against others. At least 1.
    #[serde(default = "shares")]
    pub shares: u32,
    /// What it has whatever others need. At most `limit`.
    #[serde(default)]
    pub reservation: u64,
    /// What it has at most. At most `memory`.
    pub limit: u64,
    /// What its guest was told it has.
    pub memory: u64,
    /// What its process takes beyond its guest's memory.
    #[serde(default)]
    pub overhead: u64,
    /// What of its guest's memory is in the host's.
    pub resident: u64,
    /// What its guest uses, as far as is known: of `resident`, and beyond where it misses some.
    pub active: u64,
    /// What of its memory a balloon cannot have: its kernel's and its programs' own, where they have no swap area. 0: not known.
    #[serde(default)]
    pub unreclaimable: u64,
    /// Its balloon.
    #[serde(default)]
    pub balloon: Balloon,
    /// How often it would miss with less or more memory, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curve: Option<Curve>,
}

impl Default for VmFacts {
    fn default() -> Self {
        Self {
            name: String::new(),
            shares: shares(),
            reservation: 0,
            limit: 0,
            memory: 0,
            overhead: 0,
            resident: 0,
            active: 0,
            unreclaimable: 0,
            balloon: Balloon::default(),
            curve: None,
        }
    }
}

const fn shares() -> u32 {
    1000
}

/// A balloon, or what stands for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// The guest has a driver, which has done in time what it was asked for.
    pub works: bool,
    /// What it was asked to hold.
    #[serde(default)]
    pub asked: u64,
    /// What it holds.
    #[serde(default)]
    pub held: u64,
}

/// What the user decides.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Of a page that is idle so much is taxed away: 0, all pages count the same, to 0.99. Published: 0.75.
    pub tax: f64,
    /// When which means are taken.
    pub thresholds: Thresholds,
    /// Curves are followed where they are known.
    pub curves: bool,
    /// A target is changed if it is off by more than this part of the VM's limit. Below 0.5.
    pub slack: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { tax: 0.75, thresholds: Thresholds::default(), curves: true, slack: 0.01 }
    }
}

/// Facts or settings that cannot be.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FactsError {
    /// Too high a tax leaves nothing to idle VMs, and divides by zero.
    #[error("tax of {0}: 0 to 0.99 can be")]
    Tax(f64),
    /// A slack so wide would never act.
    #[error("slack of {0}: 0 to 0.5 can be")]
    Slack(f64),
    /// Percentages that do not descend.
    #[error("thresholds {0:?}: each must be below the one before, the first below 50 %")]
    Thresholds(Thresholds),
    /// Weights divide.
    #[error("vm {0}: no shares: at least 1 is needed")]
    Shares(String),
    /// It could never be kept.
    #[error(
        "vm {name}: a reservation of {reservation} bytes, a limit of {limit}, {memory} in all: none may exceed the next"
    )]
    Limits {
        /// Whose.
        name: String,
        /// Bytes.
        reservation: u64,
        /// Bytes.
        limit: u64,
        /// Bytes.
        memory: u64,
    },
    /// Nobody could tell which is meant.
    #[error("two VMs are called {0}")]
    Twice(String),
    /// It was promised to more than one: whoever admits VMs must not let it come to that.
    #[error("reservations and overheads of {needed} bytes, the host's limit is {limit}")]
    Promised {
        /// Bytes.
        needed: u64,
        /// Bytes.
        limit: u64,
    },
    /// Numbers beyond what hosts have.
    #[error("more than {0} bytes in all")]
    Size(u64),
    /// A curve that is none.
    #[error("vm {name}: {error}")]
    Curve {
        /// Whose.
        name: String,
        /// What is wrong.
        error: CurveError,
    },
}

/// Such a part of what a VM may have is little to it: it works with so much page cache, and is full when no more is left.
const ROOM: u64 = 16;

/// No sum of sizes is beyond this: sums neither overflow nor lose a byte as `f64`.
const SIZE_MAX: u64 = 1 << 52;

impl VmFacts {
    /// What its balloon leaves it, as it was asked last.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.memory.saturating_sub(self.balloon.asked).min(self.limit)
    }

    /// What its balloon must leave it to work at all, as far as is known: programs are read from disks, and grow.
    #[must_use]
    pub fn floor(&self) -> u64 {
        match self.unreclaimable {
            0 => 0,
            bytes => bytes.saturating_add(self.limit / ROOM).min(self.limit),
        }
    }

    /// What it has and a little more, which it may take before anybody looks again.
    #[must_use]
    pub fn soon(&self) -> u64 {
        self.resident.saturating_add(self.limit / ROOM)
    }

    /// What its guest uses, or could not give: bytes.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.active.max(self.floor())
    }

    /// The part of what it has that its guest does not use: 0 to 1.
    #[must_use]
    pub fn idle(&self) -> f64 {
        match self.resident {
            0 => 0.0,
            resident => resident.saturating_sub(self.used()) as f64 / resident as f64,
        }
    }
}

impl Facts {
    /// Whether they can be.
    ///
    /// # Errors
    /// What contradicts what, and whose fault it is.
    pub fn check(&self) -> Result<(), FactsError> {
        let mut names = std::collections::BTreeSet::new();
        let (mut needed, mut all) =
            (0u64, u128::from(self.host.limit) + u128::from(self.host.free));
        for vm in &self.vms {
            if !names.insert(&vm.name) {
                return Err(FactsError::Twice(vm.name.clone()));
            }
            if vm.shares == 0 {
                return Err(FactsError::Shares(vm.name.clone()));
            }
            if vm.reservation > vm.limit || vm.limit > vm.memory {
                let VmFacts { reservation, limit, memory, .. } = *vm;
                let name = vm.name.clone();
                return Err(FactsError::Limits { name, reservation, limit, memory });
            }
            let sizes =
                [vm.memory, vm.overhead, vm.resident, vm.active, vm.balloon.asked, vm.balloon.held];
            all += sizes.into_iter().map(u128::from).sum::<u128>();
            if all > u128::from(SIZE_MAX) {
                return Err(FactsError::Size(SIZE_MAX));
            }
            needed += vm.reservation + vm.overhead;
            let checked = vm.curve.as_ref().map_or(Ok(()), Curve::check);
            checked.map_err(|error| FactsError::Curve { name: vm.name.clone(), error })?;
        }
        if all > u128::from(SIZE_MAX) {
            return Err(FactsError::Size(SIZE_MAX));
        }
        if needed > self.host.limit {
            return Err(FactsError::Promised { needed, limit: self.host.limit });
        }
        Ok(())
    }
}

impl Settings {
    /// Whether they can be.
    ///
    /// # Errors
    /// Which cannot, and what could.
    pub fn check(&self) -> Result<(), FactsError> {
        if !(0.0..=0.99).contains(&self.tax) {
            return Err(FactsError::Tax(self.tax));
        }
        if !(0.0..0.5).contains(&self.slack) {
            return Err(FactsError::Slack(self.slack));
        }
        if !self.thresholds.descend() {
            return Err(FactsError::Thresholds(self.thresholds));
        }
        Ok(())
    }
}
