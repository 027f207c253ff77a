//! Messages that are encoded once and sent to many connections of one core.

use std::cell::RefCell;
use std::rc::Rc;

use super::Message;
use crate::compression::{Compressors, Encoding};
use crate::ws::{MessageKind, ServerHeader};

/// A message that is encoded once, and compressed at most once per window size in use, however many connections
/// it is sent to. Cheap to clone; stays on its core.
///
/// ```
/// # use corecast::{Connection, PreparedMessage};
/// # fn example(connections: &[Connection]) {
/// let news = PreparedMessage::new("the same for all");
/// connections.iter().for_each(|connection| connection.send_prepared(&news));
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct PreparedMessage(Rc<Prepared>);

#[derive(Debug)]
struct Prepared {
    kind: MessageKind,
    /// The plain frame.
    plain: Rc<[u8]>,
    header_bytes: usize,
    /// Compressed frames, made when the first connection of an encoding asks. Where compression does not pay it
    /// is the plain frame.
    compressed: RefCell<[Option<Rc<[u8]>>; Encoding::COUNT]>,
}

impl PreparedMessage {
    /// Encodes a message.
    #[must_use]
    pub fn new<'m>(message: impl Into<Message<'m>>) -> Self {
        let message = message.into();
        let (kind, payload) = (message.kind(), message.as_bytes());
        let header = ServerHeader::new(kind.opcode(), false, payload.len());
        Self(Rc::new(Prepared {
            kind,
            plain: [header.as_bytes(), payload].concat().into(),
            header_bytes: header.as_bytes().len(),
            compressed: RefCell::default(),
        }))
    }

    /// The bytes on the wire for connections of an encoding.
    pub(super) fn bytes(&self, encoding: Encoding, compressors: &mut Compressors) -> Rc<[u8]> {
        let Prepared { kind, plain, header_bytes, compressed } = &*self.0;
        if !encoding.is_compressed() {
            return plain.clone();
        }
        let mut compressed = compressed.borrow_mut();
        let made = compressed[encoding.index()].get_or_insert_with(|| {
            match compressors.compress(encoding, *kind, &plain[*header_bytes..]) {
                Some((header, payload)) => [header.as_bytes(), payload].concat().into(),
                None => plain.clone(),
            }
        });
        made.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_compressed_once_per_window_and_only_where_that_pays() {
        let mut compressors = Compressors::new(100);
        let message = PreparedMessage::new("x".repeat(500).as_str());
        let plain = message.bytes(Encoding::PLAIN, &mut compressors);
        assert_eq!((plain[0], plain.len()), (0x81, 504));
        for _ in 0..3 {
            let small = message.bytes(Encoding::window(9), &mut compressors);
            assert_eq!(small[0], 0xc1);
            assert!(small.len() < 50);
            let _ = message.bytes(Encoding::window(15), &mut compressors);
        }
        assert_eq!(compressors.compressions(), 2);
        let short = PreparedMessage::new(&[1, 2, 3]);
        assert_eq!(*short.bytes(Encoding::window(15), &mut compressors), [0x82, 3, 1, 2, 3]);
        assert_eq!(compressors.compressions(), 2);
    }
}
