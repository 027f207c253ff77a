//! What a connection holds of a message or frame that is not complete.
//!
//! Exists only while something is incomplete, or until the event made from it was used.

use super::super::frame::{Control, MAX_CLIENT_HEADER_BYTES, MAX_CONTROL_BYTES};
use super::super::utf8::Utf8Stream;
use super::*;

/// How far memory for a message may run ahead of twice what has arrived of it, in bytes.
pub const GROWTH_STEP_BYTES: usize = 4096;

/// The state between two calls, boxed by the session.
#[derive(Debug)]
pub(super) struct Partial {
    /// The bytes of a header that was cut.
    header: [u8; MAX_CLIENT_HEADER_BYTES],
    header_bytes: u8,
    /// The frame whose payload is arriving.
    frame: Option<OpenFrame>,
    /// The payload of a control frame that was cut.
    control: [u8; MAX_CONTROL_BYTES],
    control_bytes: u8,
    /// The message in progress.
    message: Option<Assembly>,
    /// An event borrows from here until the next call.
    delivered: Option<Delivered>,
}

/// A frame whose header is known and whose payload is not complete.
#[derive(Debug, Clone, Copy)]
struct OpenFrame {
    opcode: OpCode,
    fin: bool,
    mask: [u8; 4],
    taken_bytes: usize,
    payload_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivered {
    Control,
    Message,
}

/// A message in progress.
#[derive(Debug)]
pub(super) enum Assembly {
    /// Checked text and the state of its unfinished end.
    Text { text: String, stream: Utf8Stream },
    /// Plain bytes.
    Binary(Vec<u8>),
    /// Compressed bytes, to be inflated once whole.
    Compressed { kind: MessageKind, bytes: Vec<u8> },
}

/// What the end of a frame's payload means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrameEnd {
    /// The payload is not complete and the input is used up.
    NotYet,
    /// A fragment was added to the message.
    Fragment,
    /// A control frame is complete.
    Control(Control),
    /// The message is complete.
    Message,
}

impl Default for Partial {
    fn default() -> Self {
        Self {
            header: [0; MAX_CLIENT_HEADER_BYTES],
            header_bytes: 0,
            frame: None,
            control: [0; MAX_CONTROL_BYTES],
            control_bytes: 0,
            message: None,
            delivered: None,
        }
    }
}

impl Partial {
    /// True if the next byte of input is not the first of a frame.
    pub(super) fn is_inside_frame(&self) -> bool {
        self.has_header() || self.header_bytes > 0
    }

    /// True if the header of the frame is known.
    pub(super) fn has_header(&self) -> bool {
        self.frame.is_some()
    }

    /// Frees what the last event borrowed. True if nothing is left.
    pub(super) fn free_delivered(&mut self) -> bool {
        match self.delivered.take() {
            None => return false,
            Some(Delivered::Control) => self.control_bytes = 0,
            Some(Delivered::Message) => self.message = None,
        }
        // Events are made at the end of a frame, so there is no header and no open frame.
        self.message.is_none()
    }

    /// Keeps the first bytes of a header; `bytes` are not enough for one.
    pub(super) fn keep_header(&mut self, bytes: &[u8]) {
        self.header[..bytes.len()].copy_from_slice(bytes);
        self.header_bytes = bytes.len() as u8;
    }

    /// Adds input to the kept header until it is one. `None`: the input is used up.
    pub(super) fn complete_header(
        &mut self,
        input: &mut &mut [u8],
        compression: bool,
    ) -> Result<Option<ClientHeader>, ProtocolError> {
        let kept = usize::from(self.header_bytes);
        let added = input.len().min(MAX_CLIENT_HEADER_BYTES - kept);
        self.header[kept..kept + added].copy_from_slice(&input[..added]);
        let Some(header) = ClientHeader::parse(&self.header[..kept + added], compression)? else {
            // MAX_CLIENT_HEADER_BYTES always make a header or an error, so all of the input was added.
            self.header_bytes = (kept + added) as u8;
            *input = &mut [];
            return Ok(None);
        };
        self.header_bytes = 0;
        take(input, header.header_bytes - kept);
        Ok(Some(header))
    }

    /// Begins a frame, and a message with it if the frame is the first of one.
    ///
    /// Errors: a frame out of sequence, and a message that the declared length makes too big.
    pub(super) fn open_frame(&mut self, header: &ClientHeader, limits: &Limits) -> Result<(), ProtocolError> {
        if matches!(header.opcode, OpCode::Data(_)) {
            let arrived = match (&self.message, kind_of(header.opcode)) {
                (None, None) => return Err(ProtocolError::ContinuationWithoutStart),
                (Some(_), Some(_)) => return Err(ProtocolError::MessageInterrupted),
                (Some(message), None) => message.len(),
                (None, Some(_)) => 0,
            };
            let compressed = header.rsv1 || matches!(self.message, Some(Assembly::Compressed { .. }));
            judge_size(compressed, header.payload_bytes.saturating_add(arrived as u64), limits)?;
            if let Some(kind) = kind_of(header.opcode) {
                self.message = Some(Assembly::new(kind, header.rsv1));
            }
        }
        self.frame = Some(OpenFrame {
            opcode: header.opcode,
            fin: header.fin,
            mask: header.mask,
            taken_bytes: 0,
            // Judged against limits that are themselves usize, or at most 125.
            payload_bytes: header.payload_bytes as usize,
        });
        Ok(())
    }

