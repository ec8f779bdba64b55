//! Medians, ratios and what to make of them.

use super::session::Session;
use super::{Engine, Workload};
use crate::bench::median;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

#[derive(Serialize)]
pub(super) struct Report {
    runs: u64,
    scale_percent: u64,
    /// The first is what the others are compared to.
    pub(super) engines: Vec<&'static str>,
    /// What the engines are, in their order.
    versions: Vec<String>,
    pub(super) rows: Vec<Row>,
    /// What went wrong, or was not done.
    troubles: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct Row {
    #[serde(flatten)]
    pub(super) workload: Workload,
    /// By the name of the engine; one that could not do it is missing.
    engines: BTreeMap<&'static str, Cell>,
    /// Whether all that did it came to the same result.
    same_result: bool,
}

#[derive(Serialize)]
struct Cell {
    median_seconds: f64,
    /// By the first engine's median.
    ratio: Option<f64>,
    seconds: Vec<f64>,
    /// The same by the clock of the host.
    host_seconds: Vec<f64>,
}

/// Runs whose longest took so many times the shortest say little.
const SPREAD_MAX: f64 = 1.5;

impl Cell {
    fn is_unsteady(&self) -> bool {
        let longest = self.seconds.iter().copied().fold(0.0, f64::max);
        let shortest = self.seconds.iter().copied().fold(f64::INFINITY, f64::min);
        longest > SPREAD_MAX * shortest
    }

    fn mark(&self) -> &'static str {
        if self.is_unsteady() { "~" } else { " " }
    }
}

/// What is asked of Fathom, times native: a group's geometric mean, or one workload.
const TARGETS: [(&str, f64); 5] = [
    ("integer", 1.8),
    ("float", 1.3),
    ("null-syscall", 3.0),
    ("page-fault", 6.0),
    ("cold-code", 60.0),
];
/// And beside QEMU, of all that both do: how many times as fast.
const QEMU_TARGET: f64 = 4.0;

impl Report {
    pub(super) fn new(
        runs: u64,
        scale_percent: u64,
        engines: &[Engine],
        versions: Vec<String>,
        workloads: &[Workload],
        sessions: &[Session],
        troubles: Vec<String>,
    ) -> Self {
        let rows = workloads.iter().map(|workload| Row::new(workload, engines, sessions)).collect();
        let engines = engines.iter().map(|engine| engine.name()).collect();
        Self { runs, scale_percent, engines, versions, rows, troubles }
    }

    pub(super) fn wrong_results(&self) -> usize {
        self.rows.iter().filter(|row| !row.same_result).count()
    }

    pub(super) fn table(&self) -> String {
        let mut table = self.head();
        let mut group = "";
        for row in &self.rows {
            if row.workload.group != group {
                group = &row.workload.group;
                table += &self.means(group, |row| row.workload.group == group);
            }
            table += &self.line(row);
        }
        table += &self.means("all", |_| true);
        for (ours, other) in [("fathom", "qemu"), ("fathom", "qemu-bpo"), ("fathom", "uml")] {
            table += &self.duel(ours, other);
        }
        table += &self.targets();
        for (engine, version) in self.engines.iter().zip(&self.versions) {
            let _ = writeln!(table, "{engine}: {version}");
        }
        for trouble in &self.troubles {
            let _ = writeln!(table, "! {}", trouble.lines().next().unwrap_or_default());
        }
        table
    }

    fn head(&self) -> String {
        let (first, others) = self.engines.split_first().unwrap_or((&"", &[]));
        let mut head = format!(
            "median of {} runs, {} % of the work; times {first}, geometric means beside groups\n\
             ~ where the longest run took over {SPREAD_MAX} times the shortest\n",
            self.runs, self.scale_percent
        );
        let _ = write!(head, "{:18}{:>11} ", "", format!("{first}, ms"));
        for engine in others {
            let _ = write!(head, "{engine:>9} ");
        }
        head.truncate(head.trim_end().len());
        head + "\n"
    }

    fn line(&self, row: &Row) -> String {
        let mut line = format!("  {:16}", row.workload.name);
        for (number, engine) in self.engines.iter().enumerate() {
            let cell = row.engines.get(engine);
            let mark = cell.map_or(" ", Cell::mark);
            let _ = match (number, cell) {
                (0, Some(cell)) => write!(line, "{:11.2}{mark}", cell.median_seconds * 1e3),
                (0, None) => write!(line, "{:>11} ", "-"),
                (_, cell) => write!(line, "{:>9}{mark}", times(cell.and_then(|cell| cell.ratio))),
            };
        }
        line.truncate(line.trim_end().len());
        line + if row.same_result { "\n" } else { "  <- RESULTS DIFFER\n" }
    }

    /// Geometric means, a column for each engine but the first.
    fn means(&self, what: &str, chosen: impl Fn(&Row) -> bool) -> String {
        let mut line = format!("{what:30}");
        for engine in self.engines.iter().skip(1) {
            let rows = self.rows.iter().filter(|row| chosen(row));
            let mean = geometric_mean(rows.filter_map(|row| row.ratio(engine)));
            let _ = write!(line, "{:>9} ", times(mean));
        }
        line.truncate(line.trim_end().len());
        line + "\n"
    }

