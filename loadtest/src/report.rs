//! What is told in the end: serializable, and as a table.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::clock::seconds;
use crate::html::{Axis, Page, Plot, Scale};
use crate::measure::{GroupMeasured, Measured};
use crate::verdict::Verdict;

/// Above this share of a core the client may be what was measured.
pub const BUSY_SHARE: f64 = 0.9;
/// A publisher this late adds to what is measured, microseconds.
const LATE_US: u64 = 2_000;

/// Where and how a number was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    pub command_line: Vec<String>,
    pub commit: Option<String>,
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
}

impl Environment {
    pub fn here(command_line: &[String]) -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let version = std::fs::read_to_string("/proc/version").unwrap_or_default();
        Self {
            command_line: command_line.iter().map(|arg| mask(arg)).collect(),
            commit: commit(),
            cpu: model.unwrap_or_default().trim_start_matches([':', '\t', ' ']).to_owned(),
            // Of the machine, not those that this process is pinned to.
            cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count().max(1),
            kernel: version.split(' ').nth(2).unwrap_or_default().to_owned(),
        }
    }
}

/// `HUB_…_SECRET=…` and `…KEY=…` keep their value to themselves.
fn mask(arg: &str) -> String {
    match arg.split_once('=') {
        Some((name, _)) if name.contains("SECRET") || name.contains("KEY") => format!("{name}=***"),
        _ => arg.to_owned(),
    }
}

