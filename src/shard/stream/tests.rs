//! The stream against a naive one: a list of publications that the broker keeps, of which this shard has
//! seen so many live. Random interleavings of publishing, delivery, loss, new epochs, trimmed history and
//! reads that arrive late; proptest prints the seed of a failure.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::*;
use crate::config::Namespaces;
use crate::publication::Body;

const BOUNDS: Bounds = Bounds { publications_max: 12, bytes_max: 100_000 };
const KEPT: u64 = 8;

fn namespace(recovery: &str) -> Namespace {
    let text = format!(
        "[namespaces.\"\"]\nrecovery = \"{recovery}\"\nhistory_size = 8\nhistory_ttl = \"60s\""
    );
    *Namespaces::parse(&text).expect("a namespace").of("a").expect("of it")
}

#[derive(Clone, Debug)]
enum Op {
    Publish(usize),
    /// So many of those on their way arrive.
    Deliver(usize),
    /// The next one on its way is lost, and nobody says so.
    Lose,
    /// The node knows that it lost what is on its way.
    Gap,
    /// The broker starts anew.
    Reset,
    /// A client comes that knows so many less than there are, or, with a negative number, more.
    Join(i64),
    /// The oldest read that was asked is carried out; and answered.
    Read,
    Answer,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => (1..4usize).prop_map(Op::Publish),
        12 => (1..5usize).prop_map(Op::Deliver),
        1 => Just(Op::Lose),
        1 => Just(Op::Gap),
        1 => Just(Op::Reset),
        8 => (-2..12i64).prop_map(Op::Join),
        8 => Just(Op::Read),
        8 => Just(Op::Answer),
    ]
}

struct Joiner {
    id: SessionId,
    since: Position,
    is_ahead: bool,
    /// The publication that it says it has is there.
    is_real: bool,
}

/// A client that was told where it stands, and what has to come next.
struct Subscriber {
    at: Position,
}

struct Rig {
    stream: Stream,
    channel: Arc<Channel>,
    epoch: Epoch,
    top: u64,
    in_flight: VecDeque<Arc<Publication>>,
    asked: VecDeque<Position>,
    pages: VecDeque<(Position, Arc<HistoryPage>)>,
    joiners: Vec<Joiner>,
    subscribers: Vec<Subscriber>,
    n_recovered: usize,
    n_lost: usize,
    n_ids: u32,
    /// Nothing was lost, reset or gapped so far.
    is_calm: bool,
}

impl Rig {
    fn new() -> Self {
        let id = ChannelId { slot: 0, generation: 1 };
        let stream = Stream::new(id, &namespace("stream"), BOUNDS, 0).expect("it recovers");
        Self {
            stream,
            channel: Arc::new(Channel::new("a")),
            epoch: Epoch::draw(),
            top: 0,
            in_flight: VecDeque::new(),
            asked: VecDeque::new(),
            pages: VecDeque::new(),
            joiners: Vec::new(),
            subscribers: Vec::new(),
            n_recovered: 0,
            n_lost: 0,
            n_ids: 0,
            is_calm: true,
        }
    }

    fn at(&self) -> Position {
        Position { offset: self.top, epoch: self.epoch }
    }

    fn publish(&mut self) {
        self.top += 1;
        let body = Body::plain(self.top.to_string().into_bytes());
        let publication = Publication::at(self.channel.clone(), body, self.at());
        self.in_flight.push_back(Arc::new(publication));
    }

    /// What the shard does with a publication that comes.
    fn deliver(&mut self) -> Result<(), TestCaseError> {
        let Some(publication) = self.in_flight.pop_front() else { return Ok(()) };
        match self.stream.next(publication.position()) {
            Next::Repeats => return Ok(()),
            // Nobody is left to deliver it to.
            Next::Breaks => {
                self.gap();
                return Ok(());
            }
            Next::Follows => {}
        }
        self.stream.on_came(&publication, 0);
        for subscriber in &mut self.subscribers {
            let expected =
                Position { offset: subscriber.at.offset + 1, epoch: subscriber.at.epoch };
            prop_assert_eq!(publication.position(), expected, "live goes on where it stands");
            subscriber.at = expected;
        }
        let ahead: Vec<usize> =
            (0..self.joiners.len()).filter(|at| self.joiners[*at].is_ahead).rev().collect();
        for at in ahead {
            if let Entry::Now(welcome) = self.stream.enter(Some(self.joiners[at].since)) {
                self.welcome(at, &welcome)?;
            }
        }
        Ok(())
    }

