//! Forms in which one core sends the same message (plain, compressed per window size, with its id), and its
//! compressors (RFC 7692).
//!
//! Nothing is kept from one message to the next, so a shard has at most one compressor per window size, however
//! many connections it serves; it is made when the first message needs it. A message to many is compressed
//! once per window size, by the owner of its topic.

use crate::ws::{Deflater, MessageKind, ServerHeader};

/// Smallest window that can be negotiated, as the power of two.
const SMALLEST_WINDOW: u8 = 9;

/// Number of window sizes: 9 to 15.
const WINDOW_SIZES: usize = 7;

/// What a connection gets: plain messages, messages compressed with a window of a certain size, or messages with
/// their id in front, which are not compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Encoding(u8);

impl Encoding {
    /// Number of encodings, for tables.
    pub const COUNT: usize = WINDOW_SIZES + 2;

    /// Not compressed.
    pub const PLAIN: Self = Self(0);

    /// With the message's id in front of the payload, as the sub-protocol `ws+meta.nchan` has it.
    pub const WITH_ID: Self = Self(WINDOW_SIZES as u8 + 1);

    /// Compressed with a window of 2^`window_bits` bytes, 9 to 15; others are taken to the nearest of these.
    #[must_use]
    pub fn window(window_bits: u8) -> Self {
        Self(
            window_bits.clamp(SMALLEST_WINDOW, SMALLEST_WINDOW + WINDOW_SIZES as u8 - 1) - SMALLEST_WINDOW
                + 1,
        )
    }

    /// Its place in a table.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    fn from_index(index: usize) -> Self {
        Self(index as u8)
    }

    fn window_bits(self) -> u8 {
        self.0 + SMALLEST_WINDOW - 1
    }

    /// Whether messages may be compressed.
    #[must_use]
    pub fn is_compressed(self) -> bool {
        self != Self::PLAIN && self != Self::WITH_ID
    }
}

/// The encodings other than plain that some subscriber uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Encodings(u16);

impl Encodings {
    /// Those of a table whose count is not zero.
    #[must_use]
    pub fn counted(counts: &[u32; Encoding::COUNT]) -> Self {
        let used = (1..Encoding::COUNT).filter(|&index| counts[index] > 0);
        Self(used.fold(0, |bits, index| bits | 1 << index))
    }

    /// Those of either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether an encoding is among them.
    #[must_use]
    pub fn contains(self, encoding: Encoding) -> bool {
        self.0 >> encoding.index() & 1 == 1
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Encoding> {
        (1..Encoding::COUNT).filter(move |index| self.0 >> index & 1 == 1).map(Encoding::from_index)
    }
}

/// The compressors of one core.
#[derive(Debug)]
pub struct Compressors {
    deflaters: [Option<Box<Deflater>>; WINDOW_SIZES],
    payload: Vec<u8>,
    min_bytes: usize,
    compressions: u64,
}

impl Compressors {
    /// Compresses payloads of at least `min_bytes`.
    #[must_use]
    pub fn new(min_bytes: usize) -> Self {
        Self { deflaters: Default::default(), payload: Vec::new(), min_bytes, compressions: 0 }
    }

    /// Changes the least size that is compressed.
    pub fn set_min_bytes(&mut self, min_bytes: usize) {
        self.min_bytes = min_bytes;
    }

    /// Compressions done so far.
    #[must_use]
    pub fn compressions(&self) -> u64 {
        self.compressions
    }

    /// The header and payload of a compressed message; `None` where the plain one is as good: below the minimum,
    /// or when compression makes it no smaller.
    #[inline]
    pub fn compress(
        &mut self,
        encoding: Encoding,
        kind: MessageKind,
        payload: &[u8],
    ) -> Option<(ServerHeader, &[u8])> {
        if !encoding.is_compressed() || payload.len() < self.min_bytes || payload.is_empty() {
            return None;
        }
        self.deflate(encoding, kind, payload)
    }

    fn deflate(
        &mut self,
        encoding: Encoding,
        kind: MessageKind,
        payload: &[u8],
    ) -> Option<(ServerHeader, &[u8])> {
        let deflater = self.deflaters[encoding.index() - 1]
            .get_or_insert_with(|| Box::new(Deflater::new(encoding.window_bits())));
        self.payload.clear();
        deflater.deflate(payload, &mut self.payload);
        self.compressions += 1;
        let header = ServerHeader::new(kind.opcode(), true, self.payload.len());
        (self.payload.len() < payload.len()).then_some((header, self.payload.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::Inflater;

    #[test]
    fn every_window_compresses_so_that_it_inflates_again() {
        let mut compressors = Compressors::new(10);
        let text = b"one two one two one two one two".repeat(50);
        for window_bits in 9..=15 {
            let encoding = Encoding::window(window_bits);
            assert_eq!(encoding.window_bits(), window_bits);
            let (header, compressed) = compressors.compress(encoding, MessageKind::Text, &text).unwrap();
            assert_eq!(header.as_bytes()[0], 0xc1, "RSV1, FIN and text");
            assert!(compressed.len() < text.len() / 10);
            assert_eq!(Inflater::new().inflate(compressed, text.len()).unwrap(), text);
        }
        assert_eq!(compressors.compressions(), 7);
    }

    #[test]
    fn small_and_incompressible_messages_stay_plain() {
        let mut compressors = Compressors::new(10);
        let encoding = Encoding::window(15);
        assert!(compressors.compress(encoding, MessageKind::Text, &[b'a'; 9]).is_none());
        assert!(compressors.compress(Encoding::PLAIN, MessageKind::Text, &[b'a'; 900]).is_none());
        assert_eq!(compressors.compressions(), 0);
        let noise: Vec<u8> = (0..64_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        assert!(compressors.compress(encoding, MessageKind::Binary, &noise).is_none());
        assert_eq!(compressors.compressions(), 1);
        assert!(Compressors::new(0).compress(encoding, MessageKind::Text, &[]).is_none());
    }

    #[test]
    fn sets_of_encodings() {
        let mut counts = [0; Encoding::COUNT];
        counts[Encoding::PLAIN.index()] = 5;
        assert!(Encodings::counted(&counts).is_empty());
        counts[Encoding::window(9).index()] = 1;
        counts[Encoding::window(15).index()] = 2;
        let used = Encodings::counted(&counts);
        assert_eq!(used.iter().collect::<Vec<_>>(), [Encoding::window(9), Encoding::window(15)]);
        counts = [0; Encoding::COUNT];
        counts[Encoding::window(12).index()] = 1;
        assert_eq!(used.union(Encodings::counted(&counts)).iter().count(), 3);
    }
}
