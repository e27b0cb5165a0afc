//! Promise: the guard tells a build that fails from one that doesn't, and says why.
//!
//! No figure is asserted: this machine may be busy.

#[allow(dead_code, reason = "each test file goes wrong in its own ways")]
mod faulty;

use std::path::PathBuf;
use std::process::Command;

use faulty::Fault;
use loadtest::guard::{self, Scenario, ScenarioReport};
use loadtest::server::Target;
use serde_json::Value;

fn compare(before: Fault, after: Fault, pids: &[u32]) -> ScenarioReport {
    let flags = "--publisher http --http-connections 1 --protocol raw --connections 5 --rate 400 \
                 --warm-up 0.05 --seconds 0.2 --settle 0.05 --drain 0.2";
    let scenario = Scenario::parse("tiny", flags).unwrap();
    let open = |fault| move || Target::running(faulty::start(fault), pids.to_vec(), None, None);
    // The servers are threads of this process: their CPU time is anything.
    guard::compare(&scenario, 2, 1e9, &open(before), &open(after)).unwrap()
}

fn own_pid() -> [u32; 1] {
    [std::process::id()]
}

#[test]
fn two_that_deliver_pass() {
    let report = compare(Fault::None, Fault::None, &own_pid());
    assert_eq!(report.failures, [""; 0]);
    assert_eq!(report.pairs.len(), 2);
    for ratios in [&report.cpu_per_delivery, &report.p50, &report.p99] {
        assert_eq!(ratios.all.len(), 2, "{ratios:?}");
        assert!(ratios.least > 0.0 && ratios.most >= ratios.median, "{ratios:?}");
    }
}

#[test]
fn one_that_loses_fails_whichever_it_is() {
    for (before, after, what) in
        [(Fault::None, Fault::Lose, "after"), (Fault::Lose, Fault::None, "before")]
    {
        let report = compare(before, after, &own_pid());
        // 5 subscribers, 100 publications, every tenth is lost by one of them; in both pairs.
        let failure = |pair| format!("pair {pair}, {what}: 490 of 500 delivered, ");
        assert_eq!(report.failures.len(), 2, "{:?}", report.failures);
        for (text, pair) in report.failures.iter().zip(1..) {
            assert!(text.starts_with(&failure(pair)), "{text}");
        }
    }
}

#[test]
fn a_server_whose_cpu_nobody_knows_fails() {
    let report = compare(Fault::None, Fault::None, &[]);
    assert_eq!(report.failures.len(), 4, "{:?}", report.failures);
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
            .args(["--warm-up", "0.1", "--seconds", "0.2", "--json"])
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
        assert_eq!(subscribers["received"], 1000 * 150, "{subscribers:#}");
    }
    assert_eq!(guard("/bin/true".into()).status.code(), Some(64));
}