    fn gap(&mut self) {
        self.stream.on_gap();
        // 2500 to all of them.
        self.subscribers.clear();
    }

    fn join(&mut self, behind: i64) -> Result<(), TestCaseError> {
        let offset = self.top.saturating_add_signed(-behind);
        let since = Position { offset, epoch: self.epoch };
        self.n_ids += 1;
        let id = SessionId { idx: self.n_ids, generation: 1 };
        let is_real = offset <= self.top;
        self.joiners.push(Joiner { id, since, is_ahead: false, is_real });
        match self.stream.enter(Some(since)) {
            Entry::Now(welcome) => self.welcome(self.joiners.len() - 1, &welcome)?,
            Entry::Read(key) => {
                prop_assert_eq!(key, Some(since));
                self.stream.joining.insert(id, SmallVec::new());
                if self.stream.try_read(key, false) {
                    self.asked.push_back(since);
                }
            }
            Entry::Ahead | Entry::Unknown => prop_assert!(false, "not before a page"),
        }
        Ok(())
    }

    /// As the brokers answer.
    fn read(&mut self) {
        let Some(since) = self.asked.pop_front() else { return };
        let first = self.top.saturating_sub(KEPT) + 1;
        let offsets = first.max(since.offset + 1)..=self.top;
        let stored = |offset: u64| {
            Arc::new(Stored { offset, body: Body::plain(offset.to_string().into_bytes()) })
        };
        let all = offsets.map(stored).take(BOUNDS.publications_max).collect();
        self.pages.push_back((since, Arc::new(HistoryPage::new(self.at(), all))));
    }

    fn answer(&mut self) -> Result<(), TestCaseError> {
        let Some((since, page)) = self.pages.pop_front() else { return Ok(()) };
        let page = match self.stream.on_read(Some(since)) {
            Fate::Again => {
                self.stream.try_read(Some(since), true);
                self.asked.push_back(since);
                return Ok(());
            }
            Fate::Use => Some(page),
            Fate::Drop => None,
        };
        if let Some(page) = &page {
            self.stream.on_page(&self.channel, page, 0);
        }
        for at in (0..self.joiners.len()).rev() {
            let joiner = &mut self.joiners[at];
            if joiner.since != since || joiner.is_ahead {
                continue;
            }
            // It shares the read of one who had made its position up, before there was one.
            joiner.is_real &= page.as_ref().is_some_and(|page| since.offset <= page.top.offset);
            match self.stream.answer(Some(since), page.as_ref()) {
                Entry::Now(welcome) => self.welcome(at, &welcome)?,
                Entry::Ahead => self.joiners[at].is_ahead = true,
                // Error 100: something was lost twice while it was read.
                Entry::Unknown if page.is_none() => {
                    let joiner = self.joiners.remove(at);
                    self.stream.joining.remove(&joiner.id);
                }
                Entry::Read(_) | Entry::Unknown => prop_assert!(false, "a page is enough"),
            }
        }
        Ok(())
    }

    /// What a joiner is told must be so.
    fn welcome(&mut self, at: usize, welcome: &Welcome) -> Result<(), TestCaseError> {
        let joiner = self.joiners.remove(at);
        self.stream.joining.remove(&joiner.id);
        if self.stream.joining.is_empty() {
            self.stream.forget_kept();
        }
        let reached = self.stream.position().expect("known to whoever is told");
        if welcome.recovered {
            self.n_recovered += 1;
            prop_assert_eq!(welcome.at.offset, joiner.since.offset);
            prop_assert_eq!(welcome.at.epoch, joiner.since.epoch);
            let list: Vec<serde_json::Value> = match welcome.missed.json() {
                b"" => Vec::new(),
                json => serde_json::from_slice(json).expect("a list"),
            };
            let offsets: Vec<u64> =
                list.iter().map(|it| it["offset"].as_u64().expect("an offset")).collect();
            let expected: Vec<u64> = (joiner.since.offset + 1..=reached.offset).collect();
            prop_assert_eq!(offsets, expected, "all that was missed, in order, once");
            prop_assert!(list.iter().all(|it| it["data"] == it["offset"]));
        } else {
            self.n_lost += 1;
            prop_assert_eq!(welcome.at, reached);
            let n_missed = self.top.saturating_sub(joiner.since.offset);
            let must = self.is_calm && joiner.is_real && n_missed <= KEPT;
            prop_assert!(!must, "{:?} could have recovered", joiner.since);
        }
        self.subscribers.push(Subscriber { at: reached });
        Ok(())
    }

