//! Promise: publications go out as WebSocket messages, to whatever endpoint takes them.

mod faulty;

use clap::Parser as _;
use faulty::Fault;
use loadtest::cli::{Cli, Command};
use loadtest::run::{self, RunReport};
use loadtest::server::Target;

/// To a server with this fault; `more` are further arguments.
fn run(fault: Fault, more: &[&str]) -> anyhow::Result<RunReport> {
    let args = "loadtest run --publisher websocket --connections 5 --rate 400 --warm-up 0.05 --seconds \
                0.2 --settle 0.05 --drain 0.2";
    let all = args.split_whitespace().chain(more.iter().copied());
    let Command::Run(args) = Cli::try_parse_from(all)?.command else { panic!() };
    args.load.check()?;
    let target = Target::running(faulty::start(fault), Vec::new(), None, None)?;
    run::run(&args.load, &target, "", &[])
}

#[test]
fn each_message_is_a_publication() {
    let one = ["--publish-path", "/publish?channel=load-0", "--publish-first-message", "sesame"];
    let report = run(Fault::None, &one).unwrap();
    assert!(report.is_good(), "{report:#?}");
    assert_eq!(report.subscribers.received, 500);
    let lossy = run(Fault::Lose, &one).unwrap();
    assert_eq!([lossy.subscribers.lost, lossy.subscribers.expected], [10, 500], "{lossy:#?}");
}

#[test]
fn the_message_may_name_the_channel() {
    let many = [
        "--publish-path",
        "/publish?",
        "--publish-first-message",
        "sesame",
        "--publish-message",
        "{channel} {payload}",
        "--channels",
        "5",
    ];
    let report = run(Fault::None, &many).unwrap();
    assert!(report.is_good(), "{report:#?}");
    assert_eq!(report.subscribers.received, 100);
}

/// The endpoint says everything back and pings with every message: to read nothing until all is
/// written would end in a standstill.
#[test]
fn a_burst_against_an_endpoint_that_answers_does_not_get_stuck() {
    let args = "loadtest run --publisher websocket --publish-path /publish?channel=load-0 \
                --publish-first-message sesame --connections 1 --burst 3000 --size 20000 --settle 0.1";
    let Command::Run(args) = Cli::try_parse_from(args.split_whitespace()).unwrap().command else {
        panic!()
    };
    let target = Target::running(faulty::start(Fault::None), Vec::new(), None, None).unwrap();
    let report = run::run(&args.load, &target, "", &[]).unwrap();
    assert!(report.is_good(), "{report:#?}");
    assert_eq!(report.subscribers.received, 3000);
}

#[test]
fn an_endpoint_that_does_not_want_us_shows() {
    let unknown = ["--publish-path", "/publish?channel=load-0", "--publish-first-message", "open"];
    // It ends while connecting, or at one of the first publications.
    match run(Fault::None, &unknown) {
        Ok(report) => {
            let error = report.client.publisher_error.as_deref().unwrap_or_default();
            assert!(error.contains("the publish endpoint"), "{report:#?}");
            assert!(!report.is_good());
        }
        Err(error) => assert!(format!("{error:#}").contains("the publish endpoint"), "{error:#}"),
    }
    let error = run(Fault::None, &["--publish-path", "/ready"]).unwrap_err();
    assert!(format!("{error:#}").contains("no upgrade: HTTP/1.1 200 OK"), "{error:#}");
}
