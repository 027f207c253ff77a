//! Frame headers (RFC 6455 5.2): the client's are read and judged, the server's are written.
//!
//! Invariants: a [`ClientHeader`] that was handed out is masked, minimal, with a known opcode, and, if it
//! is a control frame, whole and at most 125 bytes long. Whether it fits the message in progress is the
//! session's to judge.

pub use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::error::ProtocolError;

/// Longest payload of a control frame, in bytes (RFC 6455 5.5).
pub const MAX_CONTROL_BYTES: usize = 125;
/// Longest header a client can send, in bytes: 2, 8 of length, 4 of mask.
pub const MAX_CLIENT_HEADER_BYTES: usize = 14;
/// Longest header the server sends, in bytes: 2 and 8 of length.
pub const MAX_SERVER_HEADER_BYTES: usize = 10;

/// The text opcode.
pub const TEXT: OpCode = OpCode::Data(Data::Text);
/// The binary opcode.
pub const BINARY: OpCode = OpCode::Data(Data::Binary);
/// The continuation opcode.
pub const CONTINUATION: OpCode = OpCode::Data(Data::Continue);
/// The close opcode.
pub const CLOSE: OpCode = OpCode::Control(Control::Close);
/// The ping opcode.
pub const PING: OpCode = OpCode::Control(Control::Ping);
/// The pong opcode.
pub const PONG: OpCode = OpCode::Control(Control::Pong);

/// The opcode that each value means; `None` where it is reserved (RFC 6455 5.2).
const OPCODES: [Option<OpCode>; 16] = {
    let mut opcodes = [None; 16];
    (opcodes[0], opcodes[1], opcodes[2]) = (Some(CONTINUATION), Some(TEXT), Some(BINARY));
    (opcodes[8], opcodes[9], opcodes[10]) = (Some(CLOSE), Some(PING), Some(PONG));
    opcodes
};

/// The header of an unmasked frame, ready to send; no allocation.
#[derive(Debug, Clone, Copy)]
pub struct ServerHeader {
    bytes: [u8; MAX_SERVER_HEADER_BYTES],
    len: u8,
}

impl ServerHeader {
    /// The header of a whole message or control frame. `rsv1` marks it as compressed (RFC 7692 6.1).
    pub fn new(opcode: OpCode, rsv1: bool, payload_bytes: usize) -> Self {
        let mut bytes = [0; MAX_SERVER_HEADER_BYTES];
        bytes[0] = 0x80 | if rsv1 { 0x40 } else { 0 } | u8::from(opcode);
        let len = match payload_bytes {
            0..=125 => {
                bytes[1] = payload_bytes as u8;
                2
            }
            126..=0xffff => {
                bytes[1] = 126;
                bytes[2..4].copy_from_slice(&(payload_bytes as u16).to_be_bytes());
                4
            }
            _ => {
                bytes[1] = 127;
                bytes[2..10].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
                10
            }
        };
        Self { bytes, len }
    }

    /// The bytes to send, 2 to 10.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The opcode of the first of several frames of the server's, and its length with its header, in bytes. `None` where
    /// there is none.
    pub fn first_of(frames: &[u8]) -> Option<(OpCode, usize)> {
        let (&first, &second) = (frames.first()?, frames.get(1)?);
        let opcode = OPCODES[usize::from(first & 0x0f)]?;
        let (header_bytes, payload_bytes) = match second {
            0..=125 => (2, usize::from(second)),
            126 => (4, usize::from(u16::from_be_bytes(frames.get(2..4)?.try_into().ok()?))),
            _ => (10, usize::try_from(u64::from_be_bytes(frames.get(2..10)?.try_into().ok()?)).ok()?),
        };
        Some((opcode, header_bytes + payload_bytes))
    }
}

/// Appends one whole frame to `out`. `rsv1` marks the payload as compressed.
pub fn encode(opcode: OpCode, rsv1: bool, payload: &[u8], out: &mut Vec<u8>) {
    let header = ServerHeader::new(opcode, rsv1, payload.len());
    out.reserve(header.as_bytes().len() + payload.len());
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(payload);
}

/// Appends a ping frame to `out`. A payload beyond 125 bytes is cut.
pub fn encode_ping(payload: &[u8], out: &mut Vec<u8>) {
    encode_control(PING, payload, out);
}

/// Appends a pong frame to `out`. A payload beyond 125 bytes is cut; a peer's ping never has more.
pub fn encode_pong(payload: &[u8], out: &mut Vec<u8>) {
    encode_control(PONG, payload, out);
}

/// Appends a close frame with a payload made by [`close`](super::close) to `out`.
pub(super) fn encode_close(payload: &[u8], out: &mut Vec<u8>) {
    encode_control(CLOSE, payload, out);
}

fn encode_control(opcode: OpCode, payload: &[u8], out: &mut Vec<u8>) {
    encode(opcode, false, &payload[..payload.len().min(MAX_CONTROL_BYTES)], out);
}

