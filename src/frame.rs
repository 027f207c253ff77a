//! One published message, encoded once and sent to everyone.
//!
//! A [`Frame`] is immutable but for the count of shards that still have to flush it, and may be held by
//! several cores at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::ws::MessageKind;
use crate::ws::frame::ServerHeader;

/// One published message as the WebSocket frame that every subscriber gets.
#[derive(Debug)]
pub struct Frame {
    /// Header and payload as they go on the wire (RFC 6455 section 5.2; a server does not mask).
    pub bytes: Box<[u8]>,
    /// When the publish was accepted, in nanoseconds of [`crate::clock::monotonic_nanos`].
    pub accepted_nanos: u64,
    unflushed: AtomicUsize,
}

impl Frame {
    /// Encodes `payload` as one unfragmented message.
    #[must_use]
    pub fn new(kind: MessageKind, payload: &[u8], accepted_nanos: u64) -> Arc<Self> {
        let header = ServerHeader::new(kind.opcode(), false, payload.len());
        let mut bytes = Vec::with_capacity(header.as_bytes().len() + payload.len());
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(payload);
        Arc::new(Self {
            bytes: bytes.into(),
            accepted_nanos,
            unflushed: AtomicUsize::new(0),
        })
    }

    /// Says how many shards will flush this frame. Called by the owner before it hands the frame out.
    pub(crate) fn expect_flushes(&self, shards: usize) {
        self.unflushed.store(shards, Ordering::Relaxed);
    }

    /// Notes that one shard has flushed the frame; true for the last one.
    pub(crate) fn flushed(&self) -> bool {
        self.unflushed.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_header_and_payload() {
        let frame = Frame::new(MessageKind::Text, b"hello", 7);
        assert_eq!(&*frame.bytes, b"\x81\x05hello");
        assert_eq!(
            Frame::new(MessageKind::Binary, &[1; 126], 7).bytes[..4],
            [0x82, 126, 0, 126]
        );
    }

    #[test]
    fn the_last_flush_is_told() {
        let frame = Frame::new(MessageKind::Text, b"", 0);
        frame.expect_flushes(2);
        assert!(!frame.flushed());
        assert!(frame.flushed());
    }
}