fn commit() -> Option<String> {
    let output = std::process::Command::new("git").args(["rev-parse", "HEAD"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Milliseconds.
#[derive(Copy, Clone, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    pub n: u64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Latency {
    pub fn of(histogram_us: &Histogram<u64>) -> Self {
        let ms = |quantile| histogram_us.value_at_quantile(quantile) as f64 / 1000.0;
        Self {
            n: histogram_us.len(),
            p50: ms(0.5),
            p90: ms(0.9),
            p99: ms(0.99),
            p999: ms(0.999),
            max: histogram_us.max() as f64 / 1000.0,
        }
    }
}

/// So many percent took at most so long.
#[derive(Copy, Clone, Debug, PartialEq, Serialize)]
pub struct CurvePoint {
    pub percentile: f64,
    pub ms: f64,
}

/// Closer together towards 100 %. The last one is the maximum, at the middle of the last value's share.
fn curve(histogram_us: &Histogram<u64>) -> Vec<CurvePoint> {
    let ms = |us: u64| us as f64 / 1000.0;
    let steps = histogram_us.iter_quantiles(3).filter(|step| step.quantile() < 1.0);
    let mut curve: Vec<CurvePoint> = steps
        .map(|step| CurvePoint {
            percentile: step.quantile_iterated_to() * 100.0,
            ms: ms(step.value_iterated_to()),
        })
        .filter(|point| point.percentile < 100.0)
        .collect();
    if !histogram_us.is_empty() {
        let percentile = 100.0 * (1.0 - 0.5 / histogram_us.len() as f64);
        curve.retain(|point| point.percentile < percentile);
        curve.push(CurvePoint { percentile, ms: ms(histogram_us.max()) });
    }
    curve
}

/// One line for each group; those of the same name look the same.
pub fn curves(groups: &[(&str, &GroupReport)]) -> Plot {
    let axes = (Axis::new("percentile", Scale::Nines), Axis::new("ms", Scale::Log));
    let plot = Plot::new("Latency from the intended time", axes.0, axes.1);
    groups.iter().fold(plot, |plot, (name, group)| {
        plot.with(name, group.latency_curve.iter().map(|it| (it.percentile, it.ms)).collect())
    })
}

/// What became of one group's deliveries and connections.
#[derive(Clone, Debug, Serialize)]
pub struct GroupReport {
    pub connections: u64,
    pub expected: u64,
    /// Each once.
    pub received: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub misordered: u64,
    pub damaged: u64,
    pub stray: u64,
    pub delivery_ratio: f64,
    pub latency_ms: Latency,
    pub latency_curve: Vec<CurvePoint>,
    /// By code and reason, or what else ended it.
    pub disconnects: BTreeMap<String, u64>,
    pub refused: BTreeMap<String, u64>,
    pub unsubscribed: BTreeMap<String, u64>,
}

impl GroupReport {
    pub fn of(measured: &GroupMeasured) -> Self {
        let GroupMeasured { group, n_expected } = measured;
        let tally = &group.tally;
        Self {
            connections: group.n_ready,
            expected: *n_expected,
            received: tally.unique,
            lost: measured.n_lost(),
            duplicated: tally.duplicated,
            misordered: tally.misordered,
            damaged: tally.damaged,
            stray: tally.stray,
            delivery_ratio: tally.unique as f64 / (*n_expected).max(1) as f64,
            latency_ms: Latency::of(&tally.latency_us),
            latency_curve: curve(&tally.latency_us),
            disconnects: group.ended.clone(),
            refused: group.refused.clone(),
            unsubscribed: group.unsubscribed.clone(),
        }
    }

    /// Everything came, once, in order, undamaged, and nobody was turned away or cut.
    pub fn is_good(&self) -> bool {
        let faults = [self.lost, self.duplicated, self.misordered, self.damaged, self.stray];
        let is_kept = self.disconnects.is_empty() && self.refused.is_empty();
        faults == [0; 5] && is_kept && self.unsubscribed.is_empty() && self.expected > 0
    }
}

/// What the server spent, in the window.
#[derive(Copy, Clone, Debug, Default, PartialEq, Serialize)]
pub struct ServerReport {
    pub window_s: f64,
    pub cpu_s: f64,
    pub user_s: f64,
    pub system_s: f64,
    pub deliveries: u64,
    pub deliveries_per_cpu_s: f64,
    pub rss_max_bytes: u64,
}

impl ServerReport {
    pub fn of(measured: &Measured) -> Self {
        let cpu = measured.window.server_cpu;
        let deliveries = measured.window.n_deliveries;
        let is_known = cpu.run_ns > 0;
        Self {
            window_s: seconds(measured.window.wall_ns),
            cpu_s: cpu.seconds(),
            user_s: cpu.user_seconds(),
            system_s: cpu.seconds() - cpu.user_seconds(),
            deliveries,
            deliveries_per_cpu_s: if is_known { deliveries as f64 / cpu.seconds() } else { 0.0 },
            rss_max_bytes: measured.rss_max,
        }
    }
}

/// How the client itself fared.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ClientReport {
    pub subscribers_cpu_share: f64,
    pub publisher_cpu_share: f64,
    /// The publisher against its schedule, in milliseconds.
    pub publisher_late_ms: Latency,
    pub publications: u64,
    pub publications_failed: u64,
    pub publisher_error: Option<String>,
    /// Why the figures may be the client's, not the server's.
    pub bottlenecks: Vec<String>,
}

impl ClientReport {
    /// `is_burst`: everything is late by intent, and the client may be busy.
    pub fn of(measured: &Measured, is_burst: bool) -> Self {
        let published = &measured.published;
        let wall_ns = measured.window.wall_ns.max(1) as f64;
        let subscribers = measured.window.client_cpu_ns as f64 / wall_ns;
        let late = &published.late_us;
        let mut bottlenecks = Vec::new();
        if subscribers > BUSY_SHARE {
            bottlenecks.push(format!(
                "the subscribers' thread used {:.0} % of a core",
                subscribers * 100.0
            ));
        }
        if !is_burst && late.value_at_quantile(0.99) > LATE_US {
            let ms = late.value_at_quantile(0.99) as f64 / 1000.0;
            bottlenecks.push(format!("the publisher was {ms:.1} ms late in 1 of 100"));
        }
        Self {
            subscribers_cpu_share: subscribers,
            publisher_cpu_share: published.cpu_ns as f64 / wall_ns,
            publisher_late_ms: Latency::of(late),
            publications: published.n_sent(),
            publications_failed: published.n_failed(),
            publisher_error: published.error.clone(),
            bottlenecks,
        }
    }

    pub fn is_good(&self) -> bool {
        self.publications_failed == 0 && self.publisher_error.is_none()
    }
}

/// A table of names and values.
#[derive(Default)]
pub struct Table(Vec<(String, String)>);

impl Table {
    pub fn row(&mut self, name: &str, value: impl std::fmt::Display) {
        self.0.push((name.to_owned(), value.to_string()));
    }

    /// The last row.
    pub fn verdict(&mut self, verdict: Verdict, on: impl std::fmt::Display) {
        if verdict == Verdict::Inconclusive {
            self.row(
                verdict.word(),
                "the client was the bottleneck: what was compared may be its doing, not the server's",
            );
            self.row("judged", on);
        } else {
            self.row(verdict.word(), on);
        }
    }

    pub fn rows(&self) -> &[(String, String)] {
        &self.0
    }

    pub fn group(&mut self, group: &GroupReport) {
        let GroupReport { latency_ms: latency, .. } = group;
        self.row("connections", group.connections);
        self.row(
            "delivered",
            format!(
                "{} of {} ({:.4} %)",
                group.received,
                group.expected,
                group.delivery_ratio * 1e2
            ),
        );
        self.row(
            "lost, duplicated",
            format!(
                "{}, {}; misordered {}, damaged {}, stray {}",
                group.lost, group.duplicated, group.misordered, group.damaged, group.stray
            ),
        );
        self.row(
            "latency, ms",
            format!(
                "p50 {:.2}  p90 {:.2}  p99 {:.2}  p99.9 {:.2}  max {:.2}",
                latency.p50, latency.p90, latency.p99, latency.p999, latency.max
            ),
        );
        for (what, counts) in [
            ("disconnected", &group.disconnects),
            ("refused", &group.refused),
            ("unsubscribed", &group.unsubscribed),
        ] {
            for (reason, n) in counts {
                self.row(what, format!("{n} × {reason}"));
            }
        }
    }

    pub fn server(&mut self, server: &ServerReport) {
        if server.cpu_s == 0.0 {
            self.row("server CPU", "unknown: no --pid");
            return;
        }
        self.row(
            "server CPU, s",
            format!(
                "{:.3} in {:.1} s (user {:.3}, system {:.3})",
                server.cpu_s, server.window_s, server.user_s, server.system_s
            ),
        );
        self.row("deliveries per CPU-second", format!("{:.0}", server.deliveries_per_cpu_s));
        self.row("server RSS, MB", format!("{:.1}", server.rss_max_bytes as f64 / 1e6));
    }

    pub fn client(&mut self, client: &ClientReport) {
        self.row(
            "client",
            format!(
                "subscribers {:.0} %, publisher {:.0} % of a core; publisher late p99 {:.2} ms",
                client.subscribers_cpu_share * 1e2,
                client.publisher_cpu_share * 1e2,
                client.publisher_late_ms.p99
            ),
        );
        if client.publications_failed > 0 {
            self.row("publications failed", client.publications_failed);
        }
        if let Some(error) = &client.publisher_error {
            self.row("PUBLISHER", error);
        }
        for bottleneck in &client.bottlenecks {
            self.row("CLIENT IS THE BOTTLENECK", bottleneck);
        }
    }

    pub fn print(&self) {
        let line = |(name, value): &(String, String)| format!("{name:<26} {value}\n");
        print!("{}", self.0.iter().map(line).collect::<String>());
    }
}

/// Where reports go.
#[derive(Args, Clone, Debug, Default)]
pub struct OutputArgs {
    /// Writes everything measured here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// And here as a page with plots: one file, nothing fetched from anywhere
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

impl OutputArgs {
    pub fn write<R: Serialize>(
        &self,
        report: &R,
        page: impl FnOnce(&R) -> Page,
    ) -> anyhow::Result<()> {
        if let Some(path) = &self.json {
            write_json(path, report)?;
        }
        if let Some(path) = &self.html {
            std::fs::write(path, page(report).finish())
                .with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }
}

pub fn write_json(path: &Path, report: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
}

/// The middle one, or the mean of the middle two; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    match n {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        _ => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_odd_and_even() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn the_curve_ends_with_the_maximum() {
        let mut histogram = crate::checker::histogram();
        assert_eq!(curve(&histogram), []);
        histogram.record_n(1000, 99).unwrap();
        histogram.record(50_000).unwrap();
        let curve = curve(&histogram);
        assert!(
            curve.is_sorted_by(|a, b| a.percentile < b.percentile && a.ms <= b.ms),
            "{curve:?}"
        );
        assert_eq!(curve[0].ms, 1.0);
        let last = curve.last().unwrap();
        assert!(last.percentile == 99.5 && (last.ms - 50.0).abs() < 0.1, "{last:?}");
    }

    #[test]
    fn secrets_on_the_command_line_are_masked() {
        assert_eq!(mask("HUB_TOKEN_HMAC_SECRET=abc"), "HUB_TOKEN_HMAC_SECRET=***");
        assert_eq!(mask("HUB_SHARDS=2"), "HUB_SHARDS=2");
    }
}
