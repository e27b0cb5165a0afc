//! `loadtest sweep`: the same load on a server in each of many configurations, in one table: how to
//! pick `HUB_SHARDS` and `HUB_WRITE_DELAY` for a machine.
//!
//! A cell is one combination. Each run of a cell has a fresh server and fresh connections; rounds go
//! over all cells, so that a machine that drifts does so for all of them.

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use crate::cli::{LoadArgs, TargetArgs};
use crate::html::{Axis, Page, Plot, Scale};
use crate::process;
use crate::publish::PublisherName;
use crate::report::{
    ClientReport, Environment, GroupReport, OutputArgs, ServerReport, Table, median,
};
use crate::run::{self, Connecting, RunReport};
use crate::slow::is_within;
use crate::verdict::{Comparison, Verdict, is_client_bound};

const OTHER_FDS: usize = 64;
/// Of cells times rounds: a sweep of more is a mistake in a list.
const RUNS_MAX: usize = 1000;

#[derive(Args, Clone, Debug)]
pub struct SweepArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub load: LoadArgs,
    /// Values of HUB_SHARDS; default: the number of --server-cpus
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub shards: Vec<usize>,
    /// Values of HUB_WRITE_DELAY
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0")]
    pub write_delays: Vec<String>,
    /// Values of --connections
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub connection_counts: Vec<usize>,
    /// Values of --rate
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub rates: Vec<f64>,
    /// Runs of each cell; the table has the medians
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub rounds: usize,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// One combination.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    pub shards: usize,
    pub write_delay: String,
    pub connections: usize,
    pub rate: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct SweepReport {
    pub environment: Environment,
    /// With one of the cells' connections and rate.
    pub load: LoadArgs,
    pub cells: Vec<Cell>,
    pub picks: Vec<Pick>,
    pub verdict: Verdict,
}

#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    pub setting: Setting,
    pub runs: Vec<CellRun>,
    /// Why there are fewer runs than rounds.
    pub errors: Vec<String>,
    pub summary: Summary,
}

#[derive(Clone, Debug, Serialize)]
pub struct CellRun {
    pub connecting: Connecting,
    pub subscribers: GroupReport,
    pub server: ServerReport,
    pub client: ClientReport,
}

/// Medians over a cell's runs, but for what went wrong: that is the sum.
#[derive(Copy, Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub deliveries_per_s: f64,
    pub deliveries_per_cpu_s: f64,
    /// Of a core.
    pub server_cpu_share: f64,
    pub lost: u64,
    /// Everything came, once, in order, undamaged, to everybody, in every run.
    pub is_good: bool,
    /// In half of the runs or more, so that the medians may be the client's.
    pub is_client_bound: bool,
}

/// The fewest shards that are about as good as any number of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pick {
    /// With the shards picked.
    pub setting: Setting,
    pub p99_ms: f64,
    pub best_p99_ms: f64,
}

impl SweepArgs {
    pub fn check(&self) -> anyhow::Result<()> {
        if self.target.server.is_none() {
            bail!("--server: a sweep starts one for each cell");
        }
        self.load.refuse_burst()?;
        let settings = self.settings();
        if self.rounds == 0 || self.shards.contains(&0) {
            bail!("--rounds, --shards: at least 1");
        }
        let n_runs = settings.len().saturating_mul(self.rounds);
        if n_runs > RUNS_MAX {
            bail!("{n_runs} runs, at most {RUNS_MAX}");
        }
        settings.iter().try_for_each(|setting| self.load_of(setting).check())
    }

    /// All combinations; shards change fastest, so that what is compared stands together.
    pub fn settings(&self) -> Vec<Setting> {
        let n_cpus = self.target.server_cpus.as_ref().map_or(1, |cpus| cpus.0.len());
        let or =
            |list: &[usize], default| if list.is_empty() { vec![default] } else { list.to_vec() };
        let rates = if self.rates.is_empty() { vec![self.load.rate] } else { self.rates.clone() };
        let mut settings = Vec::new();
        for connections in or(&self.connection_counts, self.load.connections) {
            for &rate in &rates {
                for write_delay in &self.write_delays {
                    let write_delay = write_delay.clone();
                    let setting = Setting { shards: 0, write_delay, connections, rate };
                    let with = |shards| Setting { shards, ..setting.clone() };
                    settings.extend(or(&self.shards, n_cpus).into_iter().map(with));
                }
            }
        }
        settings
    }

