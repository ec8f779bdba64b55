//! Whether one more VM can be promised what it wants (OSDI 2002, section 6.2).

use serde::{Deserialize, Serialize};

/// What a VM is promised. Sizes are bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// What it has whatever others need.
    pub reservation: u64,
    /// What it has at most.
    pub limit: u64,
    /// What its process takes beyond that.
    pub overhead: u64,
}

/// What is left after a VM was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// Of memory that nobody has a reservation for.
    pub memory: u64,
    /// Of the store for what does not fit.
    pub swap: u64,
}

/// Why it was not: the sum, and what would make it right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Its reservation could not be kept.
    #[error(
        "a reservation of {reservation} MiB and {overhead} MiB of its process: {promised} of {limit} MiB are promised already, {left} are left",
        reservation = .0.reservation, overhead = .0.overhead, promised = .0.promised, limit = .0.limit,
        left = .0.limit.saturating_sub(.0.promised)
    )]
    Memory(Sum),
    /// What it might write could not be put anywhere.
    #[error(
        "{wanted} MiB of its memory are not reserved and need a place: {promised} of {limit} MiB of swap are promised already; give it a reservation, or the host more swap",
        wanted = .0.reservation, promised = .0.promised, limit = .0.limit
    )]
    Swap(Sum),
}

/// In MiB, rounded up where it is needed and down where it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// What the VM needs.
    pub reservation: u64,
    /// Beside it.
    pub overhead: u64,
    /// What others were promised.
    pub promised: u64,
    /// What there is.
    pub limit: u64,
}

const fn mib_up(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// Whether `new` can have what it is promised, beside those that are `admitted`, on a host that has `memory` for VMs and
/// `swap` for what does not fit (`None`: what is not reserved need not have a place).
///
/// # Errors
/// There is not enough of either.
pub fn admit(
    admitted: &[Promise],
    new: Promise,
    memory: u64,
    swap: Option<u64>,
) -> Result<Admission, Refusal> {
    let sum = |of: fn(&Promise) -> u64| admitted.iter().map(of).fold(0u64, u64::saturating_add);
    let in_memory: fn(&Promise) -> u64 = |vm| vm.reservation.saturating_add(vm.overhead);
    let in_swap: fn(&Promise) -> u64 = |vm| vm.limit.saturating_sub(vm.reservation);
    let fits = |of: fn(&Promise) -> u64, there: u64| {
        there.checked_sub(sum(of)).and_then(|left| left.checked_sub(of(&new)))
    };
    let told = |of: fn(&Promise) -> u64, wanted: u64, there: u64| Sum {
        reservation: mib_up(wanted),
        overhead: mib_up(new.overhead),
        promised: mib_up(sum(of)),
        limit: there >> 20,
    };
    let left = fits(in_memory, memory)
        .ok_or_else(|| Refusal::Memory(told(in_memory, new.reservation, memory)))?;
    let swap = match swap {
        None => 0,
        Some(swap) => {
            fits(in_swap, swap).ok_or_else(|| Refusal::Swap(told(in_swap, in_swap(&new), swap)))?
        }
    };
    Ok(Admission { memory: left, swap })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_promises_what_it_has() {
        let mib = |n: u64| n << 20;
        let promise = |reservation, limit| Promise {
            reservation: mib(reservation),
            limit: mib(limit),
            overhead: mib(16),
        };
        let admitted = [promise(256, 512), promise(0, 512)];
        let left = admit(&admitted, promise(512, 512), mib(1024), Some(mib(768)));
        assert_eq!(left, Ok(Admission { memory: mib(1024 - 512 - 256 - 48), swap: 0 }));
        let error = admit(&admitted, promise(800, 800), mib(1024), None).expect_err("too much");
        assert_eq!(
            error.to_string(),
            "a reservation of 800 MiB and 16 MiB of its process: 288 of 1024 MiB are promised already, 736 are left"
        );
        let error =
            admit(&admitted, promise(0, 512), mib(1024), Some(mib(1000))).expect_err("swap");
        assert_eq!(
            error.to_string(),
            "512 MiB of its memory are not reserved and need a place: 768 of 1000 MiB of swap are promised already; \
             give it a reservation, or the host more swap"
        );
        // Nonsense is refused, not added up wrongly.
        assert!(
            admit(
                &[promise(0, 0); 3],
                Promise { overhead: u64::MAX, ..promise(1, 1) },
                mib(64),
                None
            )
            .is_err()
        );
    }
}
