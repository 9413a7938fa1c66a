use std::fmt::{self, Write};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 50.0;

/// Told apart by people who do not see all colours (Okabe and Ito, 2008).
const COLOURS: [&str; 8] = [
    "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999",
];

/// Hit ratio against the size of the cache, as an SVG document.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// What stands above it.
    pub title: String,
    /// One line per policy, or whatever is compared.
    pub lines: Vec<Line>,
}

/// One line of a [`Chart`].
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// What it is called at its end.
    pub name: String,
    /// Sizes, above zero and rising, each with the hit ratio in percent.
    pub points: Vec<(u64, f64)>,
}

impl Chart {
    /// The document. The sizes are on a logarithmic scale.
    pub fn svg(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        let scale = Scale::of(&self.lines);
        writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">"
        )?;
        writeln!(
            out,
            "<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>"
        )?;
        let title = escape(&self.title);
        writeln!(
            out,
            "<title>{title}</title><text x=\"{LEFT}\" y=\"28\" font-size=\"15\">{title}</text>"
        )?;
        scale.write_axes(out)?;
        for (line, colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            scale.write_line(out, line, colour)?;
        }
        scale.write_names(out, &self.lines)?;
        writeln!(out, "</svg>")
    }
}

/// From sizes and percentages to places on the paper.
struct Scale {
    least: f64,
    most: f64,
    top: f64,
}

impl Scale {
    fn of(lines: &[Line]) -> Self {
        let points = || lines.iter().flat_map(|line| &line.points);
        let sizes = || points().map(|(size, _)| (*size).max(1));
        let (least, most) = (sizes().min().unwrap_or(1), sizes().max().unwrap_or(1));
        let highest = points().map(|(_, ratio)| *ratio).fold(0.0, f64::max);
        Self {
            least: (least as f64).ln(),
            most: (most as f64).ln().max((least as f64).ln() + 0.01),
            top: ((highest / 10.0).ceil() * 10.0).clamp(10.0, 100.0),
        }
    }

    fn x(&self, size: u64) -> f64 {
        let share = ((size.max(1) as f64).ln() - self.least) / (self.most - self.least);
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, ratio: f64) -> f64 {
        HEIGHT - BOTTOM - ratio / self.top * (HEIGHT - BOTTOM - TOP)
    }

    fn write_axes(&self, out: &mut String) -> fmt::Result {
        let right = WIDTH - RIGHT;
        for step in 0..=(self.top / 10.0) as u32 {
            let (percent, y) = (step * 10, self.y(f64::from(step) * 10.0));
            writeln!(
                out,
                "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{percent} %</text>",
                LEFT - 8.0,
                y + 4.0
            )?;
        }
        let bottom = HEIGHT - BOTTOM;
        for size in self.round_sizes() {
            let (x, size_text) = (self.x(size), short(size));
            writeln!(
                out,
                "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" stroke=\"#eeeeee\"/>\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{size_text}</text>",
                bottom + 18.0
            )?;
        }
        let (x, y) = ((LEFT + right) / 2.0, HEIGHT - 10.0);
        writeln!(
            out,
            "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">size of the cache in entries</text>"
        )
    }

    /// Powers of ten, and where there are few of them their doubles and fivefolds.
    fn round_sizes(&self) -> impl Iterator<Item = u64> {
        let bounds = self.least - 0.001..=self.most + 0.001;
        let fine = self.most - self.least < 7.0;
        (0..19u32)
            .flat_map(|power| [1, 2, 5].map(|factor| (factor, factor * 10_u64.pow(power))))
            .filter(move |(factor, _)| fine || *factor == 1)
            .map(|(_, size)| size)
            .filter(move |size| bounds.contains(&(*size as f64).ln()))
    }

    fn write_line(&self, out: &mut String, line: &Line, colour: &str) -> fmt::Result {
        write!(
            out,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\""
        )?;
        for (size, ratio) in &line.points {
            write!(out, "{:.1},{:.1} ", self.x(*size), self.y(*ratio))?;
        }
        writeln!(out, "\"/>")
    }

    /// The names at the ends of the lines, moved apart where they would cover each other.
    fn write_names(&self, out: &mut String, lines: &[Line]) -> fmt::Result {
        let mut ends: Vec<_> = lines
            .iter()
            .zip(COLOURS.iter().cycle())
            .filter_map(|(line, colour)| Some((self.y(line.points.last()?.1), line, colour)))
            .collect();
        ends.sort_by(|one, other| one.0.total_cmp(&other.0));
        let mut free_from = f64::MIN;
        for (y, line, colour) in ends {
            let (x, y) = (WIDTH - RIGHT + 8.0, y.max(free_from));
            free_from = y + 14.0;
            let name = escape(&line.name);
            writeln!(
                out,
                "<text x=\"{x}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>",
                y + 4.0
            )?;
        }
        Ok(())
    }
}

/// `20000` as `20k`.
fn short(size: u64) -> String {
    match size {
        0..1_000 => size.to_string(),
        1_000..1_000_000 => format!("{}k", size / 1_000),
        _ => format!("{}M", size / 1_000_000),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, points: &[(u64, f64)]) -> Line {
        Line {
            name: name.into(),
            points: points.into(),
        }
    }

    #[test]
    fn every_line_is_drawn_within_the_paper_and_named() {
        let chart = Chart {
            title: "a < b & c".into(),
            lines: vec![
                line("one", &[(100, 10.0), (1_000, 50.0)]),
                line("two", &[(100, 11.0), (1_000, 50.1)]),
            ],
        };
        let svg = chart.svg();
        assert!(svg.contains("a &lt; b &amp; c"));
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(
            svg.contains("points=\"60.0,"),
            "the smallest size is at the left"
        );
        assert!(svg.contains(">one<") && svg.contains(">two<"));
        assert!(svg.contains(">1k<") && svg.contains(">60 %<"));
    }

    #[test]
    fn names_do_not_cover_each_other() {
        let scale = Scale::of(&[]);
        let mut out = String::new();
        let lines = [line("one", &[(1, 5.0)]), line("two", &[(1, 5.0)])];
        scale.write_names(&mut out, &lines).ok();
        let heights: Vec<f64> = out
            .split(" y=\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next()?.parse().ok())
            .collect();
        assert!(heights[1] - heights[0] >= 14.0, "{heights:?}");
    }

    #[test]
    fn a_chart_of_nothing_is_a_document() {
        let chart = Chart {
            title: String::new(),
            lines: vec![line("none", &[]), line("zero", &[(0, 0.0)])],
        };
        let svg = chart.svg();
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }
}
