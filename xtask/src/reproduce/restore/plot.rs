//! Pictures: of each guest how much of its time it had to itself from when on, and the times of all.

use super::super::{folder, wss};
use super::cache::Cache;
use super::figures::{Figures, GuestFigures, RestoreFigures};
use crate::dots::{DotRow, Dots};
use anyhow::{Result, anyhow};
use std::time::Duration;

const WINDOW: Duration = Duration::from_secs(1);
/// What can be seen of the curves, seconds.
const SHOWN: f64 = 4.0;
/// On a logarithmic scale there is no zero.
const LEAST_MS: f64 = 1.0;

pub(super) fn draw(guest: &GuestFigures) -> Result<()> {
    for cache in [Cache::Warm, Cache::Cold] {
        let rows = guest.restores.iter().filter(|row| row.cache == cache);
        let series: Vec<_> = rows.filter_map(|row| Some((row.mode, curve(guest, row)?))).collect();
        if series.is_empty() {
            continue;
        }
        let file = folder()?.join(format!("restore-{}-{}.svg", guest.name(), cache.name()));
        let title = format!("`{}` after a restore, {} page cache", guest.guest, cache.name());
        let axes = ["seconds since the command", "least part of any second from then on"];
        wss::draw_lines(&file, &title, axes, &series)
            .map_err(|error| anyhow!("draw {}: {error}", file.display()))?;
    }
    Ok(())
}

/// Of the run in the middle.
fn curve(guest: &GuestFigures, row: &RestoreFigures) -> Option<Vec<(f64, f64)>> {
    let usual = guest.saved.iter().find(|saved| saved.monitor == row.monitor)?.usual;
    let beats = row.middle()?.beats_seconds.iter().map(|beat| Duration::from_secs_f64(*beat));
    let curve = usual.heartbeat(beats).stalls().curve(WINDOW);
    let mut points: Vec<(f64, f64)> = curve
        .into_iter()
        .map(|(at, part)| (at.as_secs_f64(), part))
        .take_while(|(at, _)| *at <= SHOWN)
        .collect();
    points.push((SHOWN, points.last()?.1));
    Some(points)
}

/// TTR(1 s, 95 %).
pub(super) fn draw_all(figures: &Figures) -> Result<()> {
    let mut modes: Vec<&'static str> = Vec::new();
    for row in figures.guests.iter().flat_map(|guest| &guest.restores) {
        if !modes.contains(&row.mode) {
            modes.push(row.mode);
        }
    }
    let mut rows = Vec::new();
    for guest in &figures.guests {
        for cache in [Cache::Warm, Cache::Cold] {
            let of = |mode: &&str| {
                let same = |row: &&RestoreFigures| row.cache == cache && row.mode == *mode;
                let row = guest.restores.iter().find(same)?;
                let seconds = row.median(|sample| sample.outside.ttr(1.0, 0.95))?;
                Some((seconds * 1e3).max(LEAST_MS))
            };
            let times: Vec<Option<f64>> = modes.iter().map(of).collect();
            if times.iter().any(Option::is_some) {
                let name = format!("{} {}", guest.name(), cache.name());
                rows.push(DotRow { name, figures: times });
            }
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    let dots = Dots {
        title: "Time to responsiveness (1 s, 95 %) after a restore, ms".into(),
        unit: "logarithmic; left is sooner".into(),
        series: modes.iter().map(|&mode| mode.to_owned()).collect(),
        rows,
    };
    dots.draw(&folder()?.join("restore.svg"))
}
