//! Pages for a terminal: columns, bars, figures for people, and text of a sandbox made safe to show.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};

use agentsandbox_action_log::text::visible;
use anstyle::{AnsiColor, Style};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// Longest text of a sandbox on one line, in bytes.
const TEXT_MAX: usize = 2048;
/// Width of a bar, in characters.
const BAR: usize = 20;

/// Text of a sandbox as one line: every character that a terminal would act on, or that can't be seen, is written out.
pub fn shown(text: &str) -> String {
    visible(text, TEXT_MAX).into_owned()
}

/// Text of a sandbox as lines, each made safe by [`shown`].
pub fn shown_lines(text: &str) -> impl Iterator<Item = String> + '_ {
    text.lines().map(shown)
}

/// Prints on standard output what was made safe by [`shown`] where it is not our own.
pub fn print(text: &str) -> std::io::Result<()> {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Prints a document on standard output: byte for byte, but to a terminal with each line made safe.
pub fn print_document(text: &str) -> std::io::Result<()> {
    if !std::io::stdout().is_terminal() {
        let mut out = std::io::stdout().lock();
        return out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
    let safe: String = text
        .lines()
        .map(|line| visible(line, usize::MAX).into_owned() + "\n")
        .collect();
    print(&safe)
}

/// What is fine.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// What is not.
pub const BAD: Style = AnsiColor::Red.on_default();
/// What deserves a look.
pub const FAIR: Style = AnsiColor::Yellow.on_default();
/// What stands in the background.
pub const FAINT: Style = Style::new().dimmed();
/// Headings.
pub const BOLD: Style = Style::new().bold();

/// Text in a style. Colours reach terminals only, and none with `NO_COLOR`: `anstream` takes them out.
pub fn styled(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// Rows as columns, each as wide as its widest cell; two spaces lie between them.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a head.
    pub fn new(head: &[&str]) -> Self {
        Self {
            rows: vec![head.iter().map(|&cell| cell.to_owned()).collect()],
        }
    }

    /// One more row. An empty cell shows as `-`.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells
            .into_iter()
            .map(|cell| if cell.is_empty() { "-".to_owned() } else { cell });
        self.rows.push(cells.collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
            })
            .collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:<width$}  ");
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// How much of a limit is used, such as `[#####...............]  25 %`.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss
)]
pub fn bar(used: f64, limit: f64) -> String {
    if limit <= 0.0 {
        return String::new();
    }
    let share = (used / limit).max(0.0);
    let filled = ((share.min(1.0) * BAR as f64).round() as usize).min(BAR);
    // The little that is used shows, and full is only what is full.
    let filled = match filled {
        0 if used > 0.0 => 1,
        BAR if share < 1.0 => BAR - 1,
        other => other,
    };
    let style = match share {
        share if share >= 1.0 => BAD,
        share if share >= 0.8 => FAIR,
        _ => GOOD,
    };
    format!(
        "[{style}{}{style:#}{}] {:>3.0} %",
        "#".repeat(filled),
        ".".repeat(BAR - filled),
        share * 100.0
    )
}

/// Bytes in binary units, such as `1.5Mi`.
#[allow(clippy::cast_precision_loss)]
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["", "Ki", "Mi", "Gi", "Ti"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value.fract() == 0.0 {
        format!("{value:.0}{}", UNITS[unit])
    } else {
        format!("{value:.1}{}", UNITS[unit])
    }
}

/// Seconds for people, such as `1.2s`, `3m5s` or `2d4h`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn seconds(seconds: f64) -> String {
    if seconds < 10.0 {
        return format!("{seconds:.1}s");
    }
    let whole = seconds.round() as u64;
    let two = |big: u64, unit: char, small: u64, lesser: char| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{lesser}"),
    };
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => two(whole / 60, 'm', whole % 60, 's'),
        3600..86_400 => two(whole / 3600, 'h', whole % 3600 / 60, 'm'),
        _ => two(whole / 86_400, 'd', whole % 86_400 / 3600, 'h'),
    }
}

/// How long ago, such as `5m`.
pub fn age(from: Timestamp, now: Timestamp) -> String {
    let passed = now.duration_since(from).max(SignedDuration::ZERO);
    seconds(passed.as_secs_f64().floor().max(0.0)).replace(".0s", "s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        for (value, expected) in [
            (0.04, "0.0s"),
            (1.25, "1.2s"),
            (59.6, "1m"),
            (61.0, "1m1s"),
            (7260.0, "2h1m"),
            (90_000.0, "1d1h"),
        ] {
            assert_eq!(seconds(value), expected);
        }
        for (value, expected) in [(0, "0"), (1023, "1023"), (1536, "1.5Ki"), (128 << 20, "128Mi")] {
            assert_eq!(bytes(value), expected);
        }
        let now = Timestamp::from_second(1000).unwrap();
        assert_eq!(age(Timestamp::from_second(995).unwrap(), now), "5s");
        assert_eq!(age(Timestamp::from_second(2000).unwrap(), now), "0s");
    }

    #[test]
    fn bars_show_the_little_and_are_full_only_when_full() {
        let plain = |used, limit| anstream::adapter::strip_str(&bar(used, limit)).to_string();
        assert_eq!(plain(0.0, 10.0), "[....................]   0 %");
        assert_eq!(plain(0.001, 10.0), "[#...................]   0 %");
        assert_eq!(plain(9.99, 10.0), "[###################.] 100 %");
        assert_eq!(plain(30.0, 10.0), "[####################] 300 %");
        assert_eq!(plain(1.0, 0.0), "");
    }

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let mut table = Table::new(&["NAME", "PHASE"]);
        table.row(["a-long-name".to_owned(), String::new()]);
        assert_eq!(table.to_string(), "NAME         PHASE\na-long-name  -\n");
    }

    #[test]
    fn what_a_terminal_acts_on_is_written_out() {
        assert_eq!(
            shown("a\u{1b}]0;x\u{7}\r\n\u{202e}b\u{200b}\u{9b}é"),
            "a\\u{1b}]0;x\\u{7}\\r\\n\\u{202e}b\\u{200b}\\u{9b}é"
        );
        assert_eq!(shown_lines("a\nb\u{8}").collect::<Vec<_>>(), ["a", "b\\u{8}"]);
    }
}
