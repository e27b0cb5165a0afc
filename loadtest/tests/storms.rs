//! Promise: a storm counts who came back, how often it failed, and what those who stayed missed.

mod faulty;

use clap::Parser as _;
use faulty::{CALM, Fault};
use loadtest::cli::{Cli, Command};
use loadtest::verdict::Verdict;
use serde_json::Value;

const ROUNDS: u64 = 3;
const STAY: u64 = 5;
const RETURN: u64 = CALM as u64 - STAY;

/// Its verdict and its JSON.
fn storm(fault: Fault, more: &str) -> (Verdict, Value) {
    let json = tempfile::NamedTempFile::new().unwrap();
    let args = format!(
        "loadtest storm --address {} --json {} --publisher http --http-connections 1 --connections \
         {CALM} --stay {STAY} --rounds {ROUNDS} --rate 100 --rest 0.2 --settle 0 --drain 0.3 {more}",
        faulty::start(fault),
        json.path().display()
    );
    let Command::Storm(args) = Cli::try_parse_from(args.split_whitespace()).unwrap().command else {
        panic!()
    };
    let verdict = loadtest::storm::command(&args, &[]).unwrap();
    (verdict, serde_json::from_reader(json).unwrap())
}

#[test]
fn everybody_comes_back_and_who_stays_gets_everything() {
    for more in ["--protocol raw", "--channels 3", "--traffic-for-all"] {
        let (verdict, report) = storm(Fault::None, more);
        assert_eq!(verdict, Verdict::Passed, "{report:#}");
        let rounds = report["rounds"].as_array().unwrap();
        assert_eq!(rounds.len() as u64, ROUNDS);
        for round in rounds {
            assert_eq!([&round["dropped"], &round["back"]], [RETURN, RETURN], "{round:#}");
            assert_eq!(round["opening_ms"]["n"], RETURN, "{round:#}");
            let curve = round["curve"].as_array().unwrap();
            assert_eq!(curve.last().unwrap()["back"], RETURN, "{round:#}");
        }
        let staying = &report["staying"];
        assert_eq!([&staying["connections"], &staying["lost"]], [STAY, 0], "{staying:#}");
        // It goes on through all rounds: at the very least the rests, at 100 a second.
        let publications = report["client"]["publications"].as_u64().unwrap();
        assert!(publications >= 20 * (ROUNDS + 1), "{report:#}");
        assert_eq!(staying["expected"], STAY * publications);
    }
}

#[test]
fn in_an_open_loop_each_dials_at_its_time() {
    let (verdict, report) = storm(Fault::None, "--dials-per-second 50");
    assert_eq!(verdict, Verdict::Passed, "{report:#}");
    for round in report["rounds"].as_array().unwrap() {
        // The last of them is due after (RETURN - 1) / 50 s.
        let seconds = round["seconds"].as_f64().unwrap();
        assert!(seconds >= (RETURN - 1) as f64 / 50.0, "{round:#}");
    }
}

#[test]
fn who_is_turned_away_tries_again_and_shows() {
    let (verdict, report) = storm(Fault::TurnAway, "");
    assert_eq!(verdict, Verdict::Failed, "{report:#}");
    let rounds = report["rounds"].as_array().unwrap();
    assert!(rounds.iter().all(|round| round["back"] == RETURN), "{report:#}");
    let of_round = |round: &Value| round["failures"]["upgrade: HTTP/1.1 503"].as_u64().unwrap_or(0);
    // Upgrades 25, 35, 45, … of 20 and three times 15, and the repeats.
    assert!((4..=6).contains(&rounds.iter().map(of_round).sum::<u64>()), "{report:#}");
    assert_eq!(report["staying"]["lost"], 0);
}

#[test]
fn what_those_who_stay_miss_fails_the_storm() {
    let (verdict, report) = storm(Fault::Corrupt, "--traffic-for-all");
    assert_eq!(verdict, Verdict::Failed);
    assert!(report["staying"]["lost"].as_u64() >= Some(STAY), "{report:#}");
    assert!(report["returning"]["damaged"].as_u64() >= Some(1), "{report:#}");
}
