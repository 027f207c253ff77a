//! One published message, encoded once and sent to everyone.
//!
//! A [`Frame`] is made where the publish comes in. Its owner adds the compressed twins that subscribers need,
//! before it hands the frame out; from then on nothing changes but the count of shards that still have to flush
//! it, and several cores may hold it at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::compression::{Compressors, Encoding, Encodings};
use crate::connection_id::ConnectionId;
use crate::ws::{MessageKind, ServerHeader};

/// One published message as the WebSocket frame that every subscriber gets.
#[derive(Debug)]
pub struct Frame {
    /// Header and payload as they go on the wire (RFC 6455 section 5.2; a server does not mask).
    plain: Box<[u8]>,
    kind: MessageKind,
    header_bytes: u8,
    /// The same, compressed, for the encodings that were in use when the frame was handed out.
    compressed: OnceLock<Box<[Twin]>>,
    accepted_nanos: u64,
    /// The one connection that is not to get it.
    except: Option<ConnectionId>,
    unflushed: AtomicUsize,
}

/// A compressed form of a frame.
type Twin = (Encoding, Box<[u8]>);

impl Frame {
    /// Encodes `payload` as one unfragmented message that was accepted at a time, in nanoseconds of
    /// [`crate::clock::monotonic_nanos`], for all subscribers but `except`.
    #[must_use]
    pub fn new(
        kind: MessageKind,
        payload: &[u8],
        accepted_nanos: u64,
        except: Option<ConnectionId>,
    ) -> Arc<Self> {
        let header = ServerHeader::new(kind.opcode(), false, payload.len());
        Arc::new(Self {
            plain: join(&header, payload),
            kind,
            header_bytes: header.as_bytes().len() as u8,
            compressed: OnceLock::new(),
            accepted_nanos,
            except,
            unflushed: AtomicUsize::new(0),
        })
    }

    /// When the publish was accepted.
    #[must_use]
    pub fn accepted_nanos(&self) -> u64 {
        self.accepted_nanos
    }

    /// The connection that is not to get it.
    #[must_use]
    pub fn except(&self) -> Option<ConnectionId> {
        self.except
    }

    /// Bytes on the wire for connections of an encoding; plain ones where there is no twin of that encoding.
    #[must_use]
    pub fn bytes(&self, encoding: Encoding) -> &[u8] {
        if encoding.is_compressed() {
            let twins = self.compressed.get().map_or(&[][..], |twins| twins);
            if let Some((_, bytes)) = twins.iter().find(|(twin, _)| *twin == encoding) {
                return bytes;
            }
        }
        &self.plain
    }

    /// Bytes that the frame keeps in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let twins = self.compressed.get().map_or(&[][..], |twins| twins);
        self.plain.len() + twins.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
    }

    /// Adds the twins for the encodings in use. Called by the owner, once, before it hands the frame out.
    pub(crate) fn compress(&self, encodings: Encodings, compressors: &mut Compressors) {
        let payload = &self.plain[usize::from(self.header_bytes)..];
        let twins = encodings.iter().filter_map(|encoding| {
            let (header, compressed) = compressors.compress(encoding, self.kind, payload)?;
            Some((encoding, join(&header, compressed)))
        });
        let twins: Box<[_]> = twins.collect();
        if !twins.is_empty() {
            // Set by nobody before: only the owner calls this, and only once.
            let _ = self.compressed.set(twins);
        }
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

fn join(header: &ServerHeader, payload: &[u8]) -> Box<[u8]> {
    [header.as_bytes(), payload].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::Inflater;

    #[test]
    fn a_frame_is_header_and_payload() {
        let frame = Frame::new(MessageKind::Text, b"hello", 7, None);
        assert_eq!(frame.bytes(Encoding::PLAIN), b"\x81\x05hello");
        let frame = Frame::new(MessageKind::Binary, &[1; 126], 7, None);
        assert_eq!(frame.bytes(Encoding::PLAIN)[..4], [0x82, 126, 0, 126]);
        assert_eq!(frame.accepted_nanos(), 7);
    }

    #[test]
    fn the_last_flush_is_told() {
        let frame = Frame::new(MessageKind::Text, b"", 0, None);
        frame.expect_flushes(2);
        assert!(!frame.flushed());
        assert!(frame.flushed());
    }

    #[test]
    fn twins_say_the_same_and_their_lack_is_plain() {
        let payload = vec![b'z'; 1_000];
        let frame = Frame::new(MessageKind::Text, &payload, 0, None);
        let (small, large, unused) = (Encoding::window(9), Encoding::window(15), Encoding::window(12));
        let mut counts = [0; Encoding::COUNT];
        counts[small.index()] = 1;
        counts[large.index()] = 1;
        let mut compressors = Compressors::new(256);
        frame.compress(Encodings::counted(&counts), &mut compressors);
        assert_eq!(compressors.compressions(), 2);
        for encoding in [small, large] {
            let bytes = frame.bytes(encoding);
            assert_eq!(bytes[0], 0xc1);
            assert_eq!(Inflater::new().inflate(&bytes[2..], 1_000).unwrap(), payload);
        }
        assert_eq!(frame.bytes(unused), frame.bytes(Encoding::PLAIN));
        assert!(frame.memory_bytes() > 1_004);
    }
}
