//! `fathom curve`: how many misses the guest would have with other sizes of memory.

pub(crate) mod plot;
mod svg;

use std::fs;
use std::process::ExitCode;

use api::{CurveOf, MemoryCurve, SocketDirectory};

use crate::arguments::CurveArguments;
use crate::failure::{Failure, SUCCESS};
use crate::list::print;
use crate::text;

/// Of the plot on a terminal.
const WIDTH: usize = 72;
const HEIGHT: usize = 16;

pub(crate) fn curve(arguments: &CurveArguments) -> Result<ExitCode, Failure> {
    let curve = SocketDirectory::open()?.client(&arguments.name).curve()?;
    if let Some(path) = &arguments.svg {
        let refused = |error| Failure::Host(format!("plot {}: {error}", path.display()));
        fs::write(path, svg::drawn(&arguments.name, &curve)).map_err(refused)?;
    }
    if arguments.json {
        print(&(serde_json::to_string(&curve).map_err(Failure::host)? + "\n"));
    } else if arguments.svg.is_none() {
        print(&shown(&curve));
    }
    Ok(ExitCode::from(SUCCESS))
}

fn shown(curve: &MemoryCurve) -> String {
    if curve.points.is_empty() {
        return "Nothing is known yet of other sizes of memory: the guest has read nothing from its disks, or was not started with --insight on.\n".to_owned();
    }
    let lines = plot::lines(curve, WIDTH, HEIGHT).join("\n");
    format!("{}\n{lines}\n{}", what(curve), words(curve))
}

/// What the miss ratio is a part of.
pub(crate) fn what(curve: &MemoryCurve) -> &'static str {
    match curve.of {
        CurveOf::Misses => "Miss ratio: which part of today's misses is left with more memory",
        CurveOf::References => "Miss ratio: which part of references misses",
    }
}

fn words(curve: &MemoryCurve) -> String {
    let allocation = text::bytes(curve.allocation_bytes);
    let mut words = format!("\nThe guest has {allocation} now (|).");
    if let Some(recommended) = &curve.recommendation {
        words += &format!(
            " It would use {} well (^), which is {:.0} % sure: {}.",
            text::bytes(recommended.bytes),
            recommended.confidence * 100.0,
            text::line(&recommended.why)
        );
    }
    words + "\n"
}

#[cfg(test)]
mod tests {
    use api::VmControl;
    use api::testing::FakeVm;

    use super::*;

    #[test]
    fn a_curve_has_its_allocation_and_its_recommendation() {
        let curve = FakeVm::new("web").memory().expect("memory").curve;
        let shown = shown(&curve);
        assert!(shown.contains("The guest has 240M now"), "{shown}");
        assert!(shown.contains("It would use 320M well (^), which is 80 % sure: half"), "{shown}");
        let svg = svg::drawn("a<b", &curve);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("a&lt;b") && svg.contains("240M") && svg.contains("320M"), "{svg}");
    }

    #[test]
    fn nothing_known_is_said() {
        assert!(shown(&MemoryCurve::default()).starts_with("Nothing is known yet"));
        assert!(svg::drawn("web", &MemoryCurve::default()).ends_with("</svg>\n"));
    }
}
