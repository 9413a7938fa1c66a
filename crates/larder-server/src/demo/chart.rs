//! Draws the story as an SVG: the slowest read per second, on a logarithmic scale.

use std::fmt::Write;
use std::time::Duration;

use super::timeline::{Point, Timeline};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 110.0;
const BOTTOM: f64 = 45.0;
/// The scale begins at 0.1 ms and grows by whole decades.
const LEAST_MS: f64 = 0.1;

/// The whole document.
pub(crate) fn svg(title: &str, timeline: &Timeline) -> String {
    let scale = Scale::of(timeline);
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = head(&mut out, title)
        .and_then(|()| axes(&mut out, &scale))
        .and_then(|()| events(&mut out, &scale, timeline))
        .and_then(|()| line(&mut out, &scale, timeline, "#9aa5b1", |point| point.median))
        .and_then(|()| line(&mut out, &scale, timeline, "#c0392b", |point| point.slowest))
        .and_then(|()| legend(&mut out));
    out.push_str("</svg>\n");
    out
}

/// From seconds and milliseconds to places on the paper.
struct Scale {
    seconds: f64,
    decades: f64,
}

impl Scale {
    fn of(timeline: &Timeline) -> Self {
        let last_point = timeline
            .points
            .last()
            .map_or(Duration::ZERO, |point| point.at);
        let last_event = timeline
            .events
            .last()
            .map_or(Duration::ZERO, |event| event.at);
        let slowest = timeline.points.iter().map(|point| millis(point.slowest));
        let most = slowest.fold(10.0, f64::max);
        Self {
            seconds: last_point.max(last_event).as_secs_f64().max(1.0).ceil(),
            decades: (most / LEAST_MS).log10().ceil(),
        }
    }

    fn x(&self, at: Duration) -> f64 {
        LEFT + at.as_secs_f64() / self.seconds * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, ms: f64) -> f64 {
        let share = (ms.max(LEAST_MS) / LEAST_MS).log10() / self.decades;
        HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn head(out: &mut String, title: &str) -> std::fmt::Result {
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">"
    )?;
    writeln!(out, "<title>{}</title>", escape(title))?;
    writeln!(
        out,
        "<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>"
    )?;
    writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"22\" font-size=\"15\" fill=\"#1f2933\">{}</text>",
        escape(title)
    )
}

fn axes(out: &mut String, scale: &Scale) -> std::fmt::Result {
    let right = WIDTH - RIGHT;
    for decade in 0..=scale.decades as i32 {
        let ms = LEAST_MS * 10f64.powi(decade);
        let y = scale.y(ms);
        let label = if ms >= 1e3 {
            format!("{} s", ms / 1e3)
        } else {
            format!("{ms} ms")
        };
        writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#e4e7eb\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#52606d\">{label}</text>",
            LEFT - 8.0,
            y + 4.0
        )?;
    }
    let step = (scale.seconds / 10.0).ceil().max(1.0) as u64;
    for second in (0..=scale.seconds as u64).step_by(step as usize) {
        writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#52606d\">{second} s\
             </text>",
            scale.x(Duration::from_secs(second)),
            HEIGHT - BOTTOM + 18.0
        )?;
    }
    Ok(())
}

/// Each event is a dashed line with its label above, in four rows so that they do not collide.
fn events(out: &mut String, scale: &Scale, timeline: &Timeline) -> std::fmt::Result {
    for (number, event) in timeline.events.iter().enumerate() {
        let x = scale.x(event.at);
        let y = 46.0 + (number % 4) as f64 * 16.0;
        let (anchor, shift) = if x > WIDTH * 0.75 {
            ("end", -4.0)
        } else {
            ("start", 4.0)
        };
        writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\" stroke=\"#3e7cb1\" \
             stroke-dasharray=\"3 3\"/><text x=\"{:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" \
             fill=\"#3e7cb1\">{}</text>",
            y - 9.0,
            HEIGHT - BOTTOM,
            x + shift,
            escape(&event.label)
        )?;
    }
    Ok(())
}

/// A line is broken where nothing was measured for a while, so that it claims nothing there.
fn line(
    out: &mut String,
    scale: &Scale,
    timeline: &Timeline,
    colour: &str,
    value: impl Fn(&Point) -> Duration,
) -> std::fmt::Result {
    let gap = Duration::from_millis(2_500);
    let runs = timeline
        .points
        .chunk_by(|before, after| after.at - before.at < gap);
    for run in runs {
        let place = |point: &Point| (scale.x(point.at), scale.y(millis(value(point))));
        let places: Vec<String> = run
            .iter()
            .map(place)
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>",
            places.join(" ")
        )?;
        for (x, y) in run.iter().map(place) {
            writeln!(
                out,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{colour}\"/>"
            )?;
        }
    }
    Ok(())
}

fn legend(out: &mut String) -> std::fmt::Result {
    for (x, colour, what) in [
        (WIDTH - 300.0, "#c0392b", "slowest read per second"),
        (WIDTH - 130.0, "#9aa5b1", "median"),
    ] {
        writeln!(
            out,
            "<rect x=\"{x}\" y=\"12\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"22\" fill=\"#52606d\">{what}</text>",
            x + 18.0
        )?;
    }
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::timeline::Event;

    fn timeline() -> Timeline {
        let mut timeline = Timeline::new();
        for second in [0_u64, 1, 2, 9, 10] {
            timeline.points.push(Point {
                at: Duration::from_millis(second * 1_000 + 500),
                slowest: Duration::from_millis(10 * (second + 1)),
                median: Duration::from_micros(200),
            });
        }
        let label = "a <b> & c".to_owned();
        let at = Duration::from_secs(2);
        timeline.events.push(Event { at, label });
        timeline
    }

    /// Every tag is closed in order, and no text holds a bare `<` or `&`.
    fn assert_well_formed(document: &str) {
        let mut open = Vec::new();
        for part in document.split('<').skip(1) {
            let (tag, text) = part.split_once('>').expect("a tag ends");
            assert!(!text.contains('>'), "{text}");
            let entities = text.matches('&').count();
            let known = ["&amp;", "&lt;", "&gt;"];
            let known: usize = known
                .iter()
                .map(|entity| text.matches(entity).count())
                .sum();
            assert_eq!(entities, known, "{text}");
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name));
            } else if !tag.ends_with('/') {
                open.push(tag.split_whitespace().next().expect("a name"));
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn the_document_is_well_formed_and_shows_points_events_and_gaps() {
        let document = svg("slowest <read>", &timeline());
        assert_well_formed(&document);
        assert!(document.contains("a &lt;b&gt; &amp; c"));
        // Two lines, each broken once.
        assert_eq!(document.matches("<polyline").count(), 4);
        assert_eq!(document.matches("<circle").count(), 10);
        assert!(!document.contains("NaN") && !document.contains("inf"));
    }

    #[test]
    fn a_story_without_points_is_still_a_document() {
        assert_well_formed(&svg("nothing", &Timeline::new()));
    }
}
