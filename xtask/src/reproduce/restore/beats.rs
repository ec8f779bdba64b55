//! A guest followed by its beats, and what it must prove.

use crate::machine::{Event, Next, Running};
use anyhow::{Result, bail};
use serde::Serialize;
use snapshot::responsiveness::{Heartbeat, UTILIZATIONS, WINDOWS};
use std::time::Duration;

/// A guest that is silent for so long has failed; much of the time is redis', which fills its memory.
const LONGEST: Duration = Duration::from_secs(240);
/// Of the intervals before the save, so many are not longer than the usual one. With the mean, half of all beats of
/// an undisturbed guest would be late.
const USUAL_PERCENT: usize = 95;

/// What is in the guest's memory only, and what it computes from all of its load's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Proof {
    nonce: String,
    memory: String,
    load: String,
}

impl Proof {
    fn of(event: &Event) -> Self {
        let [nonce, memory, load] =
            ["nonce", "memory", "load"].map(|name| event.text(name).to_owned());
        Self { nonce, memory, load }
    }
}

/// Until the guest's load is there.
pub(super) fn ready(running: &mut Running) -> Result<()> {
    awaited(running, "ready").map(drop)
}

/// Asks for it.
pub(super) fn proof(running: &mut Running) -> Result<Proof> {
    running.say("proof")?;
    let event = awaited(running, "proof")?;
    Ok(Proof::of(&event))
}

fn awaited(running: &mut Running, name: &str) -> Result<Event> {
    let begun = running.elapsed();
    while running.elapsed() < begun + LONGEST {
        match running.next(LONGEST) {
            Next::Event(event) if event.is(name) => return Ok(event),
            Next::Event(event) if event.text("error").is_empty() => {}
            Next::Event(event) => {
                let error = event.text("error").to_owned();
                bail!(running.complaint(&format!("failed: {error}")));
            }
            Next::Quiet => bail!(running.complaint("is silent")),
            Next::Ended => bail!(running.complaint("ended")),
        }
    }
    bail!(running.complaint(&format!("said nothing of {name}")))
}

/// Its beats from the next one on, for so long.
pub(super) fn follow(running: &mut Running, length: Duration) -> Result<Vec<Duration>> {
    let first = awaited(running, "beat")?.at;
    let mut beats = vec![first];
    while running.elapsed() < first + length {
        match running.next((first + length).saturating_sub(running.elapsed())) {
            Next::Event(event) if event.is("beat") && event.text("error").is_empty() => {
                beats.push(event.at);
            }
            Next::Event(event) => {
                let error = event.text("error").to_owned();
                bail!(running.complaint(&format!("did not beat: {error}")));
            }
            Next::Quiet => {}
            Next::Ended => bail!(running.complaint("ended")),
        }
    }
    Ok(beats)
}

/// What passes for undisturbed.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Usual {
    pub(super) interval_seconds: f64,
    pub(super) mean_seconds: f64,
}

impl Usual {
    pub(super) fn of(beats: &[Duration]) -> Result<Self> {
        let mut intervals: Vec<f64> =
            beats.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        intervals.sort_by(f64::total_cmp);
        let Some(&interval_seconds) = intervals.get(intervals.len() * USUAL_PERCENT / 100) else {
            bail!("{} beats are too few to know what is usual", beats.len());
        };
        let mean_seconds = intervals.iter().sum::<f64>() / intervals.len() as f64;
        Ok(Self { interval_seconds, mean_seconds })
    }
}

/// What beats tell: nothing else is known of a peer.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Outside {
    pub(super) first_beat_seconds: f64,
    pub(super) ttr: Vec<Ttr>,
    /// What the guest lost of the time that was measured.
    pub(super) degradation_seconds: f64,
    pub(super) beats: usize,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Ttr {
    pub(super) window_seconds: f64,
    pub(super) utilization: f64,
    pub(super) seconds: f64,
}

impl Outside {
    /// `beats` since the command.
    pub(super) fn of(usual: Usual, beats: &[Duration]) -> Self {
        let heartbeat =
            Heartbeat::new(Duration::from_secs_f64(usual.interval_seconds), beats.iter().copied());
        let stalls = heartbeat.stalls();
        let each = WINDOWS.iter().flat_map(|window| UTILIZATIONS.map(|part| (*window, part)));
        let ttr = each.map(|(window, utilization)| Ttr {
            window_seconds: window.as_secs_f64(),
            utilization,
            seconds: stalls.time_to_responsiveness(window, utilization).as_secs_f64(),
        });
        Self {
            first_beat_seconds: heartbeat.first().unwrap_or_default().as_secs_f64(),
            ttr: ttr.collect(),
            degradation_seconds: stalls.total().as_secs_f64(),
            beats: beats.len(),
        }
    }

    pub(super) fn ttr(&self, window_seconds: f64, utilization: f64) -> Option<f64> {
        let wanted = |ttr: &&Ttr| {
            (ttr.window_seconds - window_seconds).abs() < 1e-9
                && (ttr.utilization - utilization).abs() < 1e-9
        };
        self.ttr.iter().find(wanted).map(|ttr| ttr.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_is_usual_is_rarely_exceeded() {
        let beats: Vec<Duration> = (0..=100).map(|n| ms(n * 10 + n / 50 * 7)).collect();
        let usual = Usual::of(&beats).unwrap();
        assert!((usual.interval_seconds - 0.010).abs() < 1e-9, "{usual:?}");
        assert!((usual.mean_seconds - 0.01014).abs() < 1e-9, "{usual:?}");
        assert!(Usual::of(&beats[..1]).is_err());
    }

    #[test]
    fn a_late_first_beat_is_lost_time() {
        let usual = Usual { interval_seconds: 0.01, mean_seconds: 0.01 };
        let outside = Outside::of(usual, &[ms(500), ms(510), ms(520)]);
        assert!((outside.first_beat_seconds - 0.5).abs() < 1e-9);
        assert!((outside.degradation_seconds - 0.49).abs() < 1e-9, "{outside:?}");
        // Less than a twentieth of the next second is lost from 450 ms on.
        assert_eq!(outside.ttr(1.0, 0.95), Some(0.45));
        assert_eq!(outside.ttr(2.0, 0.95), None);
    }
}
