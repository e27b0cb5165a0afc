use super::*;

fn load(args: &[&str]) -> LoadArgs {
    let all = ["loadtest", "run"].iter().chain(args);
    let Command::Run(run) = Cli::try_parse_from(all).unwrap().command else { panic!() };
    run.load
}

#[test]
fn the_flags_are_consistent() {
    use clap::CommandFactory as _;
    Cli::command().debug_assert();
    load(&[]).check().unwrap();
}

#[test]
fn what_cannot_work_is_refused() {
    let bad: &[&[&str]] = &[
        &["--connections", "0"],
        &["--sources", "0"],
        &["--size", "20"],
        &["--channels-per-connection", "2"],
        &["--rate", "0"],
        &["--rate", "NaN"],
        &["--drain", "inf"],
        &["--publisher", "websocket"],
        &["--publisher", "websocket", "--publish-path", "/", "--publish-message", "x"],
        &["--seconds", "300000"],
        &["--seconds", "100000", "--rate", "50000"],
    ];
    for args in bad {
        assert!(load(args).check().is_err(), "{args:?}");
    }
}

#[test]
fn every_channel_gets_its_share_and_no_connection_one_twice() {
    for (channels, per_connection) in [(1, 1), (50, 5), (20, 20), (7, 3), (1000, 1)] {
        let args = LoadArgs { channels, channels_per_connection: per_connection, ..load(&[]) };
        let (mut subscribers, mut sets) = (vec![0; channels], std::collections::HashSet::new());
        for nth in 0..1000 {
            let mut mine = args.channels_of(nth);
            mine.iter().for_each(|&channel| subscribers[channel as usize] += 1);
            mine.sort_unstable();
            mine.dedup();
            assert_eq!(mine.len(), per_connection, "{channels} {per_connection} {nth}");
            sets.insert(mine);
        }
        assert!(channels != 50 || sets.len() > 990, "{} sets", sets.len());
        let (least, most) = (subscribers.iter().min(), subscribers.iter().max());
        assert!(most.unwrap() - least.unwrap() <= per_connection, "{subscribers:?}");
    }
}

#[test]
fn no_address_gets_more_connections_than_half_its_ports() {
    let n_sources = |args: &[&str]| load(args).sources().len();
    assert_eq!(n_sources(&["--connections", "10000"]), 1);
    assert_eq!(n_sources(&["--connections", "10001"]), 2);
    assert_eq!(n_sources(&["--connections", "4000000"]), 254);
    assert_eq!(n_sources(&["--connections", "15000", "--sources", "1"]), 1, "as asked for");
}
