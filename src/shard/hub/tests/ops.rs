//! The operations of the random test, and how they are drawn.

use proptest::prelude::*;

use crate::publication::Format;
use crate::shard::hub::{Queued, Variant, WRITE_BYTES_MAX};

pub const N_SLOTS: u32 = 5;

/// A session: usually one that is there, counted in the order of joining.
#[derive(Clone)]
pub enum Who {
    Live(usize),
    Stale(usize),
}

impl std::fmt::Debug for Who {
    /// On one line, however long the rest is.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Live(n) => write!(f, "Live({n})"),
            Self::Stale(n) => write!(f, "Stale({n})"),
        }
    }
}

#[derive(Clone, Debug)]
pub enum Payload {
    /// A JSON string of so many bytes.
    Text(usize),
    /// So many bytes behind one that is in no UTF-8.
    Binary(usize),
}

/// How much a socket takes in one visit.
#[derive(Clone, Debug)]
pub enum Room {
    All,
    Bytes(usize),
    /// So many thousandths of what is queued.
    Part(usize),
    /// A number of whole frames.
    Frames(usize),
    /// A number of writes.
    Writes(usize),
}

#[derive(Clone, Debug)]
pub struct Socket {
    pub room: Room,
    pub breaks: bool,
}

/// How a publication stands to the channel's chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Chained {
    No,
    Yes,
    /// The one before in the chain got lost on the way.
    AfterLoss,
}

#[derive(Clone, Debug)]
pub enum Op {
    Add(Format),
    Attach(Who),
    Open(u32),
    /// Of a raw session it is plain.
    Subscribe(Who, u32, Variant),
    Unsubscribe(Who, u32),
    Publish {
        slot: u32,
        payload: Payload,
        n: usize,
        chained: Chained,
    },
    /// The channel's publications may wait so many milliseconds from now on.
    Delay(u32, u64),
    /// Time, in milliseconds.
    Pass(u64),
    PublishStale {
        slot: u32,
        generation: u32,
    },
    PushOwn(Who, Vec<usize>),
    Visit(Who, Socket),
    /// With so many sessions in a run.
    Walk(Socket, usize),
    OnWritable {
        who: Who,
        visit: Option<Socket>,
    },
    Close(Who, Queued),
    Remove(Who),
    CloseIfUnused(u32),
    TakeEmptied,
    /// Sets the bound to what is queued for a session, less so much.
    Bound(Who, usize),
}

/// Around the limits of heads, sharing, writes and segments.
fn payload_bytes() -> impl Strategy<Value = usize> {
    prop_oneof![
        10 => 0..140usize,
        8 => 1_000..15_000usize,
        4 => 16_300..16_400usize,
        1 => 65_440..65_560usize,
        1 => 100_000..140_000usize,
    ]
}

fn who() -> impl Strategy<Value = Who> {
    prop_oneof![19 => (0..100usize).prop_map(Who::Live), 1 => (0..100usize).prop_map(Who::Stale)]
}

fn socket() -> impl Strategy<Value = Socket> {
    let room = prop_oneof![
        3 => Just(Room::All),
        1 => Just(Room::Bytes(0)),
        2 => (0..20usize).prop_map(Room::Bytes),
        1 => (WRITE_BYTES_MAX - 2..WRITE_BYTES_MAX + 3).prop_map(Room::Bytes),
        4 => (0..=1_000usize).prop_map(Room::Part),
        2 => (0..20usize).prop_map(Room::Frames),
        4 => (0..4usize).prop_map(Room::Writes),
    ];
    (room, prop::bool::weighted(0.25)).prop_map(|(room, breaks)| Socket { room, breaks })
}

pub fn op() -> impl Strategy<Value = Op> {
    let format = || prop_oneof![Just(Format::Json), Just(Format::Raw)];
    let slot = || 0..N_SLOTS;
    let payload = prop_oneof![
        9 => payload_bytes().prop_map(Payload::Text),
        1 => payload_bytes().prop_map(Payload::Binary),
    ];
    let n = prop_oneof![5 => Just(1usize), 1 => 2..40usize];
    let queued = prop_oneof![Just(Queued::Flush), Just(Queued::Drop)];
    let variant = prop_oneof![Just(Variant::Plain), Just(Variant::Fresh)];
    let chained = prop_oneof![
        1 => Just(Chained::No),
        6 => Just(Chained::Yes),
        1 => Just(Chained::AfterLoss),
    ];
    let own = prop::collection::vec(payload_bytes(), 1..4);
    prop_oneof![
        6 => format().prop_map(Op::Add),
        8 => who().prop_map(Op::Attach),
        8 => slot().prop_map(Op::Open),
        20 => (who(), slot(), variant)
            .prop_map(|(who, slot, variant)| Op::Subscribe(who, slot, variant)),
        8 => (who(), slot()).prop_map(|(who, slot)| Op::Unsubscribe(who, slot)),
        25 => (slot(), payload, n, chained)
            .prop_map(|(slot, payload, n, chained)| Op::Publish { slot, payload, n, chained }),
        3 => (slot(), prop_oneof![1 => Just(0), 4 => 1..30u64])
            .prop_map(|(slot, ms)| Op::Delay(slot, ms)),
        12 => (0..20u64).prop_map(Op::Pass),
        1 => (0..N_SLOTS + 2, 0..20u32)
            .prop_map(|(slot, generation)| Op::PublishStale { slot, generation }),
        10 => (who(), own).prop_map(|(who, frames)| Op::PushOwn(who, frames)),
        20 => (who(), socket()).prop_map(|(who, socket)| Op::Visit(who, socket)),
        4 => (socket(), prop::sample::select(vec![1, 2, 5, 64, 99])).prop_map(|(socket, n)| Op::Walk(socket, n)),
        15 => (who(), prop::option::weighted(0.7, socket()))
            .prop_map(|(who, visit)| Op::OnWritable { who, visit }),
        3 => (who(), queued).prop_map(|(who, queued)| Op::Close(who, queued)),
        3 => who().prop_map(Op::Remove),
        1 => slot().prop_map(Op::CloseIfUnused),
        2 => Just(Op::TakeEmptied),
        2 => (who(), 0..3usize).prop_map(|(who, less)| Op::Bound(who, less)),
    ]
}