/// The header of a client's frame, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientHeader {
    /// What the frame is; never a reserved opcode.
    pub opcode: OpCode,
    /// True on the last frame of a message.
    pub fin: bool,
    /// True on the first frame of a compressed message.
    pub rsv1: bool,
    /// The masking key.
    pub mask: [u8; 4],
    /// Bytes of payload as declared, at most 63 bits; nothing is known of their arrival.
    pub payload_bytes: u64,
    /// Bytes of this header, 6 to 14.
    pub header_bytes: usize,
}

impl ClientHeader {
    /// Reads a header from the front of `bytes`. `Ok(None)`: more bytes are needed.
    ///
    /// `compression` tells whether permessage-deflate was negotiated, so that RSV1 may be set on the
    /// first frame of a message.
    ///
    /// tungstenite's `FrameHeader::parse` is not used because it checks neither mask, control size, nor
    /// minimal length, and takes several times as long (`bench/codec.rs`, "header in"); tests compare the
    /// two. Inlined, since the result would be returned through memory in unaligned pieces.
    ///
    /// # Errors
    /// What is wrong with a header by itself ([`ProtocolError`]), as soon as the bytes at hand show it.
    #[inline(always)]
    pub fn parse(bytes: &[u8], compression: bool) -> Result<Option<Self>, ProtocolError> {
        let Some(&first) = bytes.first() else {
            return Ok(None);
        };
        let code = first & 0x0f;
        let Some(opcode) = OPCODES[usize::from(code)] else {
            return Err(ProtocolError::ReservedOpcode(code));
        };
        let fin = first & 0x80 != 0;
        let rsv1 = first & 0x40 != 0;
        let is_control = code & 0x08 != 0;
        if first & 0x30 != 0 || (rsv1 && !(compression && matches!(opcode, TEXT | BINARY))) {
            return Err(ProtocolError::ReservedBits);
        }
        if is_control && !fin {
            return Err(ProtocolError::ControlFragmented);
        }
        let Some(&second) = bytes.get(1) else {
            return Ok(None);
        };
        if second & 0x80 == 0 {
            return Err(ProtocolError::Unmasked);
        }
        let short = second & 0x7f;
        if is_control && usize::from(short) > MAX_CONTROL_BYTES {
            return Err(ProtocolError::ControlTooLong);
        }
        let (payload_bytes, mask_at) = match short {
            126 => {
                let Some(&length) = bytes[2..].first_chunk() else {
                    return Ok(None);
                };
                let length = u64::from(u16::from_be_bytes(length));
                if length < 126 {
                    return Err(ProtocolError::NonMinimalLength);
                }
                (length, 4)
            }
            127 => {
                let Some(&length) = bytes[2..].first_chunk() else {
                    return Ok(None);
                };
                let length = u64::from_be_bytes(length);
                if length <= 0xffff {
                    return Err(ProtocolError::NonMinimalLength);
                }
                if length >> 63 != 0 {
                    return Err(ProtocolError::LengthOverflow);
                }
                (length, 10)
            }
            _ => (u64::from(short), 2),
        };
        let Some(&mask) = bytes[mask_at..].first_chunk() else {
            return Ok(None);
        };
        Ok(Some(Self { opcode, fin, rsv1, mask, payload_bytes, header_bytes: mask_at + 4 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;
    use tungstenite::protocol::frame::FrameHeader;

    fn parse(bytes: &[u8]) -> Result<Option<ClientHeader>, ProtocolError> {
        ClientHeader::parse(bytes, false)
    }

    /// What tungstenite reads; a second opinion on every field.
    fn parse_foreign(bytes: &[u8]) -> Option<(FrameHeader, u64, usize)> {
        let mut cursor = Cursor::new(bytes);
        let (header, payload_bytes) = FrameHeader::parse(&mut cursor).ok()??;
        Some((header, payload_bytes, cursor.position() as usize))
    }

    #[test]
    fn server_headers_equal_tungstenites() {
        let sizes = [0, 1, 125, 126, 127, 255, 256, 65535, 65536, 65537, 1 << 24, usize::MAX >> 1];
        for opcode in [TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION] {
            for rsv1 in [false, true] {
                for size in sizes {
                    let mut foreign = Vec::new();
                    let header = FrameHeader { opcode, rsv1, ..FrameHeader::default() };
                    header.format(size as u64, &mut foreign).unwrap();
                    assert_eq!(ServerHeader::new(opcode, rsv1, size).as_bytes(), foreign);
                }
            }
        }
    }

    #[test]
    fn rfc_6455_examples_are_built() {
        let mut out = Vec::new();
        encode(TEXT, false, b"Hello", &mut out);
        assert_eq!(out, [0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        out.clear();
        encode_ping(b"Hello", &mut out);
        assert_eq!(out, [0x89, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        out.clear();
        encode(BINARY, false, &[7; 256], &mut out);
        assert_eq!(out[..4], [0x82, 0x7e, 0x01, 0x00]);
        assert_eq!(out.len(), 4 + 256);
        out.clear();
        encode(BINARY, false, &[7; 65536], &mut out);
        assert_eq!(out[..10], [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]);
        out.clear();
        encode_pong(&[1; 200], &mut out);
        assert_eq!(out[..2], [0x8a, 125]);
        assert_eq!(out.len(), 127);
    }

    #[test]
    fn the_servers_frames_are_told_apart_again() {
        let sizes =
            [(TEXT, 0), (PING, 125), (BINARY, 126), (PONG, 3), (TEXT, 65535), (BINARY, 65536), (CLOSE, 2)];
        let mut frames = Vec::new();
        sizes.iter().for_each(|&(opcode, size)| encode(opcode, opcode == TEXT, &vec![9; size], &mut frames));
        let mut rest = &frames[..];
        for (opcode, size) in sizes {
            let (seen, length) = ServerHeader::first_of(rest).unwrap();
            let header = ServerHeader::new(opcode, false, size);
            assert_eq!((seen, length), (opcode, header.as_bytes().len() + size));
            rest = &rest[length..];
        }
        assert_eq!(ServerHeader::first_of(rest), None);
    }

    #[test]
    fn every_first_two_bytes_are_judged() {
        for compression in [false, true] {
            for first in 0..=255u8 {
                for second in 0..=255u8 {
                    let mut bytes = [0; MAX_CLIENT_HEADER_BYTES];
                    bytes[..2].copy_from_slice(&[first, second]);
                    // Lengths that are minimal in either form, so that only the first bytes matter.
                    bytes[if second & 0x7f == 126 { 2 } else { 4 }] = 1;
                    let code = first & 0x0f;
                    let (control, fin) = (code & 8 != 0, first & 0x80 != 0);
                    let rsv1_ok = compression && (code == 1 || code == 2);
                    let expected = if matches!(code, 3..=7 | 11..=15) {
                        Err(ProtocolError::ReservedOpcode(code))
                    } else if first & 0x30 != 0 || (first & 0x40 != 0 && !rsv1_ok) {
                        Err(ProtocolError::ReservedBits)
                    } else if control && !fin {
                        Err(ProtocolError::ControlFragmented)
                    } else if second & 0x80 == 0 {
                        Err(ProtocolError::Unmasked)
                    } else if control && second & 0x7f > 125 {
                        Err(ProtocolError::ControlTooLong)
                    } else {
                        Ok(())
                    };
                    let parsed = ClientHeader::parse(&bytes, compression);
                    assert_eq!(parsed.map(|_| ()), expected, "{first:#x} {second:#x}");
                    // The same verdict from the two bytes alone, if it is an error.
                    let early = ClientHeader::parse(&bytes[..2], compression).map(|_| ());
                    assert_eq!(early, expected, "{first:#x} {second:#x}");
                }
            }
        }
    }

    #[test]
    fn lengths_must_be_minimal_and_below_64_bits() {
        let long = |length: u64| {
            let mut bytes = vec![0x82, 0xff];
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes
        };
        let short = |length: u16| {
            let mut bytes = vec![0x82, 0xfe];
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes
        };
        for length in [0, 1, 125] {
            assert_eq!(parse(&short(length)), Err(ProtocolError::NonMinimalLength));
        }
        for length in [126, 127, 65535] {
            assert_eq!(parse(&short(length)), Ok(None), "the mask is still missing");
        }
        for length in [0, 125, 126, 65535] {
            assert_eq!(parse(&long(length)), Err(ProtocolError::NonMinimalLength));
        }
        for length in [1 << 63, u64::MAX] {
            assert_eq!(parse(&long(length)), Err(ProtocolError::LengthOverflow));
        }
        for length in [65536, u64::MAX >> 1] {
            let whole = [&long(length)[..], &[1, 2, 3, 4]].concat();
            let header = parse(&whole).unwrap().unwrap();
            assert_eq!((header.payload_bytes, header.header_bytes), (length, 14));
            assert_eq!(header.mask, [1, 2, 3, 4]);
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_reads_as_tungstenite_reads_it(
            first in prop::sample::select(vec![0x00, 0x01, 0x02, 0x41, 0xc2, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8a]),
            second in 0x80..=0xff_u8,
            rest in prop::collection::vec(any::<u8>(), 0..20),
            compression in any::<bool>(),
        ) {
            let bytes = [&[first, second], &rest[..]].concat();
            if let Ok(Some(header)) = ClientHeader::parse(&bytes, compression) {
                let (foreign, payload_bytes, header_bytes) = parse_foreign(&bytes).unwrap();
                prop_assert_eq!(header.opcode, foreign.opcode);
                prop_assert_eq!((header.fin, header.rsv1), (foreign.is_final, foreign.rsv1));
                prop_assert_eq!(Some(header.mask), foreign.mask);
                prop_assert_eq!(header.payload_bytes, payload_bytes);
                prop_assert_eq!(header.header_bytes, header_bytes);
                // No shorter prefix is enough, and none is an error.
                for len in 0..header_bytes {
                    prop_assert_eq!(ClientHeader::parse(&bytes[..len], compression), Ok(None));
                }
            }
        }

        #[test]
        fn an_error_stays_one_with_more_bytes(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            if let Err(error) = parse(&bytes) {
                let longer = [&bytes[..], &[0x55; 16]].concat();
                prop_assert_eq!(parse(&longer), Err(error));
            }
        }
    }
}
