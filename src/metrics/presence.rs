//! What the broker thread counts of who is here.

use super::Count;

#[derive(Default, Debug)]
pub struct PresenceMetrics {
    /// Clients in channels, on this node; with Redis also those that are gone and still listed there.
    pub entries: Count,
    /// Those that there was no room to note.
    pub refused: Count,
    /// Joins and leaves that came in.
    pub changes: Count,
    pub reads: Count,
    pub reads_shared: Count,
    /// Scripts that Redis ran for it, and those that failed.
    pub calls: Count,
    pub failed_calls: Count,
    /// Times that all of this node's entries were written anew.
    pub restarts: Count,
    /// Entries of nodes that died, removed by this one.
    pub reaped: Count,
}

/// Name, help, and the count.
type Row<'a> = (&'static str, &'static str, &'a Count);

impl PresenceMetrics {
    pub fn gauges(&self) -> [Row<'_>; 1] {
        [(
            "presence_entries",
            "Clients in channels where it is noted who is here; with Redis, what is to be removed too.",
            &self.entries,
        )]
    }

    pub fn counters(&self) -> [Row<'_>; 8] {
        [
            ("presence_refused", "Clients that there was no room to note.", &self.refused),
            ("joins_leaves", "Joins and leaves handed to shards.", &self.changes),
            ("presence_reads", "Presence asked for.", &self.reads),
            (
                "presence_reads_shared",
                "Those that waited together with an equal one and were read once.",
                &self.reads_shared,
            ),
            ("presence_calls", "Scripts that Redis ran for presence.", &self.calls),
            ("presence_failed_calls", "Those that failed.", &self.failed_calls),
            (
                "presence_restarts",
                "Times that all of this node's entries were written to Redis anew.",
                &self.restarts,
            ),
            ("presence_reaped", "Entries of dead nodes removed by this one.", &self.reaped),
        ]
    }
}