    /// Moves payload of the open frame from `input` to where it is assembled, unmasked and checked.
    pub(super) fn take_payload(&mut self, input: &mut &mut [u8]) -> Result<FrameEnd, ProtocolError> {
        let Some(frame) = &mut self.frame else {
            return Ok(FrameEnd::NotYet);
        };
        let missing = frame.payload_bytes - frame.taken_bytes;
        let piece = take(input, input.len().min(missing));
        mask::unmask(piece, frame.mask, frame.taken_bytes);
        frame.taken_bytes += piece.len();
        let missing = missing - piece.len();
        match (frame.opcode, &mut self.message) {
            (OpCode::Data(_), Some(message)) => message.append(piece, missing, frame.fin)?,
            (OpCode::Data(_), None) => return Err(ProtocolError::ContinuationWithoutStart),
            (OpCode::Control(_), _) => {
                let kept = usize::from(self.control_bytes);
                self.control[kept..kept + piece.len()].copy_from_slice(piece);
                self.control_bytes += piece.len() as u8;
            }
        }
        if missing > 0 {
            return Ok(FrameEnd::NotYet);
        }
        let end = match frame.opcode {
            OpCode::Control(control) => FrameEnd::Control(control),
            OpCode::Data(_) if frame.fin => FrameEnd::Message,
            OpCode::Data(_) => FrameEnd::Fragment,
        };
        self.frame = None;
        Ok(end)
    }

    /// The payload of the control frame that is complete; freed by [`free_delivered`](Self::free_delivered).
    pub(super) fn deliver_control(&mut self) -> &[u8] {
        self.delivered = Some(Delivered::Control);
        &self.control[..usize::from(self.control_bytes)]
    }

    /// The message that is complete; freed by [`free_delivered`](Self::free_delivered).
    ///
    /// Error: text that ends within a character.
    pub(super) fn deliver_message(&mut self) -> Result<&Assembly, ProtocolError> {
        self.delivered = Some(Delivered::Message);
        match &self.message {
            Some(Assembly::Text { stream, .. }) if !stream.is_complete() => Err(ProtocolError::TextNotUtf8),
            Some(message) => Ok(message),
            None => Err(ProtocolError::ContinuationWithoutStart),
        }
    }
}

impl Assembly {
    fn new(kind: MessageKind, compressed: bool) -> Self {
        match kind {
            kind if compressed => Self::Compressed { kind, bytes: Vec::new() },
            MessageKind::Text => Self::Text { text: String::new(), stream: Utf8Stream::default() },
            MessageKind::Binary => Self::Binary(Vec::new()),
        }
    }

    /// Bytes that have arrived.
    fn len(&self) -> usize {
        match self {
            Self::Text { text, stream } => text.len() + stream.pending_bytes(),
            Self::Binary(bytes) | Self::Compressed { bytes, .. } => bytes.len(),
        }
    }

    /// Adds an unmasked piece of a frame of which `missing` bytes are still to come; `fin` as in its header.
    fn append(&mut self, piece: &[u8], missing: usize, fin: bool) -> Result<(), ProtocolError> {
        if piece.is_empty() {
            return Ok(());
        }
        match self {
            Self::Text { text, stream } => {
                let added = stream.pending_bytes() + piece.len();
                text.reserve_exact(growth(text.len(), text.capacity(), added, missing, fin));
                stream.feed(piece, |part| text.push_str(part)).map_err(|_| ProtocolError::TextNotUtf8)
            }
            Self::Binary(bytes) | Self::Compressed { bytes, .. } => {
                bytes.reserve_exact(growth(bytes.len(), bytes.capacity(), piece.len(), missing, fin));
                bytes.extend_from_slice(piece);
                Ok(())
            }
        }
    }
}

/// How many bytes to reserve beyond `len` for `added` bytes; 0 if the capacity is enough.
///
/// Doubling keeps copying linear. Running ahead of the bytes that arrived by no more than as many again,
/// or one step, keeps a declared length from costing memory.
fn growth(len: usize, capacity: usize, added: usize, missing: usize, fin: bool) -> usize {
    let arrived = len + added;
    if arrived <= capacity {
        return 0;
    }
    let ahead = if fin {
        missing.min(arrived.max(GROWTH_STEP_BYTES))
    } else {
        missing.min(GROWTH_STEP_BYTES).max(arrived)
    };
    added + ahead
}

#[cfg(test)]
impl Partial {
    /// Bytes of memory held for the message in progress.
    pub(super) fn message_capacity(&self) -> usize {
        match &self.message {
            None => 0,
            Some(Assembly::Text { text, .. }) => text.capacity(),
            Some(Assembly::Binary(bytes) | Assembly::Compressed { bytes, .. }) => bytes.capacity(),
        }
    }
}
