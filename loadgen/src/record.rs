//! What a message of `verify` carries: run, topic, sequence number, a checksum of all of it, then a filler. It is
//! printable, so that it may be sent as text and as binary data.

use std::io::Write;

use flate2::Crc;

use crate::meta::hexadecimal;

/// `RRRRRRRR TTTT SSSSSSSSSSSS CCCCCCCC ` in hexadecimal digits; no payload is shorter.
pub(crate) const MIN_BYTES: usize = 36;
/// Where the checksum begins; it covers what is before it and what is after it.
const CHECKSUM_AT: usize = 27;
const CHECKSUM_END: usize = 35;

/// One message of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) topic: u16,
    /// Counts from 1 in each topic.
    pub(crate) sequence: u64,
}

/// What a received payload turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// As it was sent.
    Good(Record),
    /// Of another run, or of somebody else.
    Foreign,
    /// Of this run but damaged.
    Corrupted,
}

impl Record {
    /// Text and binary data in turn, so that both kinds are verified.
    pub(crate) fn is_text(self) -> bool {
        self.sequence % 2 == 1
    }

    /// Writes the payload of `bytes` bytes into `out`, instead of what is there.
    pub(crate) fn write(self, run: u32, bytes: usize, out: &mut Vec<u8>) {
        out.clear();
        // Writing to a Vec cannot fail.
        let _ = write!(out, "{run:08x} {:04x} {:012x} {:08x} ", self.topic, self.sequence, 0);
        let first = self.sequence.wrapping_mul(7) + u64::from(self.topic);
        out.extend((first..).map(|letter| b'a' + (letter % 26) as u8).take(bytes.saturating_sub(MIN_BYTES)));
        let sum = checksum(out);
        let _ = write!(&mut out[CHECKSUM_AT..CHECKSUM_END], "{sum:08x}");
    }
}

/// Checks a received payload.
#[inline]
pub(crate) fn check(run: u32, payload: &[u8]) -> Check {
    let number = |range: std::ops::Range<usize>| payload.get(range).and_then(hexadecimal);
    if number(0..8) != Some(u64::from(run)) {
        return Check::Foreign;
    }
    match (number(9..13), number(14..26), number(CHECKSUM_AT..CHECKSUM_END)) {
        (Some(topic), Some(sequence), Some(sum)) if u64::from(checksum(payload)) == sum => {
            Check::Good(Record { topic: topic as u16, sequence })
        }
        _ => Check::Corrupted,
    }
}

fn checksum(payload: &[u8]) -> u32 {
    let mut sum = Crc::new();
    sum.update(payload.get(..CHECKSUM_AT).unwrap_or_default());
    sum.update(payload.get(CHECKSUM_END..).unwrap_or_default());
    sum.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_every_changed_byte_is_noticed() {
        let record = Record { topic: 9, sequence: 0x12_3456 };
        let mut sent = Vec::new();
        for bytes in [MIN_BYTES, 37, 64, 1000] {
            record.write(77, bytes, &mut sent);
            assert_eq!((sent.len(), sent.is_ascii()), (bytes, true));
            assert_eq!(check(77, &sent), Check::Good(record));
            for at in 0..bytes {
                let mut damaged = sent.clone();
                damaged[at] ^= 1;
                let expected = if at < 8 { Check::Foreign } else { Check::Corrupted };
                assert_eq!(check(77, &damaged), expected, "byte {at} of {bytes}");
            }
            sent.push(b'x');
            assert_eq!(check(77, &sent), Check::Corrupted);
            assert_eq!(check(77, &sent[..bytes - 1]), Check::Corrupted);
        }
    }

    #[test]
    fn others_are_foreign_and_kinds_alternate() {
        let mut sent = Vec::new();
        Record { topic: 0, sequence: 1 }.write(78, 64, &mut sent);
        assert_eq!(check(77, &sent), Check::Foreign);
        assert_eq!(check(77, b""), Check::Foreign);
        assert_eq!(check(77, b"hello"), Check::Foreign);
        assert!(Record { topic: 0, sequence: 1 }.is_text() && !Record { topic: 0, sequence: 2 }.is_text());
    }
}
