//! Promise: whatever a server does wrong, `loadtest run` says what and how often.

mod faulty;

use clap::Parser as _;
use faulty::{EVERY, Fault};
use loadtest::cli::{Cli, Command};
use loadtest::report::GroupReport;
use loadtest::run::{self, RunReport};
use loadtest::server::Target;

const CONNECTIONS: u64 = 5;
/// 0.25 s of 400 a second.
const PUBLICATIONS: u64 = 100;
const WRONG: u64 = PUBLICATIONS / EVERY as u64;

fn run(fault: Fault, more: &[&str]) -> RunReport {
    let args = "loadtest run --publisher http --http-connections 1 --connections 5 --rate 400 \
                --warm-up 0.05 --seconds 0.2 --settle 0.05 --drain 0.2";
    let all = args.split_whitespace().chain(more.iter().copied());
    let Command::Run(args) = Cli::try_parse_from(all).unwrap().command else { panic!() };
    args.load.check().unwrap();
    let target = Target::running(faulty::start(fault), Vec::new(), None, None).unwrap();
    run::run(&args.load, &target, "", &[]).unwrap()
}

/// Over both protocols: the counters named are so high, the others 0.
#[track_caller]
fn check(fault: Fault, counters: impl Fn(&GroupReport) -> Vec<(u64, u64)>) {
    for protocol in ["raw", "centrifuge"] {
        let report = run(fault, &["--protocol", protocol]);
        let group = &report.subscribers;
        for (counter, wanted) in counters(group) {
            assert_eq!(counter, wanted, "{fault:?} over {protocol}: {group:#?}");
        }
        let faults = [group.lost, group.duplicated, group.misordered, group.damaged, group.stray];
        let n_kinds = faults.iter().filter(|&&count| count > 0).count();
        assert_eq!(n_kinds, counters(group).len(), "{fault:?} over {protocol}: {group:#?}");
        assert!(!report.is_good(), "{fault:?} over {protocol}");
    }
}

#[test]
fn a_good_server_gets_a_good_report() {
    for protocol in ["raw", "centrifuge"] {
        let report = run(Fault::None, &["--protocol", protocol]);
        assert!(report.is_good(), "{report:#?}");
        assert_eq!(report.subscribers.received, CONNECTIONS * PUBLICATIONS);
        // Those of the window only: 0.2 s of the 0.25.
        assert_eq!(report.subscribers.latency_ms.n, CONNECTIONS * PUBLICATIONS * 4 / 5);
    }
}

#[test]
fn many_channels_are_told_apart() {
    let channels = ["--channels", "10", "--channels-per-connection", "4"];
    let report = run(Fault::None, &channels);
    assert!(report.is_good(), "{report:#?}");
    assert_eq!(report.subscribers.received, CONNECTIONS * PUBLICATIONS * 4 / 10);
}

#[test]
fn a_burst_is_counted_to_the_end() {
    let report = run_burst();
    assert!(report.is_good(), "{report:#?}");
    assert_eq!(report.subscribers.received, CONNECTIONS * 2000);
    assert_eq!(report.subscribers.latency_ms.n, CONNECTIONS * 2000);
}

fn run_burst() -> RunReport {
    let args = "loadtest run --publisher http --connections 5 --burst 2000 --settle 0.1";
    let Command::Run(args) = Cli::try_parse_from(args.split(' ')).unwrap().command else {
        panic!()
    };
    let target = Target::running(faulty::start(Fault::None), Vec::new(), None, None).unwrap();
    run::run(&args.load, &target, "", &[]).unwrap()
}

#[test]
fn what_one_subscriber_misses_is_lost() {
    check(Fault::Lose, |group| vec![(group.lost, WRONG)]);
}

#[test]
fn what_comes_twice_is_duplicated() {
    check(Fault::Repeat, |group| vec![(group.duplicated, CONNECTIONS * WRONG)]);
}

#[test]
fn what_comes_after_its_successor_is_misordered_and_not_lost() {
    check(Fault::Reorder, |group| vec![(group.misordered, CONNECTIONS * WRONG)]);
}

#[test]
fn what_differs_by_a_bit_is_damaged_and_lost() {
    let wrong = CONNECTIONS * WRONG;
    check(Fault::Corrupt, |group| vec![(group.damaged, wrong), (group.lost, wrong)]);
}

#[test]
fn what_is_a_byte_short_is_damaged_and_lost() {
    let wrong = CONNECTIONS * WRONG;
    check(Fault::Shorten, |group| vec![(group.damaged, wrong), (group.lost, wrong)]);
}

#[test]
fn what_nobody_subscribed_to_is_stray() {
    // Five connections, two channels: three hear one of them, two the other.
    let report = run(Fault::Leak, &["--channels", "2"]);
    let group = &report.subscribers;
    // Publications 5, 15, … all are of the first channel; two connections don't want it.
    assert_eq!([group.stray, group.lost], [2 * WRONG, 0], "{group:#?}");
    assert!(!report.is_good());
}

#[test]
fn who_is_cut_shows_by_code_and_the_rest_of_its_deliveries_is_lost() {
    let report = run(Fault::Cut, &[]);
    let group = &report.subscribers;
    let codes: Vec<(&str, u64)> =
        group.disconnects.iter().map(|(code, n)| (code.as_str(), *n)).collect();
    assert_eq!(codes, [("3008 slow", CONNECTIONS)]);
    // One after the other leaves after publication 5, 15, 25, 35 and 45.
    assert_eq!(group.lost, 95 + 85 + 75 + 65 + 55);
    assert!(!report.is_good());
}

#[test]
fn what_the_api_refuses_is_not_expected() {
    let report = run(Fault::Refuse, &[]);
    assert_eq!(report.client.publications_failed, WRONG);
    assert_eq!(report.subscribers.expected, CONNECTIONS * (PUBLICATIONS - WRONG));
    assert_eq!(report.subscribers.lost, 0);
    assert!(!report.is_good());
}
