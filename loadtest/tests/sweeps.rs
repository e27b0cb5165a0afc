//! Promise: a sweep starts a server for each cell, with that cell's settings, and tells the cells
//! apart.
//!
//! This binary is its own server: started with `HUB_LISTEN` it is faulty, in a way that depends on
//! the settings.

mod faulty;

use std::net::TcpListener;

use clap::Parser as _;
use faulty::{DAWDLE, Fault};
use loadtest::cli::{Cli, Command};
use loadtest::verdict::Verdict;
use serde_json::Value;

fn main() {
    if let Ok(address) = std::env::var("HUB_LISTEN") {
        serve(&address);
    }
    each_cell_has_its_server();
    without_a_server_there_is_no_sweep();
    println!("sweeps: ok");
}

/// Two shards corrupt, three end at once; a write delay is one.
fn serve(address: &str) -> ! {
    let setting = |name: &str| std::env::var(name).expect(name);
    let fault = match (setting("HUB_SHARDS").as_str(), setting("HUB_WRITE_DELAY").as_str()) {
        ("2", _) => Fault::Corrupt,
        ("3", _) => std::process::exit(1),
        (_, "0") => Fault::None,
        _ => Fault::Dawdle,
    };
    let listener = TcpListener::bind(address).expect("the port");
    faulty::start_on(listener, fault).join().expect("the listener");
    std::process::exit(0)
}

/// The arguments of a sweep, checked.
fn parse(args: &str) -> anyhow::Result<loadtest::sweep::SweepArgs> {
    let all = ["loadtest", "sweep"].into_iter().chain(args.split_whitespace());
    let Command::Sweep(args) = Cli::try_parse_from(all)?.command else { panic!() };
    args.check()?;
    Ok(args)
}

fn each_cell_has_its_server() {
    let json = tempfile::NamedTempFile::new().unwrap();
    let html = tempfile::NamedTempFile::new().unwrap();
    let args = parse(&format!(
        "--server {} --json {} --html {} --shards 1,2,3 --write-delays 0,5ms --connection-counts 4 --rates \
         40,100 --rounds 2 --publisher http --http-connections 1 --warm-up 0.1 --seconds 0.4 \
         --settle 0 --drain 0.2",
        std::env::current_exe().unwrap().display(),
        json.path().display(),
        html.path().display()
    ));
    assert_eq!(loadtest::sweep::command(&args.unwrap(), &[]).unwrap(), Verdict::Failed);
    let report: Value = serde_json::from_reader(json).unwrap();
    let cells = report["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 12);
    for cell in cells {
        let (setting, summary) = (&cell["setting"], &cell["summary"]);
        let n_of = |what: &str| cell[what].as_array().unwrap().len();
        let shards = setting["shards"].as_u64().unwrap();
        assert_eq!([n_of("runs"), n_of("errors")], if shards == 3 { [0, 2] } else { [2, 0] });
        assert_eq!(summary["is_good"], shards == 1, "{cell:#}");
        if shards == 3 {
            continue;
        }
        // 0.5 s of them to 4 subscribers, twice; one of ten is corrupt.
        let expected = 2 * 4 * setting["rate"].as_f64().unwrap() as u64 / 2;
        assert_eq!(summary["lost"], if shards == 2 { expected / 10 } else { 0 }, "{cell:#}");
        let is_slow = summary["p50_ms"].as_f64().unwrap() >= DAWDLE.as_secs_f64() * 1e3;
        assert!(is_slow || setting["write_delay"] == "0" || shards == 2, "{cell:#}");
        assert_eq!(cell["runs"][0]["subscribers"]["connections"], 4);
    }
    // Shards have the most values, so they are the x axis of each plot; a line for each of two rates
    // with each of two delays, where three shards have no point.
    let page = std::fs::read_to_string(html.path()).unwrap();
    assert_eq!(page.matches("<svg").count(), 4, "{page}");
    assert_eq!(page.matches("<polyline").count(), 4 * 4, "{page}");
    assert_eq!(page.matches("<circle").count(), 4 * 4 * 2, "{page}");
    assert_eq!(page.matches("the server ended at once").count(), 4, "{page}");
    assert!(report["picks"].as_array().unwrap().is_empty(), "one candidate is no choice");
}

fn without_a_server_there_is_no_sweep() {
    let server = "--server x";
    assert!(parse(server).is_ok());
    for bad in ["", "--server x --shards 0", "--server x --rates 0", "--server x --rounds 1001"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}
