//! One published message, encoded once and sent to everyone.
//!
//! A [`Frame`] is made where the publish comes in. Its owner gives it its place in the topic and adds the twins that
//! subscribers need, before it hands the frame out; from then on several cores may hold it at a time, and nothing
//! changes but the count of shards that still have to flush it, and the twin with its id, which is made later when it
//! is resumed with ids and nobody had them when it was published.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::compression::{Compressors, Encoding, Encodings};
use crate::connection_id::ConnectionId;
use crate::position::Position;
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
    place: OnceLock<Place>,
    /// The same with its id in front of the payload.
    with_id: OnceLock<Box<[u8]>>,
    accepted_nanos: u64,
    /// The one connection that is not to get it.
    except: Option<ConnectionId>,
    unflushed: AtomicUsize,
}

/// A frame's place in its topic.
#[derive(Debug)]
struct Place {
    position: Position,
    /// Bytes of the twin with the id, if there was one when the frame was handed out.
    with_id_bytes: usize,
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
            place: OnceLock::new(),
            with_id: OnceLock::new(),
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

    /// Its place in the topic; `None` before the owner has given it one.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.place.get().map(|place| place.position)
    }

    /// Bytes on the wire for connections of an encoding; plain ones where there is no twin of that encoding.
    #[must_use]
    pub fn bytes(&self, encoding: Encoding) -> &[u8] {
        if encoding == Encoding::WITH_ID {
            return self.with_id.get().unwrap_or(&self.plain);
        }
        if encoding.is_compressed() {
            let twins = self.compressed.get().map_or(&[][..], |twins| twins);
            if let Some((_, bytes)) = twins.iter().find(|(twin, _)| *twin == encoding) {
                return bytes;
            }
        }
        &self.plain
    }

    /// Bytes that the frame keeps in memory, as of when it was handed out: the number does not change afterwards.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let twins = self.compressed.get().map_or(&[][..], |twins| twins);
        let with_id = self.place.get().map_or(0, |place| place.with_id_bytes);
        self.plain.len() + with_id + twins.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
    }

    /// Gives the frame its place in the topic, and its twin with the id if `with_id`. Called by the owner, once, before
    /// it hands the frame out.
    pub(crate) fn set_place(&self, position: Position, with_id: bool) {
        let bytes = with_id.then(|| identify(self.kind, position, self.payload()));
        let with_id_bytes = bytes.as_ref().map_or(0, |bytes| bytes.len());
        let _ = self.place.set(Place { position, with_id_bytes });
        if let Some(bytes) = bytes {
            let _ = self.with_id.set(bytes);
        }
    }

    /// Makes sure that there is a twin with the id, and tells how many bytes it took if there was none. Any shard that
    /// holds the frame may call this: of two that make it at a time one has worked in vain, and none waits.
    pub(crate) fn ensure_id(&self) -> usize {
        let (None, Some(place)) = (self.with_id.get(), self.place.get()) else { return 0 };
        let twin = identify(self.kind, place.position, self.payload());
        let bytes = twin.len();
        if self.with_id.set(twin).is_ok() { bytes } else { 0 }
    }

    fn payload(&self) -> &[u8] {
        &self.plain[usize::from(self.header_bytes)..]
    }

    /// Adds the twins for the encodings in use. Called by the owner, once, before it hands the frame out.
    pub(crate) fn compress(&self, encodings: Encodings, compressors: &mut Compressors) {
        let payload = self.payload();
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

/// A message with its id in front, as the sub-protocol `ws+meta.nchan` has it: lines of `name: value`, a blank one, the
/// payload.
fn identify(kind: MessageKind, position: Position, payload: &[u8]) -> Box<[u8]> {
    let content_type = match kind {
        MessageKind::Text => "text/plain",
        MessageKind::Binary => "application/octet-stream",
    };
    with_meta(kind, position, content_type, payload)
}

/// As a message with its id, of a content type of its own.
pub(crate) fn with_meta(
    kind: MessageKind,
    position: Position,
    content_type: &str,
    payload: &[u8],
) -> Box<[u8]> {
    let meta = format!("id: {position}\ncontent-type: {content_type}\n\n");
    let header = ServerHeader::new(kind.opcode(), false, meta.len() + payload.len());
    [header.as_bytes(), meta.as_bytes(), payload].concat().into()
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
    fn the_twin_with_the_id_is_made_early_or_late() {
        let position: Position = "00000000000000ab:7".parse().unwrap();
        let text = "id: 00000000000000ab:7\ncontent-type: text/plain\n\nhello";
        let (early, late) = (
            Frame::new(MessageKind::Text, b"hello", 0, None),
            Frame::new(MessageKind::Text, b"hello", 0, None),
        );
        assert_eq!((late.position(), late.ensure_id()), (None, 0));
        early.set_place(position, true);
        late.set_place(position, false);
        assert_eq!((early.position(), late.memory_bytes()), (Some(position), 7));
        assert_eq!(early.memory_bytes(), 7 + 2 + text.len());
        assert_eq!(late.bytes(Encoding::WITH_ID), late.bytes(Encoding::PLAIN));
        assert_eq!((late.ensure_id(), late.ensure_id()), (2 + text.len(), 0));
        assert_eq!(&late.bytes(Encoding::WITH_ID)[2..], text.as_bytes());
        assert_eq!(late.bytes(Encoding::WITH_ID), early.bytes(Encoding::WITH_ID));
        assert_eq!(late.memory_bytes(), 7, "what is counted does not change");
        let binary = Frame::new(MessageKind::Binary, &[0xff], 0, None);
        binary.set_place(position, true);
        assert!(binary.bytes(Encoding::WITH_ID).ends_with(b"content-type: application/octet-stream\n\n\xff"));
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