    /// One engine by another, where both have a figure.
    fn duel(&self, ours: &str, other: &str) -> String {
        let pairs = self.rows.iter().filter_map(|row| {
            Some((row.workload.name.as_str(), row.seconds(other)? / row.seconds(ours)?))
        });
        let pairs: Vec<(&str, f64)> = pairs.collect();
        let Some(mean) = geometric_mean(pairs.iter().map(|(_, ratio)| *ratio)) else {
            return String::new();
        };
        let slower: Vec<&str> =
            pairs.iter().filter(|(_, ratio)| *ratio < 1.0).map(|(name, _)| *name).collect();
        let mut line = format!("{ours} is {} times as fast as {other}", times(Some(mean)));
        if other.starts_with("qemu") {
            let _ = write!(line, " (at least {QEMU_TARGET}, and nowhere slower)");
        }
        if !slower.is_empty() {
            let _ = write!(line, "; slower in {}: {}", slower.len(), slower.join(", "));
        }
        line + "\n"
    }

    fn targets(&self) -> String {
        let mut lines = String::new();
        for (name, most) in TARGETS {
            let rows = self
                .rows
                .iter()
                .filter(|Row { workload, .. }| workload.name == name || workload.group == name);
            if let Some(mean) = geometric_mean(rows.filter_map(|row| row.ratio("fathom"))) {
                let verdict = if mean <= most { "" } else { "  <- more" };
                let _ = writeln!(lines, "{name}: {} (at most {most}){verdict}", times(Some(mean)));
            }
        }
        lines
    }
}

impl Row {
    fn new(workload: &Workload, engines: &[Engine], sessions: &[Session]) -> Self {
        let of = |engine: Engine| {
            let sessions = sessions.iter().filter(move |session| session.engine == engine);
            sessions.flat_map(|session| &session.measurements).filter(|m| m.name == workload.name)
        };
        let base =
            engines.first().and_then(|first| median(of(*first).map(|m| m.seconds).collect()));
        let cells = engines.iter().filter_map(|&engine| {
            let seconds: Vec<f64> = of(engine).map(|m| m.seconds).collect();
            let median_seconds = median(seconds.clone())?;
            let ratio = base.map(|base| median_seconds / base);
            let host_seconds = of(engine).map(|m| m.host_seconds).collect();
            Some((engine.name(), Cell { median_seconds, ratio, seconds, host_seconds }))
        });
        let mut results = engines.iter().flat_map(|engine| of(*engine)).map(|m| &m.checksum);
        let first = results.next();
        let same_result = results.all(|result| Some(result) == first);
        Self { workload: workload.clone(), engines: cells.collect(), same_result }
    }

    pub(super) fn ratio(&self, engine: &str) -> Option<f64> {
        self.engines.get(engine)?.ratio
    }

    fn seconds(&self, engine: &str) -> Option<f64> {
        Some(self.engines.get(engine)?.median_seconds)
    }
}

fn geometric_mean(ratios: impl Iterator<Item = f64>) -> Option<f64> {
    let logarithms: Vec<f64> = ratios.map(f64::ln).collect();
    let count = logarithms.len() as f64;
    (count > 0.0).then(|| (logarithms.iter().sum::<f64>() / count).exp())
}

/// Two digits behind the point as long as they say something.
fn times(ratio: Option<f64>) -> String {
    match ratio {
        None => "-".into(),
        Some(ratio) if ratio < 10.0 => format!("{ratio:.2}"),
        Some(ratio) if ratio < 100.0 => format!("{ratio:.1}"),
        Some(ratio) => format!("{ratio:.0}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::session::tests::session;
    use super::*;

    pub(crate) fn report() -> Report {
        let workloads = [("alu", "integer"), ("sort", "integer"), ("x87", "float")]
            .map(|(name, group)| Workload { name: name.into(), group: group.into(), cpus: 1 });
        let sessions = [
            session(Engine::Native, &[("alu", 1.0, "1"), ("sort", 2.0, "2"), ("x87", 1.0, "3")]),
            session(Engine::Fathom, &[("alu", 2.0, "1"), ("sort", 1.0, "2"), ("x87", 9.0, "4")]),
            session(Engine::Qemu, &[("alu", 8.0, "1"), ("sort", 1.0, "2")]),
            session(Engine::Native, &[("alu", 1.2, "1")]),
            session(Engine::Native, &[("alu", 1.1, "1")]),
        ];
        let engines = [Engine::Native, Engine::Fathom, Engine::Qemu];
        let troubles = vec!["uml: left out\nmore".into()];
        Report::new(1, 100, &engines, vec!["QEMU 1".into()], &workloads, &sessions, troubles)
    }

    #[test]
    fn medians_are_compared_to_the_first_engines() {
        let report = report();
        assert_eq!(report.rows[0].ratio("fathom"), Some(2.0 / 1.1));
        assert_eq!(report.rows[1].ratio("qemu"), Some(0.5));
        assert_eq!(report.rows[2].ratio("qemu"), None);
        assert_eq!(report.wrong_results(), 1);
    }

    #[test]
    fn the_table_says_what_is_slower_or_wrong() {
        let table = report().table();
        let line = |start: &str| table.lines().find(|line| line.trim_start().starts_with(start));
        assert!(line("x87").is_some_and(|line| line.ends_with("<- RESULTS DIFFER")), "{table}");
        assert_eq!(
            line("alu"),
            Some("  alu                 1100.00      1.82      7.27"),
            "{table}"
        );
        assert_eq!(
            line("integer"),
            Some("integer                            0.95      1.91"),
            "{table}"
        );
        assert_eq!(
            line("fathom is"),
            Some("fathom is 2.00 times as fast as qemu (at least 4, and nowhere slower)"),
            "{table}"
        );
        assert_eq!(line("float: 9.00"), Some("float: 9.00 (at most 1.3)  <- more"), "{table}");
        assert!(line("! uml").is_some_and(|line| line.ends_with("left out")), "{table}");
    }
}
