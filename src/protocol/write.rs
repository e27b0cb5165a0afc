//! Writes JSON objects into a byte buffer, key by key.
//!
//! Not `derive(Serialize)`: payloads are bytes that were checked once when they arrived, and
//! `serde_json` can embed finished JSON only as a `RawValue`, which would parse each of them again
//! for every reply.
//!
//! **Invariant:** keys are literals of this crate and need no escapes; a `raw` value is one JSON
//! value already.

/// One object being written; [`put_object`] opens and closes it.
pub(super) struct Object<'o> {
    out: &'o mut Vec<u8>,
    is_empty: bool,
}

/// Appends `{…}` with the members that `fill` writes.
pub(super) fn put_object(out: &mut Vec<u8>, fill: impl FnOnce(&mut Object<'_>)) {
    out.push(b'{');
    fill(&mut Object { out, is_empty: true });
    out.push(b'}');
}

/// Appends `text` as a JSON string.
pub(super) fn put_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text)
        .expect("invariant: a string always serialises and a Vec takes every write");
}

/// Appends a number in decimal.
pub(super) fn put_number(out: &mut Vec<u8>, number: u64) {
    serde_json::to_writer(out, &number)
        .expect("invariant: a number always serialises and a Vec takes every write");
}

impl Object<'_> {
    /// Starts a member; the caller appends exactly one value.
    pub(super) fn key(&mut self, key: &'static str) -> &mut Vec<u8> {
        self.comma();
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    /// A member whose key is somebody's text and is escaped.
    pub(super) fn object_at(&mut self, key: &str, fill: impl FnOnce(&mut Object<'_>)) {
        self.comma();
        put_string(self.out, key);
        self.out.push(b':');
        put_object(self.out, fill);
    }

    pub(super) fn object(&mut self, key: &'static str, fill: impl FnOnce(&mut Object<'_>)) {
        put_object(self.key(key), fill);
    }

    pub(super) fn text(&mut self, key: &'static str, value: &str) {
        put_string(self.key(key), value);
    }

    pub(super) fn number(&mut self, key: &'static str, value: u64) {
        put_number(self.key(key), value);
    }

    pub(super) fn text_unless_empty(&mut self, key: &'static str, value: &str) {
        if !value.is_empty() {
            self.text(key, value);
        }
    }

    pub(super) fn number_unless_zero(&mut self, key: &'static str, value: u64) {
        if value != 0 {
            self.number(key, value);
        }
    }

    pub(super) fn true_if(&mut self, key: &'static str, value: bool) {
        if value {
            self.key(key).extend_from_slice(b"true");
        }
    }

    pub(super) fn raw_if(&mut self, key: &'static str, value: Option<&[u8]>) {
        if let Some(json) = value {
            self.key(key).extend_from_slice(json);
        }
    }

    fn comma(&mut self) {
        if !self.is_empty {
            self.out.push(b',');
        }
        self.is_empty = false;
    }
}
