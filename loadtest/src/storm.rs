//! `loadtest storm`: everybody drops and comes back at once, while a few stay and must miss nothing.
//!
//! A round: all but those who stay are reset in one go, and from that moment on dial, are upgraded,
//! connect and subscribe again; who fails tries again until all are back. Publications go on at a low
//! rate all the time, by default in a channel of those who stay, so that the cost of coming back isn't
//! mixed with that of being served. Wall time and server CPU count from the drop until the last one is back, so
//! what it takes to clear the old sessions away is in them.

use std::collections::BTreeMap;

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use crate::cli::{LoadArgs, TargetArgs, check_wait};
use crate::clock::{MS_NS, SECOND_NS, now_ns, seconds, thread_cpu_ns};
use crate::fleet::{Fleet, Plan};
use crate::html::{Axis, Page, Plot, Scale};
use crate::measure::{Load, Traffic};
use crate::process::{self, Cpu};
use crate::publish::PublisherName;
use crate::report::{
    BUSY_SHARE, ClientReport, Environment, GroupReport, Latency, OutputArgs, Table, curves, median,
};
use crate::run::{self, Connecting};
use crate::server::Target;
use crate::timeline::{self, Sample};
use crate::verdict::Verdict;

const OTHER_FDS: usize = 64;
/// The groups of the fleet.
const STAYING: usize = 0;
const RETURNING: usize = 1;
/// Of those who stay, before those of the others.
const OWN_CHANNEL: usize = 0;
/// After which who failed tries again.
const RETRY_NS: u64 = 100 * MS_NS;
/// Between two points of the curve of those who are back.
const POINT_NS: u64 = 10 * MS_NS;
const POINTS_MAX: usize = 10_000;

#[derive(Args, Clone, Debug)]
pub struct StormArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub load: LoadArgs,
    /// Of the connections, so many stay and listen
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub stay: usize,
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub rounds: usize,
    /// Between all being back and the next drop
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    pub rest: f64,
    /// Open loop: so many dial a second, each at its time; default: as fast as the server takes
    /// --connect-concurrency at a time
    #[arg(long, value_name = "R")]
    pub dials_per_second: Option<f64>,
    /// Those who return are subscribed to what is published, too
    #[arg(long)]
    pub traffic_for_all: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

