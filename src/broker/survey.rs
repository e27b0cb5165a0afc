//! Questions to all nodes, and to all shards of this one: who is there, which channels.
//!
//! Owned by the broker thread, which only carries pages from those who are asked to the shard that
//! asks: it merges nothing, since a hundred thousand channels would hold up every publication.
//! Channels come page by page, each asked for once the one before is there, so that no survey can
//! fill the link of the node that asks, or stall a shard.
//!
//! A survey is answered when all have answered, or at [`SURVEY_MS_MAX`] with what there is, marked
//! partial: nobody waits for the dead.

use ahash::HashMap;
use uuid::Uuid;

use super::control::{ChannelPage, ChannelsAsk, Cursor, NodeInfo, Part, Topic};

/// A survey is answered after this at the latest, milliseconds: its users are told within a second.
const SURVEY_MS_MAX: u64 = 800;
/// A page that a shard owes to another node is given up after this, milliseconds.
const PAGE_MS_MAX: u64 = 500;
/// Surveys in flight; more are answered empty and partial at once.
const SURVEYS_MAX: usize = 16;
/// What one may collect; what is over it is left out, and the result partial.
const SURVEY_BYTES_MAX: usize = 8 << 20;
/// Pages that this node's shards owe. Over it a question is answered at once, with nothing.
const OWED_MAX: usize = 256;
/// Channels of one page, and those that may be looked at for it: some 50 µs of a shard's time.
pub const PAGE_CHANNELS_MAX: usize = 512;
pub const PAGE_LOOKS_MAX: u32 = 4096;
/// Of a pattern, which every node compiles.
pub const PATTERN_BYTES_MAX: usize = 1024;

/// Who gets the result.
#[derive(Clone, Copy)]
pub struct Asked {
    pub shard: usize,
    pub request: u32,
}

/// What all who answered in time said.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SurveyResult {
    pub nodes: Vec<NodeInfo>,
    /// As they came: a channel stands in one page of every shard that has it.
    pub pages: Vec<ChannelPage>,
    /// Somebody didn't answer in time, or there was no room.
    pub partial: bool,
}

/// A finished survey.
pub struct Finished {
    pub asked_by: Asked,
    pub result: SurveyResult,
}

struct Survey {
    asked_by: Asked,
    topic: Topic,
    due_ms: u64,
    /// Nodes that got the question; `None`: not known yet.
    n_nodes: Option<usize>,
    /// The question came back to this node: what others answer comes by the same link.
    is_heard: bool,
    /// Nodes that said all they have to say.
    done: Vec<Uuid>,
    bytes: usize,
    result: SurveyResult,
}

impl Survey {
    fn is_done(&self) -> bool {
        self.is_heard && self.n_nodes.is_some_and(|n_nodes| self.done.len() >= n_nodes)
    }

    fn then(&self) -> Then {
        if self.is_done() { Then::Finish } else { Then::Wait }
    }

    fn finish(mut self) -> Finished {
        self.result.partial |= !self.is_done();
        Finished { asked_by: self.asked_by, result: self.result }
    }
}

/// What an answer leads to.
#[derive(PartialEq, Eq, Debug)]
pub enum Then {
    /// Nothing: others haven't answered, or nobody waits for it any more.
    Wait,
    /// Ask that node for the next page.
    Ask(Topic),
    /// Take the finished survey.
    Finish,
}

/// Why no other node is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Alone {
    /// There is none: the embedded broker.
    ByNature,
    /// Redis is away.
    CutOff,
}

/// A page that a shard owes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Owed {
    /// The node that asked, and its number of the survey.
    pub node: Uuid,
    pub survey: u32,
    pub ask: ChannelsAsk,
}

#[derive(Default)]
pub struct Surveys {
    open: HashMap<u32, Survey>,
    owed: HashMap<u32, (Owed, u64)>,
    next: u32,
}

impl Surveys {
    /// Starts one; `None`: too many are open.
    pub fn start(&mut self, asked_by: Asked, topic: Topic, now_ms: u64) -> Option<u32> {
        if self.open.len() >= SURVEYS_MAX {
            return None;
        }
        let survey = Survey {
            asked_by,
            topic,
            due_ms: now_ms + SURVEY_MS_MAX,
            n_nodes: None,
            is_heard: false,
            done: Vec::new(),
            bytes: 0,
            result: SurveyResult::default(),
        };
        self.next = self.next.wrapping_add(1);
        self.open.insert(self.next, survey);
        Some(self.next)
    }

    /// So many nodes got the question, this one among them.
    pub fn on_asked(&mut self, id: u32, n_nodes: usize) -> Then {
        let Some(survey) = self.open.get_mut(&id) else { return Then::Wait };
        survey.n_nodes = Some(n_nodes);
        survey.then()
    }

