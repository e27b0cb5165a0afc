//! `loadtest guard BEFORE AFTER`: does one build of hubbub cost more than another?
//!
//! Every run starts its server afresh; the two take turns. The verdict is the median of CPU per
//! delivery, and that both deliver all. Latency is shown beside it: a hub that gathers writes when it
//! is busy answers a dearer write with larger groups and more latency before it uses more CPU.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::{Args, Parser};
use serde::Serialize;

use crate::cli::{LoadArgs, name_and_value};
use crate::pairs::{self, Pair, Ratios};
use crate::process::{self, Cpus};
use crate::report::{
    ClientReport, Environment, GroupReport, ServerReport, Table, median, write_json,
};
use crate::run;
use crate::server::{Start, Target};

const OTHER_FDS: usize = 64;
const COMMON: &str = "--protocol raw --publisher redis --size 128 --settle 1.2";

#[derive(Copy, Clone, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
pub enum ScenarioName {
    /// 1,000 subscribers, 500 publications a second
    #[value(name = "A")]
    A,
    /// 1,000 at 2,000
    #[value(name = "A2")]
    A2,
    /// 10,000 at 20
    #[value(name = "B")]
    B,
}

impl ScenarioName {
    fn flags(self) -> &'static str {
        match self {
            Self::A => "--connections 1000 --rate 500",
            Self::A2 => "--connections 1000 --rate 2000",
            Self::B => "--connections 10000 --rate 20",
        }
    }
}

#[derive(Args, Clone, Debug)]
pub struct GuardArgs {
    /// The hubbub to compare with
    pub before: PathBuf,
    /// The hubbub that may not cost more
    pub after: PathBuf,
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',',
          default_values = ["A", "A2", "B"])]
    pub scenarios: Vec<ScenarioName>,
    /// Runs of each, in turn
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub pairs: usize,
    /// How much more CPU per delivery is let pass, at the median
    #[arg(long, value_name = "PERCENT", default_value_t = 3.0)]
    pub tolerance: f64,
    /// CPUs of the servers; HUB_SHARDS is their number
    #[arg(long, value_name = "LIST")]
    pub server_cpus: Option<Cpus>,
    /// CPUs of subscribers, publisher and Redis
    #[arg(long, value_name = "LIST")]
    pub client_cpus: Option<Cpus>,
    /// For both servers
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    pub server_env: Vec<(String, String)>,
    /// Load before each window
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    pub warm_up: f64,
    /// Each measured window
    #[arg(long, value_name = "SECONDS", default_value_t = 8.0)]
    pub seconds: f64,
    /// Divides the connections, for tests
    #[arg(long, hide = true, default_value_t = 1)]
    pub shrink: usize,
    /// Writes everything measured here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// A name and what to load.
#[derive(Clone, Debug, Serialize)]
pub struct Scenario {
    pub name: String,
    pub load: LoadArgs,
}

#[derive(Clone, Debug, Serialize)]
pub struct GuardReport {
    pub environment: Environment,
    pub tolerance_percent: f64,
    pub scenarios: Vec<ScenarioReport>,
    pub passed: bool,
}

/// Ratios are after by before: above 1 is worse.
#[derive(Clone, Debug, Serialize)]
pub struct ScenarioReport {
    pub scenario: Scenario,
    pub cpu_per_delivery: Ratios,
    pub p50: Ratios,
    pub p99: Ratios,
    /// Why it failed; empty if it passed.
    pub failures: Vec<String>,
    /// Before (a) and after (b).
    pub pairs: Vec<Pair<Side, Side>>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Side {
    pub cpu_ns_per_delivery: f64,
    pub subscribers: GroupReport,
    pub server: ServerReport,
    pub client: ClientReport,
}

/// Starts a server for one run.
pub type Open<'a> = dyn Fn() -> anyhow::Result<Target> + 'a;

pub fn command(args: &GuardArgs, command_line: &[String]) -> anyhow::Result<bool> {
    let scenarios = scenarios(args)?;
    let before = || open(args, &args.before);
    let after = || open(args, &args.after);
    let mut reports = Vec::new();
    for scenario in &scenarios {
        reports.push(compare(scenario, args.pairs, args.tolerance, &before, &after)?);
    }
    let report = GuardReport {
        environment: Environment::here(command_line),
        tolerance_percent: args.tolerance,
        passed: reports.iter().all(|report| report.failures.is_empty()),
        scenarios: reports,
    };
    table(&report).print();
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    Ok(report.passed)
}

fn scenarios(args: &GuardArgs) -> anyhow::Result<Vec<Scenario>> {
    if args.pairs == 0 {
        bail!("--pairs: at least 1");
    }
    if !(0.0..1000.0).contains(&args.tolerance) {
        bail!("--tolerance: 0 per cent or more, below 1000");
    }
    let scenario = |name: &ScenarioName| {
        let flags = format!("{COMMON} {}", name.flags());
        let mut scenario = Scenario::parse(&format!("{name:?}"), &flags)?;
        (scenario.load.warm_up, scenario.load.seconds) = (args.warm_up, args.seconds);
        scenario.load.connections /= args.shrink.max(1);
        scenario.load.check().map(|()| scenario)
    };
    args.scenarios.iter().map(scenario).collect()
}

impl Scenario {
    /// From flags of `loadtest run`.
    pub fn parse(name: &str, flags: &str) -> anyhow::Result<Self> {
        #[derive(Parser)]
        struct Flags {
            #[command(flatten)]
            load: LoadArgs,
        }
        let all = std::iter::once(name).chain(flags.split_whitespace());
        let Flags { load } = Flags::try_parse_from(all)?;
        Ok(Self { name: name.to_owned(), load })
    }
}

fn open(args: &GuardArgs, server: &Path) -> anyhow::Result<Target> {
    Target::start(&Start {
        server,
        server_cpus: args.server_cpus.as_ref(),
        client_cpus: args.client_cpus.as_ref(),
        env: &args.server_env,
        with_redis: true,
    })
}

/// Runs the scenario against both in turn.
pub fn compare(
    scenario: &Scenario,
    n_pairs: usize,
    tolerance_percent: f64,
    before: &Open<'_>,
    after: &Open<'_>,
) -> anyhow::Result<ScenarioReport> {
    process::raise_fd_limit(scenario.load.connections + OTHER_FDS)?;
    let side = |open: &Open<'_>, label: String| -> anyhow::Result<Side> {
        eprintln!("{}, {label}", scenario.name);
        let target = open()?;
        let run::RunReport { subscribers, server, client, .. } =
            run::run(&scenario.load, &target, "", &[])?;
        let cpu_ns_per_delivery = server.cpu_s * 1e9 / server.deliveries.max(1) as f64;
        Ok(Side { cpu_ns_per_delivery, subscribers, server, client })
    };
    let pairs = pairs::measure(
        &mut (),
        n_pairs,
        |_, label| side(before, format!("{label}: before")),
        |_, label| side(after, format!("{label}: after")),
    )?;
    let ratios = |value: fn(&Side) -> f64| Ratios::of(&pairs, |it| value(&it.b) / value(&it.a));
    let cpu_per_delivery = ratios(|side| side.cpu_ns_per_delivery);
    Ok(ScenarioReport {
        failures: failures(&pairs, &cpu_per_delivery, tolerance_percent),
        scenario: scenario.clone(),
        p50: ratios(|side| side.subscribers.latency_ms.p50),
        p99: ratios(|side| side.subscribers.latency_ms.p99),
        cpu_per_delivery,
        pairs,
    })
}

