//! `loadtest slow`: what clients that read slowly, or never, do to the others.
//!
//! In pairs of runs with them and without, each run with fresh connections; the others' number is
//! the same in both.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cli::{LoadArgs, SlowArgs};
use crate::fleet::{Fleet, Pace, Plan};
use crate::html::{Axis, Page, Plot, Scale};
use crate::measure::{self, Measured};
use crate::pairs;
use crate::process;
use crate::publish::PublisherName;
use crate::report::{
    ClientReport, Environment, GroupReport, Latency, ServerReport, Table, curves, median,
};
use crate::run;
use crate::server::Target;
use crate::verdict::{Comparison, Verdict, is_client_bound};

const OTHER_FDS: usize = 64;
/// What slow readers may cost the others: p99 at most so many times, or so many milliseconds more.
pub const P99_RATIO_MAX: f64 = 1.2;
pub const P99_MORE_MS_MAX: f64 = 2.0;

/// The groups of the fleet, and how the last two read.
const OTHERS: usize = 0;
const STALLED: usize = 1;
const SLOW: usize = 2;

#[derive(Clone, Debug, Serialize)]
pub struct SlowReport {
    pub environment: Environment,
    pub load: LoadArgs,
    pub pairs: Vec<Pair>,
    /// Medians, milliseconds.
    pub p99_without_ms: f64,
    pub p99_with_ms: f64,
    pub verdict: Verdict,
}

#[derive(Clone, Debug, Serialize)]
pub struct Pair {
    pub without: Side,
    pub with: Side,
}

#[derive(Clone, Debug, Serialize)]
pub struct Side {
    pub others: GroupReport,
    pub stalled: Ends,
    pub slow: Ends,
    pub server: ServerReport,
    pub client: ClientReport,
}

/// What became of slow readers. That they lose something is their own doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ends {
    pub connections: u64,
    pub received: u64,
    pub duplicated: u64,
    pub misordered: u64,
    pub damaged: u64,
    pub disconnects: BTreeMap<String, u64>,
    /// How old what they read in the window was when they read it.
    pub age_ms: Latency,
}

pub fn command(args: &SlowArgs, command_line: &[String]) -> anyhow::Result<Verdict> {
    args.check()?;
    process::raise_fd_limit(args.load.connections + OTHER_FDS)?;
    let target = args.target.open(args.load.publisher == PublisherName::Redis)?;
    let pairs = pairs::measure(
        &mut (),
        args.pairs,
        |_, label| side(args, &target, false, &format!("{label}, without:")),
        |_, label| side(args, &target, true, &format!("{label}, with:")),
    )?;
    let pairs = pairs.into_iter().map(|pair| Pair { without: pair.a, with: pair.b }).collect();
    let report = report(args, pairs, command_line);
    table(&report).print();
    args.output.write(&report, page)?;
    Ok(report.verdict)
}

fn side(args: &SlowArgs, target: &Target, burdened: bool, label: &str) -> anyhow::Result<Side> {
    let mut fleet = Fleet::new(run::shared(&args.load, target)?, plans(args, burdened))?;
    fleet.groups.resize(SLOW + 1, Default::default());
    run::connect(&mut fleet, &args.load, target)?;
    let publisher = args.load.publisher(target, &args.target.redis_prefix)?;
    let spec = run::spec(&args.load, label);
    let measured = measure::measure(&mut fleet, &target.pids, publisher, &spec)?;
    fleet.read_to_the_end();
    Ok(Side {
        others: GroupReport::of(&measured.groups[OTHERS]),
        stalled: ends(&fleet, &measured, STALLED),
        slow: ends(&fleet, &measured, SLOW),
        server: ServerReport::of(&measured),
        client: ClientReport::of(&measured, false),
    })
}

/// The slow ones are among the others, not before or after them: a server that walks its
/// connections in order meets them in between.
fn plans(args: &SlowArgs, burdened: bool) -> Vec<Plan> {
    let n_connections = args.load.connections;
    let n_slow = args.stalled + args.slow;
    let mut plans = run::plans(&args.load);
    for nth in 0..n_slow {
        let plan = &mut plans[(2 * nth + 1) * n_connections / (2 * n_slow)];
        plan.rcvbuf_bytes = args.rcvbuf;
        (plan.group, plan.pace) = if nth < args.stalled {
            (STALLED, Pace::Never)
        } else {
            (SLOW, Pace::BytesPerSecond(args.slow_bytes_per_second))
        };
    }
    plans.retain(|plan| burdened || plan.group == OTHERS);
    plans
}

fn ends(fleet: &Fleet, measured: &Measured, group: usize) -> Ends {
    let age_ms = Latency::of(&measured.groups[group].group.tally.latency_us);
    let group = &fleet.groups[group];
    Ends {
        connections: group.n_ready,
        received: group.tally.unique,
        duplicated: group.tally.duplicated,
        misordered: group.tally.misordered,
        damaged: group.tally.damaged,
        disconnects: group.ended.clone(),
        age_ms,
    }
}

