//! RFC 6455 framing as a client sees it: server frames in, masked client frames out. No socket, no clock.

/// Opcodes that this client knows.
pub(crate) mod opcode {
    pub(crate) const CONTINUATION: u8 = 0x0;
    pub(crate) const TEXT: u8 = 0x1;
    pub(crate) const BINARY: u8 = 0x2;
    pub(crate) const CLOSE: u8 = 0x8;
    pub(crate) const PING: u8 = 0x9;
    pub(crate) const PONG: u8 = 0xA;
}

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
/// Longest payload of a control frame.
const CONTROL_MAX_BYTES: usize = 125;

/// What a server did against the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProtocolError {
    ReservedBits,
    ReservedOpcode,
    Masked,
    LengthNotMinimal,
    TooLong,
    BadControl,
    BadContinuation,
    BadClose,
    BadDeflate,
}

impl ProtocolError {
    /// Name under which it is counted.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::ReservedBits => "protocol_reserved_bits",
            Self::ReservedOpcode => "protocol_reserved_opcode",
            Self::Masked => "protocol_masked_frame",
            Self::LengthNotMinimal => "protocol_length_not_minimal",
            Self::TooLong => "protocol_message_too_long",
            Self::BadControl => "protocol_bad_control_frame",
            Self::BadContinuation => "protocol_bad_continuation",
            Self::BadClose => "protocol_bad_close_frame",
            Self::BadDeflate => "protocol_bad_deflate",
        }
    }
}

/// One complete frame of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) fin: bool,
    /// RSV1: the message that it begins is compressed.
    pub(crate) compressed: bool,
    pub(crate) opcode: u8,
    pub(crate) payload: &'a [u8],
}

/// Takes the first frame off `bytes`, or returns `None` while it is incomplete; `compression` tells whether
/// permessage-deflate was negotiated.
#[inline]
pub(crate) fn take<'a>(
    bytes: &mut &'a [u8],
    max_bytes: usize,
    compression: bool,
) -> Result<Option<Frame<'a>>, ProtocolError> {
    let &[first, second, ..] = *bytes else {
        return Ok(None);
    };
    if first == FIN | opcode::BINARY && second <= 125 {
        let end = 2 + usize::from(second);
        let Some(payload) = bytes.get(2..end) else {
            return Ok(None);
        };
        *bytes = &bytes[end..];
        return Ok(Some(Frame { fin: true, compressed: false, opcode: opcode::BINARY, payload }));
    }
    take_any(bytes, first, second, max_bytes, compression)
}

fn take_any<'a>(
    bytes: &mut &'a [u8],
    first: u8,
    second: u8,
    max_bytes: usize,
    compression: bool,
) -> Result<Option<Frame<'a>>, ProtocolError> {
    let (fin, opcode) = (first & FIN != 0, first & 0x0F);
    let compressed = compression && first & RSV1 != 0 && matches!(opcode, opcode::TEXT | opcode::BINARY);
    if first & RESERVED != if compressed { RSV1 } else { 0 } {
        return Err(ProtocolError::ReservedBits);
    }
    if !matches!(opcode, 0..=2 | 8..=10) {
        return Err(ProtocolError::ReservedOpcode);
    }
    if second & MASKED != 0 {
        return Err(ProtocolError::Masked);
    }
    if opcode >= opcode::CLOSE && (!fin || usize::from(second) > CONTROL_MAX_BYTES) {
        return Err(ProtocolError::BadControl);
    }
    let (head, least) = match second {
        126 => (4, 126),
        127 => (10, 0x1_0000),
        _ => (2, 0),
    };
    let Some(extended) = bytes.get(2..head) else {
        return Ok(None);
    };
    let length = match second {
        0..=125 => u64::from(second),
        _ => extended.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
    };
    if length < least {
        return Err(ProtocolError::LengthNotMinimal);
    }
    let end =
        usize::try_from(length).ok().filter(|length| *length <= max_bytes).ok_or(ProtocolError::TooLong)?;
    let Some(payload) = bytes.get(head..head + end) else {
        return Ok(None);
    };
    *bytes = &bytes[head + end..];
    Ok(Some(Frame { fin, compressed, opcode, payload }))
}

/// Code of a close frame's payload; 1005 stands for "none given".
pub(crate) fn close_code(payload: &[u8]) -> Result<u16, ProtocolError> {
    match payload {
        [] => Ok(1005),
        [high, low, reason @ ..] if std::str::from_utf8(reason).is_ok() => {
            Ok(u16::from_be_bytes([*high, *low]))
        }
        _ => Err(ProtocolError::BadClose),
    }
}

