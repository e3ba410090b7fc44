//! Plots as SVG: rows of bars with their range, rows of percentiles on a logarithmic scale.

use std::fmt::Write as _;

use super::table::number;
use crate::results::{Family, Summary};

const WIDTH: f64 = 780.0;
const LEFT: f64 = 170.0;
const RIGHT: f64 = 110.0;
const TOP: f64 = 44.0;
const ROW: f64 = 24.0;
const BAR: f64 = 14.0;
const BOTTOM: f64 = 34.0;
/// Colours that differ in brightness too.
const OWN: &str = "#1f6f8b";
const PEER: &str = "#b0b7bf";
const NOTHING: &str = "#5c6670";
const DOTS: [&str; 4] = ["#9ecae1", "#4292c6", "#08519c", "#08306b"];

/// A bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Its pair.
    pub name: String,
    /// What its pair is.
    pub family: Family,
    /// Its length, and the range of the rounds.
    pub summary: Summary,
}

/// Bars from the left, the longest filling the width.
pub fn bars(title: &str, unit: &str, digits: usize, bars: &[Bar]) -> String {
    let most = bars.iter().map(|bar| bar.summary.greatest).fold(f64::MIN_POSITIVE, f64::max);
    let x = |value: f64| LEFT + value / most * (WIDTH - LEFT - RIGHT);
    let mut body = String::new();
    for (row, bar) in bars.iter().enumerate() {
        let y = TOP + row as f64 * ROW;
        let colour = match bar.family {
            Family::Direct => NOTHING,
            Family::HttpPeer | Family::BytesPeer => PEER,
            Family::Signet => OWN,
        };
        let Summary { median, least, greatest } = bar.summary;
        let (middle, label) = (y + ROW / 2.0, y + ROW / 2.0 + 4.0);
        body += &text(LEFT - 8.0, label, "end", &bar.name);
        add(
            &mut body,
            format_args!(
                r#"<rect x="{LEFT}" y="{:.1}" width="{:.1}" height="{BAR}" fill="{colour}"/>"#,
                y + (ROW - BAR) / 2.0,
                x(median) - LEFT
            ),
        );
        add(
            &mut body,
            format_args!(
                r##"<path d="M{:.1} {middle}H{:.1}M{:.1} {:.1}v8M{:.1} {:.1}v8" stroke="#222" fill="none"/>"##,
                x(least),
                x(greatest),
                x(least),
                middle - 4.0,
                x(greatest),
                middle - 4.0
            ),
        );
        body += &text(x(greatest) + 8.0, label, "start", &number(median, digits));
    }
    frame(title, unit, bars.len(), &body)
}

/// A row of percentiles.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its pair.
    pub name: String,
    /// The values of the percentiles that the plot has, all above zero.
    pub values: Vec<f64>,
}

/// Percentiles as dots on a logarithmic scale, at most four.
pub fn percentiles(title: &str, unit: &str, names: &[&str], rows: &[Row]) -> String {
    let values = || rows.iter().flat_map(|row| row.values.iter().copied()).filter(|value| *value > 0.0);
    let low = values().fold(f64::MAX, f64::min).max(f64::MIN_POSITIVE).log10();
    let high = values().fold(f64::MIN_POSITIVE, f64::max).log10();
    let width = (high - low).max(0.1);
    let x = |value: f64| LEFT + (value.max(f64::MIN_POSITIVE).log10() - low) / width * (WIDTH - LEFT - RIGHT);
    let mut body = String::new();
    for (row, Row { name, values }) in rows.iter().enumerate() {
        let middle = TOP + row as f64 * ROW + ROW / 2.0;
        body += &text(LEFT - 8.0, middle + 4.0, "end", name);
        add(
            &mut body,
            format_args!(r##"<path d="M{LEFT} {middle}H{}" stroke="#e3e6e9" fill="none"/>"##, WIDTH - RIGHT),
        );
        for (value, colour) in values.iter().zip(DOTS) {
            add(
                &mut body,
                format_args!(
                    r#"<circle cx="{:.1}" cy="{middle}" r="5" fill="{colour}"><title>{}</title></circle>"#,
                    x(*value),
                    number(*value, 0)
                ),
            );
        }
        if let Some(last) = values.last() {
            body += &text(x(*last) + 10.0, middle + 4.0, "start", &number(*last, 0));
        }
    }
    for (number, (name, colour)) in names.iter().zip(DOTS).enumerate() {
        let at = LEFT + number as f64 * 80.0;
        let y = TOP + rows.len() as f64 * ROW + 18.0;
        add(&mut body, format_args!(r#"<circle cx="{at}" cy="{:.1}" r="5" fill="{colour}"/>"#, y - 4.0));
        body += &text(at + 10.0, y, "start", name);
    }
    frame(title, unit, rows.len(), &body)
}

fn frame(title: &str, unit: &str, rows: usize, body: &str) -> String {
    let height = TOP + rows as f64 * ROW + BOTTOM;
    let title = escape(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\" role=\"img\" aria-label=\"{title}\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\" font-weight=\"600\">{title}</text>\n\
         <text x=\"{}\" y=\"22\" text-anchor=\"end\" fill=\"#5c6670\">{}</text>\n{body}</svg>\n",
        WIDTH - 12.0,
        escape(unit)
    )
}

fn text(x: f64, y: f64, anchor: &str, words: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>\n", escape(words))
}

fn add(body: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(body, "{line}");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plots_have_a_row_for_each_pair_and_no_markup_of_names() {
        let summary = Summary { median: 2.0, least: 1.0, greatest: 4.0 };
        let bar = |name: &str| Bar { name: name.into(), family: Family::Signet, summary };
        let plot = bars("a < b", "per second", 0, &[bar("x"), bar("<y>")]);
        assert_eq!(plot.matches("<rect").count(), 3);
        assert!(plot.contains("a &lt; b") && plot.contains("&lt;y&gt;") && plot.ends_with("</svg>\n"));
        let row = |name: &str| Row { name: name.into(), values: vec![100.0, 10_000.0] };
        let plot = percentiles("t", "µs", &["p50", "p99"], &[row("x"), row("y")]);
        assert_eq!(plot.matches("<circle").count(), 6);
        assert!(!plot.contains("NaN") && !plot.contains("inf"));
    }

    #[test]
    fn nothing_measured_is_an_empty_plot() {
        assert!(!bars("t", "u", 0, &[]).contains("NaN"));
        assert!(!percentiles("t", "u", &[], &[]).contains("NaN"));
    }
}
