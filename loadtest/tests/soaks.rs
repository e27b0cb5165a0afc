//! Promise: a soak sees what grows, and what was lost by each look.
//!
//! The server is a thread of this process, so that is what is watched: one test, with nothing beside
//! it that opens a file. p99 is not asserted: this machine may be busy.

mod faulty;

use clap::Parser as _;
use faulty::Fault;
use loadtest::cli::{Cli, Command};
use loadtest::verdict::Verdict;
use serde_json::Value;

fn soak(fault: Fault) -> (Verdict, Value) {
    let json = tempfile::NamedTempFile::new().unwrap();
    let args = format!(
        "loadtest soak --address {} --pid {} --json {} --publisher http --http-connections 1 \
         --connections 5 --rate 100 --warm-up 0.1 --seconds 2 --every 0.2 --settle 0 --drain 0.3",
        faulty::start(fault),
        std::process::id(),
        json.path().display()
    );
    let Command::Soak(args) = Cli::try_parse_from(args.split_whitespace()).unwrap().command else {
        panic!()
    };
    let verdict = loadtest::soak::command(&args, &[]).unwrap();
    (verdict, serde_json::from_reader(json).unwrap())
}

fn grown(report: &Value, what: &str) -> f64 {
    let of = |when: &str| report["growth"][what][when].as_f64().unwrap();
    of("last") - of("first")
}

#[test]
fn what_grows_shows() {
    // Each of these is a server more in this process, but not while the soak looks.
    let (_, good) = soak(Fault::None);
    let (files_verdict, files) = soak(Fault::KeepFiles);
    let (memory_verdict, memory) = soak(Fault::KeepMemory);
    let (loss_verdict, loss) = soak(Fault::Corrupt);
    assert_eq!([files_verdict, memory_verdict, loss_verdict], [Verdict::Failed; 3]);
    assert_eq!(grown(&good, "fds"), 0.0, "{good:#}");
    // From the middle of the first quarter to that of the last: 1.4 s of 100 a second.
    assert!((100.0..180.0).contains(&grown(&files, "fds")), "{files:#}");
    assert!(grown(&good, "anon_bytes") < 1e6, "{good:#}");
    assert!(grown(&memory, "anon_bytes") > 5e6, "{memory:#}");
    let lost = |report: &Value| -> Vec<u64> {
        let samples = report["timeline"].as_array().unwrap();
        // Every 0.2 s of 2 s; the first of all begins before the window does.
        assert!((9..=10).contains(&samples.len()), "{report:#}");
        samples.iter().map(|sample| sample["lost"].as_u64().unwrap()).collect()
    };
    assert!(lost(&good).iter().all(|&lost| lost == 0), "{good:#}");
    // One in ten, to each of five: known as soon as a later one has come.
    let lost = lost(&loss);
    assert!(lost.is_sorted() && lost[0] >= 5, "{loss:#}");
    assert!((95..=105).contains(lost.last().unwrap()), "{loss:#}");
    assert_eq!(loss["subscribers"]["lost"], 105, "{loss:#}");
}
