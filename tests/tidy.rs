//! The style police: what the house rules say and the compiler doesn't check.
//!
//! Works on text, line by line. Everything after a file's `#[cfg(test)] mod … {` and every
//! `tests.rs` counts as test code, which most rules leave alone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const FILE_LINES_MAX: usize = 800;
const FILE_LINES_MAX_WITHOUT_REASON: usize = 500;
const FN_LINES_MAX: usize = 70;
const FLAME_GRAPH_BYTES_MAX: u64 = 400_000;

/// Files over 500 lines, each with why it isn't two.
const LONG_FILES: &[LongFile] = &[
    LongFile {
        path: "src/shard/hub.rs",
        reason: "positions, logs and own outboxes change together, under one set of invariants",
    },
    LongFile { path: "src/config/knobs.rs", reason: "a table: one row a knob" },
];

/// No tokio, no redis, no clock: time and bytes come in as arguments.
const SANS_IO: &[&str] = &[
    "src/frame.rs",
    "src/fossil.rs",
    "src/shard/hub.rs",
    "src/shard/hub/held.rs",
    "src/shard/cohort.rs",
    "src/shard/outbox.rs",
    "src/shard/spares.rs",
    "src/shard/visited.rs",
    "src/shard/dirty.rs",
    "src/shard/reader.rs",
    "src/shard/stream.rs",
    "src/shard/stream/newest.rs",
    "src/shard/welcome.rs",
    "src/protocol/",
    "src/auth/",
    "src/broker/history.rs",
    "src/broker/interest.rs",
    "src/broker/memory/",
    "src/broker/newest.rs",
    "src/broker/registry.rs",
    "src/publication.rs",
    "src/channel.rs",
    "src/position.rs",
];

/// The hot path counts; the loops log.
const LOG_FREE: &[&str] = &[
    "src/fossil.rs",
    "src/shard/hub.rs",
    "src/shard/hub/held.rs",
    "src/shard/stream.rs",
    "src/shard/stream/newest.rs",
    "src/shard/outbox.rs",
    "src/shard/cohort.rs",
    "src/mailbox.rs",
    "src/frame.rs",
    "src/publication.rs",
];

/// Names that one file may use.
const ONE_DOOR: [Door; 3] = [
    Door { word: "ArrayQueue", path: "src/mailbox.rs" },
    Door { word: "AtomicWaker", path: "src/mailbox.rs" },
    Door { word: "MultiplexedConnection", path: "src/broker/redis/link.rs" },
];

struct LongFile {
    path: &'static str,
    reason: &'static str,
}

struct Door {
    word: &'static str,
    path: &'static str,
}

struct Source {
    /// From the root, with `/`.
    path: String,
    text: String,
}

impl Source {
    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.starts_with("tests/")
    }

    /// The numbered lines of the program proper: no tests, no comments.
    fn code(&self) -> Vec<Line<'_>> {
        let lines: Vec<&str> = self.text.lines().collect();
        let inline_tests = lines.windows(2).position(|pair| {
            pair[0] == "#[cfg(test)]" && pair[1].contains("mod ") && pair[1].ends_with('{')
        });
        let n_lines = if self.is_test() { 0 } else { inline_tests.unwrap_or(lines.len()) };
        let numbered = lines[..n_lines].iter().enumerate();
        let numbered = numbered.map(|(idx, &text)| Line { number: idx + 1, text });
        numbered.filter(|line| !line.text.trim_start().starts_with("//")).collect()
    }
}

struct Line<'a> {
    number: usize,
    text: &'a str,
}

/// Every complaint at once: a list is mended faster than one panic after the other.
#[derive(Default)]
struct Complaints(Vec<String>);

impl Complaints {
    fn add(&mut self, complaint: String) {
        self.0.push(complaint);
    }

