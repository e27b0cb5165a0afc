//! Line plots as inline SVG. Sizes are in the units of the view box, colours come from the page.

use std::fmt::Write as _;

use super::escape;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 44.0;
/// More than a screen has columns.
const POINTS_MAX: usize = 1200;
/// Up to so many points of a series are dots with a tip.
const DOTS_MAX: usize = 40;
const N_COLOURS: usize = 6;

#[derive(Clone, Debug, PartialEq)]
pub enum Scale {
    /// From 0.
    Linear,
    Log,
    /// Percentiles below 100: 90, 99 and 99.9 are equally far apart.
    Nines,
    /// The values are indices of these.
    Names(Vec<String>),
}

#[derive(Clone, Debug)]
pub struct Axis {
    label: String,
    scale: Scale,
}

impl Axis {
    pub fn new(label: &str, scale: Scale) -> Self {
        Self { label: label.to_owned(), scale }
    }
}

#[derive(Clone, Debug)]
pub struct Plot {
    title: String,
    x: Axis,
    y: Axis,
    series: Vec<Series>,
}

#[derive(Clone, Debug)]
struct Series {
    name: String,
    points: Vec<(f64, f64)>,
}

impl Plot {
    pub fn new(title: &str, x: Axis, y: Axis) -> Self {
        Self { title: title.to_owned(), x, y, series: Vec::new() }
    }

    /// Adds a line. Lines of the same name have the same colour, and one entry in the legend.
    pub fn with(mut self, name: &str, mut points: Vec<(f64, f64)>) -> Self {
        points.retain(|(x, y)| self.x.scale.takes(*x) && self.y.scale.takes(*y));
        if !points.is_empty() {
            self.series.push(Series { name: name.to_owned(), points: thin(points) });
        }
        self
    }

    pub fn draw(&self, out: &mut String) {
        let points = || self.series.iter().flat_map(|it| &it.points);
        let x = Ruler::new(&self.x, points().map(|it| it.0), LEFT, WIDTH - RIGHT);
        let y = Ruler::new(&self.y, points().map(|it| it.1), HEIGHT - BOTTOM, TOP);
        let (Some(x), Some(y)) = (x, y) else { return };
        let names = self.names();
        let title = escape(&self.title);
        let _ = write!(out, "<figure><figcaption><h3>{title}</h3>");
        for (idx, name) in
            names.iter().enumerate().filter(|_| names.len() > 1 || !names[0].is_empty())
        {
            let name = escape(name);
            let _ = write!(out, "<span class=\"key {}\"><span>{name}</span></span>", style(idx));
        }
        let _ = write!(
            out,
            "</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             aria-label=\"{title}\">"
        );
        self.draw_axes(out, &x, &y);
        for series in &self.series {
            let colour = names.iter().position(|name| *name == series.name).unwrap_or(0);
            let _ = write!(out, "<g class=\"{}\"><polyline points=\"", style(colour));
            for (at_x, at_y) in &series.points {
                let _ = write!(out, "{:.1},{:.1} ", x.place(*at_x), y.place(*at_y));
            }
            out.push_str("\"/>");
            for (at_x, at_y) in series.points.iter().filter(|_| series.points.len() <= DOTS_MAX) {
                let tip = format!("{} {} at {}", series.name, y.text(*at_y), x.text(*at_x));
                let _ = write!(
                    out,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.6\"><title>{}</title></circle>",
                    x.place(*at_x),
                    y.place(*at_y),
                    escape(&tip)
                );
            }
            out.push_str("</g>");
        }
        out.push_str("</svg></figure>");
    }

    fn draw_axes(&self, out: &mut String, x: &Ruler<'_>, y: &Ruler<'_>) {
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for tick in y.ticks() {
            let at = y.place(tick);
            let _ = write!(
                out,
                "<line class=\"rule\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                at + 4.0,
                escape(&y.text(tick))
            );
        }
        for tick in x.ticks() {
            let at = x.place(tick);
            let anchor = if at > right - 25.0 { "end" } else { "middle" };
            let _ = write!(
                out,
                "<line class=\"rule\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
                 <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
                bottom + 16.0,
                escape(&x.text(tick))
            );
        }
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
             <text transform=\"translate(12 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            (LEFT + right) / 2.0,
            HEIGHT - 8.0,
            escape(&self.x.label),
            (TOP + bottom) / 2.0,
            escape(&self.y.label)
        );
    }

    /// Each once, in order.
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for series in &self.series {
            if !names.contains(&series.name.as_str()) {
                names.push(&series.name);
            }
        }
        names
    }
}

fn style(idx: usize) -> String {
    let dashed = if idx / N_COLOURS % 2 == 1 { " dashed" } else { "" };
    format!("s{}{dashed}", idx % N_COLOURS)
}

/// Of too many points the lowest and the highest of each stretch: a peak never disappears.
fn thin(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    if points.len() <= POINTS_MAX {
        return points;
    }
    let extremes = |stretch: &[(f64, f64)]| {
        let by_y = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let lowest = stretch.iter().min_by(by_y).copied();
        let highest = stretch.iter().max_by(by_y).copied();
        let mut both: Vec<(f64, f64)> = lowest.into_iter().chain(highest).collect();
        both.sort_by(|a, b| a.0.total_cmp(&b.0));
        both
    };
    points.chunks(points.len().div_ceil(POINTS_MAX / 2)).flat_map(extremes).collect()
}

impl Scale {
    /// Whether the value has a place on it.
    fn takes(&self, value: f64) -> bool {
        value.is_finite()
            && match self {
                Self::Linear => true,
                Self::Log => value > 0.0,
                Self::Nines => (0.0..100.0).contains(&value),
                Self::Names(names) => value >= 0.0 && (value as usize) < names.len(),
            }
    }

