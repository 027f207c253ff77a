//! What a measured message carries: mark of the run and checksum of what follows, sequence number, intended send time, then
//! a filler that is the same in all messages of a run.
//!
//! The checksum is what two multiplications give: it is computed for every message that arrives, and no change of one
//! byte of the two numbers escapes it.

/// Bytes of the header; no payload is shorter.
pub(crate) const MIN_BYTES: usize = 24;
/// Odd, with digits of no pattern: fractions of the golden ratio and of the square root of two.
const SEQUENCE_FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
const TIME_FACTOR: u64 = 0x6A09_E667_F3BC_C909;

/// Header of a received message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) sequence: u64,
    /// Monotonic clock, nanoseconds.
    pub(crate) intended_ns: u64,
}

impl Stamp {
    /// The checksum, in the lower half.
    #[inline]
    fn checksum(self) -> u64 {
        let sum = self.sequence.wrapping_mul(SEQUENCE_FACTOR);
        sum.wrapping_add(self.intended_ns.wrapping_mul(TIME_FACTOR)) >> 32
    }
}

/// What a received payload turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// As it was sent.
    Good(Stamp),
    /// Of another run, or of somebody else.
    Foreign,
    /// Of this run but damaged.
    Corrupted,
}

/// What follows the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filler {
    /// Bytes of all values.
    Bytes,
    /// JSON records with the same keys and varying numbers, cut off at the end: what compression is made for.
    Json,
}

/// Writes and checks the payloads of one run.
#[derive(Debug, Clone)]
pub(crate) struct Codec {
    /// What tells this run's messages from others, in the upper half.
    mark: u64,
    template: Vec<u8>,
}

impl Codec {
    /// A codec for payloads of `bytes` bytes, marked with `run`.
    pub(crate) fn new(run: u64, bytes: usize, filler: Filler) -> Self {
        let mut template: Vec<u8> = (0..bytes.max(MIN_BYTES)).map(|index| (index * 31 + 7) as u8).collect();
        if filler == Filler::Json {
            let text = records().flat_map(String::into_bytes);
            template[MIN_BYTES..].iter_mut().zip(text).for_each(|(byte, letter)| *byte = letter);
        }
        // Runs differ in few digits, and the upper ones of the product depend on all of them.
        Self { mark: run.wrapping_mul(SEQUENCE_FACTOR) >> 32 << 32, template }
    }

    /// Payload of message `stamp`, valid until the next call.
    pub(crate) fn payload(&mut self, stamp: Stamp) -> &[u8] {
        self.template[..8].copy_from_slice(&(self.mark | stamp.checksum()).to_be_bytes());
        self.template[8..16].copy_from_slice(&stamp.sequence.to_be_bytes());
        self.template[16..24].copy_from_slice(&stamp.intended_ns.to_be_bytes());
        &self.template
    }

    /// Checks a received payload.
    #[inline]
    pub(crate) fn check(&self, payload: &[u8]) -> Check {
        let Some((header, filler)) = payload.split_first_chunk::<MIN_BYTES>() else {
            return Check::Foreign;
        };
        let number = |at: usize| u64::from_be_bytes(std::array::from_fn(|byte| header[at + byte]));
        let stamp = Stamp { sequence: number(8), intended_ns: number(16) };
        if number(0) == self.mark | stamp.checksum() && *filler == self.template[MIN_BYTES..] {
            Check::Good(stamp)
        } else if number(0) >> 32 == self.mark >> 32 {
            Check::Corrupted
        } else {
            Check::Foreign
        }
    }
}

/// Readings of sensors without end, the same in every run.
fn records() -> impl Iterator<Item = String> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut below = move |limit: u64| {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
        (state >> 33) % limit
    };
    let mut time_ms = 1_700_000_000_000_u64;
    std::iter::repeat_with(move || {
        time_ms += below(5_000);
        format!(
            "{{\"sensor\":\"s{:05}\",\"time\":{time_ms},\"temperature\":{}.{:02},\"humidity\":{}.{},\"watts\":{}}},",
            below(100_000),
            15 + below(15),
            below(100),
            30 + below(50),
            below(10),
            below(3_000)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress};

    #[test]
    fn payload_comes_back_and_damage_is_found() {
        let fillers = [Filler::Bytes, Filler::Json];
        for (bytes, filler) in
            [24, 25, 64, 5000].into_iter().flat_map(|bytes| fillers.map(|filler| (bytes, filler)))
        {
            let mut codec = Codec::new(77, bytes, filler);
            let stamp = Stamp { sequence: 5, intended_ns: 123_456_789 };
            let sent = codec.payload(stamp).to_vec();
            assert_eq!(sent.len(), bytes);
            assert_eq!(codec.check(&sent), Check::Good(stamp));
            let mut longer = sent.clone();
            longer.push(0);
            assert_eq!(codec.check(&longer), Check::Corrupted);
            for at in (0..bytes).filter(|at| *at < 64 || at + 1 == bytes) {
                let mut damaged = sent.clone();
                damaged[at] ^= 1;
                let expected = if at < 4 { Check::Foreign } else { Check::Corrupted };
                assert_eq!(codec.check(&damaged), expected, "byte {at} of {bytes}");
            }
        }
    }

    #[test]
    fn no_change_of_one_byte_of_the_numbers_escapes_the_checksum() {
        // The sum changes by the change times a factor, whatever the number was: its upper half does so by at least one
        // if the product is at least 2^32 away from zero.
        for factor in [SEQUENCE_FACTOR, TIME_FACTOR] {
            for (byte, change) in (0..8).flat_map(|byte| (1..256_u64).map(move |change| (byte, change))) {
                let difference = (change << (8 * byte)).wrapping_mul(factor) as i64;
                assert!(difference.unsigned_abs() >= 1 << 32, "{factor:x}: {change} in byte {byte}");
            }
        }
    }

    #[test]
    fn json_compresses_as_such_text_does() {
        let mut codec = Codec::new(0x0123_4567_89AB_CDEF, 1024, Filler::Json);
        let sent = codec.payload(Stamp { sequence: 12_345, intended_ns: 987_654_321_987 }).to_vec();
        let text = std::str::from_utf8(&sent[MIN_BYTES..]).unwrap();
        assert!(text.starts_with("{\"sensor\":\"s"), "{text}");
        let mut out = Vec::with_capacity(2048);
        Compress::new(Compression::default(), false)
            .compress_vec(&sent, &mut out, FlushCompress::Sync)
            .unwrap();
        let ratio = sent.len() as f64 / out.len() as f64;
        assert!((2.5..3.5).contains(&ratio), "{ratio}");
    }

    #[test]
    fn other_runs_are_foreign() {
        let mut other = Codec::new(78, 64, Filler::Bytes);
        let sent = other.payload(Stamp { sequence: 0, intended_ns: 0 }).to_vec();
        assert_eq!(Codec::new(77, 64, Filler::Bytes).check(&sent), Check::Foreign);
        assert_eq!(Codec::new(77, 64, Filler::Bytes).check(b"short"), Check::Foreign);
    }
}
