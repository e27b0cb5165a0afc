//! `loadtest abuse`: good clients beside attackers, in pairs of windows with and without them.
//!
//! The good ones stay connected all the time, the attackers come for every other window; which of a
//! pair is first alternates. What the good ones lose is what the attackers can do.

mod attacker;

use serde::Serialize;

pub use attacker::{Attack, Deeds, DeedsByKind, KINDS, Kind, Siege};

use crate::cli::{AbuseArgs, LoadArgs};
use crate::clock::SECOND_NS;
use crate::fleet::Fleet;
use crate::measure;
use crate::pairs;
use crate::process;
use crate::publish::PublisherName;
use crate::report::{
    ClientReport, Environment, GroupReport, ServerReport, Table, median, write_json,
};
use crate::run;
use crate::server::Target;
use crate::verdict::{Comparison, Verdict, is_client_bound};

const OTHER_FDS: usize = 64;
/// What attackers may cost: p99 at most so many times that without, or so many milliseconds more.
pub const P99_RATIO_MAX: f64 = 1.3;
pub const P99_MORE_MS_MAX: f64 = 5.0;

#[derive(Clone, Debug, Serialize)]
pub struct AbuseReport {
    pub environment: Environment,
    pub load: LoadArgs,
    pub attackers: usize,
    pub attack_rate: f64,
    pub pairs: Vec<Pair>,
    pub summary: Summary,
}

#[derive(Clone, Debug, Serialize)]
pub struct Pair {
    pub without: Side,
    pub with: Side,
    pub deeds: DeedsByKind,
}

/// One window.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    pub good: GroupReport,
    /// Good clients cut in this window, or on the way to it.
    pub cut: u64,
    pub server: ServerReport,
    pub client: ClientReport,
}

#[derive(Copy, Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub cut: u64,
    pub lost: u64,
    /// Medians over the pairs, milliseconds.
    pub p50_without_ms: f64,
    pub p50_with_ms: f64,
    pub p99_without_ms: f64,
    pub p99_with_ms: f64,
    /// Pairs whose own p99 is within the bound.
    pub pairs_within: usize,
    pub cpu_share_without: f64,
    pub cpu_share_with: f64,
    pub rss_max_bytes: u64,
    pub verdict: Verdict,
}

pub fn command(args: &AbuseArgs, command_line: &[String]) -> anyhow::Result<Verdict> {
    args.check()?;
    process::raise_fd_limit(args.load.connections + args.attackers + OTHER_FDS)?;
    let target = args.target.open(args.load.publisher == PublisherName::Redis)?;
    let pairs = besieged(args, &target)?;
    let report = AbuseReport {
        environment: Environment::here(command_line),
        load: args.load.clone(),
        attackers: args.attackers,
        attack_rate: args.attack_rate,
        summary: summarize(&pairs),
        pairs,
    };
    table(&report).print();
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    Ok(report.summary.verdict)
}

fn besieged(args: &AbuseArgs, target: &Target) -> anyhow::Result<Vec<Pair>> {
    let load = &args.load;
    let mut fleet = Fleet::new(run::shared(load, target)?, run::plans(load))?;
    run::connect(&mut fleet, load, target)?;
    // The server tidies up before the next one.
    let rest = |fleet: &mut Fleet| measure::idle(fleet, (args.rest * SECOND_NS as f64) as u64);
    let pairs = pairs::measure(
        &mut fleet,
        args.pairs,
        |fleet, label| {
            let side = window(fleet, args, target, &format!("{label}, without:"))?;
            rest(fleet).map(|()| side)
        },
        |fleet, label| {
            let siege = Siege::start(attack(args, target))?;
            let side = window(fleet, args, target, &format!("{label}, with:"));
            let deeds = siege.stop();
            let side = side?;
            rest(fleet).map(|()| (side, deeds))
        },
    )?;
    let pairs = pairs.into_iter().map(|pairs::Pair { a: without, b: (with, deeds) }| Pair {
        without,
        with,
        deeds,
    });
    Ok(pairs.collect())
}

fn attack(args: &AbuseArgs, target: &Target) -> Attack {
    Attack {
        target: target.address,
        n_attackers: args.attackers,
        rate: args.attack_rate,
        channel: args.load.channel_names()[0].clone(),
    }
}

fn window(
    fleet: &mut Fleet,
    args: &AbuseArgs,
    target: &Target,
    label: &str,
) -> anyhow::Result<Side> {
    let n_ended_before = fleet.groups[0].n_ended();
    let publisher = args.load.publisher(target, &args.target.redis_prefix)?;
    let spec = run::spec(&args.load, label);
    let measured = measure::measure(fleet, &target.pids, publisher, &spec)?;
    let good = GroupReport::of(&measured.groups[0]);
    Ok(Side {
        cut: fleet.groups[0].n_ended() - n_ended_before,
        good,
        server: ServerReport::of(&measured),
        client: ClientReport::of(&measured, false),
    })
}

