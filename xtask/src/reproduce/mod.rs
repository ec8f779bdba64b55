//! The experiments that made published systems known, on this machine: our figures beside theirs.
//!
//! A row is an [`Outcome`]: what the paper says, what was run, a table, a picture and all figures as JSON.

mod esx;
mod geiger;
mod paths;
mod place;
mod profile;
mod qmp;
mod restore;
mod self_e;
mod substrate;
mod translate;
mod wss;

use crate::dots::Dots;
use crate::workspace;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub(crate) enum Reproduce {
    /// What sensitive instructions cost as trap, call-out and in line (VMware, 1998-2006)
    Translate(RowArgs),
    /// Tier-up by predicted trip counts (Namjoshi and Kulkarni, 2010)
    Profile(RowArgs),
    /// Paths over several blocks, by policy: memory and speed (Guha, Hazelwood and Soffa, 2010)
    Paths(RowArgs),
    /// What comes into a guest's page cache and what is evicted, seen from outside (Geiger, 2006)
    Geiger(geiger::GeigerArgs),
    /// What each frame of a guest is for, seen from outside, against its kernel's word (SELF-e, 2019)
    #[command(name = "self-e")]
    SelfE(self_e::SelfEArgs),
    /// How soon a guest that was saved does its work again (Zhang and others, 2011)
    Restore(restore::RestoreArgs),
    /// Saved guests in memory, and VMs made of them (Wang, Rao and Xu, 2011)
    Substrate(substrate::SubstrateArgs),
    /// How much memory a guest uses, by several methods at once (ESX, 2002, and others)
    Wss(wss::WssArgs),
    /// Memory to the guest that uses it: balloon, idle tax, idle sampling (VMware ESX, 2002)
    Esx(esx::EsxArgs),
}

#[derive(Args)]
pub(crate) struct RowArgs {
    /// Runs of each, by turns; the median is shown
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
    /// Little work, once: whether it works, not what it costs
    #[arg(long)]
    quick: bool,
    /// Also write all figures to this file, as one JSON object
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl RowArgs {
    fn runs(&self) -> u64 {
        if self.quick { 1 } else { self.runs }
    }
}

/// What came of an experiment.
trait Outcome: Serialize {
    /// The row's name.
    const NAME: &'static str;
    /// What the paper says, with its name.
    const PAPER: &'static str;
    /// What was run here.
    const RUN: &'static str;

    fn table(&self) -> String;
    fn picture(&self) -> Dots;
    /// What takes from what the table says.
    fn troubles(&self) -> &[String];
}

pub(crate) fn run(row: &Reproduce) -> Result<()> {
    match row {
        Reproduce::Translate(args) => publish(&translate::measure(args)?, args),
        Reproduce::Profile(args) => publish(&profile::measure(args)?, args),
        Reproduce::Paths(args) => publish(&paths::measure(args)?, args),
        Reproduce::Geiger(args) => geiger::run(args),
        Reproduce::SelfE(args) => self_e::run(args),
        Reproduce::Restore(args) => restore::run(args),
        Reproduce::Substrate(args) => substrate::run(args),
        Reproduce::Wss(args) => wss::run(args),
        Reproduce::Esx(args) => esx::run(args),
    }
}

fn publish<O: Outcome>(outcome: &O, args: &RowArgs) -> Result<()> {
    let folder = folder()?;
    let picture = folder.join(O::NAME).with_extension("svg");
    outcome.picture().draw(&picture)?;
    if let Some(file) = &args.json {
        write_json(file, &Json::of(outcome))?;
    }
    print!("{}", text(outcome));
    println!("picture: {}", picture.display());
    Ok(())
}

/// All figures, as one value of JSON.
fn write_json(file: &Path, figures: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(figures)?;
    fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))
}

/// Where pictures and what experiments leave lie.
fn folder() -> Result<PathBuf> {
    let folder = workspace::target().join("reproduce");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}

fn text<O: Outcome>(outcome: &O) -> String {
    let mut text = format!("{}\npaper: {}\nrun:   {}\n\n", O::NAME, O::PAPER, O::RUN);
    text += &outcome.table();
    for trouble in outcome.troubles() {
        text += &format!("! {}\n", trouble.lines().next().unwrap_or_default());
    }
    text
}

#[derive(Serialize)]
struct Json<'a, O> {
    row: &'static str,
    paper: &'static str,
    run: &'static str,
    #[serde(flatten)]
    outcome: &'a O,
}

impl<'a, O: Outcome> Json<'a, O> {
    fn of(outcome: &'a O) -> Self {
        Self { row: O::NAME, paper: O::PAPER, run: O::RUN, outcome }
    }
}

/// Three digits of what is small, none behind the point of what is large.
fn digits(figure: Option<f64>) -> String {
    match figure {
        None => "-".into(),
        Some(figure) if figure.abs() < 10.0 => format!("{figure:.2}"),
        Some(figure) if figure.abs() < 100.0 => format!("{figure:.1}"),
        Some(figure) => format!("{figure:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dots::DotRow;

    #[derive(Serialize)]
    struct Some3 {
        figure: f64,
    }

    impl Outcome for Some3 {
        const NAME: &'static str = "three";
        const PAPER: &'static str = "it is three";
        const RUN: &'static str = "counted";

        fn table(&self) -> String {
            format!("ours {}\n", self.figure)
        }

        fn picture(&self) -> Dots {
            let rows = vec![DotRow { name: "ours".into(), figures: vec![Some(self.figure)] }];
            Dots { title: String::new(), unit: String::new(), series: vec!["a".into()], rows }
        }

        fn troubles(&self) -> &[String] {
            const { &[] }
        }
    }

    #[test]
    fn an_outcome_says_what_the_paper_says_and_what_was_run() {
        let outcome = Some3 { figure: 3.0 };
        assert_eq!(text(&outcome), "three\npaper: it is three\nrun:   counted\n\nours 3\n");
        let json = serde_json::to_value(Json::of(&outcome)).unwrap();
        assert_eq!((json["row"].as_str(), json["figure"].as_f64()), (Some("three"), Some(3.0)));
    }

    #[test]
    fn figures_have_as_many_digits_as_they_are_worth() {
        let shown = [None, Some(0.123), Some(12.34), Some(2030.4)].map(digits);
        assert_eq!(shown, ["-", "0.12", "12.3", "2030"]);
    }
}