impl StormArgs {
    pub fn check(&self) -> anyhow::Result<()> {
        self.load.check()?;
        self.load.refuse_burst()?;
        if self.rounds == 0 || self.stay == 0 {
            bail!("--rounds, --stay: at least 1");
        }
        if self.stay >= self.load.connections {
            bail!("--stay: fewer than the --connections");
        }
        if self.dials_per_second.is_some_and(|rate| !(1.0..=1e6).contains(&rate)) {
            bail!("--dials-per-second: 1 to 1000000");
        }
        check_wait("--rest", self.rest)
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct StormReport {
    pub environment: Environment,
    pub load: LoadArgs,
    /// The first time, with nothing else going on.
    pub connecting: Connecting,
    pub rounds: Vec<Round>,
    /// Medians over the rounds.
    pub per_second: f64,
    pub per_cpu_s: f64,
    pub staying: GroupReport,
    /// What those who came back received wrongly; what they missed meanwhile is nobody's fault.
    pub returning: Faults,
    pub client: ClientReport,
    pub timeline: Vec<Sample>,
    pub verdict: Verdict,
}

#[derive(Clone, Debug, Serialize)]
pub struct Round {
    pub dropped: u64,
    /// Dialed, upgraded, connected and subscribed again.
    pub back: u64,
    /// From the drop until all were back, or until it was given up.
    pub seconds: f64,
    pub per_second: f64,
    pub server_cpu_s: f64,
    /// 0 if the server's process is unknown.
    pub per_cpu_s: f64,
    pub client_cpu_share: f64,
    /// From when a client dialed (open loop: was to dial) until it was subscribed.
    pub opening_ms: Latency,
    /// Attempts that failed, and sessions that ended afterwards, by kind.
    pub failures: BTreeMap<String, u64>,
    pub curve: Vec<BackPoint>,
}

#[derive(Copy, Clone, Debug, PartialEq, Serialize)]
pub struct BackPoint {
    /// Since the drop.
    pub at_s: f64,
    pub back: u64,
}

impl Round {
    fn is_client_bound(&self) -> bool {
        self.client_cpu_share > BUSY_SHARE
    }

    fn is_good(&self) -> bool {
        self.back == self.dropped && self.failures.is_empty()
    }
}

#[derive(Copy, Clone, Debug, PartialEq, Serialize)]
pub struct Faults {
    pub duplicated: u64,
    pub misordered: u64,
    pub damaged: u64,
    pub stray: u64,
}

pub fn command(args: &StormArgs, command_line: &[String]) -> anyhow::Result<Verdict> {
    args.check()?;
    process::raise_fd_limit(args.load.connections + OTHER_FDS)?;
    let target = args.target.open(args.load.publisher == PublisherName::Redis)?;
    let report = storm(args, &target, command_line)?;
    table(&report).print();
    args.output.write(&report, page)?;
    Ok(report.verdict)
}

fn storm(
    args: &StormArgs,
    target: &Target,
    command_line: &[String],
) -> anyhow::Result<StormReport> {
    let mut shared = run::shared(&args.load, target)?;
    let mut spec = run::spec(&args.load, "storm:");
    spec.load = Load::Endless { rate: args.load.rate };
    if !args.traffic_for_all {
        shared.channels.insert(OWN_CHANNEL, format!("{}stay", args.load.channel_prefix));
        spec.n_channels = 1;
    }
    let mut fleet = Fleet::new(shared, plans(args))?;
    let connecting = run::connect(&mut fleet, &args.load, target)?;
    let at_first = fleet.groups[RETURNING].take_failures();
    if !at_first.is_empty() {
        bail!("not even at leisure do all get in: {at_first:?}");
    }
    let publisher = args.load.publisher(target, &args.target.redis_prefix)?;
    let rest_ns = (args.rest * SECOND_NS as f64) as u64;
    let mut traffic = Traffic::start(&mut fleet, &target.pids, publisher, &spec)?;
    traffic.turn_for(&mut fleet, rest_ns)?;
    let mut rounds = Vec::new();
    for nth in 1..=args.rounds {
        let mut round = round(args, target, &mut fleet, &mut traffic)?;
        traffic.turn_for(&mut fleet, rest_ns)?;
        round.failures = fleet.groups[RETURNING].take_failures();
        eprintln!("round {nth} of {}: {}", args.rounds, line(&round));
        rounds.push(round);
    }
    let measured = traffic.finish(&mut fleet)?;
    let staying = GroupReport::of(&measured.groups[STAYING]);
    let tally = &measured.groups[RETURNING].group.tally;
    let returning = Faults {
        duplicated: tally.duplicated,
        misordered: tally.misordered,
        damaged: tally.damaged,
        stray: tally.stray,
    };
    // A storm is the time when the publisher may be late: its latency is not what is asked for.
    let client = ClientReport::of(&measured, true);
    let no_faults = Faults { duplicated: 0, misordered: 0, damaged: 0, stray: 0 };
    let of = |value: fn(&Round) -> f64| median(&rounds.iter().map(value).collect::<Vec<_>>());
    let is_good = rounds.iter().all(Round::is_good)
        && staying.is_good()
        && returning == no_faults
        && client.is_good();
    Ok(StormReport {
        environment: Environment::here(command_line),
        load: args.load.clone(),
        connecting,
        per_second: of(|round| round.per_second),
        per_cpu_s: of(|round| round.per_cpu_s),
        verdict: is_good.into(),
        rounds,
        staying,
        returning,
        client,
        timeline: measured.timeline,
    })
}

/// Those who stay are among the others: a server that walks its connections meets them in between.
fn plans(args: &StormArgs) -> Vec<Plan> {
    let n_connections = args.load.connections;
    let mut plans = run::plans(&args.load);
    for plan in &mut plans {
        plan.group = RETURNING;
        if !args.traffic_for_all {
            plan.channels.iter_mut().for_each(|channel| *channel += 1);
        }
    }
    for nth in 0..args.stay {
        let plan = &mut plans[(2 * nth + 1) * n_connections / (2 * args.stay)];
        plan.group = STAYING;
        if !args.traffic_for_all {
            plan.channels = vec![OWN_CHANNEL as u32];
        }
    }
    plans
}

fn round(
    args: &StormArgs,
    target: &Target,
    fleet: &mut Fleet,
    traffic: &mut Traffic<'_>,
) -> anyhow::Result<Round> {
    let dropped = fleet.groups[RETURNING].n_planned;
    let (cpu_before, client_before_ns) = (Cpu::of(&target.pids), thread_cpu_ns());
    let start_ns = now_ns();
    let deadline_ns = start_ns + (args.load.connect_timeout * SECOND_NS as f64) as u64;
    fleet.hang_up(RETURNING);
    fleet.redial(RETURNING, args.dials_per_second);
    let mut curve = vec![BackPoint { at_s: 0.0, back: 0 }];
    let (mut next_point_ns, mut next_retry_ns) = (start_ns + POINT_NS, start_ns + RETRY_NS);
    let end_ns = loop {
        traffic.turn(fleet)?;
        let now = now_ns();
        let back = fleet.groups[RETURNING].n_alive();
        let is_over = back == dropped || now >= deadline_ns;
        if (now >= next_point_ns && curve.len() < POINTS_MAX) || is_over {
            next_point_ns = now + POINT_NS;
            curve.push(BackPoint { at_s: seconds(now - start_ns), back });
        }
        if is_over {
            break now;
        }
        if now >= next_retry_ns && fleet.is_open() {
            next_retry_ns = now + RETRY_NS;
            fleet.redial(RETURNING, args.dials_per_second);
        }
    };
    let group = &fleet.groups[RETURNING];
    let wall_s = seconds((end_ns - start_ns).max(1));
    let server_cpu_s = Cpu::of(&target.pids).since(cpu_before).seconds();
    let back = group.n_alive();
    Ok(Round {
        dropped,
        back,
        seconds: wall_s,
        per_second: back as f64 / wall_s,
        server_cpu_s,
        per_cpu_s: if server_cpu_s > 0.0 { back as f64 / server_cpu_s } else { 0.0 },
        client_cpu_share: seconds(thread_cpu_ns() - client_before_ns) / wall_s,
        opening_ms: Latency::of(&group.opening_us),
        failures: BTreeMap::new(),
        curve,
    })
}

fn line(round: &Round) -> String {
    let opening = round.opening_ms;
    format!(
        "{} of {} back in {:.2} s: {:.0}/s, {:.0} per server CPU-second; each took p50 {:.1}  p99 \
         {:.1}  max {:.1} ms; client {:.0} %",
        round.back,
        round.dropped,
        round.seconds,
        round.per_second,
        round.per_cpu_s,
        opening.p50,
        opening.p99,
        opening.max,
        round.client_cpu_share * 1e2
    )
}

fn table(report: &StormReport) -> Table {
    let mut table = Table::default();
    let first = report.connecting;
    table.row("first", format!("in {:.2} s: {:.0}/s", first.seconds, first.per_second));
    for (round, nth) in report.rounds.iter().zip(1..) {
        table.row(&format!("round {nth}"), line(round));
        for (kind, n) in &round.failures {
            table.row("failed", format!("{n} × {kind}"));
        }
        if round.is_client_bound() {
            table.row("CLIENT IS THE BOTTLENECK", "the server may take more a second");
        }
    }
    table.row("-- those who stayed", "");
    table.group(&report.staying);
    table.client(&report.client);
    let returning = report.returning;
    table.row(
        "those who returned",
        format!(
            "duplicated {}, misordered {}, damaged {}, stray {}",
            returning.duplicated, returning.misordered, returning.damaged, returning.stray
        ),
    );
    table.row(
        "handshake+connect+subscribe",
        format!(
            "{:.0} a second, {:.0} per server CPU-second (medians)",
            report.per_second, report.per_cpu_s
        ),
    );
    table.verdict(
        report.verdict,
        "everybody back, no attempt failed, nothing lost by those who stayed",
    );
    if report.rounds.iter().any(Round::is_client_bound) {
        table.row(
            Verdict::Inconclusive.word(),
            "what is taken a second: the client was the bottleneck; a CPU-second is the server's own",
        );
    }
    table
}

fn page(report: &StormReport) -> Page {
    let mut page = Page::new("storm", report.verdict.word(), &report.environment);
    page.table(&table(report));
    let curves_of = |plot: Plot, (nth, round): (usize, &Round)| {
        let points = round.curve.iter().map(|it| (it.at_s, it.back as f64)).collect();
        plot.with(&format!("round {}", nth + 1), points)
    };
    let back = Plot::new(
        "Back after the drop",
        Axis::new("seconds", Scale::Linear),
        Axis::new("clients", Scale::Linear),
    );
    let back = report.rounds.iter().enumerate().fold(back, curves_of);
    page.plots(&[back, curves(&[("those who stayed", &report.staying)])]);
    page.heading("Those who stayed, over time");
    page.plots(&timeline::plots(&report.timeline));
    page
}
