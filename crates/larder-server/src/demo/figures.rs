//! Numbers as people read them, and the closing table.

use std::time::Duration;

/// `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A rate, without fraction: `12,345`.
pub(crate) fn rate(per_second: f64) -> String {
    count(per_second.round() as u64)
}

/// `0.21 ms`, `12.3 ms`, `150 ms`, `1.20 s`.
pub(crate) fn latency(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1e3;
    match ms {
        ..10.0 => format!("{ms:.2} ms"),
        10.0..100.0 => format!("{ms:.1} ms"),
        100.0..1_000.0 => format!("{ms:.0} ms"),
        _ => format!("{:.2} s", ms / 1e3),
    }
}

/// `98.7 %`; `-` of nothing.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    format!("{:.1} %", part as f64 / whole as f64 * 100.0)
}

/// Rows in columns: the first to the left, the others to the right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        format!("  {}", cells.collect::<Vec<_>>().join("   "))
            .trim_end()
            .to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        let counts = [0, 999, 1_000, 1_234_567].map(count);
        assert_eq!(counts, ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(rate(1_499.6), "1,500");
        let latencies = [210, 12_340, 150_400, 1_204_000];
        assert_eq!(
            latencies.map(|micros| latency(Duration::from_micros(micros))),
            ["0.21 ms", "12.3 ms", "150 ms", "1.20 s"]
        );
        assert_eq!(
            (percent(987, 1_000), percent(0, 0)),
            ("98.7 %".into(), "-".into())
        );
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a", "1", "22"], vec!["long", "333"]]
            .map(|row| row.into_iter().map(String::from).collect());
        assert_eq!(table(&rows), "  a        1   22\n  long   333");
    }
}