    /// The question came back by the link by which the answers come.
    pub fn on_heard(&mut self, id: u32) -> Then {
        let Some(survey) = self.open.get_mut(&id) else { return Then::Wait };
        survey.is_heard = true;
        survey.then()
    }

    /// Only this node can be asked.
    pub fn on_alone(&mut self, id: u32, link: Alone) -> Then {
        let Some(survey) = self.open.get_mut(&id) else { return Then::Wait };
        survey.result.partial |= link == Alone::CutOff;
        (survey.n_nodes, survey.is_heard) = (Some(1), true);
        survey.then()
    }

    /// What a node says. Once all have said all, the survey is to be taken.
    pub fn on_answer(&mut self, id: u32, node: Uuid, part: Part) -> Then {
        let Some(survey) = self.open.get_mut(&id).filter(|it| !it.done.contains(&node)) else {
            return Then::Wait;
        };
        let next = match (part, &survey.topic) {
            (Part::Info(info), Topic::Info) => {
                survey.result.nodes.push(info);
                None
            }
            (Part::Channels(mut page), Topic::Channels(ask)) => {
                let next = page.next.take();
                survey.result.partial |= page.partial;
                survey.bytes += page.bytes();
                if survey.bytes > SURVEY_BYTES_MAX {
                    survey.result.partial = true;
                    None
                } else {
                    survey.result.pages.push(page);
                    next.map(|at| Topic::Channels(ChannelsAsk { at, ..ask.clone() }))
                }
            }
            _ => return Then::Wait,
        };
        if let Some(topic) = next {
            return Then::Ask(topic);
        }
        survey.done.push(node);
        survey.then()
    }

    pub fn take(&mut self, id: u32) -> Option<Finished> {
        self.open.remove(&id).map(Survey::finish)
    }

    /// Those whose time is over.
    pub fn take_due(&mut self, now_ms: u64) -> Vec<Finished> {
        let due = self.open.iter().filter(|(_, survey)| survey.due_ms <= now_ms);
        let due: Vec<u32> = due.map(|(id, _)| *id).collect();
        due.into_iter().filter_map(|id| self.take(id)).collect()
    }

    // --- pages of this node's shards

    /// Notes that a shard owes a page; `None`: too many are owed.
    pub fn owe(&mut self, owed: Owed, now_ms: u64) -> Option<u32> {
        if self.owed.len() >= OWED_MAX {
            return None;
        }
        self.next = self.next.wrapping_add(1);
        self.owed.insert(self.next, (owed, now_ms + PAGE_MS_MAX));
        Some(self.next)
    }

    /// A shard's page is there; `None`: nobody waits for it any more.
    pub fn on_page(&mut self, id: u32) -> Option<Owed> {
        self.owed.remove(&id).map(|(owed, _)| owed)
    }

    /// Pages of shards that don't answer.
    pub fn take_overdue(&mut self, now_ms: u64) -> Vec<Owed> {
        let overdue = self.owed.iter().filter(|(_, (_, due_ms))| *due_ms <= now_ms);
        let overdue: Vec<u32> = overdue.map(|(id, _)| *id).collect();
        overdue.into_iter().filter_map(|id| self.on_page(id)).collect()
    }
}

impl ChannelPage {
    /// Nothing of a shard that can't be asked; on with the one behind it.
    pub fn missing(shard: usize, n_shards: usize) -> Self {
        Self { partial: true, next: Cursor::behind(shard, n_shards), ..Self::default() }
    }

    fn bytes(&self) -> usize {
        const COUNT_BYTES: usize = 24;
        self.channels.iter().map(|count| COUNT_BYTES + count.name.len()).sum()
    }
}