    fn load_of(&self, setting: &Setting) -> LoadArgs {
        LoadArgs { connections: setting.connections, rate: setting.rate, ..self.load.clone() }
    }

    /// A server of its own for this run, stopped at its end.
    fn run(&self, setting: &Setting) -> anyhow::Result<RunReport> {
        let mut target = self.target.clone();
        target.server_env.push(("HUB_SHARDS".to_owned(), setting.shards.to_string()));
        target.server_env.push(("HUB_WRITE_DELAY".to_owned(), setting.write_delay.clone()));
        let target = target.open(self.load.publisher == PublisherName::Redis)?;
        run::run(&self.load_of(setting), &target, &self.target.redis_prefix, &[])
    }
}

impl std::fmt::Display for Setting {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { shards, write_delay, connections, rate } = self;
        write!(out, "shards {shards}, delay {write_delay}, {connections} at {rate}/s")
    }
}

pub fn command(args: &SweepArgs, command_line: &[String]) -> anyhow::Result<Verdict> {
    args.check()?;
    let settings = args.settings();
    let n_connections = settings.iter().map(|it| it.connections).max().unwrap_or(0);
    process::raise_fd_limit(n_connections + OTHER_FDS)?;
    let mut runs: Vec<Vec<CellRun>> = vec![Vec::new(); settings.len()];
    let mut errors: Vec<Vec<String>> = vec![Vec::new(); settings.len()];
    for round in 1..=args.rounds {
        for (idx, setting) in settings.iter().enumerate() {
            eprintln!("round {round} of {}: {setting}", args.rounds);
            match args.run(setting) {
                Ok(report) => runs[idx].push(CellRun::of(report)),
                // The other cells may be all right.
                Err(error) => {
                    eprintln!("{error:#}");
                    errors[idx].push(format!("{error:#}"));
                }
            }
        }
    }
    let cells = settings.into_iter().zip(runs).zip(errors);
    let cells: Vec<Cell> =
        cells.map(|((setting, runs), errors)| Cell::of(setting, runs, errors)).collect();
    let report = SweepReport {
        environment: Environment::here(command_line),
        load: args.load.clone(),
        picks: picks(&cells),
        // Cells are there to be compared.
        verdict: Verdict::from(cells.iter().all(|cell| cell.summary.is_good)).and(Comparison {
            holds: true,
            is_client_bound: cells.iter().any(|cell| cell.summary.is_client_bound),
        }),
        cells,
    };
    table(&report).print();
    args.output.write(&report, page)?;
    Ok(report.verdict)
}

impl CellRun {
    fn of(report: RunReport) -> Self {
        let RunReport { connecting, subscribers, server, client, .. } = report;
        Self { connecting, subscribers, server, client }
    }

    fn is_good(&self) -> bool {
        self.subscribers.is_good() && self.client.is_good()
    }
}

impl Cell {
    fn of(setting: Setting, runs: Vec<CellRun>, errors: Vec<String>) -> Self {
        let of = |value: fn(&CellRun) -> f64| median(&runs.iter().map(value).collect::<Vec<_>>());
        let summary = Summary {
            p50_ms: of(|run| run.subscribers.latency_ms.p50),
            p99_ms: of(|run| run.subscribers.latency_ms.p99),
            deliveries_per_s: of(|run| run.server.deliveries as f64 / run.server.window_s),
            deliveries_per_cpu_s: of(|run| run.server.deliveries_per_cpu_s),
            server_cpu_share: of(|run| run.server.cpu_s / run.server.window_s),
            lost: runs.iter().map(|run| run.subscribers.lost).sum(),
            is_good: errors.is_empty() && runs.iter().all(CellRun::is_good),
            is_client_bound: is_client_bound(runs.iter().map(|run| &run.client)),
        };
        Self { setting, runs, errors, summary }
    }
}