    #[track_caller]
    fn none(self) {
        assert!(self.0.is_empty(), "\n{}\n", self.0.join("\n"));
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The Rust files under these folders, this one left out: it has to spell what it forbids.
fn sources(folders: &[&str]) -> Vec<Source> {
    let mut paths = Vec::new();
    for folder in folders {
        collect(&root().join(folder), &mut paths);
    }
    let relative = |path: &PathBuf| path.strip_prefix(root()).unwrap().display().to_string();
    let all = paths.iter().map(relative).filter(|path| path != "tests/tidy.rs");
    let mut all: Vec<Source> = all.map(|path| Source { text: read(&path), path }).collect();
    all.sort_by(|a, b| a.path.cmp(&b.path));
    all
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.map(Result::unwrap) {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if name != "node_modules" && name != "target" {
                collect(&path, into);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// Whole words only: `info!` isn't in `my_info!`, nor `Instant` in `InstantNoodles`.
fn has_word(text: &str, word: &str) -> bool {
    let of_a_name = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let runs_on = word.ends_with(of_a_name) && text[at + word.len()..].starts_with(of_a_name);
        !runs_on && !text[..at].ends_with(of_a_name)
    })
}

fn is_under(path: &str, places: &[&str]) -> bool {
    places.iter().any(|place| path == *place || place.ends_with('/') && path.starts_with(place))
}

/// Complains about each of these words in the code of these places.
fn forbid(places: &[&str], words: &[&str], why: &str) {
    let mut complaints = Complaints::default();
    for source in sources(&["src"]).iter().filter(|source| is_under(&source.path, places)) {
        for line in source.code() {
            for word in words.iter().filter(|word| has_word(line.text, word)) {
                complaints.add(format!("{}:{}: `{word}`: {why}", source.path, line.number));
            }
        }
    }
    complaints.none();
}

#[test]
fn files_are_short() {
    let mut complaints = Complaints::default();
    let all = sources(&["src", "loadtest"]);
    for source in &all {
        let n_lines = source.text.lines().count();
        let excused = LONG_FILES.iter().find(|long| long.path == source.path);
        if n_lines > FILE_LINES_MAX {
            complaints.add(format!("{}: {n_lines} lines, at most {FILE_LINES_MAX}", source.path));
        } else if n_lines > FILE_LINES_MAX_WITHOUT_REASON && excused.is_none() {
            complaints.add(format!("{}: {n_lines} lines and no reason why", source.path));
        } else if let Some(long) = excused
            && n_lines <= FILE_LINES_MAX_WITHOUT_REASON
        {
            complaints.add(format!("{}: no excuse needed: {}", source.path, long.reason));
        }
    }
    for long in LONG_FILES {
        if !all.iter().any(|source| source.path == long.path) {
            complaints.add(format!("{}: excused, but not there", long.path));
        }
    }
    complaints.none();
}

/// From a line with `fn` to the closing brace at the same indent, as rustfmt sets it.
#[test]
fn functions_are_short() {
    let mut complaints = Complaints::default();
    for source in sources(&["src", "loadtest"]) {
        let lines = source.code();
        for (idx, line) in lines.iter().enumerate().filter(|(_, line)| has_word(line.text, "fn ")) {
            let indent = &line.text[..line.text.len() - line.text.trim_start().len()];
            let ends = [format!("{indent}}}"), format!("{indent}}},")];
            let ends_itself = line.text.ends_with([';', '}', ',']);
            let is_fn_item = line.text.trim_end().ends_with(['{', '(', '>', ')', ',']);
            if ends_itself || !is_fn_item {
                continue;
            }
            let end = lines[idx..].iter().find(|line| ends.iter().any(|end| end == line.text));
            let Some(end) = end else { continue };
            let n_lines = end.number - line.number + 1;
            if n_lines > FN_LINES_MAX {
                let at = format!("{}:{}", source.path, line.number);
                complaints.add(format!("{at}: {n_lines} lines, at most {FN_LINES_MAX}"));
            }
        }
    }
    complaints.none();
}

#[test]
fn sans_io_stays_sans_io() {
    let words = ["tokio", "redis::", "Instant", "SystemTime"];
    forbid(SANS_IO, &words, "time, bytes and sockets come in as arguments here");
}

#[test]
fn the_hot_path_counts_and_does_not_log() {
    let words =
        ["tracing", "trace!", "debug!", "info!", "warn!", "error!", "println!", "eprintln!"];
    forbid(LOG_FREE, &words, "count here, report from the loop");
}

#[test]
fn the_lists_name_files_that_exist() {
    for path in SANS_IO.iter().chain(LOG_FREE).chain(ONE_DOOR.iter().map(|door| &door.path)) {
        assert!(root().join(path).exists(), "{path} moved: its rule has to move along");
    }
}

#[test]
fn one_file_per_foreign_type() {
    let mut complaints = Complaints::default();
    for source in sources(&["src"]) {
        for door in ONE_DOOR.iter().filter(|door| door.path != source.path) {
            for line in source.code().iter().filter(|line| has_word(line.text, door.word)) {
                let at = format!("{}:{}", source.path, line.number);
                complaints.add(format!("{at}: `{}` belongs to {}", door.word, door.path));
            }
        }
    }
    complaints.none();
}

#[test]
fn nothing_is_left_over() {
    let mut complaints = Complaints::default();
    for source in sources(&["src", "tests", "benches", "loadtest"]) {
        for (idx, line) in source.text.lines().enumerate() {
            // Put together, so that who searches for them finds none here either.
            for word in [["dbg", "!"], ["todo", "!"], ["unimplemented", "!"], ["FIX", "ME"]] {
                let word = &word.concat();
                if has_word(line, word) {
                    complaints.add(format!("{}:{}: {word}", source.path, idx + 1));
                }
            }
        }
    }
    complaints.none();
}

/// The value of a `name = "value"` line of Cargo.toml.
fn cargo_value(name: &str) -> String {
    let manifest = read("Cargo.toml");
    let start = format!("{name} = \"");
    let line = manifest.lines().find_map(|line| line.strip_prefix(&start));
    line.and_then(|rest| rest.strip_suffix('"')).expect("a line of Cargo.toml").to_owned()
}

#[test]
fn the_readme_names_this_version() {
    let readme = read("README.md");
    let version = format!("version {}", cargo_value("version"));
    assert!(readme.contains(&version), "README.md: no `{version}`");
    let rust = format!("Rust {}", cargo_value("rust-version"));
    assert!(readme.contains(&rust), "README.md: no `{rust}`");
}

#[test]
fn the_readmes_commands_exist() {
    let readme = read("README.md");
    for command in ["cargo run --release -- --dev", "tests/run"] {
        let shown = readme.lines().any(|line| line.trim_start_matches("$ ") == command);
        assert!(shown, "README.md: no line `{command}`");
    }
    for script in ["tests/run", ".ci/run", "flamegraphs/record"] {
        let mode = fs::metadata(root().join(script)).expect(script).permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{script} is not executable");
    }
    let help = Command::new(env!("CARGO_BIN_EXE_hubbub")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(has_word(&help, "--dev"), "`--dev` is not in `hubbub --help`:\n{help}");
}

/// A picture that nobody explains says nothing, and a repository isn't the place for large ones.
#[test]
fn flame_graphs_are_explained_and_small() {
    let readme = read("flamegraphs/README.md");
    let mut complaints = Complaints::default();
    let mut n_graphs = 0;
    for entry in fs::read_dir(root().join("flamegraphs")).expect("the folder").map(Result::unwrap) {
        let name = entry.file_name().into_string().expect("UTF-8");
        if !name.ends_with(".svg") {
            continue;
        }
        n_graphs += 1;
        if !readme.contains(&format!("({name})")) {
            complaints.add(format!("flamegraphs/{name}: not in the README"));
        }
        let n_bytes = entry.metadata().expect("a file").len();
        if n_bytes > FLAME_GRAPH_BYTES_MAX {
            complaints.add(format!("flamegraphs/{name}: {n_bytes} bytes"));
        }
        let svg = read(&format!("flamegraphs/{name}"));
        if ["home", "root", "Users"].iter().any(|folder| svg.contains(&format!("/{folder}/"))) {
            complaints.add(format!("flamegraphs/{name}: names somebody's folders"));
        }
    }
    if readme.matches(".svg)").count() != n_graphs {
        complaints.add(format!("flamegraphs/README.md: not {n_graphs} graphs"));
    }
    complaints.none();
}

/// The first word of each line that begins so.
fn names_after(text: &str, start: &str, end: char) -> Vec<String> {
    let rests = text.lines().filter_map(|line| line.trim_start().strip_prefix(start));
    let mut names: Vec<String> =
        rests.filter_map(|rest| rest.split_once(end)).map(|(name, _)| name.to_owned()).collect();
    names.sort();
    names
}

#[test]
fn the_readme_lists_every_knob() {
    let readme = names_after(&read("README.md"), "| `HUB_", '`');
    // A row begins with its name, on a line of its own or right after the macro's.
    let rows = read("src/config/knobs.rs")
        .replace("count!(\"", "count!(\n\"")
        .replace("switch!(\"", "switch!(\n\"");
    assert_eq!(readme, names_after(&rows, "\"HUB_", '"'));
}

#[test]
fn the_readme_lists_every_method() {
    let readme: Vec<String> = read("README.md")
        .split(['|', ','])
        .map(str::trim)
        .filter_map(|path| path.strip_prefix("`/api/")?.strip_suffix('`').map(str::to_owned))
        .collect();
    let mut methods = names_after(&read("src/http/api/mod.rs"), "Method { name: \"", '"');
    methods.push("batch".to_owned());
    methods.iter().for_each(|name| assert!(readme.contains(name), "README.md: no `/api/{name}`"));
    assert_eq!(readme.len(), methods.len(), "{readme:?}");
}

/// `sector SYMBOL price`, a line per symbol, in order.
fn market_of_the_server() -> Vec<String> {
    let table = read("src/http/demo_symbols.rs");
    let (_, table) = table.split_once("SECTORS").expect("the table");
    let (table, _) = table.split_once("\n];").expect("the table's end");
    let mut sector = "";
    let mut market = Vec::new();
    for entry in table.split("(\"").skip(1) {
        let (name, rest) = entry.split_once("\", ").expect("a name and a value");
        if rest.starts_with("&[") {
            sector = name;
        } else {
            let (price, _) = rest.split_once(')').expect("a price");
            market.push(format!("{sector} {name} {}", price.parse::<f64>().expect(price)));
        }
    }
    market
}

fn market_of_the_page() -> Vec<String> {
    let page = read("src/http/demo.html");
    let (_, table) = page.split_once("const MARKET = `\n").expect("the table");
    let (table, _) = table.split_once("\n`;").expect("the table's end");
    let mut market = Vec::new();
    for line in table.lines() {
        let (sector, symbols) = line.split_once(": ").expect("a sector");
        let words: Vec<&str> = symbols.split(' ').collect();
        for pair in words.chunks(2) {
            market.push(format!("{sector} {} {}", pair[0], pair[1].parse::<f64>().expect(pair[1])));
        }
    }
    market
}

#[test]
fn the_demos_page_and_feed_trade_the_same() {
    let page = market_of_the_page();
    assert!(page.len() >= 200, "{} tiles", page.len());
    assert_eq!(market_of_the_server(), page);
}
