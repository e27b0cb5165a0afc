//! Promise: the drills do what they say to a server, and see what becomes of the good clients.
//!
//! Verdicts on latency are not asserted: this machine may be busy.

mod faulty;

use clap::Parser as _;
use faulty::Fault;
use loadtest::cli::{Cli, Command};
use loadtest::verdict::Verdict;
use serde_json::Value;

const COMMON: &str = "--publisher http --http-connections 1 --connections 20 --rate 100 --warm-up \
                      0.2 --seconds 0.8 --settle 0 --drain 0.3 --pairs 1";

/// Runs a drill against a server with this fault; its verdict and its JSON.
fn drill(name: &str, fault: Fault, more: &str) -> (Verdict, Value) {
    drill_with(COMMON, name, fault, more)
}

fn drill_with(common: &str, name: &str, fault: Fault, more: &str) -> (Verdict, Value) {
    let json = tempfile::NamedTempFile::new().unwrap();
    let address = faulty::start(fault).to_string();
    let path = json.path().to_str().unwrap();
    let args = ["loadtest", name, "--address", &address, "--json", path];
    let all = args.into_iter().chain(common.split_whitespace()).chain(more.split_whitespace());
    let verdict = match Cli::try_parse_from(all).unwrap().command {
        Command::Abuse(args) => loadtest::abuse::command(&args, &[]),
        Command::Slow(args) => loadtest::slow::command(&args, &[]),
        _ => panic!("{name} is no drill"),
    };
    (verdict.unwrap(), serde_json::from_reader(json).unwrap())
}

#[test]
fn attackers_of_every_kind_come_and_the_good_ones_are_counted_apart() {
    let (_, report) =
        drill("abuse", Fault::None, "--attackers 24 --attack-rate 50 --rest 0.1 --channels 1");
    let pair = &report["pairs"][0];
    for side in ["without", "with"] {
        let good = &pair[side]["good"];
        assert_eq!(good["expected"], 20 * 100, "{good:#}");
        assert_eq!([&good["lost"], &good["damaged"], &pair[side]["cut"]], [0, 0, 0], "{good:#}");
    }
    let deeds = pair["deeds"].as_object().unwrap();
    assert_eq!(deeds.len(), 12);
    for (kind, deeds) in deeds {
        assert_eq!(deeds["attackers"], 2, "{kind}");
        assert!(deeds["connects"].as_u64() >= Some(2), "{kind}: {deeds}");
        assert!(deeds["sent_bytes"].as_u64() > Some(0), "{kind}: {deeds}");
    }
    assert!(deeds["unmasked_frames"]["connects"].as_u64() >= Some(2));
}

#[test]
fn a_good_client_that_is_cut_fails_the_drill() {
    let (verdict, report) = drill("abuse", Fault::Cut, "--attackers 1 --rest 0.1");
    assert_eq!(verdict, Verdict::Failed);
    // Publications 5, 15, … of both windows, as long as there are subscribers: 20 of 200.
    let cut = report["summary"]["cut"].as_u64().unwrap();
    assert!((15..=20).contains(&cut), "{report:#}");
    assert_eq!(report["pairs"][0]["without"]["good"]["disconnects"]["3008 slow"], 10);
}

#[test]
fn a_stalled_client_is_not_among_the_others() {
    let (_, report) = drill("slow", Fault::None, "--stalled 1 --slow 1 --rcvbuf 4096");
    let pair = &report["pairs"][0];
    assert_eq!(pair["without"]["stalled"]["connections"], 0);
    assert_eq!(pair["with"]["stalled"]["connections"], 1);
    assert_eq!(pair["with"]["slow"]["connections"], 1);
    for side in ["without", "with"] {
        let others = &pair[side]["others"];
        assert_eq!(others["connections"], 18);
        assert_eq!([&others["expected"], &others["lost"]], [18 * 100, 0], "{others:#}");
    }
}

#[test]
fn others_that_miss_something_fail_the_drill() {
    let (verdict, report) = drill("slow", Fault::Corrupt, "--stalled 1");
    assert_eq!(verdict, Verdict::Failed, "{report:#}");
    assert_eq!(report["pairs"][0]["with"]["others"]["damaged"], 19 * 10);
}

/// One request in flight can't make 100,000 a second: the publisher is late, and says so.
const HOPELESS: &str = "--publisher http --http-connections 1 --http-in-flight 1 --connections 20 \
                        --rate 100000 --warm-up 0 --seconds 0.003 --settle 0 --drain 0.3";

#[test]
fn a_comparison_means_nothing_if_the_client_is_the_bottleneck() {
    for (name, more) in
        [("slow", "--stalled 1 --pairs 1"), ("abuse", "--attackers 1 --rest 0.1 --pairs 1")]
    {
        let (verdict, report) = drill_with(HOPELESS, name, Fault::None, more);
        assert_eq!(verdict, Verdict::Inconclusive, "{name}: {report:#}");
        // But what is damaged is damaged.
        let (verdict, report) = drill_with(HOPELESS, name, Fault::Corrupt, more);
        assert_eq!(verdict, Verdict::Failed, "{name}: {report:#}");
    }
}

/// The command itself: its exit code and what it prints.
fn loadtest(args: &str) -> (Option<i32>, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_loadtest"));
    let output = command.args(args.split_whitespace()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_exit_code_tells() {
    let on = |fault, args: &str| loadtest(&format!("{args} --address {}", faulty::start(fault)));
    let (code, table) = on(Fault::None, &format!("slow --stalled 1 --pairs 1 {HOPELESS}"));
    assert!(code == Some(2) && table.contains("\nINCONCLUSIVE "), "{code:?} {table}");
    let (code, table) = on(Fault::Corrupt, &format!("slow --stalled 1 {COMMON}"));
    assert!(code == Some(1) && table.contains("\nFAILED "), "{code:?} {table}");
    // A run judges deliveries only, and says of the rest that it doesn't know.
    let (code, table) = on(Fault::None, &format!("run {HOPELESS}"));
    assert!(code == Some(0) && table.contains("\nPASSED "), "{code:?} {table}");
    assert!(table.contains("\nINCONCLUSIVE "), "{table}");
    for could_not in ["run --no-such-flag", "run --rate 0", "run --address 127.0.0.1:1"] {
        assert_eq!(loadtest(could_not).0, Some(64), "{could_not}");
    }
    assert_eq!(loadtest("--help").0, Some(0));
}
