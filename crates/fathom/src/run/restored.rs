//! What a restore came to, for people: a table, and a picture beside the report.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use api::Restore;

use crate::failure::Failure;
use crate::svg::{LEFT, PLOT_HEIGHT, PLOT_WIDTH, TOP, begin, caption, polyline, y};
use crate::text;

/// Decades of seconds that are drawn: from a millisecond to ten seconds.
const FIRST_DECADE: i32 = -3;
const DECADES: i32 = 4;

/// Several lines: when it ran, and when it had its time to itself again.
pub(super) fn table(restore: &Restore) -> String {
    let Restore { mode, faults, .. } = restore;
    let complete = restore
        .complete_seconds
        .map_or("not before it ended".to_owned(), |seconds| format!("after {}", time(seconds)));
    let mut lines = format!(
        "fathom: restored, {mode}: first instruction after {}, all memory there {complete}\n  \
         {} read; {} frames came ahead, {} when they were needed and {} with these; {} waits for a frame on its way\n",
        time(restore.first_instruction_seconds),
        text::bytes(restore.bytes_read),
        restore.frames_prefetched,
        faults.demand,
        faults.neighbours,
        faults.waited,
    );
    let mut windows: Vec<f64> = restore.ttr.iter().map(|ttr| ttr.window_seconds).collect();
    windows.dedup();
    lines += "  responsive        90 %      95 %      99 %\n";
    for window in windows {
        let of_window = restore.ttr.iter().filter(|ttr| ttr.window_seconds == window);
        let times: String =
            of_window.map(|ttr| format!("{:>10}", time(ttr.worst_seconds))).collect();
        lines += &format!("  in {:<8}{times}\n", time(window));
    }
    lines
}

fn time(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.1} ms", seconds * 1e3) } else { format!("{seconds:.2} s") }
}

/// Makes the picture's file beside `report`, with the ending `.svg`.
pub(super) fn make_picture(report: &Path) -> Result<File, Failure> {
    let path = report.with_extension("svg");
    let refused = |error| Failure::Usage(format!("picture {}: {error}", path.display()));
    if path == report {
        return Err(Failure::Usage(format!(
            "report {}: a picture with that name comes beside it: end it in .json",
            report.display()
        )));
    }
    File::create(&path).map_err(refused)
}

/// Draws the curve.
pub(super) fn draw(mut picture: &File, name: &str, restore: &Restore) -> Result<(), Failure> {
    let refused = |error| Failure::Host(format!("picture of the restore: {error}"));
    picture.write_all(drawn(name, restore).as_bytes()).map_err(refused)
}

fn drawn(name: &str, restore: &Restore) -> String {
    let title = format!(
        "VM {name}, restored, {}: the share of any second from then on that vCPU 0 had at least",
        restore.mode
    );
    let mut svg = begin(&title);
    for decade in 0..=DECADES {
        let seconds = 10f64.powi(FIRST_DECADE + decade);
        caption(&mut svg, x(seconds), TOP + PLOT_HEIGHT + 18.0, "middle", &time(seconds));
    }
    let end = PLOT_WIDTH + LEFT;
    // It stays what it was until the next point.
    let mut points = Vec::new();
    let mut last = restore.curve.first().map_or(1.0, |point| point[1]);
    for &[at, share] in &restore.curve {
        points.extend([(x(at), y(last)), (x(at), y(share))]);
        last = share;
    }
    points.push((end, y(last)));
    polyline(&mut svg, points.into_iter(), "#c33");
    svg + "</svg>\n"
}

fn x(seconds: f64) -> f64 {
    let decades = (seconds.max(1e-9).log10() - f64::from(FIRST_DECADE)) / f64::from(DECADES);
    LEFT + decades.clamp(0.0, 1.0) * PLOT_WIDTH
}

#[cfg(test)]
mod tests {
    use api::TimeToResponsiveness;

    use super::*;

    fn restore() -> Restore {
        let ttr = |window_seconds, utilization, worst_seconds| TimeToResponsiveness {
            window_seconds,
            utilization,
            mean_seconds: worst_seconds,
            worst_seconds,
        };
        Restore {
            mode: "lazy".into(),
            first_instruction_seconds: 0.0123,
            complete_seconds: Some(1.5),
            bytes_read: 3 << 20,
            ttr: vec![
                ttr(0.1, 0.9, 0.02),
                ttr(0.1, 0.95, 0.2),
                ttr(0.1, 0.99, 2.0),
                ttr(1.0, 0.9, 0.0),
            ],
            curve: vec![[0.0, 0.5], [0.2, 0.9], [0.4, 1.0]],
            ..Restore::default()
        }
    }

    #[test]
    fn people_read_when_it_responded() {
        let table = table(&restore());
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(
            lines[0],
            "fathom: restored, lazy: first instruction after 12.3 ms, all memory there after 1.50 s"
        );
        assert_eq!(lines[3], "  in 100.0 ms   20.0 ms  200.0 ms    2.00 s");
        assert_eq!(lines[4], "  in 1.00 s      0.0 ms");
    }

    #[test]
    fn the_picture_is_one_line_within_its_frame() {
        let svg = drawn("a<b", &restore());
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.contains("a&lt;b"));
        assert_eq!(svg.matches("<polyline").count(), 1);
        assert_eq!((x(0.0), x(1e9)), (LEFT, LEFT + PLOT_WIDTH));
        assert!((x(0.1) - LEFT - PLOT_WIDTH / 2.0).abs() < 1e-6);
    }
}
