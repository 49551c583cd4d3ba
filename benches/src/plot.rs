//! Bars as SVG: enough for the figures of the documentation, and nothing to install.

use std::fmt::Write as _;

/// A bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Bars of one group stand together.
    pub group: String,
    /// What it is.
    pub name: String,
    /// How long it is.
    pub value: f64,
}

/// A stretch of time.
#[derive(Clone, Debug)]
pub struct Stretch {
    /// Stretches of one group have one colour.
    pub group: String,
    /// What it is; spaces before it show what it belongs to.
    pub name: String,
    /// When it begins, in milliseconds.
    pub from_ms: f64,
    /// How long it takes, in milliseconds.
    pub ms: f64,
}

const LEFT: f64 = 230.0;
const WIDTH: f64 = 420.0;
const ROW: f64 = 20.0;

/// Stretches of time below each other, as far as they lie between two moments, titled.
#[must_use]
pub fn stretches(title: &str, all: &[Stretch], (from_ms, to_ms): (f64, f64)) -> String {
    let scale = WIDTH / (to_ms - from_ms).max(1e-6);
    let mut body = String::new();
    let mut y = 44.0;
    for stretch in all {
        let begin = (stretch.from_ms - from_ms).max(0.0) * scale;
        let end = (stretch.from_ms + stretch.ms - from_ms) * scale;
        if end < 0.0 || begin > WIDTH {
            continue;
        }
        let length = (end.min(WIDTH) - begin).max(1.0);
        let depth = stretch.name.len() - stretch.name.trim_start().len();
        let label = (12.0 + depth as f64 * 7.0, "start", stretch.name.trim());
        let value = (LEFT + WIDTH + 8.0, format!("{:.2} ms", stretch.ms));
        row(
            &mut body,
            y,
            &label,
            (LEFT + begin, length),
            &stretch.group,
            &value,
        );
        y += ROW;
    }
    frame(title, &body, y)
}

/// A plot of horizontal bars with their values, titled.
#[must_use]
pub fn bars(title: &str, bars: &[Bar]) -> String {
    let most = bars.iter().map(|b| b.value).fold(1e-9, f64::max);
    let mut body = String::new();
    let mut y = 44.0;
    let mut group = "";
    for bar in bars {
        if bar.group != group {
            group = &bar.group;
            y += ROW / 2.0;
        }
        let length = (bar.value.max(0.0) / most * WIDTH).max(1.0);
        let name = format!("{} · {}", bar.group, bar.name);
        let label = (LEFT - 8.0, "end", name.as_str());
        let value = (LEFT + length + 6.0, format!("{:.1}", bar.value));
        row(&mut body, y, &label, (LEFT, length), &bar.name, &value);
        y += ROW;
    }
    frame(title, &body, y)
}

/// A label (where, which end of it is there, words), a bar (where, how long) and what it says.
fn row(
    body: &mut String,
    y: f64,
    (label_x, anchor, label): &(f64, &str, &str),
    (bar_x, length): (f64, f64),
    kind: &str,
    (value_x, value): &(f64, String),
) {
    // Writing to a String cannot fail.
    let _ = write!(
        body,
        "<text x=\"{label_x:.0}\" y=\"{text:.0}\" text-anchor=\"{anchor}\">{}</text>\n\
         <rect x=\"{bar_x:.1}\" y=\"{:.0}\" width=\"{length:.1}\" height=\"{:.0}\" \
         fill=\"{}\"/>\n<text x=\"{value_x:.1}\" y=\"{text:.0}\">{value}</text>\n",
        escape(label),
        y + 2.0,
        ROW - 4.0,
        colour(kind),
        text = y + 14.0,
    );
}

fn frame(title: &str, body: &str, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{:.0}\" height=\"{:.0}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"white\"/>\n<text x=\"12\" y=\"28\" font-size=\"16\">{}</text>\n{body}</svg>\n",
        LEFT + WIDTH + 90.0,
        height + 16.0,
        escape(title),
    )
}

fn colour(name: &str) -> &'static str {
    match name {
        "wp-group" | "source" => "#2a7f62",
        "kvm-log" => "#c1554b",
        "kvm-ring" | "destination" => "#d99a3d",
        _ => "#7d8597",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_fills_the_plot_and_text_is_escaped() {
        let bar = |name: &str, value| Bar {
            group: "a<b".to_owned(),
            name: name.to_owned(),
            value,
        };
        let svg = bars("t & u", &[bar("x", 50.0), bar("y", 100.0)]);
        assert!(svg.contains("width=\"420.0\"") && svg.contains("width=\"210.0\""));
        assert!(svg.contains("t &amp; u") && svg.contains("a&lt;b"));
    }
}
