//! Promise: the guard tells a build that fails from one that doesn't, and says why.
//!
//! No figure is asserted: this machine may be busy.

mod faulty;

use std::path::PathBuf;
use std::process::Command;

use faulty::Fault;
use loadtest::guard::{self, Scenario, ScenarioReport};
use loadtest::server::Target;
use serde_json::Value;

/// The servers are threads of this process, so their CPU time is anything: nothing is asked for.
fn compare(before: Fault, after: Fault) -> ScenarioReport {
    let flags = "--publisher http --http-connections 1 --protocol raw --connections 5 --burst 400 \
                 --settle 0.05 --drain 0.2";
    let scenario = Scenario::parse("tiny", flags).unwrap();
    let open = |fault| move || Target::running(faulty::start(fault), Vec::new(), None, None);
    guard::compare(&scenario, 2, 3.0, &open(before), &open(after)).unwrap()
}

/// In the order of the pairs, without those about CPU time: every run has one.
fn failures_to_deliver(report: &ScenarioReport) -> Vec<&str> {
    let is_cpu = |text: &&String| text.ends_with(": the server's CPU time is unknown");
    assert_eq!(report.failures.iter().filter(is_cpu).count(), 4, "{:?}", report.failures);
    report.failures.iter().filter(|text| !is_cpu(text)).map(String::as_str).collect()
}

#[test]
fn two_that_deliver_are_compared() {
    let report = compare(Fault::None, Fault::None);
    assert_eq!(failures_to_deliver(&report), [""; 0]);
    assert_eq!(report.pairs.len(), 2);
    for ratios in [&report.p50, &report.p99] {
        assert_eq!(ratios.all.len(), 2, "{ratios:?}");
        assert!(ratios.least > 0.0 && ratios.most >= ratios.median, "{ratios:?}");
    }
}

#[test]
fn one_that_loses_fails_whichever_it_is() {
    for (before, after, what) in
        [(Fault::None, Fault::Lose, "after"), (Fault::Lose, Fault::None, "before")]
    {
        let report = compare(before, after);
        // 5 subscribers, 400 publications, every tenth is lost by one of them; in both pairs.
        let failures = failures_to_deliver(&report);
        assert_eq!(failures.len(), 2, "{failures:?}");
        for (text, pair) in failures.iter().zip(1..) {
            let start = format!("pair {pair}, {what}: 1960 of 2000 delivered, ");
            assert!(text.starts_with(&start), "{text}");
        }
    }
}

/// The hubbub of the same build, or one built here.
fn hubbub() -> PathBuf {
    if let Some(path) = std::env::var_os("HUBBUB_BIN") {
        return path.into();
    }
    let path = PathBuf::from(env!("CARGO_BIN_EXE_loadtest")).with_file_name("hubbub");
    if !path.exists() {
        let built = Command::new(env!("CARGO")).args(["build", "-p", "hubbub"]).status();
        assert!(built.unwrap().success());
    }
    path
}

#[test]
fn a_build_passes_against_itself_and_a_program_that_is_none_is_an_error() {
    let json = tempfile::NamedTempFile::new().unwrap();
    let guard = |after: PathBuf| {
        Command::new(env!("CARGO_BIN_EXE_loadtest"))
            .arg("guard")
            .args([hubbub(), after])
            .args(["--scenarios", "A", "--pairs", "1", "--tolerance", "900"])
            .args(["--shrink", "20", "--warm-up", "0.1", "--seconds", "3", "--json"])
            .arg(json.path())
            .output()
            .unwrap()
    };
    let output = guard(hubbub());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_reader(&json).unwrap();
    let scenario = &report["scenarios"][0];
    assert_eq!(scenario["scenario"]["name"], "A");
    assert_eq!(scenario["pairs"].as_array().unwrap().len(), 1);
    for side in ["a", "b"] {
        let subscribers = &scenario["pairs"][0][side]["subscribers"];
        assert_eq!(subscribers["received"], 50 * 1550, "{subscribers:#}");
    }
    assert_eq!(guard("/bin/true".into()).status.code(), Some(64));
}