    /// To where equal distances look equal.
    fn flatten(&self, value: f64) -> f64 {
        match self {
            Self::Linear | Self::Names(_) => value,
            Self::Log => value.log10(),
            Self::Nines => -(1.0 - value / 100.0).log10(),
        }
    }
}

/// An axis with its range, and its place in the picture.
struct Ruler<'a> {
    scale: &'a Scale,
    /// Flattened.
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl<'a> Ruler<'a> {
    /// `None` without values.
    fn new(axis: &'a Axis, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Option<Self> {
        let scale = &axis.scale;
        let flat = values.map(|value| scale.flatten(value));
        let (low, high) = flat.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        if low > high {
            return None;
        }
        let (low, high) = match scale {
            Scale::Linear => (low.min(0.0), if high > 0.0 { high * 1.05 } else { 1.0 }),
            Scale::Log => ((low * 2.0).floor() / 2.0, ((high + 0.02) * 2.0).ceil() / 2.0),
            Scale::Nines => (0.0, high.max(1.0)),
            Scale::Names(names) => (-0.5, names.len() as f64 - 0.5),
        };
        Some(Self { scale, low, high: if high > low { high } else { low + 1.0 }, from, to })
    }

    fn place(&self, value: f64) -> f64 {
        let share = (self.scale.flatten(value) - self.low) / (self.high - self.low);
        self.from + share * (self.to - self.from)
    }

    fn ticks(&self) -> Vec<f64> {
        let is_on = |value: &f64| {
            let flat = self.scale.flatten(*value);
            flat >= self.low - 1e-9 && flat <= self.high + 1e-9
        };
        let all: Vec<f64> = match self.scale {
            Scale::Linear => {
                let step = step((self.high - self.low) / 5.0);
                let first = (self.low / step).ceil() as i64;
                (first..first + 20).map(|n| n as f64 * step).collect()
            }
            Scale::Log => {
                let decades = (self.low.floor() as i32)..=(self.high.ceil() as i32);
                let fine: &[f64] =
                    if self.high - self.low < 2.1 { &[1.0, 2.0, 5.0] } else { &[1.0] };
                decades.flat_map(|n| fine.iter().map(move |it| it * 10f64.powi(n))).collect()
            }
            Scale::Nines => {
                let nines = (1..=9).map(|n| 100.0 - 100.0 / 10f64.powi(n));
                [0.0, 50.0].into_iter().chain(nines).collect()
            }
            Scale::Names(names) => (0..names.len()).map(|n| n as f64).collect(),
        };
        all.into_iter().filter(is_on).collect()
    }

    fn text(&self, value: f64) -> String {
        match self.scale {
            Scale::Linear | Scale::Log => number(value),
            Scale::Nines => {
                let text = format!("{value:.7}");
                format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
            }
            Scale::Names(names) => names.get(value as usize).cloned().unwrap_or_default(),
        }
    }
}

/// The next above of 1, 2, 5, 10, 20, …
fn step(at_least: f64) -> f64 {
    let decade = 10f64.powf(at_least.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|it| it * decade);
    steps.into_iter().find(|it| *it >= at_least * 0.999).unwrap_or(steps[3])
}

/// Three digits or so.
fn number(value: f64) -> String {
    let (value, unit) = match value.abs() {
        1e9.. => (value / 1e9, "G"),
        1e6.. => (value / 1e6, "M"),
        1e4.. => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = match value.abs() {
        100.0.. => format!("{value:.0}"),
        1.0.. => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.3}"),
    };
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(scale: Scale, values: &[f64]) -> Vec<String> {
        let axis = Axis::new("", scale);
        let ruler = Ruler::new(&axis, values.iter().copied(), 0.0, 100.0).unwrap();
        ruler.ticks().into_iter().map(|tick| ruler.text(tick)).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(Scale::Linear, &[3.0, 47.0]), ["0", "10", "20", "30", "40"]);
        assert_eq!(ticks(Scale::Linear, &[120e3]), ["0", "50k", "100k"]);
        assert_eq!(ticks(Scale::Linear, &[0.0]), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(ticks(Scale::Log, &[0.5, 800.0]), ["1", "10", "100", "1000"]);
        assert_eq!(ticks(Scale::Nines, &[99.95]), ["0 %", "50 %", "90 %", "99 %", "99.9 %"]);
    }

    #[test]
    fn places_are_where_they_should_be() {
        let axis = Axis::new("", Scale::Nines);
        let ruler = Ruler::new(&axis, [0.0, 99.0].into_iter(), 0.0, 100.0).unwrap();
        let places = [0.0, 90.0, 99.0].map(|value| ruler.place(value).round());
        assert_eq!(places, [0.0, 50.0, 100.0]);
    }

    #[test]
    fn a_peak_survives_thinning() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|n| (f64::from(n), 1.0)).collect();
        points[54_321].1 = 9.0;
        let thinned = thin(points);
        assert!(thinned.len() <= POINTS_MAX);
        assert!(thinned.contains(&(54_321.0, 9.0)));
        assert!(thinned.is_sorted_by(|a, b| a.0 <= b.0));
    }

    #[test]
    fn what_has_no_place_is_left_out() {
        let plot = |points| {
            let mut out = String::new();
            let (x, y) = (Axis::new("", Scale::Linear), Axis::new("", Scale::Log));
            Plot::new("t", x, y).with("", points).draw(&mut out);
            out
        };
        assert_eq!(plot(vec![(0.0, 0.0), (f64::NAN, 1.0), (1.0, f64::INFINITY)]), "");
        let drawn = plot(vec![(0.0, 0.0), (1.0, 1.0), (2.0, 10.0)]);
        assert_eq!(drawn.matches("<circle").count(), 2);
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
    }
}