    fn step(&mut self, op: &Op) -> Result<(), TestCaseError> {
        match *op {
            Op::Publish(n) => (0..n).for_each(|_| self.publish()),
            Op::Deliver(n) => {
                for _ in 0..n {
                    self.deliver()?;
                }
            }
            Op::Lose => {
                self.is_calm = false;
                self.in_flight.pop_front();
            }
            Op::Gap => {
                self.is_calm = false;
                self.in_flight.clear();
                self.gap();
            }
            Op::Reset => {
                self.is_calm = false;
                (self.epoch, self.top) = (Epoch::draw(), 0);
            }
            Op::Join(behind) => self.join(behind)?,
            Op::Read => self.read(),
            Op::Answer => self.answer()?,
        }
        Ok(())
    }
}

/// The default generator takes longer to draw the operations than they take.
fn config() -> ProptestConfig {
    let rng_algorithm = proptest::test_runner::RngAlgorithm::XorShift;
    ProptestConfig {
        cases: ProptestConfig::default().cases.max(512),
        rng_algorithm,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn recovered_is_only_said_of_all(ops in prop::collection::vec(op(), 1..120)) {
        let mut rig = Rig::new();
        for op in &ops {
            rig.step(op)?;
        }
        // Everything arrives, and everybody is told something.
        while !rig.in_flight.is_empty() {
            rig.deliver()?;
        }
        while !rig.asked.is_empty() || !rig.pages.is_empty() {
            rig.read();
            rig.answer()?;
        }
        prop_assert!(rig.joiners.iter().all(|joiner| joiner.is_ahead), "somebody waits for nothing");
    }
}

#[test]
fn a_stream_that_fell_behind_is_seen_in_time() {
    let id = ChannelId { slot: 0, generation: 1 };
    let mut stream = Stream::new(id, &namespace("stream"), BOUNDS, 0).expect("it recovers");
    let (epoch, channel) = (Epoch::draw(), Arc::new(Channel::new("a")));
    let at = |offset| Position { offset, epoch };
    assert_eq!(stream.try_check(1_000_000), None, "nobody was told a position yet");
    stream.on_page(&channel, &HistoryPage::new(at(5), Vec::new()), 0);
    assert_eq!(stream.try_check(39_999), None);
    assert_eq!(stream.try_check(40_000), Some(at(5)));
    assert!(stream.is_level(at(5), at(5)));
    // Further: perhaps it is on its way, perhaps not.
    assert!(stream.is_level(at(5), at(7)));
    stream.check_again(40_000);
    assert_eq!(stream.try_check(41_999), None, "it has its time to arrive");
    assert_eq!(stream.try_check(42_000), Some(at(5)));
    assert!(!stream.is_level(at(5), at(7)), "it stayed away");
    for offset in [6, 7] {
        let publication = Publication::at(channel.clone(), Body::default(), at(offset));
        stream.on_came(&Arc::new(publication), 50_000);
    }
    assert!(stream.is_level(at(7), at(7)));
    assert_eq!((stream.try_check(89_999), stream.try_check(90_000)), (None, Some(at(7))));
    assert!(!stream.is_level(at(7), at(6)), "a replica that lagged was promoted");
    let other = Position { offset: 1, epoch: Epoch::draw() };
    stream.on_gap();
    stream.on_page(&channel, &HistoryPage::new(other, Vec::new()), 0);
    assert!(stream.is_level(at(7), other), "asked before a gap: of another stream");
    stream.on_gap();
    stream.on_page(&channel, &HistoryPage::new(at(7), Vec::new()), 0);
    assert!(stream.is_level(at(7), other), "its first publication may be on its way");
    assert!(!stream.is_level(at(7), other));
}
