//! What a measured message carries: run id, sequence number, intended send time, then a fixed filler.

/// Bytes of the header; no payload is shorter.
pub(crate) const MIN_BYTES: usize = 24;

/// Header of a received message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) sequence: u64,
    /// Monotonic clock, nanoseconds.
    pub(crate) intended_ns: u64,
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

/// Writes and checks the payloads of one run.
#[derive(Debug, Clone)]
pub(crate) struct Codec {
    run: u64,
    template: Vec<u8>,
}

impl Codec {
    /// A codec for payloads of `bytes` bytes, marked with `run`.
    pub(crate) fn new(run: u64, bytes: usize) -> Self {
        let mut template: Vec<u8> = (0..bytes.max(MIN_BYTES)).map(|index| (index * 31 + 7) as u8).collect();
        template[..8].copy_from_slice(&run.to_be_bytes());
        Self { run, template }
    }

    /// Payload of message `stamp`, valid until the next call.
    pub(crate) fn payload(&mut self, stamp: Stamp) -> &[u8] {
        self.template[8..16].copy_from_slice(&stamp.sequence.to_be_bytes());
        self.template[16..24].copy_from_slice(&stamp.intended_ns.to_be_bytes());
        &self.template
    }

    /// Checks a received payload.
    #[inline]
    pub(crate) fn check(&self, payload: &[u8]) -> Check {
        let number = |range: std::ops::Range<usize>| {
            payload.get(range).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes)
        };
        match (number(0..8), number(8..16), number(16..24)) {
            (Some(run), Some(sequence), Some(intended_ns)) if run == self.run => {
                if payload[MIN_BYTES..] == self.template[MIN_BYTES..] {
                    Check::Good(Stamp { sequence, intended_ns })
                } else {
                    Check::Corrupted
                }
            }
            _ => Check::Foreign,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_comes_back_and_damage_is_found() {
        for bytes in [24, 25, 64, 5000] {
            let mut codec = Codec::new(77, bytes);
            let stamp = Stamp { sequence: 5, intended_ns: 123_456_789 };
            let sent = codec.payload(stamp).to_vec();
            assert_eq!(sent.len(), bytes);
            assert_eq!(codec.check(&sent), Check::Good(stamp));
            let mut longer = sent.clone();
            longer.push(0);
            assert_eq!(codec.check(&longer), Check::Corrupted);
            let mut damaged = sent.clone();
            damaged[bytes - 1] ^= 1;
            assert_eq!(codec.check(&damaged) == Check::Corrupted, bytes > MIN_BYTES);
        }
    }

    #[test]
    fn other_runs_are_foreign() {
        let mut other = Codec::new(78, 64);
        let sent = other.payload(Stamp { sequence: 0, intended_ns: 0 }).to_vec();
        assert_eq!(Codec::new(77, 64).check(&sent), Check::Foreign);
        assert_eq!(Codec::new(77, 64).check(b"short"), Check::Foreign);
    }
}