/// Whether the second of two p99 is about as good.
pub fn is_within(without_ms: f64, with_ms: f64) -> bool {
    with_ms <= without_ms * P99_RATIO_MAX || with_ms <= without_ms + P99_MORE_MS_MAX
}

fn report(args: &SlowArgs, pairs: Vec<Pair>, command_line: &[String]) -> SlowReport {
    let p99 = |side: &dyn Fn(&Pair) -> f64| median(&pairs.iter().map(side).collect::<Vec<_>>());
    let p99_without_ms = p99(&|pair| pair.without.others.latency_ms.p99);
    let p99_with_ms = p99(&|pair| pair.with.others.latency_ms.p99);
    // Slow or not: nobody gets a thing twice, out of order or broken.
    let is_clean = |ends: &Ends| [ends.duplicated, ends.misordered, ends.damaged] == [0; 3];
    let is_good = pairs.iter().flat_map(|pair| [&pair.without, &pair.with]).all(|side| {
        let clean = is_clean(&side.stalled) && is_clean(&side.slow);
        side.others.is_good() && side.client.is_good() && clean
    });
    SlowReport {
        environment: Environment::here(command_line),
        load: args.load.clone(),
        p99_without_ms,
        p99_with_ms,
        verdict: Verdict::from(is_good).and(Comparison {
            holds: is_within(p99_without_ms, p99_with_ms),
            is_client_bound: is_client_bound(pairs.iter().map(|pair| &pair.without.client))
                || is_client_bound(pairs.iter().map(|pair| &pair.with.client)),
        }),
        pairs,
    }
}

fn table(report: &SlowReport) -> Table {
    let mut table = Table::default();
    for (pair, nth) in report.pairs.iter().zip(1..) {
        for (side, what) in [(&pair.without, "without"), (&pair.with, "with")] {
            table.row(&format!("-- pair {nth}, {what}"), "");
            table.group(&side.others);
            table.server(&side.server);
            table.client(&side.client);
            for (ends, who) in [(&side.stalled, "stalled"), (&side.slow, "slow")] {
                if ends.connections > 0 {
                    let Ends { connections, received, disconnects, age_ms, .. } = ends;
                    let age = match age_ms.n {
                        0 => "nothing of the window read in it".to_owned(),
                        _ => format!(
                            "age of what was read: p50 {:.0}  p99 {:.0}  max {:.0} ms",
                            age_ms.p50, age_ms.p99, age_ms.max
                        ),
                    };
                    table.row(
                        who,
                        format!(
                            "{connections} connections, received {received}, ended {disconnects:?}; {age}"
                        ),
                    );
                }
            }
        }
    }
    table.verdict(
        report.verdict,
        format!(
            "the others' p99 (medians) {:.2} -> {:.2} ms, at most {P99_RATIO_MAX} × or + \
             {P99_MORE_MS_MAX} ms",
            report.p99_without_ms, report.p99_with_ms
        ),
    );
    table
}

fn page(report: &SlowReport) -> Page {
    let mut page = Page::new("slow", report.verdict.word(), &report.environment);
    let mut sides = Vec::new();
    for pair in &report.pairs {
        sides.extend([("without", &pair.without.others), ("with", &pair.with.others)]);
    }
    let names = (1..=report.pairs.len()).map(|nth| nth.to_string()).collect();
    let p99 = |side: fn(&Pair) -> &Side| -> Vec<(f64, f64)> {
        let p99s = report.pairs.iter().map(|it| side(it).others.latency_ms.p99);
        (0..).map(f64::from).zip(p99s).collect()
    };
    let p99 = Plot::new(
        "The others' p99",
        Axis::new("pair", Scale::Names(names)),
        Axis::new("ms", Scale::Linear),
    )
    .with("without", p99(|pair| &pair.without))
    .with("with", p99(|pair| &pair.with));
    page.plots(&[curves(&sides), p99]);
    page.heading("All windows");
    page.table(&table(report));
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser as _;

    #[test]
    fn the_others_are_as_many_with_and_without() {
        let args = "loadtest slow --connections 100 --stalled 3 --slow 2";
        let Command::Slow(args) = Cli::try_parse_from(args.split(' ')).unwrap().command else {
            panic!()
        };
        let n_of = |burdened: bool, group: usize| {
            plans(&args, burdened).iter().filter(|plan| plan.group == group).count()
        };
        assert_eq!([OTHERS, STALLED, SLOW].map(|group| n_of(true, group)), [95, 3, 2]);
        assert_eq!([OTHERS, STALLED, SLOW].map(|group| n_of(false, group)), [95, 0, 0]);
    }
}