/// For each combination of the rest. Cells that lost something, or where the client was the
/// bottleneck, are out of the question; without two to choose from there is no pick.
fn picks(cells: &[Cell]) -> Vec<Pick> {
    let mut picks: Vec<Pick> = Vec::new();
    for cell in cells {
        let is_same = |other: &Setting| {
            Setting { shards: 0, ..other.clone() } == Setting { shards: 0, ..cell.setting.clone() }
        };
        if picks.iter().any(|pick| is_same(&pick.setting)) {
            continue;
        }
        let fit =
            |it: &&Cell| is_same(&it.setting) && it.summary.is_good && !it.summary.is_client_bound;
        let candidates: Vec<&Cell> = cells.iter().filter(fit).collect();
        let best_p99_ms =
            candidates.iter().map(|it| it.summary.p99_ms).fold(f64::INFINITY, f64::min);
        let as_good = candidates.iter().filter(|it| is_within(best_p99_ms, it.summary.p99_ms));
        if let Some(pick) = as_good.min_by_key(|it| it.setting.shards)
            && candidates.len() > 1
        {
            let (setting, p99_ms) = (pick.setting.clone(), pick.summary.p99_ms);
            picks.push(Pick { setting, p99_ms, best_p99_ms });
        }
    }
    picks
}

/// What is wrong with a cell's figures.
fn remarks(cell: &Cell) -> String {
    let mut remarks = Vec::new();
    if cell.summary.is_client_bound {
        remarks.push("CLIENT IS THE BOTTLENECK");
    }
    match cell.errors.first() {
        Some(error) => remarks.push(error),
        None if !cell.summary.is_good => remarks.push("FAILED"),
        None => {}
    }
    remarks.join("; ")
}

fn table(report: &SweepReport) -> Table {
    let mut table = Table::default();
    table.row(
        "shards delay  conn.  rate/s",
        "    p50      p99 ms   deliv./s  per CPU-s  CPU %     lost",
    );
    for cell in &report.cells {
        let Cell { setting, summary, .. } = cell;
        let Setting { shards, write_delay, connections, rate } = setting;
        table.row(
            &format!("{shards:>6} {write_delay:>5} {connections:>6} {rate:>7}"),
            format!(
                "{:>7.2}  {:>7.2} {:>11.0} {:>10.0} {:>6.0} {:>8}  {}",
                summary.p50_ms,
                summary.p99_ms,
                summary.deliveries_per_s,
                summary.deliveries_per_cpu_s,
                summary.server_cpu_share * 1e2,
                summary.lost,
                remarks(cell)
            ),
        );
    }
    pick_rows(&mut table, &report.picks);
    table.verdict(report.verdict, "nothing lost, nobody cut, in any cell");
    table
}

fn pick_rows(table: &mut Table, picks: &[Pick]) {
    for Pick { setting, p99_ms, best_p99_ms } in picks {
        let Setting { shards, write_delay, connections, rate } = setting;
        table.row(
            &format!("HUB_SHARDS={shards}"),
            format!(
                "is enough for {connections} at {rate}/s, delay {write_delay}: p99 {p99_ms:.2} ms, \
                 the best {best_p99_ms:.2}"
            ),
        );
    }
}

/// A dimension of the sweep, and how it names a setting's value.
struct Dimension {
    label: &'static str,
    name: fn(&Setting) -> String,
}

/// On a scale where a factor is a distance.
const MS: &str = "ms";

const DIMENSIONS: [Dimension; 4] = [
    Dimension { label: "publications a second", name: |it| it.rate.to_string() },
    Dimension { label: "connections", name: |it| it.connections.to_string() },
    Dimension { label: "shards", name: |it| it.shards.to_string() },
    Dimension { label: "write delay", name: |it| it.write_delay.clone() },
];

impl Dimension {
    /// Each once, in the sweep's order.
    fn values(&self, cells: &[Cell]) -> Vec<String> {
        let mut values = Vec::new();
        for cell in cells {
            let value = (self.name)(&cell.setting);
            if !values.contains(&value) {
                values.push(value);
            }
        }
        values
    }
}

