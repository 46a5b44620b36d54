//! `banger analyze plot`: a start as a picture, in SVG.

use std::fmt::Write;

use super::analyze::{Span, time};

/// Measures in pixels: of a second, but a short start is drawn as wide as `MIN_WIDTH`, and a long
/// one no wider than `MAX_WIDTH`.
const SECOND: f64 = 200.0;
const MIN_WIDTH: f64 = 600.0;
const MAX_WIDTH: f64 = 2400.0;
const MARGIN: f64 = 20.0;
/// Beside the last bar, for what stands there.
const TEXT: f64 = 180.0;
const ROW: f64 = 20.0;
const BAR: f64 = 14.0;
/// Above the first bar: title, and the scale.
const TOP: f64 = 70.0;

const STYLE: &str = "\
text { font: 12px sans-serif; fill: #222 } .title { font-size: 16px } .scale text { fill: #777 } \
line { stroke: #ddd } .host { fill: #4a7fb5 } .kernel { fill: #c97b3d } .guest { fill: #5a9e6f } \
.background { fill: #fff }";

/// Draws the stages of a VM's start below each other, along the time.
pub fn plot(vm: &str, spans: &[Span]) -> String {
    let total = spans.last().map_or(0, |span| span.begin_usec + span.usec);
    let seconds = (total as f64 / 1e6).max(0.001);
    let width = (seconds * SECOND).clamp(MIN_WIDTH, MAX_WIDTH);
    let x = |usec: u64| MARGIN + usec as f64 / 1e6 / seconds * width;
    let bottom = TOP + spans.len() as f64 * ROW;
    let (image_width, image_height) = (width + 2.0 * MARGIN + TEXT, bottom + MARGIN);

    let mut svg = String::new();
    // Writing to a string does not fail.
    let mut put = |text: String| {
        let _ = writeln!(svg, "{text}");
    };
    put(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{image_width:.0}\" height=\"{image_height:.0}\">"
    ));
    put(format!("<style>{STYLE}</style>"));
    put("<rect class=\"background\" width=\"100%\" height=\"100%\"/>".into());
    put(format!(
        "<text class=\"title\" x=\"{MARGIN}\" y=\"28\">{} was ready after {}</text>",
        escape(vm),
        time(total)
    ));
    put("<g class=\"scale\">".into());
    let step = scale_step(total);
    for usec in (0..=total).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
        let x = x(usec);
        put(format!("<line x1=\"{x:.1}\" y1=\"{:.0}\" x2=\"{x:.1}\" y2=\"{bottom:.0}\"/>", TOP - 10.0));
        put(format!("<text x=\"{x:.1}\" y=\"{:.0}\">{}</text>", TOP - 14.0, time(usec)));
    }
    put("</g>".into());
    for (index, span) in spans.iter().enumerate() {
        let (from, to) = (x(span.begin_usec), x(span.begin_usec + span.usec));
        let y = TOP + index as f64 * ROW;
        put(format!(
            "<rect class=\"{}\" x=\"{from:.1}\" y=\"{y:.0}\" width=\"{:.1}\" height=\"{BAR}\"/>",
            class(&span.stage),
            (to - from).max(1.0)
        ));
        put(format!(
            "<text x=\"{:.1}\" y=\"{:.0}\">{} ({})</text>",
            to + 5.0,
            y + 11.0,
            escape(&span.stage),
            time(span.usec)
        ));
    }
    put("</svg>".into());
    svg
}

/// Who is busy in a stage: it is drawn in their colour.
fn class(stage: &str) -> &'static str {
    match stage {
        "kernel" => "kernel",
        stage if banger_core::guest::STAGES.contains(&stage) => "guest",
        _ => "host",
    }
}

/// The distance of two marks of the scale: 1, 2 or 5 of a power of ten, for ten marks at most.
fn scale_step(total: u64) -> u64 {
    let mut power = 1;
    loop {
        for step in [power, 2 * power, 5 * power] {
            if total / step < 10 {
                return step;
            }
        }
        power *= 10;
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::analyze::tests::start;

    #[test]
    fn a_start_as_a_picture() {
        insta::assert_snapshot!("start", plot("web", &start()));
    }

    #[test]
    fn nothing_is_a_picture_too() {
        assert!(plot("<&>", &[]).contains("&lt;&amp;&gt; was ready after 0us"));
    }

    #[test]
    fn a_scale_has_few_marks() {
        for (total, step) in [
            (0, 1),
            (9, 1),
            (10, 2),
            (99, 10),
            (3_300_000, 500_000),
            (u64::MAX / 2, 1_000_000_000_000_000_000),
        ] {
            assert_eq!(scale_step(total), step, "{total}");
        }
    }
}
