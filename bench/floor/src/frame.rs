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
    let head = 2 + extended + 4;
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
    for (byte, key) in payload.iter_mut().zip(header[head - 4..].iter().cycle()) {
        *byte ^= key;
    }
    Ok(Some(Frame { opcode: first & 0x0F, payload, length }))
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
    fn unmasked_fragmented_and_reserved_are_refused() {
        for bytes in [[0x82, 0x00], [0x02, 0x80], [0xC2, 0x80]] {
            assert!(decode(&mut bytes.to_vec()).is_err());
        }
    }
}
