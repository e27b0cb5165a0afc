//! The demo's market: made-up prices, published only while someone watches.
//!
//! Runs on the broker thread, only under `HUB_DEV`. A price is a function of the wall clock
//! alone, so two nodes on one Redis publish the same numbers instead of fighting.

use std::fmt::Write as _;

use super::Publish;
use crate::http::SECTORS;
use crate::node::unix_ms;
use crate::publication::Body;

/// A tick of the market, milliseconds.
const TICK_MS: u64 = 100;
/// One symbol in so many moves in a tick.
const MOVERS: u64 = 4;

#[derive(Default)]
pub struct Feed {
    next_ms: u64,
}

impl Feed {
    /// What is due, for the channels that `is_watched`.
    pub fn on_tick(&mut self, now_ms: u64, is_watched: impl Fn(&str) -> bool) -> Vec<Publish> {
        if now_ms < self.next_ms {
            return Vec::new();
        }
        self.next_ms = now_ms + TICK_MS;
        let wall_ms = unix_ms();
        SECTORS
            .iter()
            .map(|(sector, symbols)| (format!("demo:{sector}"), symbols))
            .filter(|(channel, _)| is_watched(channel))
            .map(|(channel, symbols)| Publish::plain(channel, Body::plain(tick(symbols, wall_ms))))
            .collect()
    }
}

fn tick(symbols: &[(&str, f64)], wall_ms: u64) -> Vec<u8> {
    let step = wall_ms / TICK_MS;
    let mut out = format!("{{\"t\":{wall_ms}");
    for (symbol, base) in symbols {
        let seed = symbol
            .bytes()
            .fold(7u64, |seed, byte| seed.wrapping_mul(131).wrapping_add(byte.into()));
        if scramble(seed ^ step).is_multiple_of(MOVERS) {
            let decimals = if *base < 10.0 { 4 } else { 2 };
            write!(out, ",\"{symbol}\":{:.decimals$}", price(*base, seed, step))
                .expect("invariant: writing to a String");
        }
    }
    out.push('}');
    out.into_bytes()
}

/// Slow swings of a per cent or two and a little noise on top.
fn price(base: f64, seed: u64, step: u64) -> f64 {
    let at = step as f64 / 10.0;
    let phase = (seed % 997) as f64;
    let swing = 0.015 * (at / 97.0 + phase).sin() + 0.006 * (at / 13.0 + phase * 1.7).sin();
    let noise = (scramble(seed.wrapping_add(step)) % 2_001) as f64 / 1_000.0 - 1.0;
    base * (1.0 + swing + 0.0008 * noise)
}

fn scramble(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_watched_is_published_and_it_is_json() {
        let mut feed = Feed::default();
        assert!(feed.on_tick(0, |_| false).is_empty());
        let first = format!("demo:{}", SECTORS[0].0);
        let ticks = feed.on_tick(TICK_MS, |channel| channel == first);
        assert_eq!(ticks.len(), 1);
        assert!(
            serde_json::from_slice::<serde_json::Value>(&ticks[0].body.payload).unwrap()["t"]
                .is_u64()
        );
        assert!(feed.on_tick(TICK_MS + 1, |_| true).is_empty());
    }
}
