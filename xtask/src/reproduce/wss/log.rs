//! What `fathom run --estimate-log` writes.

use anyhow::{Context, Result, bail};
use insight::MissRatioCurve;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::Path;

/// An epoch's end.
#[derive(Deserialize)]
pub(super) struct Line {
    pub(super) unix_ns: u64,
    pub(super) estimates: BTreeMap<String, Estimate>,
    pub(super) demand: Demand,
    /// Of sampling's last period alone, a part of all memory.
    pub(super) last_sample: Option<f64>,
    pub(super) rate: Option<f64>,
    curve: Option<Ratios>,
}

#[derive(Clone, Copy, Deserialize)]
pub(super) struct Estimate {
    pub(super) bytes: u64,
}

#[derive(Clone, Deserialize)]
pub(super) struct Demand {
    pub(super) bytes: u64,
    pub(super) confidence: f64,
    pub(super) why: String,
}

#[derive(Deserialize)]
struct Ratios {
    step: u64,
    ratios: Vec<f64>,
}

impl Line {
    pub(super) fn pages(&self, method: &str) -> Option<f64> {
        Some(self.estimates.get(method)?.bytes as f64 / 4096.0)
    }

    pub(super) fn curve(&self) -> Option<MissRatioCurve> {
        let Ratios { step, ratios } = self.curve.as_ref()?;
        Some(MissRatioCurve::from_ratios(*step, ratios.clone()))
    }
}

pub(super) fn read(file: &Path) -> Result<Vec<Line>> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().with_context(|| format!("read {}", file.display()))
}

/// Accesses by moments of some milliseconds.
pub(super) struct Accesses<R> {
    file: R,
}

/// An end of such a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) time: u64,
    /// An interval of the estimators begins with it.
    pub(super) begins: bool,
}

/// What follows is a time.
const MARK: u32 = u32::MAX;
/// An interval ends.
const INTERVAL_END: u32 = u32::MAX - 1;

impl Accesses<BufReader<File>> {
    pub(super) fn open(file: &Path) -> Result<Self> {
        let open = File::open(file).with_context(|| format!("read {}", file.display()))?;
        Ok(Self { file: BufReader::with_capacity(1 << 20, open) })
    }
}

impl<R: Read> Accesses<R> {
    #[cfg(test)]
    pub(super) fn of(file: R) -> Self {
        Self { file }
    }

    /// The next moment's frames, into `frames`; `None` at the end.
    pub(super) fn next(&mut self, frames: &mut Vec<u32>, end: u32) -> Result<Option<Moment>> {
        frames.clear();
        let mut begins = false;
        let mut word = [0; 4];
        loop {
            if self.file.read_exact(&mut word).is_err() {
                return Ok(None);
            }
            match u32::from_le_bytes(word) {
                MARK => break,
                INTERVAL_END => begins = true,
                frame if frame < end => frames.push(frame),
                frame => bail!("the log of accesses has frame {frame} of {end}"),
            }
        }
        let mut time = [0; 8];
        self.file.read_exact(&mut time).context("the log of accesses ends in a mark")?;
        Ok(Some(Moment { time: u64::from_le_bytes(time), begins }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_end_at_marks() {
        let mut bytes = Vec::new();
        for word in [3u32, 1, MARK, 7, 0, INTERVAL_END, MARK, 8, 0, 5] {
            bytes.extend(word.to_le_bytes());
        }
        let mut accesses = Accesses { file: bytes.as_slice() };
        let mut frames = Vec::new();
        assert_eq!(accesses.next(&mut frames, 9).unwrap(), Some(Moment { time: 7, begins: false }));
        assert_eq!(frames, [3, 1]);
        assert_eq!(accesses.next(&mut frames, 9).unwrap(), Some(Moment { time: 8, begins: true }));
        assert!(frames.is_empty());
        assert_eq!(accesses.next(&mut frames, 9).unwrap(), None);
        let mut wrong = Accesses { file: bytes.as_slice() };
        assert!(wrong.next(&mut frames, 3).is_err());
    }

    #[test]
    fn a_line_has_what_is_known() {
        let text = r#"{"unix_ns":5,"resident_bytes":1,"estimates":{"census":{"bytes":8192,"error_bytes":null}},
            "demand":{"bytes":4096,"confidence":0.5,"why":"working_set"},"rate":0.1,"busy_ns":3,
            "curve":{"step":2,"ratios":[1.0,0.5]}}"#;
        let line: Line = serde_json::from_str(text).unwrap();
        assert_eq!((line.pages("census"), line.pages("order")), (Some(2.0), None));
        assert!((line.curve().unwrap().miss_ratio(1) - 0.75).abs() < 1e-9);
    }
}