/// Appends a client frame with `payload`, masked with `key`, to `out`.
pub(crate) fn append_masked(out: &mut Vec<u8>, opcode: u8, payload: &[u8], key: [u8; 4]) {
    out.push(FIN | opcode);
    match payload.len() {
        length @ 0..=125 => out.push(MASKED | length as u8),
        length @ 126..=0xFFFF => {
            out.push(MASKED | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(MASKED | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&key);
    out.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 1 << 20;

    fn server_frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        match payload.len() {
            length @ 0..=125 => bytes.push(length as u8),
            length @ 126..=0xFFFF => {
                bytes.push(126);
                bytes.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                bytes.push(127);
                bytes.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn every_split_gives_the_same_frames() {
        let mut stream = Vec::new();
        let payloads: Vec<Vec<u8>> =
            [0, 1, 24, 125, 126, 300].iter().map(|length| vec![9; *length]).collect();
        for (index, payload) in payloads.iter().enumerate() {
            stream.extend(server_frame(if index % 2 == 0 { 0x82 } else { 0x81 }, payload));
        }
        for cut in 0..=stream.len() {
            let mut seen = Vec::new();
            let mut held = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                held.extend_from_slice(part);
                let mut rest = &held[..];
                while let Some(frame) = take(&mut rest, MAX, false).unwrap() {
                    seen.push(frame.payload.to_vec());
                }
                held = rest.to_vec();
            }
            assert_eq!(seen, payloads, "cut at {cut}");
            assert!(held.is_empty());
        }
    }

    #[test]
    fn long_frames_wait_for_their_last_byte() {
        let bytes = server_frame(0x82, &vec![1; 70_000]);
        assert_eq!(take(&mut &bytes[..bytes.len() - 1], MAX, false), Ok(None));
        let mut rest = &bytes[..];
        assert_eq!(take(&mut rest, MAX, false).unwrap().unwrap().payload.len(), 70_000);
        assert!(rest.is_empty());
    }

    #[test]
    fn violations_are_told_apart() {
        use ProtocolError::*;
        let cases: [(&[u8], ProtocolError); 9] = [
            (&[0xC2, 0], ReservedBits),
            (&[0x83, 0], ReservedOpcode),
            (&[0x82, 0x80], Masked),
            (&[0x82, 126, 0, 125], LengthNotMinimal),
            (&[0x82, 127, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF], LengthNotMinimal),
            (&[0x82, 127, 0xFF, 0, 0, 0, 0, 0, 0, 0], TooLong),
            (&[0x89, 126, 0, 126], BadControl),
            (&[0x09, 0], BadControl),
            (&[0x8B, 0], ReservedOpcode),
        ];
        for (bytes, error) in cases {
            assert_eq!(take(&mut &bytes[..], MAX, false), Err(error), "{bytes:?}");
        }
    }

    #[test]
    fn rsv1_begins_a_compressed_message_if_that_was_negotiated() {
        for (first, fin, opcode) in [(0xC1, true, 1), (0xC2, true, 2), (0x42, false, 2)] {
            let bytes = server_frame(first, b"abc");
            let frame = Frame { fin, compressed: true, opcode, payload: b"abc" };
            assert_eq!(take(&mut &bytes[..], MAX, true), Ok(Some(frame)));
            assert_eq!(take(&mut &bytes[..], MAX, false), Err(ProtocolError::ReservedBits));
        }
        assert!(!take(&mut &[0x81, 0][..], MAX, true).unwrap().unwrap().compressed);
        // A continuation, a ping, a close frame; other reserved bits.
        for first in [0xC0, 0xC9, 0xC8, 0xA2, 0x92, 0xE2] {
            assert_eq!(take(&mut &[first, 0][..], MAX, true), Err(ProtocolError::ReservedBits), "{first:x}");
        }
    }

    #[test]
    fn close_payloads() {
        assert_eq!(close_code(&[]), Ok(1005));
        assert_eq!(close_code(&[3, 0xF0, b'a']), Ok(1008));
        assert_eq!(close_code(&[3]), Err(ProtocolError::BadClose));
        assert_eq!(close_code(&[3, 0xE8, 0xFF]), Err(ProtocolError::BadClose));
    }

    #[test]
    fn masking_is_undone_by_the_key() {
        for length in [0, 5, 126, 70_000] {
            let payload: Vec<u8> = (0..length).map(|index| index as u8).collect();
            let mut bytes = Vec::new();
            append_masked(&mut bytes, opcode::BINARY, &payload, [1, 2, 3, 4]);
            let head = bytes.len() - length;
            assert_eq!(&bytes[head - 4..head], &[1, 2, 3, 4]);
            let plain: Vec<u8> =
                bytes[head..].iter().zip([1, 2, 3, 4].iter().cycle()).map(|(a, b)| a ^ b).collect();
            assert_eq!(plain, payload);
        }
    }
}
