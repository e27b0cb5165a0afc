//! Promise: the ceiling's server delivers what a hub would, in as many sends as it says.

mod faulty;

use std::path::PathBuf;

use clap::Parser as _;
use faulty::Fault;
use loadtest::ceiling::{Ceiling, CeilingReport};
use loadtest::cli::{Cli, Command};

/// 0.25 s of 480 a second.
const PUBLICATIONS: u64 = 120;

#[track_caller]
fn measure(group: u32, more: &str) -> CeilingReport {
    let args = "loadtest ceiling --connections 10 --rate 480 --warm-up 0.05 --seconds 0.2 \
                --settle 0.05 --drain 0.3";
    let all = args.split_whitespace().chain(more.split_whitespace());
    let Command::Ceiling(args) = Cli::try_parse_from(all).unwrap().command else { panic!() };
    args.load.check().unwrap();
    let program = PathBuf::from(env!("CARGO_BIN_EXE_loadtest"));
    let report = Ceiling::with_program(program, group).measure(&args.load, "test", &[]).unwrap();
    assert!(report.is_good(), "group {group}, {more}: {report:#?}");
    assert_eq!(report.counts.short_sends, 0, "{report:#?}");
    report
}

#[test]
fn one_send_delivers_as_many_as_the_group_over_both_protocols() {
    for protocol in ["--protocol raw", "--protocol centrifuge"] {
        for group in [1, 4, 120] {
            let report = measure(group, protocol);
            assert_eq!(report.subscribers.received, 10 * PUBLICATIONS);
            let sends = 10 * PUBLICATIONS / u64::from(group);
            assert_eq!(report.counts.sends, sends, "{protocol}, group {group}");
        }
    }
}

#[test]
fn what_fills_no_group_is_sent_in_the_end() {
    // 17 groups of 7, and one of a single publication.
    let report = measure(7, "");
    assert_eq!(report.subscribers.received, 10 * PUBLICATIONS);
    assert_eq!(report.counts.sends, 10 * 18);
}

#[test]
fn a_publication_goes_to_the_subscribers_of_its_channel_only() {
    // Each channel has two subscribers, and each connection four channels of twenty.
    let report = measure(1, "--channels 20 --channels-per-connection 4");
    assert_eq!(report.subscribers.received, 2 * PUBLICATIONS);
    assert_eq!(report.subscribers.stray, 0);
    assert_eq!(report.counts.sends, 2 * PUBLICATIONS);
}

#[test]
fn a_group_waits_for_its_last_publication() {
    // The first of 120 waits for the last: 248 ms at 480 a second; of those in the window 198 ms.
    let report = measure(120, "");
    assert!(report.subscribers.latency_ms.max >= 190.0, "{:?}", report.subscribers.latency_ms);
}

#[test]
fn a_burst_is_delivered_to_the_end() {
    let args = "loadtest ceiling --connections 10 --burst 3000 --settle 0.05";
    let Command::Ceiling(args) = Cli::try_parse_from(args.split(' ')).unwrap().command else {
        panic!()
    };
    let program = PathBuf::from(env!("CARGO_BIN_EXE_loadtest"));
    let report = Ceiling::with_program(program, 1).measure(&args.load, "test", &[]).unwrap();
    assert!(report.is_good(), "{report:#?}");
    assert_eq!(report.subscribers.received, 30_000);
    assert_eq!(report.counts.sends, 30_000 + report.counts.short_sends);
    // More than the sockets hold: some of it is sent in the window, however late that began.
    assert!(report.server.deliveries_per_cpu_s > 0.0 && report.scale.scale > 0.0, "{report:#?}");
}

#[test]
fn groups_that_cannot_be_held_are_refused() {
    for bad in ["--group 0", "--group 1000000"] {
        let all = ["loadtest", "ceiling"].into_iter().chain(bad.split(' '));
        let Command::Ceiling(args) = Cli::try_parse_from(all).unwrap().command else { panic!() };
        assert!(loadtest::ceiling::command(&args, &[]).is_err(), "{bad}");
    }
}

/// `loadtest run --ceiling` against a server with this fault; its exit code and its JSON.
fn run_beside_the_ceiling(fault: Fault) -> (Option<i32>, serde_json::Value) {
    let json = tempfile::NamedTempFile::new().unwrap();
    let args = "run --publisher http --http-connections 1 --connections 5 --rate 400 --warm-up \
                0.05 --seconds 0.2 --settle 0.05 --drain 0.2 --ceiling=2 --pairs 2";
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(args.split_whitespace())
        .args(["--address", &faulty::start(fault).to_string()])
        .args(["--pid", &std::process::id().to_string(), "--json"])
        .arg(json.path())
        .output()
        .unwrap();
    (output.status.code(), serde_json::from_reader(json).unwrap())
}

#[test]
fn a_run_shows_its_share_of_the_ceiling() {
    let (code, report) = run_beside_the_ceiling(Fault::None);
    assert_eq!(code, Some(0), "{report:#}");
    let ceiling = &report["ceiling"];
    let pairs = ceiling["pairs"].as_array().unwrap();
    assert_eq!((pairs.len(), &ceiling["group"]), (2, &2.into()), "{ceiling:#}");
    for pair in pairs {
        for side in ["a", "b"] {
            // 0.2 s of 400 a second to five subscribers.
            assert_eq!(pair[side]["latency_ms"]["n"], 400, "{pair:#}");
        }
    }
    assert_eq!(report["subscribers"]["received"], 500);
}

#[test]
fn the_ceiling_excuses_nothing() {
    let (code, report) = run_beside_the_ceiling(Fault::Lose);
    assert_eq!(code, Some(1), "{report:#}");
    assert_eq!(report["subscribers"]["lost"], 10);
}
