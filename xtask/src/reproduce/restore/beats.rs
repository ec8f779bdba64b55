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
/// Beats that come faster count by several, or a fast monitor would be held to shorter stalls than a slow one.
const RESOLUTION_SECONDS: f64 = 0.025;

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
    /// Between two beats.
    pub(super) mean_seconds: f64,
    /// So many count as one.
    pub(super) group: usize,
    /// Between two groups.
    pub(super) interval_seconds: f64,
}

impl Usual {
    pub(super) fn of(beats: &[Duration]) -> Result<Self> {
        let [Some(first), Some(last)] = [beats.first(), beats.last()] else {
            bail!("a guest without beats");
        };
        let mean_seconds = (*last - *first).as_secs_f64() / (beats.len() - 1).max(1) as f64;
        let group = (RESOLUTION_SECONDS / mean_seconds.max(1e-6)).round().max(1.0) as usize;
        // From each beat to the one that is a group later.
        let mut intervals: Vec<f64> =
            beats.windows(group + 1).map(|some| (some[group] - some[0]).as_secs_f64()).collect();
        intervals.sort_by(f64::total_cmp);
        let Some(&interval_seconds) = intervals.get(intervals.len() * USUAL_PERCENT / 100) else {
            bail!("{} beats are too few to know what is usual", beats.len());
        };
        Ok(Self { mean_seconds, group, interval_seconds })
    }

    pub(super) fn heartbeat(&self, beats: impl Iterator<Item = Duration>) -> Heartbeat {
        Heartbeat::new(Duration::from_secs_f64(self.interval_seconds), beats.step_by(self.group))
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
        let heartbeat = usual.heartbeat(beats.iter().copied());
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
        let beats: Vec<Duration> = (0..=100).map(|n| ms(n * 40 + n / 50 * 7)).collect();
        let usual = Usual::of(&beats).unwrap();
        assert!((usual.interval_seconds - 0.040).abs() < 1e-9, "{usual:?}");
        assert!((usual.mean_seconds - 0.04014).abs() < 1e-9, "{usual:?}");
        assert_eq!(usual.group, 1);
        assert!(Usual::of(&beats[..1]).is_err() && Usual::of(&[]).is_err());
    }

    #[test]
    fn fast_beats_count_by_several() {
        let beats: Vec<Duration> = (0..=1000).map(|n| ms(n * 5)).collect();
        let usual = Usual::of(&beats).unwrap();
        assert!((usual.interval_seconds - 0.025).abs() < 1e-9, "{usual:?}");
        assert_eq!(usual.group, 5);
        // Two late by 10 ms each in one group of five.
        let late = (0..=50).map(|n| {
            ms(n * 5
                + if n < 11 {
                    0
                } else if n < 13 {
                    10
                } else {
                    20
                })
        });
        let lost = usual.heartbeat(late).stalls().total();
        assert_eq!(lost, ms(20));
    }

    #[test]
    fn a_late_first_beat_is_lost_time() {
        let usual = Usual { interval_seconds: 0.01, mean_seconds: 0.01, group: 1 };
        let outside = Outside::of(usual, &[ms(500), ms(510), ms(520)]);
        assert!((outside.first_beat_seconds - 0.5).abs() < 1e-9);
        assert!((outside.degradation_seconds - 0.49).abs() < 1e-9, "{outside:?}");
        // Less than a twentieth of the next second is lost from 450 ms on.
        assert_eq!(outside.ttr(1.0, 0.95), Some(0.45));
        assert_eq!(outside.ttr(2.0, 0.95), None);
    }
}