fn is_within(without_ms: f64, with_ms: f64) -> bool {
    with_ms <= without_ms * P99_RATIO_MAX || with_ms <= without_ms + P99_MORE_MS_MAX
}

fn summarize(pairs: &[Pair]) -> Summary {
    let of = |value: &dyn Fn(&Pair) -> f64| median(&pairs.iter().map(value).collect::<Vec<_>>());
    let sides = || pairs.iter().flat_map(|pair| [&pair.without, &pair.with]);
    let share = |side: &Side| side.server.cpu_s / side.server.window_s.max(f64::MIN_POSITIVE);
    let p99_without_ms = of(&|pair| pair.without.good.latency_ms.p99);
    let p99_with_ms = of(&|pair| pair.with.good.latency_ms.p99);
    let cut = sides().map(|side| side.cut).sum();
    let lost = sides().map(|side| side.good.lost).sum();
    let is_good = sides().all(|side| side.good.is_good() && side.client.is_good());
    Summary {
        cut,
        lost,
        p50_without_ms: of(&|pair| pair.without.good.latency_ms.p50),
        p50_with_ms: of(&|pair| pair.with.good.latency_ms.p50),
        p99_without_ms,
        p99_with_ms,
        pairs_within: pairs
            .iter()
            .filter(|it| is_within(it.without.good.latency_ms.p99, it.with.good.latency_ms.p99))
            .count(),
        cpu_share_without: of(&|pair| share(&pair.without)),
        cpu_share_with: of(&|pair| share(&pair.with)),
        rss_max_bytes: sides().map(|side| side.server.rss_max_bytes).max().unwrap_or(0),
        verdict: Verdict::from(!pairs.is_empty() && is_good).and(Comparison {
            holds: is_within(p99_without_ms, p99_with_ms),
            is_client_bound: is_client_bound(pairs.iter().map(|pair| &pair.without.client))
                || is_client_bound(pairs.iter().map(|pair| &pair.with.client)),
        }),
    }
}

fn table(report: &AbuseReport) -> Table {
    let mut table = Table::default();
    for (pair, nth) in report.pairs.iter().zip(1..) {
        for (side, what) in [(&pair.without, "without"), (&pair.with, "with")] {
            let latency = side.good.latency_ms;
            table.row(
                &format!("pair {nth}, {what}"),
                format!(
                    "p50 {:.2}  p99 {:.2}  max {:.2} ms; cut {}, lost {}; server CPU {:.2} s of {:.0}; \
                     RSS {:.1} MB",
                    latency.p50,
                    latency.p99,
                    latency.max,
                    side.cut,
                    side.good.lost,
                    side.server.cpu_s,
                    side.server.window_s,
                    side.server.rss_max_bytes as f64 / 1e6
                ),
            );
            for bottleneck in &side.client.bottlenecks {
                table.row("CLIENT IS THE BOTTLENECK", bottleneck);
            }
        }
    }
    if let Some(pair) = report.pairs.last() {
        for (kind, deeds) in &pair.deeds {
            table.row(
                &format!("{kind:?}"),
                format!(
                    "{} attackers, {} connects, cut {} times, sent {:.1} MB",
                    deeds.attackers,
                    deeds.connects,
                    deeds.cut,
                    deeds.sent_bytes as f64 / 1e6
                ),
            );
        }
    }
    let summary = &report.summary;
    table.row(
        "p50, ms (medians)",
        format!("{:.2} -> {:.2}", summary.p50_without_ms, summary.p50_with_ms),
    );
    table.row(
        "p99, ms (medians)",
        format!("{:.2} -> {:.2}", summary.p99_without_ms, summary.p99_with_ms),
    );
    table.row(
        "server CPU, % of a core",
        format!("{:.1} -> {:.1}", summary.cpu_share_without * 1e2, summary.cpu_share_with * 1e2),
    );
    table.row(
        "pairs within the bound",
        format!("{} of {}", summary.pairs_within, report.pairs.len()),
    );
    table.verdict(
        summary.verdict,
        format!(
            "cut {}, lost {}, p99 at most {P99_RATIO_MAX} × or + {P99_MORE_MS_MAX} ms",
            summary.cut, summary.lost
        ),
    );
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_a_ratio_or_a_difference() {
        assert!(is_within(100.0, 130.0) && !is_within(100.0, 130.1));
        assert!(is_within(1.0, 6.0) && !is_within(1.0, 6.1));
    }
}
