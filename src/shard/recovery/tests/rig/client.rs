//! A client that checks what it gets.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Checked, text};
use crate::position::{Epoch, Position};
use crate::shard::hub::SessionId;

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Stand {
    Away,
    Waits,
    Subscribed,
}

/// What its SDK would know.
pub struct Client {
    pub id: SessionId,
    pub stand: Stand,
    pub at: Option<Position>,
    pub n_commands: u32,
    /// The number of its last subscribe command: answers to those before it mean nothing any more.
    pub subscribe: u32,
    /// The server API ended that before it was answered.
    pub is_ended: bool,
    pub bytes: Vec<u8>,
    pub n_bytes: usize,
}

impl Client {
    pub fn read(&mut self, is_cache: bool) -> Checked<()> {
        let bytes = std::mem::take(&mut self.bytes);
        self.n_bytes += bytes.len();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (head, length) = match rest[1] {
                126 => (4, usize::from(u16::from_be_bytes([rest[2], rest[3]]))),
                127 => panic!("too long"),
                length => (2, usize::from(length)),
            };
            let text = std::str::from_utf8(&rest[head..head + length]).expect("text");
            rest = &rest[head + length..];
            for line in text.lines() {
                self.on_line(&serde_json::from_str(line).expect("JSON"), is_cache)?;
            }
        }
        Ok(())
    }

    fn on_line(&mut self, line: &Value, is_cache: bool) -> Checked<()> {
        let push = &line["push"];
        if push["pub"].is_object() {
            prop_assert_eq!(self.stand, Stand::Subscribed, "{}", line);
            return self.take(&push["pub"]);
        }
        if push["unsubscribe"]["code"] == 2000 {
            // To one that waits it is about what it wished for before.
            if self.stand == Stand::Subscribed {
                self.stand = Stand::Away;
            }
        } else if push["unsubscribe"].is_object() {
            prop_assert_eq!(&push["unsubscribe"]["code"], &json!(2500));
            prop_assert_eq!(self.stand, Stand::Subscribed);
            self.stand = Stand::Away;
        } else if line["id"] != json!(self.subscribe) {
            return Ok(());
        } else if line["error"].is_object() {
            prop_assert_eq!(&line["error"]["code"], &json!(100));
            prop_assert_eq!(self.stand, Stand::Waits);
            self.stand = Stand::Away;
        } else if line["subscribe"].is_object() {
            prop_assert_eq!(self.stand, Stand::Waits);
            self.stand = Stand::Subscribed;
            if std::mem::take(&mut self.is_ended) {
                return Ok(()); // The end follows in the same frame.
            }
            return self.on_welcome(&line["subscribe"], is_cache);
        }
        Ok(())
    }

    fn on_welcome(&mut self, reply: &Value, is_cache: bool) -> Checked<()> {
        prop_assert!(reply["recoverable"] == true && reply["positioned"] == true, "{}", reply);
        let epoch = Epoch::asked(reply["epoch"].as_str().unwrap_or_default());
        let told = Position { offset: reply["offset"].as_u64().unwrap_or(0), epoch };
        let none = Vec::new();
        let missed = reply["publications"].as_array().unwrap_or(&none);
        let known = self.at.replace(told);
        if reply["recovered"] != true {
            prop_assert!(missed.is_empty(), "{}", reply);
            return Ok(());
        }
        if is_cache {
            prop_assert!(missed.len() <= 1, "{}", reply);
            if let Some(newest) = missed.first() {
                let offset = newest["offset"].as_u64().expect("an offset");
                let had =
                    known.filter(|known| known.epoch == epoch).map_or(0, |known| known.offset);
                prop_assert!(offset > had, "an old value as a new one: {} after {}", offset, had);
                self.at = Some(Position { offset: offset - 1, epoch });
            }
        } else {
            prop_assert_eq!(Some(told), known, "the offset from which it counts on: {}", reply);
        }
        missed.iter().try_for_each(|publication| self.take(publication))
    }

    /// Takes a publication, which must be the next one.
    fn take(&mut self, publication: &Value) -> Checked<()> {
        let before = self.at.expect("a position");
        let at = Position { offset: before.offset + 1, epoch: before.epoch };
        prop_assert_eq!(&publication["offset"], &json!(at.offset), "after {:?}", before);
        prop_assert_eq!(&publication["data"], &json!(text(at)));
        self.at = Some(at);
        Ok(())
    }
}