/// The dimension with the most values is the x axis, each combination of the others a line.
fn plot(cells: &[Cell], title: &str, unit: &str, value: fn(&Summary) -> f64) -> Plot {
    let n_values = |idx: &usize| DIMENSIONS[*idx].values(cells).len();
    let x = (0..DIMENSIONS.len()).rev().max_by_key(n_values).unwrap_or(0);
    let names = DIMENSIONS[x].values(cells);
    let line = |cell: &Cell| -> String {
        let others = (0..DIMENSIONS.len()).filter(|idx| *idx != x && n_values(idx) > 1);
        let name = |idx: usize| {
            format!("{} {}", DIMENSIONS[idx].label, (DIMENSIONS[idx].name)(&cell.setting))
        };
        others.map(name).collect::<Vec<_>>().join(", ")
    };
    let mut lines: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for cell in cells.iter().filter(|cell| !cell.runs.is_empty()) {
        let value_name = (DIMENSIONS[x].name)(&cell.setting);
        let at = names.iter().position(|name| *name == value_name).unwrap_or(0) as f64;
        let point = (at, value(&cell.summary));
        let name = line(cell);
        match lines.iter_mut().find(|(other, _)| *other == name) {
            Some((_, points)) => points.push(point),
            None => lines.push((name, vec![point])),
        }
    }
    let axis = Axis::new(DIMENSIONS[x].label, Scale::Names(names));
    let scale = if unit == MS { Scale::Log } else { Scale::Linear };
    let plot = Plot::new(title, axis, Axis::new(unit, scale));
    lines.into_iter().fold(plot, |plot, (name, points)| plot.with(&name, points))
}

fn page(report: &SweepReport) -> Page {
    let mut page = Page::new("sweep", report.verdict.word(), &report.environment);
    let row = |cell: &Cell| {
        let Cell { setting, summary, .. } = cell;
        vec![
            remarks(cell),
            setting.shards.to_string(),
            setting.write_delay.clone(),
            setting.connections.to_string(),
            setting.rate.to_string(),
            format!("{:.2}", summary.p50_ms),
            format!("{:.2}", summary.p99_ms),
            format!("{:.0}", summary.deliveries_per_s),
            format!("{:.0}", summary.deliveries_per_cpu_s),
            format!("{:.0}", summary.server_cpu_share * 1e2),
            summary.lost.to_string(),
        ]
    };
    let mut picks = Table::default();
    pick_rows(&mut picks, &report.picks);
    page.table(&picks);
    let cells = &report.cells;
    page.plots(&[
        plot(cells, "p99", MS, |it| it.p99_ms),
        plot(cells, "p50", MS, |it| it.p50_ms),
        plot(cells, "Deliveries per server CPU-second", "", |it| it.deliveries_per_cpu_s),
        plot(cells, "Server CPU", "% of a core", |it| it.server_cpu_share * 1e2),
    ]);
    page.heading("All cells");
    page.grid(
        &[
            "",
            "shards",
            "delay",
            "connections",
            "rate/s",
            "p50 ms",
            "p99 ms",
            "deliveries/s",
            "per CPU-second",
            "CPU %",
            "lost",
        ],
        &cells.iter().map(row).collect::<Vec<_>>(),
    );
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(shards: usize, p99_ms: f64, is_client_bound: bool) -> Cell {
        let setting = Setting { shards, write_delay: "0".to_owned(), connections: 1, rate: 1.0 };
        let summary = Summary { p99_ms, is_client_bound, is_good: true, ..Summary::default() };
        Cell { setting, runs: Vec::new(), errors: Vec::new(), summary }
    }

    #[test]
    fn the_fewest_shards_that_are_about_as_good_are_picked() {
        let pick = |cells: &[Cell]| picks(cells).first().map(|it| it.setting.shards);
        assert_eq!(
            pick(&[cell(1, 50.0, false), cell(2, 11.0, false), cell(4, 10.0, false)]),
            Some(2)
        );
        assert_eq!(pick(&[cell(4, 10.0, false), cell(1, 11.0, false)]), Some(1));
        assert_eq!(
            pick(&[cell(1, 10.0, true), cell(2, 10.0, false), cell(4, 10.0, false)]),
            Some(2)
        );
        assert_eq!(pick(&[cell(1, 10.0, true), cell(2, 10.0, false)]), None);
    }
}
