//! `loadtest run`: connect everybody, publish, and tell what came of it.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use serde::Serialize;

use crate::ceiling::{Ceiling, Share};
use crate::checker::Expected;
use crate::cli::{self, LoadArgs, RunArgs};
use crate::clock::{SECOND_NS, seconds};
use crate::fleet::{Fleet, Pace, Plan, Shared};
use crate::html::Page;
use crate::measure::{self, Load, Measured, Spec};
use crate::pairs;
use crate::process::{self, Memory};
use crate::publish::PublisherName;
use crate::report::{ClientReport, Environment, GroupReport, ServerReport, Table, curves};
use crate::server::Target;
use crate::timeline::{self, Looks, Sample};
use crate::verdict::Verdict;

/// Descriptors besides those of the connections.
const OTHER_FDS: usize = 64;

#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    pub environment: Environment,
    pub load: LoadArgs,
    pub connecting: Connecting,
    pub subscribers: GroupReport,
    pub server: ServerReport,
    pub client: ClientReport,
    pub timeline: Vec<Sample>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ceiling: Option<Share>,
}

/// How the connections came to be.
#[derive(Copy, Clone, Debug, Serialize)]
pub struct Connecting {
    pub seconds: f64,
    pub per_second: f64,
    /// Private memory of the server that each took; 0 if unknown.
    pub server_anon_bytes_each: u64,
}

impl RunReport {
    pub fn is_good(&self) -> bool {
        self.subscribers.is_good() && self.client.is_good()
    }
}

/// Runs it, prints the table, writes the JSON; whether all was as it must be.
pub fn command(args: &RunArgs, command_line: &[String]) -> anyhow::Result<Verdict> {
    args.load.check()?;
    args.share.check(&args.load)?;
    process::raise_fd_limit(args.load.connections + OTHER_FDS)?;
    let target = args.target.open(args.load.publisher == PublisherName::Redis)?;
    let report = match args.share.ceiling {
        None => run(&args.load, &target, &args.target.redis_prefix, command_line)?,
        Some(group) => run_beside_the_ceiling(args, group, &target, command_line)?,
    };
    table(&report).print();
    args.output.write(&report, page)?;
    Ok(report.is_good().into())
}

/// In turn with the ceiling. What it reports in full is the first run, or the first that wasn't
/// good.
fn run_beside_the_ceiling(
    args: &RunArgs,
    group: u32,
    target: &Target,
    command_line: &[String],
) -> anyhow::Result<RunReport> {
    let RunArgs { load, target: at, share, .. } = args;
    let ceiling = Ceiling::beside(group, target, at.server_cpus.as_ref())?;
    let pairs = pairs::measure(
        &mut (),
        share.pairs,
        |_, label| {
            eprintln!("{label}: run");
            run(load, target, &at.redis_prefix, command_line)
        },
        |_, label| ceiling.measure(load, &format!("{label}: ceiling"), command_line),
    )?;
    if let Some(bad) = pairs.iter().find(|pair| !pair.b.is_good()) {
        bail!("the ceiling's own deliveries failed: {:?}", bad.b.subscribers);
    }
    let shown = pairs.iter().find(|pair| !pair.a.is_good()).or(pairs.first());
    let report = shown.context("invariant: at least one pair")?.a.clone();
    Ok(RunReport { ceiling: Some(Share::of(group, &pairs)), ..report })
}

/// The run itself, against a server that is there.
pub fn run(
    load: &LoadArgs,
    target: &Target,
    redis_prefix: &str,
    command_line: &[String],
) -> anyhow::Result<RunReport> {
    let plans = plans(load);
    let mut fleet = Fleet::new(shared(load, target)?, plans)?;
    let connecting = connect(&mut fleet, load, target)?;
    let publisher = load.publisher(target, redis_prefix)?;
    let spec = spec(load, "run");
    let measured = measure::measure(&mut fleet, &target.pids, publisher, &spec)?;
    Ok(report(load, connecting, &measured, command_line))
}

