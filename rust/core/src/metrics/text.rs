//! The text format of Prometheus, version 0.0.4: "Exposition formats" of its documentation.

use std::fmt::Write;

use super::histogram::Distribution;

/// Most bytes of a label's value: what comes from outside, such as a path or the name of an
/// exception class, may be of any length.
const MOST_LABEL: usize = 200;

/// What a family of metrics counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What only grows.
    Counter,
    /// What goes up and down.
    Gauge,
    /// How often which values were seen.
    Histogram,
}

/// Metrics as text, family by family.
#[derive(Debug, Default)]
pub struct Text {
    text: String,
    family: &'static str,
}

impl Text {
    /// Begins a family: its samples follow.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        let word = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.family = name;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {word}");
    }

    /// Adds a whole number.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: u64) {
        self.line("", labels, None, format_args!("{value}"));
    }

    /// Adds a number that may have a fraction.
    pub fn fraction(&mut self, labels: &[(&str, &str)], value: f64) {
        self.line("", labels, None, format_args!("{value}"));
    }

    /// Adds a histogram with a bucket for each power of two in `powers`, each value being so many
    /// `units`.
    pub fn histogram(
        &mut self,
        labels: &[(&str, &str)],
        values: &Distribution,
        powers: std::ops::RangeInclusive<u32>,
        units: f64,
    ) {
        for power in powers {
            let (bound, count) = ((1_u64 << power) as f64 / units, values.up_to(power));
            self.line("_bucket", labels, Some(&bound.to_string()), format_args!("{count}"));
        }
        let count = values.count();
        self.line("_bucket", labels, Some("+Inf"), format_args!("{count}"));
        self.line("_sum", labels, None, format_args!("{}", values.sum() as f64 / units));
        self.line("_count", labels, None, format_args!("{count}"));
    }

    /// All of it.
    pub fn finish(self) -> String {
        self.text
    }

    fn line(
        &mut self,
        suffix: &str,
        labels: &[(&str, &str)],
        bound: Option<&str>,
        value: std::fmt::Arguments<'_>,
    ) {
        self.text.push_str(self.family);
        self.text.push_str(suffix);
        let bound = bound.map(|bound| ("le", bound));
        let mut before = '{';
        for &(name, value) in labels.iter().chain(&bound) {
            self.text.push(before);
            let _ = write!(self.text, "{name}=\"");
            escape(value, &mut self.text);
            self.text.push('"');
            before = ',';
        }
        if before == ',' {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

/// Writes a label's value: cut if it is long, and with what would end it escaped.
fn escape(value: &str, into: &mut String) {
    let mut ends = (0..=value.len().min(MOST_LABEL)).rev();
    let cut = ends.find(|&end| value.is_char_boundary(end)).unwrap_or(0);
    for letter in value[..cut].chars() {
        match letter {
            '\\' => into.push_str("\\\\"),
            '"' => into.push_str("\\\""),
            '\n' => into.push_str("\\n"),
            other => into.push(other),
        }
    }
    if cut < value.len() {
        into.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::super::histogram::Histogram;
    use super::*;

    #[test]
    fn families_and_samples_are_lines() {
        let mut text = Text::default();
        text.family("a_total", Kind::Counter, "What is counted.");
        text.sample(&[("device", "d"), ("queue", "0")], 3);
        text.sample(&[], 4);
        text.family("b", Kind::Gauge, "What is there.");
        text.fraction(&[("device", "d")], 0.25);
        assert_eq!(
            text.finish(),
            "# HELP a_total What is counted.\n# TYPE a_total counter\n\
             a_total{device=\"d\",queue=\"0\"} 3\na_total 4\n\
             # HELP b What is there.\n# TYPE b gauge\nb{device=\"d\"} 0.25\n"
        );
    }

    #[test]
    fn buckets_add_up_and_bounds_are_in_units() {
        let histogram = Histogram::default();
        histogram.add(1024, 2);
        histogram.add(1025, 1);
        histogram.add(5000, 1);
        let mut text = Text::default();
        text.family("t_seconds", Kind::Histogram, "Times.");
        text.histogram(&[("op", "read")], &histogram.read(), 10..=12, 1e9);
        let lines = text.finish();
        assert_eq!(
            lines.lines().skip(2).collect::<Vec<_>>(),
            [
                "t_seconds_bucket{op=\"read\",le=\"0.000001024\"} 2",
                "t_seconds_bucket{op=\"read\",le=\"0.000002048\"} 3",
                "t_seconds_bucket{op=\"read\",le=\"0.000004096\"} 3",
                "t_seconds_bucket{op=\"read\",le=\"+Inf\"} 4",
                "t_seconds_sum{op=\"read\"} 0.000008073",
                "t_seconds_count{op=\"read\"} 4",
            ]
        );
    }

    #[test]
    fn no_value_of_a_label_ends_its_line_or_is_without_end() {
        let mut text = Text::default();
        text.family("a", Kind::Gauge, "A.");
        text.sample(&[("device", "a\"b\\c\nd")], 1);
        let long = "ä".repeat(150);
        text.sample(&[("device", &long)], 1);
        let lines = text.finish();
        let cut = format!("a{{device=\"{}…\"}} 1", "ä".repeat(100));
        assert_eq!(
            lines.lines().skip(2).collect::<Vec<_>>(),
            [r#"a{device="a\"b\\c\nd"} 1"#, &cut]
        );
    }
}
