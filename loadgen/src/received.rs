//! What arrived: one message, what the measured ones weighed, and how that is reported.

use std::iter::Sum;

use serde::Serialize;

/// A whole message, inflated if it was compressed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) payload: &'a [u8],
    /// Sent as text, not as binary data.
    pub(crate) text: bool,
    /// Bytes of its frames, headers included.
    pub(crate) wire_bytes: usize,
    pub(crate) compressed: bool,
}

/// Sums over the measured messages of a thread; no more than must be added up for each of them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weight {
    compressed_messages: u64,
    wire_bytes: u64,
}

/// What arrived in the measured part.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Received {
    pub(crate) messages: u64,
    pub(crate) compressed_messages: u64,
    /// Frames with their headers, as they came.
    pub(crate) wire_bytes: u64,
    /// Payloads, inflated.
    pub(crate) payload_bytes: u64,
}

impl Weight {
    /// Adds one message.
    #[inline]
    pub(crate) fn add(&mut self, message: Message<'_>) {
        self.compressed_messages += u64::from(message.compressed);
        self.wire_bytes += message.wire_bytes as u64;
    }

    /// The result for `messages` messages whose payloads were found to be as sent, of `payload_bytes` each.
    pub(crate) fn of(self, messages: u64, payload_bytes: usize) -> Received {
        Received {
            messages,
            compressed_messages: self.compressed_messages,
            wire_bytes: self.wire_bytes,
            payload_bytes: messages * payload_bytes as u64,
        }
    }
}

impl Sum for Weight {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |sum, part| Self {
            compressed_messages: sum.compressed_messages + part.compressed_messages,
            wire_bytes: sum.wire_bytes + part.wire_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_threads_add_up() {
        let mut part = Weight::default();
        part.add(Message { payload: &[0; 1000], text: false, wire_bytes: 1004, compressed: false });
        part.add(Message { payload: &[0; 1000], text: false, wire_bytes: 404, compressed: true });
        let weight: Weight = [part, part].into_iter().sum();
        let received =
            Received { messages: 4, compressed_messages: 2, wire_bytes: 2816, payload_bytes: 4000 };
        assert_eq!(weight.of(4, 1000), received);
    }
}
