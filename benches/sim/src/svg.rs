//! Line plots as SVG, readable on light and dark pages.

use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 46.0;
/// Told apart also by those who see no red or green.
const COLOURS: [&str; 5] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"];

/// How values become places.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scale {
    /// From 0.
    Linear,
    /// Decades.
    Log,
}

/// Points that a line joins.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// One plot.
pub(crate) struct Plot {
    pub(crate) title: &'static str,
    pub(crate) x: (&'static str, Scale),
    pub(crate) y: (&'static str, Scale),
    pub(crate) series: Vec<Series>,
}

/// Values along one side.
struct Axis {
    scale: Scale,
    least: f64,
    most: f64,
    ticks: Vec<f64>,
}

impl Axis {
    fn of(scale: Scale, values: impl Iterator<Item = f64> + Clone) -> Self {
        let most = values.clone().fold(f64::MIN, f64::max);
        if scale == Scale::Log {
            let positive = values.filter(|value| *value > 0.0);
            let least = positive.fold(f64::MAX, f64::min).log10().floor();
            let most = most.log10().ceil().max(least + 1.0);
            let decades = least as i32..=most as i32;
            return Self {
                scale,
                least,
                most,
                ticks: decades.map(|decade| 10_f64.powi(decade)).collect(),
            };
        }
        let most = if most > 0.0 { most } else { 1.0 };
        let rough = most / 5.0;
        let decade = 10_f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * decade);
        let step = steps.into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        let count = (most / step).ceil();
        Self {
            scale,
            least: 0.0,
            most: count * step,
            ticks: (0..=count as u32).map(|i| f64::from(i) * step).collect(),
        }
    }

    /// From 0 to 1; nothing for what a logarithm cannot show.
    fn place(&self, value: f64) -> Option<f64> {
        let value = match self.scale {
            Scale::Linear => value,
            Scale::Log if value > 0.0 => value.log10(),
            Scale::Log => return None,
        };
        Some((value - self.least) / (self.most - self.least))
    }
}

impl Plot {
    /// The whole file.
    pub(crate) fn render(&self) -> String {
        let points = self.series.iter().flat_map(|one| &one.points);
        let x = Axis::of(self.x.1, points.clone().map(|point| point.0));
        let y = Axis::of(self.y.1, points.map(|point| point.1));
        let across = |value| x.place(value).map(|at| LEFT + at * (WIDTH - LEFT - RIGHT));
        let up = |value| {
            y.place(value)
                .map(|at| HEIGHT - BOTTOM - at * (HEIGHT - TOP - BOTTOM))
        };
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
        );
        let text = |out: &mut String, x: f64, y: f64, anchor: &str, text: &str| {
            let text = text.replace('&', "&amp;").replace('<', "&lt;");
            let _ = writeln!(
                out,
                "<text x=\"{x:.0}\" y=\"{y:.0}\" text-anchor=\"{anchor}\" fill=\"#222\">{text}</text>"
            );
        };
        text(&mut out, LEFT, 18.0, "start", self.title);
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (value, at) in x.ticks.iter().filter_map(|v| Some((*v, across(*v)?))) {
            line(&mut out, (at, TOP), (at, bottom));
            text(&mut out, at, bottom + 16.0, "middle", &number(value));
        }
        for (value, at) in y.ticks.iter().filter_map(|v| Some((*v, up(*v)?))) {
            line(&mut out, (LEFT, at), (right, at));
            text(&mut out, LEFT - 6.0, at + 4.0, "end", &number(value));
        }
        text(
            &mut out,
            f64::midpoint(LEFT, right),
            HEIGHT - 10.0,
            "middle",
            self.x.0,
        );
        text(&mut out, 6.0, TOP - 4.0, "start", self.y.0);
        for (i, (one, colour)) in self.series.iter().zip(COLOURS.iter().cycle()).enumerate() {
            let places: Vec<_> = one
                .points
                .iter()
                .filter_map(|(a, b)| Some((across(*a)?, up(*b)?)))
                .collect();
            let path: Vec<_> = places
                .iter()
                .map(|(a, b)| format!("{a:.1},{b:.1}"))
                .collect();
            let _ = writeln!(
                out,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.join(" ")
            );
            for (a, b) in places.iter().filter(|_| places.len() < 30) {
                let _ = writeln!(
                    out,
                    "<circle cx=\"{a:.1}\" cy=\"{b:.1}\" r=\"3\" fill=\"{colour}\"/>"
                );
            }
            let at = TOP + 12.0 + 18.0 * i as f64;
            let _ = writeln!(
                out,
                "<rect x=\"{:.0}\" y=\"{:.0}\" width=\"12\" height=\"3\" fill=\"{colour}\"/>",
                right + 10.0,
                at - 5.0
            );
            text(&mut out, right + 27.0, at, "start", &one.name);
        }
        out + "</svg>\n"
    }
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64)) {
    let _ = writeln!(
        out,
        "<path d=\"M{:.1} {:.1}L{:.1} {:.1}\" stroke=\"#ddd\"/>",
        from.0, from.1, to.0, to.1
    );
}

/// A value as people write it.
pub(crate) fn number(value: f64) -> String {
    if value == 0.0 {
        "0".to_owned()
    } else if value.abs() >= 1_000.0 {
        let whole = format!("{:.0}", value.abs());
        let mut grouped = String::new();
        for (i, digit) in whole.chars().enumerate() {
            if i > 0 && (whole.len() - i).is_multiple_of(3) {
                grouped.push(',');
            }
            grouped.push(digit);
        }
        if value < 0.0 {
            format!("-{grouped}")
        } else {
            grouped
        }
    } else if value.abs() >= 10.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if value.abs() >= 1.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.3}").trim_end_matches('0').to_owned()
    }
}