fn report(
    load: &LoadArgs,
    connecting: Connecting,
    measured: &Measured,
    command_line: &[String],
) -> RunReport {
    RunReport {
        environment: Environment::here(command_line),
        load: load.clone(),
        connecting,
        subscribers: GroupReport::of(&measured.groups[0]),
        server: ServerReport::of(measured),
        client: ClientReport::of(measured, load.burst.is_some()),
        ceiling: None,
        timeline: measured.timeline.clone(),
    }
}

fn table(report: &RunReport) -> Table {
    let mut table = Table::default();
    table.row(
        "connected",
        format!("in {:.2} s: {:.0}/s", report.connecting.seconds, report.connecting.per_second),
    );
    table.group(&report.subscribers);
    table.server(&report.server);
    if report.connecting.server_anon_bytes_each > 0 {
        table.row("RssAnon per connection", report.connecting.server_anon_bytes_each);
    }
    table.client(&report.client);
    if let Some(share) = &report.ceiling {
        table.share(share);
    }
    table.verdict(
        report.is_good().into(),
        "everything came, once, in order, undamaged; nobody was cut",
    );
    if !report.client.bottlenecks.is_empty() {
        table.row(
            Verdict::Inconclusive.word(),
            "latency and rates, which nothing judges here: the client was the bottleneck",
        );
    }
    table
}

fn page(report: &RunReport) -> Page {
    let mut page = Page::new("run", Verdict::from(report.is_good()).word(), &report.environment);
    page.table(&table(report));
    page.plots(&[curves(&[("", &report.subscribers)])]);
    page.heading("Over time");
    page.plots(&timeline::plots(&report.timeline));
    page
}

/// As many connections as asked for, all alike.
pub fn plans(load: &LoadArgs) -> Vec<Plan> {
    let plan = |nth| Plan {
        channels: load.channels_of(nth),
        group: 0,
        pace: Pace::Full,
        rcvbuf_bytes: None,
    };
    (0..load.connections).map(plan).collect()
}

pub fn shared(load: &LoadArgs, target: &Target) -> anyhow::Result<Shared> {
    Ok(Shared {
        target: target.address,
        sources: load.sources(),
        channels: load.channel_names(),
        protocol: load.protocol(),
        tokens: cli::tokens()?,
        // Nothing is published before `measure` says what is.
        expected: Expected { run: 0, payload_bytes: load.size, epoch_ns: 0, window_ns: 0..0 },
        n_opening_max: load.connect_concurrency,
    })
}

pub fn spec(load: &LoadArgs, label: &str) -> Spec {
    let ns = |seconds: f64| (seconds * SECOND_NS as f64) as u64;
    Spec {
        run: run_id(),
        payload_bytes: load.size,
        n_channels: load.channels,
        load: match load.burst {
            Some(n_publications) => Load::Burst { n_publications },
            None => Load::Steady {
                rate: load.rate,
                warm_up_ns: ns(load.warm_up),
                window_ns: ns(load.seconds),
            },
        },
        drain_ns: ns(load.drain),
        label: label.to_owned(),
        looks: Looks::over(ns(load.seconds)),
    }
}

/// Differs from the last run's, and from that of a run beside this one.
fn run_id() -> u16 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.as_millis() as u32 ^ std::process::id().rotate_left(7)) as u16
}

/// Opens the connections and lets them settle.
pub fn connect(fleet: &mut Fleet, load: &LoadArgs, target: &Target) -> anyhow::Result<Connecting> {
    let ns = |seconds: f64| (seconds * SECOND_NS as f64) as u64;
    let before = Memory::of(&target.pids);
    let took_ns = measure::connect(fleet, ns(load.connect_timeout))?;
    measure::idle(fleet, ns(load.settle))?;
    let n_ready: u64 = fleet.groups.iter().map(|group| group.n_ready).sum();
    let grown = Memory::of(&target.pids).anon.saturating_sub(before.anon);
    Ok(Connecting {
        seconds: seconds(took_ns),
        per_second: n_ready as f64 / seconds(took_ns.max(1)),
        server_anon_bytes_each: grown / n_ready.max(1),
    })
}
