//! RFC 6455 frames as a client writes them and a strict client reads them.

/// Opcode of a continuation frame.
pub const CONTINUATION: u8 = 0x0;
/// Opcode of a text frame.
pub const TEXT: u8 = 0x1;
/// Opcode of a binary frame.
pub const BINARY: u8 = 0x2;
/// Opcode of a close frame.
pub const CLOSE: u8 = 0x8;
/// Opcode of a ping frame.
pub const PING: u8 = 0x9;
/// Opcode of a pong frame.
pub const PONG: u8 = 0xA;

/// The reserved bit that marks a compressed message (RFC 7692 6).
pub const RSV1: u8 = 0b100;

/// One frame: any opcode, any reserved bits, any payload, legal or not.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    pub fin: bool,
    /// The three reserved bits, RSV1 the highest: 0–7.
    pub rsv: u8,
    pub opcode: u8,
    pub payload: Vec<u8>,
}

/// How the length field is written; all but `Minimal` are for tests of what the server refuses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum LengthField {
    Minimal,
    /// The 16-bit form, whatever the length.
    Sixteen,
    /// The 64-bit form, whatever the length.
    SixtyFour,
    /// The 64-bit form with this value, whatever the payload.
    Claimed(u64),
}

impl Frame {
    /// A whole (FIN) frame.
    pub fn new(opcode: u8, payload: impl Into<Vec<u8>>) -> Self {
        Frame { fin: true, rsv: 0, opcode, payload: payload.into() }
    }

    pub fn text(payload: &str) -> Self {
        Frame::new(TEXT, payload)
    }

    pub fn binary(payload: impl Into<Vec<u8>>) -> Self {
        Frame::new(BINARY, payload)
    }

    pub fn close(code: u16, reason: &str) -> Self {
        Frame::new(CLOSE, [&code.to_be_bytes()[..], reason.as_bytes()].concat())
    }

    /// The same frame without FIN: more fragments follow.
    pub fn unfinished(self) -> Self {
        Frame { fin: false, ..self }
    }

    /// The same frame with these reserved bits.
    pub fn with_rsv(self, rsv: u8) -> Self {
        Frame { rsv, ..self }
    }

    /// The bytes on the wire, masked as a client must.
    pub fn masked(&self) -> Vec<u8> {
        self.bytes(Some(next_mask()), LengthField::Minimal)
    }

    /// The bytes on the wire with a mask and a length field of the test's choice.
    pub fn bytes(&self, mask: Option<[u8; 4]>, length: LengthField) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.payload.len() + 14);
        out.push(u8::from(self.fin) << 7 | self.rsv << 4 | self.opcode);
        let mask_bit = if mask.is_some() { 0x80 } else { 0 };
        let real = self.payload.len() as u64;
        let (form, value) = match length {
            LengthField::Minimal if real < 126 => (real as u8, real),
            LengthField::Minimal if real <= u64::from(u16::MAX) => (126, real),
            LengthField::Minimal | LengthField::SixtyFour => (127, real),
            LengthField::Sixteen => (126, real),
            LengthField::Claimed(claimed) => (127, claimed),
        };
        out.push(mask_bit | form);
        match form {
            126 => out.extend((value as u16).to_be_bytes()),
            127 => out.extend(value.to_be_bytes()),
            _ => {}
        }
        match mask {
            None => out.extend(&self.payload),
            Some(key) => {
                out.extend(key);
                out.extend(self.payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
            }
        }
        out
    }

    /// Code and reason of a close frame, `None` for an empty one.
    pub fn close_code(&self) -> Option<(u16, String)> {
        assert_eq!(self.opcode, CLOSE, "expected a close frame, got {self:?}");
        match self.payload.as_slice() {
            [] => None,
            [high, low, reason @ ..] => {
                let reason =
                    String::from_utf8(reason.to_vec()).expect("the server's close reason is not UTF-8");
                Some((u16::from_be_bytes([*high, *low]), reason))
            }
            [_] => panic!("the server sent a close frame of one byte"),
        }
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let head = &self.payload[..self.payload.len().min(48)];
        let dots = if head.len() < self.payload.len() { "…" } else { "" };
        write!(
            f,
            "Frame {{ fin {}, rsv {}, opcode {:#x}, {} bytes \"{}{dots}\" }}",
            self.fin,
            self.rsv,
            self.opcode,
            self.payload.len(),
            head.escape_ascii()
        )
    }
}

/// A new mask for every frame. It need not be secret here, only different each time.
fn next_mask() -> [u8; 4] {
    use std::sync::atomic::{AtomicU32, Ordering};
    static STATE: AtomicU32 = AtomicU32::new(1);
    STATE.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9).to_le_bytes()
}

/// Cuts what the server sent into frames and refuses what a server must never send.
#[derive(Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
    /// Bytes of `buffer` already given out as frames.
    taken: usize,
    /// permessage-deflate was negotiated: data messages may carry RSV1.
    pub may_be_compressed: bool,
}

impl FrameReader {
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// True while a part of a frame waits for the rest.
    pub fn is_mid_frame(&self) -> bool {
        self.taken < self.buffer.len()
    }

    /// The next whole frame, if there is one; the error says what the server did wrong.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, String> {
        let bytes = &self.buffer[self.taken..];
        let [first, second, ..] = *bytes else {
            return Ok(None);
        };
        if second & 0x80 != 0 {
            return Err("the server masked a frame".into());
        }
        let (header, length) = match second {
            126 if bytes.len() >= 4 => (4, u64::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
            127 if bytes.len() >= 10 => {
                (10, u64::from_be_bytes(bytes[2..10].try_into().expect("a slice of eight bytes")))
            }
            126 | 127 => return Ok(None),
            short => (2, u64::from(short)),
        };
        if (header == 4 && length < 126) || (header == 10 && length <= u64::from(u16::MAX)) {
            return Err(format!("the server wrote the length {length} in {} bytes", header - 2));
        }
        let frame_bytes = header + usize::try_from(length).map_err(|_| "a length over usize".to_owned())?;
        if bytes.len() < frame_bytes {
            return Ok(None);
        }
        let frame = Frame {
            fin: first & 0x80 != 0,
            rsv: (first >> 4) & 0x7,
            opcode: first & 0xF,
            payload: bytes[header..frame_bytes].to_vec(),
        };
        self.taken += frame_bytes;
        let compressed = self.may_be_compressed && frame.rsv == RSV1 && matches!(frame.opcode, TEXT | BINARY);
        if (frame.rsv != 0 && !compressed) || !matches!(frame.opcode, 0..=2 | 8..=10) {
            return Err(format!("the server sent reserved bits or a reserved opcode: {frame:?}"));
        }
        if frame.opcode >= CLOSE && (!frame.fin || frame.payload.len() > 125) {
            return Err(format!("the server sent a control frame that is too long or fragmented: {frame:?}"));
        }
        Ok(Some(frame))
    }
}
