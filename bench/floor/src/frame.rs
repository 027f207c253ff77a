//! Just enough of RFC 6455 framing: masked client frames in, unmasked server frames out.

/// One whole frame of a client, unmasked in place.
pub(crate) struct Frame<'a> {
    pub(crate) opcode: u8,
    pub(crate) payload: &'a [u8],
    /// Bytes it took in the buffer, header included.
    pub(crate) length: usize,
}

pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xA;

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
const MASK_BYTES: usize = 4;

/// Why a client cannot be served further.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused;

/// The first frame of `bytes`, or `None` while it is incomplete. Fragments and unmasked frames are refused.
pub(crate) fn decode(bytes: &mut [u8]) -> Result<Option<Frame<'_>>, Refused> {
    let &mut [first, second, ..] = bytes else {
        return Ok(None);
    };
    if first & 0xF0 != FIN || second & MASKED == 0 {
        return Err(Refused);
    }
    let (extended, mut size) = match second & 0x7F {
        126 => (2, 0),
        127 => (8, 0),
        short => (0, u64::from(short)),
    };
    let head = 2 + extended + MASK_BYTES;
    if bytes.len() < head {
        return Ok(None);
    }
    for byte in &bytes[2..2 + extended] {
        size = size << 8 | u64::from(*byte);
    }
    let length = usize::try_from(size).ok().and_then(|size| size.checked_add(head)).ok_or(Refused)?;
    if bytes.len() < length {
        return Ok(None);
    }
    let (header, payload) = bytes[..length].split_at_mut(head);
    let key = &header[head - MASK_BYTES..];
    // In words: a floor that takes its time would flatter what is measured beside it.
    for word in payload.chunks_mut(MASK_BYTES) {
        word.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
    }
    Ok(Some(Frame { opcode: first & 0x0F, payload, length }))
}

/// Makes the client frames of `bytes` over into the server frames with the same payloads, in place; pings become pongs,
/// and what follows a close frame is left out. A server frame is shorter than a client's by the four bytes of its mask, so
/// that nothing is overwritten that has not been read.
pub(crate) fn reflect(bytes: &mut [u8]) -> Result<Reflected, Refused> {
    let (mut read, mut written, mut messages) = (0, 0, 0);
    while let Some(Frame { opcode, payload, length }) = decode(&mut bytes[read..])? {
        let size = payload.len();
        let payload = read + length - size;
        let header = payload - read - MASK_BYTES;
        let answer = if opcode == PING { PONG } else { opcode };
        if opcode != PONG {
            let head = read..read + header;
            bytes.copy_within(head, written);
            bytes[written] = FIN | answer;
            bytes[written + 1] &= !MASKED;
            bytes.copy_within(payload..payload + size, written + header);
            written += header + size;
        }
        messages += u64::from(opcode < CLOSE);
        read += length;
        if opcode == CLOSE {
            return Ok(Reflected { read: bytes.len(), written, messages, closed: true });
        }
    }
    Ok(Reflected { read, written, messages, closed: false })
}

/// What [`reflect`] did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reflected {
    /// Bytes of whole frames; an incomplete one begins behind them.
    pub(crate) read: usize,
    /// Bytes of answers, at the beginning.
    pub(crate) written: usize,
    /// Data messages among them.
    pub(crate) messages: u64,
    /// The last of them is a close frame.
    pub(crate) closed: bool,
}

/// Appends the server frame for `payload` to `out`.
pub(crate) fn append(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    out.push(FIN | opcode);
    match payload.len() {
        size @ 0..=125 => out.push(size as u8),
        size @ 126..=0xFFFF => {
            out.push(126);
            out.extend_from_slice(&(size as u16).to_be_bytes());
        }
        size => {
            out.push(127);
            out.extend_from_slice(&(size as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        append(&mut plain, opcode, payload);
        let key = [1, 2, 3, 4];
        let head = plain.len() - payload.len();
        let mut out = plain[..head].to_vec();
        out[1] |= MASKED;
        out.extend_from_slice(&key);
        out.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
        out
    }

    #[test]
    fn every_prefix_is_incomplete_and_the_whole_is_unmasked() {
        for size in [0, 1, 125, 126, 65535, 65536] {
            let payload = vec![7; size];
            let bytes = masked(2, &payload);
            for cut in (0..bytes.len()).filter(|cut| *cut < 20 || cut % 4001 == 0) {
                assert!(
                    decode(&mut bytes[..cut].to_vec()).is_ok_and(|frame| frame.is_none()),
                    "{size} cut {cut}"
                );
            }
            let mut whole = bytes.clone();
            let frame = decode(&mut whole).ok().flatten().unwrap();
            assert_eq!((frame.opcode, frame.payload, frame.length), (2, &payload[..], bytes.len()));
        }
    }

    #[test]
    fn frames_are_reflected_in_place_and_a_rest_is_left() {
        let payloads = [vec![1; 5], vec![2; 200], vec![3; 70_000], vec![4; 3]];
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for payload in &payloads {
            bytes.extend(masked(2, payload));
            append(&mut expected, 2, payload);
        }
        bytes.extend(masked(PING, b"ping"));
        append(&mut expected, PONG, b"ping");
        bytes.extend(masked(PONG, b"unasked"));
        let whole = bytes.len();
        bytes.extend(&masked(1, b"incomplete")[..12]);
        let reflected = reflect(&mut bytes).unwrap();
        assert_eq!(reflected, Reflected { read: whole, written: expected.len(), messages: 4, closed: false });
        assert_eq!(bytes[..reflected.written], expected);
        assert_eq!(bytes[whole..], masked(1, b"incomplete")[..12]);
    }

    #[test]
    fn a_close_frame_is_the_last() {
        let mut bytes = [masked(1, b"a"), masked(CLOSE, &[3, 232]), masked(1, b"b")].concat();
        let reflected = reflect(&mut bytes).unwrap();
        assert!(reflected.closed && reflected.messages == 1);
        assert_eq!(bytes[..reflected.written], [0x81, 1, b'a', 0x88, 2, 3, 232]);
    }

    #[test]
    fn unmasked_fragmented_and_reserved_are_refused() {
        for bytes in [[0x82, 0x00], [0x02, 0x80], [0xC2, 0x80]] {
            assert!(decode(&mut bytes.to_vec()).is_err());
        }
    }
}
