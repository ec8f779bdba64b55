//! A guest is made to do without what it can do without: its balloon takes all but what its kernel says is in use, and is
//! let out again. So its cache of files is free memory, which is not saved, and none of its memory is missing later.

use std::thread;
use std::time::{Duration, Instant};

use api::{BalloonTarget, Client, KernelInfo, RunState};

use crate::failure::Failure;

/// Between two looks at the balloon.
const TICK: Duration = Duration::from_millis(20);
/// A guest that has given nothing for so long gives no more.
const IDLE: Duration = Duration::from_secs(1);
/// One that has not begun by then does not: on a slow host its driver takes a while to hear of it.
const BEGINS: Duration = Duration::from_secs(4);
/// No guest is waited for longer, though it gives more all the time: first goes what is free anyway, and a guest of 64 GiB,
/// or a small one on a slow host, is not through with that after some seconds.
const LONGEST: Duration = Duration::from_secs(60);
/// Left to the guest beside what it uses: a kernel that is short of memory ends programs.
const MARGIN: u64 = 4 << 20;
/// What its kernel can get back at any time, or has not now.
const SPARE: [&str; 4] = ["free", "cpu_free", "file_cache", "offline"];
const PAGE: u64 = 4096;

/// How much of its cache it has given up, and nothing where its kernel cannot be read.
pub(super) fn shrink(client: &Client) -> Result<u64, Failure> {
    let status = client.status()?;
    if status.state != RunState::Running {
        return Ok(0);
    }
    let Ok(kernel) = client.kernel() else {
        eprintln!("fathom: the guest's kernel is not found: its cache of files is kept");
        return Ok(0);
    };
    let Some(target) = target(&kernel, status.configured_bytes) else { return Ok(0) };
    let before = status.balloon_target_bytes;
    if target <= before {
        return Ok(0);
    }
    client.set_balloon(BalloonTarget { target_bytes: target })?;
    let inflated = settle(client, target);
    // Whatever came of it: the guest gets back what it had.
    client.set_balloon(BalloonTarget { target_bytes: before })?;
    inflated?;
    settle(client, before)?;
    let cached = |kernel: &KernelInfo| kernel.class_bytes.get("file_cache").copied().unwrap_or(0);
    let after = client.kernel().map_or(0, |after| cached(&after));
    Ok(cached(&kernel).saturating_sub(after))
}

/// How much the guest can spare in all; `None` if that is not known.
fn target(kernel: &KernelInfo, memory_bytes: u64) -> Option<u64> {
    if kernel.class_bytes.is_empty() {
        return None;
    }
    let used = kernel.class_bytes.iter().filter(|(class, _)| !SPARE.contains(&class.as_str()));
    let used = used.fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes));
    let needed = used.saturating_add(used / 16).saturating_add(MARGIN);
    Some(memory_bytes.saturating_sub(needed) / PAGE * PAGE)
}

/// Waits until the balloon is as large as it is to be, or does not change any more.
fn settle(client: &Client, target: u64) -> Result<(), Failure> {
    let begun = Instant::now();
    let (mut last, mut changed) = (client.status()?.ballooned_bytes, None::<Instant>);
    let is_waited_for = |changed: Option<Instant>| {
        changed.map_or(begun.elapsed() < BEGINS, |at| at.elapsed() < IDLE)
    };
    while last != target && is_waited_for(changed) && begun.elapsed() < LONGEST {
        thread::sleep(TICK);
        let now = client.status()?.ballooned_bytes;
        if now != last {
            (last, changed) = (now, Some(Instant::now()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_and_a_margin_stay() {
        let classes = [("free", 100), ("file_cache", 60), ("anonymous", 40), ("reserved", 24)];
        let class_bytes = classes.map(|(name, mib)| (name.to_owned(), mib << 20)).into();
        let kernel = KernelInfo { class_bytes, ..KernelInfo::default() };
        assert_eq!(target(&kernel, 224 << 20), Some((224 - 64 - 4 - 4) << 20));
        assert_eq!(target(&kernel, 60 << 20), Some(0));
        assert_eq!(target(&KernelInfo::default(), 224 << 20), None);
    }
}
