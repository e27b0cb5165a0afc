//! Promise: a report as HTML is one well-formed file that needs nothing else, shows what the JSON
//! says, and lets nobody's text out.

mod faulty;

use clap::Parser as _;
use faulty::Fault;
use loadtest::cli::{Cli, Command};
use serde_json::Value;

const COMMON: &str = "--publisher http --http-connections 1 --connections 10 --rate 100 --settle 0 \
                      --drain 0.3";
/// Elements without an end.
const VOID: [&str; 1] = ["meta"];

/// Runs a command with `command_line` as what was typed; its JSON and its page.
fn report(name: &str, fault: Fault, more: &str, command_line: &[&str]) -> (Value, String) {
    let json = tempfile::NamedTempFile::new().unwrap();
    let html = tempfile::NamedTempFile::new().unwrap();
    let args = format!(
        "loadtest {name} --address {} --json {} --html {} {COMMON} {more}",
        faulty::start(fault),
        json.path().display(),
        html.path().display()
    );
    let typed: Vec<String> = command_line.iter().map(ToString::to_string).collect();
    let verdict = match Cli::try_parse_from(args.split_whitespace()).unwrap().command {
        Command::Run(args) => loadtest::run::command(&args, &typed),
        Command::Slow(args) => loadtest::slow::command(&args, &typed),
        Command::Storm(args) => loadtest::storm::command(&args, &typed),
        Command::Soak(args) => loadtest::soak::command(&args, &typed),
        _ => panic!("{name} has no page"),
    };
    verdict.unwrap();
    let page = std::fs::read_to_string(html.path()).unwrap();
    check(&page);
    (serde_json::from_reader(json).unwrap(), page)
}

/// Every element that begins ends, in order, and nothing is fetched or run.
#[track_caller]
fn check(page: &str) {
    let mut open = Vec::new();
    let (before_style, rest) = page.split_once("<style>").unwrap();
    let (style, after_style) = rest.split_once("</style>").unwrap();
    for text in [before_style, after_style] {
        for piece in text.split('<').skip(1) {
            let (tag, _) = piece.split_once('>').unwrap_or_else(|| panic!("<{piece}"));
            let name = tag.split([' ', '/']).next().unwrap();
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "{page}");
            } else if !(tag.ends_with('/') || name.starts_with('!') || VOID.contains(&name)) {
                open.push(name);
            }
        }
    }
    assert!(open.is_empty(), "{open:?}");
    let tags = || after_style.split('<').filter_map(|it| it.split('>').next());
    for name in ["script", "img", "link", "iframe", "object", "use", "image"] {
        assert!(tags().all(|tag| tag.split(' ').next() != Some(name)), "{name} in {page}");
    }
    for attribute in [" src=", " href=", " on"] {
        assert!(tags().all(|tag| !tag.contains(attribute)), "{attribute} in {page}");
    }
    assert!(!style.contains("url(") && !style.contains("@import"));
}

fn n_plots(page: &str) -> usize {
    page.matches("<svg").count()
}

#[test]
fn a_run_shows_the_curve_the_times_and_the_figures_of_the_json() {
    let evil = "</pre><script>alert(1)</script>";
    let (json, page) =
        report("run", Fault::None, "--warm-up 0.1 --seconds 3.3", &["loadtest", evil]);
    assert!(!page.contains(evil));
    assert!(page.contains("&lt;/pre&gt;&lt;script&gt;alert(1)"), "{page}");
    // No --pid: nothing about the server's memory and CPU.
    assert_eq!(n_plots(&page), 4, "{page}");
    for percentile in ["p50", "p90", "p99"] {
        let ms = json["subscribers"]["latency_ms"][percentile].as_f64().unwrap();
        assert!(page.contains(&format!("{percentile} {ms:.2}")), "{percentile} {ms}: {page}");
    }
    // Three looks, at 1, 2 and 3 s less 0.1.
    let samples = json["timeline"].as_array().unwrap();
    assert_eq!(samples.len(), 2, "{json:#}");
    let points: Vec<usize> = page
        .split("<polyline points=\"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap().split_whitespace().count())
        .collect();
    let curve = json["subscribers"]["latency_curve"].as_array().unwrap();
    assert_eq!(points[0], curve.len(), "{page}");
    // p50, p99 and max; deliveries; publications.
    assert_eq!(points[1..], [2; 5], "{page}");
}

#[test]
fn what_a_server_says_stays_text() {
    let (json, page) = report("run", Fault::CutRudely, "--warm-up 0 --seconds 0.5", &[]);
    let reason = json["subscribers"]["disconnects"].as_object().unwrap().keys().next().unwrap();
    assert!(reason.contains("<img src=x"), "{reason}");
    assert!(page.contains("&lt;img src=x"), "{page}");
}

#[test]
fn slow_storm_and_soak_have_their_plots() {
    let slow = "--stalled 1 --pairs 2 --warm-up 0 --seconds 0.3";
    let (_, page) = report("slow", Fault::None, slow, &[]);
    assert_eq!(n_plots(&page), 2, "{page}");
    assert_eq!(page.matches("<polyline").count(), 4 + 2, "{page}");
    let storm = "--stay 2 --rounds 2 --rest 1.1";
    let (json, page) = report("storm", Fault::None, storm, &[]);
    assert!(page.contains("Back after the drop") && page.contains("round 2"), "{page}");
    assert_eq!(json["rounds"].as_array().unwrap().len(), 2, "{json:#}");
    // Two, and three over time, as nothing is known of the server's process.
    assert_eq!(n_plots(&page), 2 + 3, "{page}");
    let soak = format!("--pid {} --warm-up 0 --seconds 1 --every 0.1", std::process::id());
    let (_, page) = report("soak", Fault::None, &soak, &[]);
    for title in ["Latency over time", "Server memory", "Server descriptors", "Lost so far"] {
        assert!(page.contains(&format!("<h3>{title}</h3>")), "{title}: {page}");
    }
    assert_eq!(n_plots(&page), 8, "{page}");
}