fn failures(pairs: &[Pair<Side, Side>], cpu: &Ratios, tolerance_percent: f64) -> Vec<String> {
    let mut failures = Vec::new();
    for (pair, nth) in pairs.iter().zip(1..) {
        for (side, what) in [(&pair.a, "before"), (&pair.b, "after")] {
            let group = &side.subscribers;
            if !group.is_good() || !side.client.is_good() {
                failures.push(format!(
                    "pair {nth}, {what}: {} of {} delivered, duplicated {}, misordered {}, \
                     damaged {}, stray {}, disconnected {}, publications failed {}",
                    group.received,
                    group.expected,
                    group.duplicated,
                    group.misordered,
                    group.damaged,
                    group.stray,
                    group.disconnects.values().sum::<u64>(),
                    side.client.publications_failed,
                ));
            }
            if side.cpu_ns_per_delivery == 0.0 {
                failures.push(format!("pair {nth}, {what}: the server's CPU time is unknown"));
            }
        }
    }
    let more_percent = (cpu.median - 1.0) * 1e2;
    if more_percent > tolerance_percent {
        failures.push(format!(
            "CPU per delivery rose by {more_percent:.1} %, {tolerance_percent} % are let pass"
        ));
    }
    failures
}

fn table(report: &GuardReport) -> Table {
    let mut table = Table::default();
    for ScenarioReport { scenario, cpu_per_delivery, p50, p99, failures, pairs } in
        &report.scenarios
    {
        let mut row = |what: &str, unit: &str, ratios: &Ratios, value: fn(&Side) -> f64| {
            let before = median(&pairs.iter().map(|pair| value(&pair.a)).collect::<Vec<_>>());
            let after = median(&pairs.iter().map(|pair| value(&pair.b)).collect::<Vec<_>>());
            table.row(
                &format!("{}: {what}", scenario.name),
                format!(
                    "× {:.3} (worst pair {:.3}); {before:.2} -> {after:.2} {unit}",
                    ratios.median, ratios.most
                ),
            );
        };
        row("CPU per delivery", "ns", cpu_per_delivery, |side| side.cpu_ns_per_delivery);
        row("p50", "ms", p50, |side| side.subscribers.latency_ms.p50);
        row("p99", "ms", p99, |side| side.subscribers.latency_ms.p99);
        for failure in failures {
            table.row(&format!("{}: FAILED", scenario.name), failure);
        }
        let bottlenecks = pairs.iter().flat_map(|pair| [&pair.a, &pair.b]);
        let n_busy = bottlenecks.filter(|side| !side.client.bottlenecks.is_empty()).count();
        if n_busy > 0 {
            let text = format!("in {n_busy} of {} runs", 2 * pairs.len());
            table.row(&format!("{}: client the bottleneck", scenario.name), text);
        }
    }
    table.row(if report.passed { "PASSED" } else { "FAILED" }, "");
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_is_the_median_against_the_tolerance() {
        let cpu = |median| Ratios { median, least: 0.5, most: 2.0, all: vec![median] };
        assert_eq!(failures(&[], &cpu(1.029), 3.0), [""; 0]);
        assert_eq!(failures(&[], &cpu(0.5), 3.0), [""; 0]);
        assert_eq!(
            failures(&[], &cpu(1.04), 3.0),
            ["CPU per delivery rose by 4.0 %, 3 % are let pass"]
        );
    }

    #[test]
    fn the_scenarios_can_be_run() {
        for name in [ScenarioName::A, ScenarioName::A2, ScenarioName::B] {
            let flags = format!("{COMMON} {}", name.flags());
            let Scenario { load, .. } = Scenario::parse("x", &flags).unwrap();
            load.check().unwrap();
            assert!(load.burst.is_none());
        }
    }
}
