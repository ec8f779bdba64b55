//! Figures and tables as text.

use std::fmt::Write as _;

/// Bytes in three figures or so: `0`, `4.0K`, `31.2M`, `256M`, `1.5G`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "K", "M", "G", "T", "P", "E"];
    let (mut value, mut unit) = (bytes as f64, 0);
    // 1023.5 and more would be shown as 1024.
    while value >= 1023.5 {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = usize::from(unit > 0 && value < 99.95);
    let text = format!("{value:.decimals$}");
    format!("{}{}", text.strip_suffix(".0").unwrap_or(&text), UNITS[unit])
}

/// The same, or a dash.
pub(crate) fn bytes_or_dash(value: Option<u64>) -> String {
    value.map_or_else(|| "-".to_owned(), bytes)
}

/// Seconds as `12s`, `3m05s`, `2h07m`, `3d04h`.
pub(crate) fn duration(seconds: f64) -> String {
    // As a cast saturates, so does what is shown.
    let seconds = seconds as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if minutes == 0 => format!("{seconds}s"),
        () if hours == 0 => format!("{minutes}m{:02}s", seconds % 60),
        () if days == 0 => format!("{hours}h{:02}m", minutes % 60),
        () => format!("{days}d{:02}h", hours % 24),
    }
}

/// Columns, the first left and the others right aligned, two spaces apart.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let space = if column == 0 { "" } else { "  " };
            // Writing to a string cannot fail.
            let _ = match column {
                0 => write!(line, "{cell:<width$}"),
                _ => write!(line, "{space}{cell:>width$}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Somebody else's text, fit for a terminal.
pub(crate) fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short() {
        for (value, text) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1K"),
            (1536, "1.5K"),
            ((1 << 20) - 1, "1M"),
            (31 * (1 << 20) + (1 << 18), "31.2M"),
            (256 << 20, "256M"),
            (3 << 29, "1.5G"),
            (u64::MAX, "16E"),
        ] {
            assert_eq!(bytes(value), text);
        }
        assert_eq!(bytes_or_dash(None), "-");
    }

    #[test]
    fn durations_are_short() {
        for (seconds, text) in [
            (0.9, "0s"),
            (59.9, "59s"),
            (185.0, "3m05s"),
            (7620.0, "2h07m"),
            (274_000.0, "3d04h"),
            (-1.0, "0s"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn tables_are_aligned() {
        let row = |cells: &[&str]| cells.iter().map(ToString::to_string).collect::<Vec<_>>();
        let text = table(&[row(&["NAME", "PID"]), row(&["a", "12345"])]);
        assert_eq!(text, "NAME    PID\na     12345\n");
    }
}
