//! WebSocket frames as a client needs them: masked ones out, heads of unmasked ones in.

pub const TEXT: u8 = 1;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// Head of a frame from the server.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub opcode: u8,
    pub is_final: bool,
    pub head_bytes: usize,
    pub payload_bytes: usize,
}

/// What no server may send: a mask, reserved bits, or a length beyond [`PAYLOAD_BYTES_MAX`].
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct BadFrame;

/// Over the largest publication that hubs pass on; bounds what a connection buffers.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// Reads the head of the frame at the start of `bytes`; `None` if more of it has to come.
#[inline]
pub fn head(bytes: &[u8]) -> Result<Option<Head>, BadFrame> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    if first & 0x70 != 0 || second & 0x80 != 0 {
        return Err(BadFrame);
    }
    let (head_bytes, payload_bytes) = match (second & 0x7f, rest) {
        (126, [a, b, ..]) => (4, usize::from(u16::from_be_bytes([*a, *b]))),
        (127, [a, b, c, d, e, f, g, h, ..]) => {
            let length = u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]);
            (10, usize::try_from(length).map_err(|_| BadFrame)?)
        }
        (126 | 127, _) => return Ok(None),
        (length, _) => (2, usize::from(length)),
    };
    if payload_bytes > PAYLOAD_BYTES_MAX {
        return Err(BadFrame);
    }
    Ok(Some(Head { opcode: first & 15, is_final: first & 0x80 != 0, head_bytes, payload_bytes }))
}

/// Appends one masked frame.
pub fn put(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    put_head(out, 0x80 | opcode, payload.len() as u64);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// Appends head and mask only, with any first byte and any length: what attackers need too.
pub fn put_head(out: &mut Vec<u8>, first: u8, payload_bytes: u64) {
    put_length(out, first, 0x80, payload_bytes);
    out.extend_from_slice(&MASK);
}

/// The head of a server's frame, for the server that the ceiling is measured with.
pub fn put_unmasked_head(out: &mut Vec<u8>, opcode: u8, payload_bytes: u64) {
    put_length(out, 0x80 | opcode, 0, payload_bytes);
}

fn put_length(out: &mut Vec<u8>, first: u8, mask_bit: u8, payload_bytes: u64) {
    out.push(first);
    match payload_bytes {
        0..126 => out.push(mask_bit | payload_bytes as u8),
        126..0x1_0000 => {
            out.push(mask_bit | 126);
            out.extend_from_slice(&(payload_bytes as u16).to_be_bytes());
        }
        _ => {
            out.push(mask_bit | 127);
            out.extend_from_slice(&payload_bytes.to_be_bytes());
        }
    }
}

/// A close frame's code and reason.
pub fn close_label(payload: &[u8]) -> String {
    match payload {
        [a, b, reason @ ..] => {
            let code = u16::from_be_bytes([*a, *b]);
            format!("{code} {}", String::from_utf8_lossy(reason)).trim_end().to_owned()
        }
        _ => "close without code".to_owned(),
    }
}

/// The request that opens a WebSocket.
pub fn upgrade_request(host: &str, path: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_every_length() {
        let of =
            |bytes: &[u8]| head(bytes).unwrap().map(|head| (head.head_bytes, head.payload_bytes));
        assert_eq!(of(&[0x81]), None);
        assert_eq!(of(&[0x81, 125]), Some((2, 125)));
        assert_eq!(of(&[0x81, 126, 1]), None);
        assert_eq!(of(&[0x81, 126, 1, 2]), Some((4, 258)));
        assert_eq!(of(&[0x81, 127, 0, 0, 0, 0, 0, 1, 0]), None);
        assert_eq!(of(&[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]), Some((10, 65536)));
        assert_eq!(head(&[0x81, 0x80]), Err(BadFrame), "masked");
        assert_eq!(head(&[0xc1, 0]), Err(BadFrame), "reserved bit");
        assert_eq!(head(&[0x81, 127, 1, 0, 0, 0, 0, 0, 0, 0]), Err(BadFrame), "huge");
    }

    #[test]
    fn own_frames_are_masked() {
        let mut frame = Vec::new();
        put(&mut frame, TEXT, b"hi");
        assert_eq!(frame, [0x81, 0x82, 0x37, 0xfa, 0x21, 0x3d, b'h' ^ 0x37, b'i' ^ 0xfa]);
    }
}