impl Cursor {
    /// The first of the next shard; `None`: that was the last one.
    pub fn behind(shard: usize, n_shards: usize) -> Option<Self> {
        (shard + 1 < n_shards).then_some(Self { shard: shard + 1, slot: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::super::control::ChannelCount;
    use super::*;

    const ASKED: Asked = Asked { shard: 0, request: 1 };
    const OWN: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    fn info(uid: &str) -> Part {
        Part::Info(NodeInfo { uid: uid.into(), ..NodeInfo::default() })
    }

    fn page(name: &str, next: Option<Cursor>) -> ChannelPage {
        let channels = vec![ChannelCount { name: name.into(), n: 1 }];
        ChannelPage { channels, next, partial: false }
    }

    /// Starts a survey, lets all this happen, and looks at what there is in the end.
    #[track_caller]
    fn check(steps: impl FnOnce(&mut Surveys, u32), uids: &[&str], partial: bool) {
        let mut surveys = Surveys::default();
        let id = surveys.start(ASKED, Topic::Info, 0).unwrap();
        steps(&mut surveys, id);
        let result = surveys.take(id).unwrap().result;
        let found: Vec<&str> = result.nodes.iter().map(|node| &*node.uid).collect();
        assert_eq!((found.as_slice(), result.partial), (uids, partial));
        assert_eq!(surveys.on_answer(id, OTHER, info("late")), Then::Wait);
    }

    #[test]
    fn a_survey_ends_once_all_have_answered_by_a_link_that_works() {
        let all = |surveys: &mut Surveys, id| {
            assert_eq!(surveys.on_answer(id, OWN, info("own")), Then::Wait);
            assert_eq!(surveys.on_asked(id, 2), Then::Wait);
            assert_eq!(surveys.on_answer(id, OTHER, info("other")), Then::Wait);
            assert_eq!(surveys.on_answer(id, OTHER, info("again")), Then::Wait);
            assert_eq!(surveys.on_heard(id), Then::Finish);
        };
        check(all, &["own", "other"], false);
        let deaf = |surveys: &mut Surveys, id| {
            surveys.on_answer(id, OWN, info("own"));
            assert_eq!(surveys.on_asked(id, 1), Then::Wait, "the other one may be who is counted");
            assert!(surveys.take_due(SURVEY_MS_MAX - 1).is_empty());
        };
        check(deaf, &["own"], true);
        let early = |surveys: &mut Surveys, id| {
            surveys.on_heard(id);
            surveys.on_answer(id, OTHER, info("other"));
            surveys.on_answer(id, OWN, info("own"));
            assert_eq!(surveys.on_asked(id, 2), Then::Finish);
        };
        check(early, &["other", "own"], false);
    }

    #[test]
    fn alone_this_node_is_all_or_part() {
        let alone = |link| {
            move |surveys: &mut Surveys, id| {
                assert_eq!(surveys.on_alone(id, link), Then::Wait);
                assert_eq!(surveys.on_answer(id, OWN, info("own")), Then::Finish);
            }
        };
        check(alone(Alone::ByNature), &["own"], false);
        check(alone(Alone::CutOff), &["own"], true);
    }

    #[test]
    fn channels_come_page_by_page() {
        let mut surveys = Surveys::default();
        let ask = ChannelsAsk { pattern: "*".into(), ..ChannelsAsk::default() };
        let id = surveys.start(ASKED, Topic::Channels(ask.clone()), 0).unwrap();
        surveys.on_alone(id, Alone::ByNature);
        let at = Cursor { shard: 0, slot: 7 };
        let then = surveys.on_answer(id, OWN, Part::Channels(page("a", Some(at))));
        assert_eq!(then, Then::Ask(Topic::Channels(ChannelsAsk { at, ..ask })));
        assert_eq!(surveys.on_answer(id, OWN, info("what wasn't asked")), Then::Wait);
        let missing = ChannelPage::missing(0, 1);
        assert_eq!(surveys.on_answer(id, OWN, Part::Channels(missing)), Then::Finish);
        let result = surveys.take(id).unwrap().result;
        assert_eq!((result.pages.len(), result.partial), (2, true));
    }

    #[test]
    fn what_a_survey_collects_is_bounded() {
        let mut surveys = Surveys::default();
        let id = surveys.start(ASKED, Topic::Channels(ChannelsAsk::default()), 0).unwrap();
        surveys.on_alone(id, Alone::ByNature);
        let at = Some(Cursor::default());
        let name = "x".repeat(SURVEY_BYTES_MAX / 2);
        let big = || Part::Channels(page(&name, at));
        assert!(matches!(surveys.on_answer(id, OWN, big()), Then::Ask(_)));
        assert_eq!(surveys.on_answer(id, OWN, big()), Then::Finish);
        let result = surveys.take(id).unwrap().result;
        assert_eq!((result.pages.len(), result.partial), (1, true));
        let open: Vec<_> =
            (0..=SURVEYS_MAX).map(|_| surveys.start(ASKED, Topic::Info, 0)).collect();
        assert_eq!(open.iter().flatten().count(), SURVEYS_MAX);
        assert_eq!(surveys.take_due(SURVEY_MS_MAX).len(), SURVEYS_MAX);
        let owed = Owed { node: OTHER, survey: 1, ask: ChannelsAsk::default() };
        let owes: Vec<_> = (0..=OWED_MAX).map(|_| surveys.owe(owed.clone(), 0)).collect();
        assert_eq!(owes.iter().flatten().count(), OWED_MAX);
        assert_eq!(surveys.on_page(owes[0].unwrap()), Some(owed));
        assert_eq!(surveys.take_overdue(PAGE_MS_MAX).len(), OWED_MAX - 1);
        assert_eq!(surveys.on_page(owes[1].unwrap()), None);
    }
}
