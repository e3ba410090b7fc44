//! Markdown tables.

use crate::results::{Figures, Run, Summary};

/// A column: its title, the figure, the digits after the point, and whether the range is shown.
pub type Column<'a> = (&'a str, &'a str, usize, bool);

/// Pairs by figures; columns and rows that nothing was measured for are left out. Nothing without any.
pub fn by_pair(run: &Run, figures: &Figures, columns: &[Column<'_>]) -> Option<String> {
    let columns: Vec<&Column<'_>> = columns.iter().filter(|(_, figure, ..)| figures.has(figure)).collect();
    let mut rows = Vec::new();
    for pair in &run.pairs {
        let cells: Vec<Option<String>> =
            columns.iter().map(|column| Some(cell(figures.of_pair(&pair.name, column.1)?, column))).collect();
        if cells.iter().any(Option::is_some) {
            let cells = cells.into_iter().map(|cell| cell.unwrap_or_else(|| "–".into()));
            rows.push(std::iter::once(pair.name.clone()).chain(cells).collect());
        }
    }
    let titles = std::iter::once("pair").chain(columns.iter().map(|column| column.0));
    (!rows.is_empty()).then(|| markdown(titles.map(str::to_owned).collect(), rows))
}

/// The quotient of one figure for each of some pairs and every other one: `rows` over all.
pub fn ratios(run: &Run, figures: &Figures, rows: &[&str], figure: &str) -> Option<String> {
    let has = |pair: &&str| figures.of_pair(pair, figure).is_some_and(|summary| summary.median > 0.0);
    let others: Vec<&str> = run
        .pairs
        .iter()
        .map(|pair| pair.name.as_str())
        .filter(|pair| !rows.contains(pair))
        .filter(has)
        .collect();
    let rows: Vec<Vec<String>> = rows
        .iter()
        .filter(|pair| has(pair))
        .map(|pair| {
            let of = |name: &str| figures.of_pair(name, figure).map_or(f64::NAN, |summary| summary.median);
            let quotients = others.iter().map(|other| format!("{:.2}", of(pair) / of(other)));
            std::iter::once((*pair).to_owned()).chain(quotients).collect()
        })
        .collect();
    let titles = std::iter::once("").chain(others.iter().copied()).map(str::to_owned).collect();
    (!rows.is_empty() && !others.is_empty()).then(|| markdown(titles, rows))
}

fn cell(summary: Summary, (_, _, digits, ranged): &Column<'_>) -> String {
    let median = number(summary.median, *digits);
    let (least, greatest) = (number(summary.least, *digits), number(summary.greatest, *digits));
    if *ranged && least != greatest { format!("{median} ({least}–{greatest})") } else { median }
}

/// With separators of thousands.
pub fn number(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), None), |(w, f)| (w, Some(f)));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    fraction.map_or_else(|| format!("{sign}{grouped}"), |fraction| format!("{sign}{grouped}.{fraction}"))
}

/// A table: the first column to the left, the others to the right.
pub fn markdown(titles: Vec<String>, rows: Vec<Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule: Vec<String> = (0..titles.len()).map(|n| if n == 0 { "---" } else { "---:" }.into()).collect();
    let body: String = rows.iter().map(|row| line(row)).collect();
    line(&titles) + &line(&rule) + &body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{PairFacts, Sample};

    fn run() -> Run {
        let pair = |name: &str| PairFacts { name: name.into(), ..PairFacts::default() };
        let sample = |pair: &str, figure: &str, round, value| Sample {
            pair: pair.into(),
            figure: figure.into(),
            round,
            value,
        };
        let samples = vec![
            sample("direct", "rps", 1, 76_600.0),
            sample("ours", "rps", 1, 1_000.0),
            sample("ours", "rps", 2, 2_000.0),
            sample("ours", "cpu", 1, 0.5),
        ];
        Run { pairs: vec![pair("direct"), pair("ours"), pair("idle")], samples, ..Run::default() }
    }

    #[test]
    fn table_has_medians_with_ranges_and_dashes_where_nothing_was_measured() {
        let run = run();
        let columns = [("requests/s", "rps", 0, true), ("CPU", "cpu", 1, true), ("none", "none", 0, true)];
        let table = by_pair(&run, &Figures::of(&run), &columns).unwrap();
        assert_eq!(
            table,
            "| pair | requests/s | CPU |\n| --- | ---: | ---: |\n| direct | 76,600 | – |\n\
             | ours | 1,500 (1,000–2,000) | 0.5 |\n"
        );
        assert_eq!(by_pair(&run, &Figures::of(&run), &[("none", "none", 0, true)]), None);
    }

    #[test]
    fn ratios_are_of_medians() {
        let run = run();
        let table = ratios(&run, &Figures::of(&run), &["ours"], "rps").unwrap();
        assert_eq!(table, "|  | direct |\n| --- | ---: |\n| ours | 0.02 |\n");
        assert_eq!(ratios(&run, &Figures::of(&run), &["ours"], "cpu"), None);
    }

    #[test]
    fn thousands_are_separated() {
        assert_eq!(number(1_234_567.891, 1), "1,234,567.9");
        assert_eq!(number(-999.4, 0), "-999");
        assert_eq!(number(0.125, 2), "0.12");
    }
}
