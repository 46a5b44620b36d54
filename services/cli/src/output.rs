//! What is printed: results on standard output, everything else on standard error.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};

use banger_api::{Error, Result, now_usec};
use indicatif::{MultiProgress, ProgressDrawTarget};
use serde::Serialize;
use serde_json::Value;

pub struct Output {
    pub json: bool,
    pub quiet: bool,
    /// Progress bars, on a terminal.
    pub bars: Option<MultiProgress>,
}

impl Output {
    pub fn new(json: bool, quiet: bool) -> Self {
        let bars = (std::io::stderr().is_terminal() && !json && !quiet)
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Self { json, quiet, bars }
    }

    /// A remark that nobody has to read. Only errors begin with the program's name.
    pub fn note(&self, text: &str) {
        if self.quiet {
            return;
        }
        match &self.bars {
            Some(bars) => bars.suspend(|| tell(text)),
            None => tell(text),
        }
    }

    /// One line of result.
    pub fn line(&self, text: &str) {
        print(&format!("{text}\n"));
    }

    /// A result as JSON.
    pub fn value(&self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(Error::internal)?;
        print(&format!("{text}\n"));
        Ok(())
    }

    /// Rows as a table for people, or as a list of objects for programs.
    pub fn rows<R: Serialize>(
        &self,
        rows: &[R],
        header: &[&str],
        columns: impl Fn(&R) -> Vec<String>,
    ) -> Result<()> {
        if self.json {
            return self.value(&rows);
        }
        let rows: Vec<Vec<String>> = rows.iter().map(columns).collect();
        if self.quiet {
            rows.iter().for_each(|row| self.line(&row[0]));
        } else {
            print(&table(header, &rows));
        }
        Ok(())
    }

    /// What an object's `Describe` said.
    pub fn description(&self, json: &str) -> Result<()> {
        let value: Value = serde_json::from_str(json)
            .map_err(|error| Error::internal(format!("the description makes no sense: {error}")))?;
        if self.json {
            return self.value(&value);
        }
        let mut lines = Vec::new();
        flatten("", &value, &mut lines);
        let width = lines.iter().map(|(key, _)| key.chars().count()).max().unwrap_or(0);
        for (key, value) in lines {
            self.line(&format!("{key:>width$}: {value}"));
        }
        Ok(())
    }
}

/// A line on standard error. That nobody reads it is no reason to leave what is under way alone, as a panic would.
pub fn tell(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints, and leaves if nobody reads any more (`banger ps | head -1`).
pub fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    if let Err(error) = written {
        if error.kind() != ErrorKind::BrokenPipe {
            tell(format_args!("banger: cannot write to standard output: {error}"));
        }
        std::process::exit(1);
    }
}

/// Columns as wide as what is in them.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(|&cell| cell.to_owned()).collect();
    let all = || std::iter::once(&header).chain(rows);
    let widths: Vec<usize> = (0..header.len())
        .map(|column| all().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in all() {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("   ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The first line of a text, or as much of it as fits beside other things.
pub fn headline(text: &str) -> String {
    const LENGTH: usize = 60;
    let text = text.trim();
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None if line.len() < text.len() => format!("{line} …"),
        None => line.to_owned(),
    }
}

/// Nested keys with dots; units that the keys name are put in words.
fn flatten(prefix: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    let key = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(name, value)| flatten(&key(name), value, lines)),
        Value::Array(items) if items.iter().any(Value::is_object) => {
            items.iter().enumerate().for_each(|(index, value)| {
                flatten(&key(&index.to_string()), value, lines);
            });
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(scalar).collect();
            lines.push((prefix.to_owned(), or_dash(&items.join(" "))));
        }
        Value::Number(number) => {
            let text = match number.as_u64() {
                Some(bytes) if is_size(prefix) => size(bytes),
                Some(time) if prefix.ends_with("timestamp") || prefix.ends_with("usec") => ago(time),
                _ => number.to_string(),
            };
            lines.push((prefix.to_owned(), text));
        }
        other => lines.push((prefix.to_owned(), or_dash(&scalar(other)))),
    }
}

/// Whether a number by this name is of bytes.
fn is_size(key: &str) -> bool {
    const SIZES: [&str; 9] = [
        "bytes",
        "size",
        "memory",
        "memory_max",
        "disk",
        "disk_used",
        "work",
        "disk_bandwidth",
        "network_bandwidth",
    ];
    let name = key.rsplit('.').next().unwrap_or(key);
    SIZES.contains(&name) || name.ends_with("_bytes") || name.ends_with("_size")
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(value) => if *value { "yes" } else { "no" }.to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

pub fn yes(value: bool) -> String {
    if value { "yes" } else { "-" }.into()
}

/// Bytes with a binary unit, as `df -h` has it.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "K", "M", "G", "T", "P"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    // A fraction only where it says something.
    let tenths = (value * 10.0).round();
    if unit == 0 || value >= 100.0 || tenths % 10.0 == 0.0 {
        format!("{value:.0}{}", UNITS[unit])
    } else {
        format!("{value:.1}{}", UNITS[unit])
    }
}

/// A time (microseconds since 1970) in the form of RFC 3339, in UTC.
pub fn utc(usec: u64) -> String {
    let time = i64::try_from(usec).ok().and_then(|usec| jiff::Timestamp::from_microsecond(usec).ok());
    time.map_or_else(|| format!("@{usec}"), |time| format!("{time:.6}"))
}

/// How long ago a time (microseconds since 1970) was.
pub fn ago(usec: u64) -> String {
    if usec == 0 {
        return "-".into();
    }
    let seconds = now_usec().saturating_sub(usec) / 1_000_000;
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(utc(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(utc(951_782_400_000_001), "2000-02-29T00:00:00.000001Z");
        assert_eq!(utc(1_709_251_199_500_000), "2024-02-29T23:59:59.500000Z");
        assert_eq!(utc(1_735_689_600_000_000), "2025-01-01T00:00:00.000000Z");
    }

    #[test]
    fn sizes() {
        let cases = [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1K"),
            (1536, "1.5K"),
            (1 << 30, "1G"),
            ((1 << 30) - 1, "1G"),
            (130 << 20, "130M"),
            (u64::MAX, "16384P"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn columns_line_up_and_lines_do_not_trail() {
        let rows = [vec!["a".into(), "running".into()], vec!["longer".into(), String::new()]];
        assert_eq!(table(&["NAME", "STATE"], &rows), "NAME     STATE\na        running\nlonger\n");
    }

    #[test]
    fn headlines_are_short() {
        assert_eq!(headline("\nmake\nmake install\n"), "make …");
        assert_eq!(headline("true\n"), "true");
        assert_eq!(headline(&"ä".repeat(99)).chars().count(), 61);
    }

    #[test]
    fn descriptions_are_flat_and_readable() {
        let value = serde_json::json!({
            "name": "web", "memory_bytes": 1_073_741_824u64, "cmd": ["sh", "-c"], "network": {"nat": true},
            "address": "", "disks": [{"path": "/a"}], "spec": {"memory": 0, "cpus": 2}, "ended": {"usec": 0},
        });
        let mut lines = Vec::new();
        flatten("", &value, &mut lines);
        let text: Vec<String> = lines.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(
            text,
            [
                "address=-",
                "cmd=sh -c",
                "disks.0.path=/a",
                "ended.usec=-",
                "memory_bytes=1G",
                "name=web",
                "network.nat=yes",
                "spec.cpus=2",
                "spec.memory=0B",
            ]
        );
    }
}
