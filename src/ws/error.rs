//! What a peer can do wrong after the upgrade, and the close code that answers it.
//!
//! Every variant is the peer's fault; the server's own failures do not appear here.

use std::fmt;

use super::close::CloseCode;

/// A violation by the client. The connection ends with [`ProtocolError::close_code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProtocolError {
    /// A reserved bit is set that no negotiated extension gives a meaning here (RFC 6455 5.2, RFC 7692 6).
    ReservedBits,
    /// An opcode that RFC 6455 5.2 reserves.
    ReservedOpcode(u8),
    /// A client's frame without a mask (RFC 6455 5.1).
    Unmasked,
    /// A payload length not in its shortest form (RFC 6455 5.2).
    NonMinimalLength,
    /// A 64-bit payload length with its most significant bit set (RFC 6455 5.2).
    LengthOverflow,
    /// A control frame with more than 125 bytes (RFC 6455 5.5).
    ControlTooLong,
    /// A control frame in fragments (RFC 6455 5.5).
    ControlFragmented,
    /// A continuation frame, but no message has begun (RFC 6455 5.4).
    ContinuationWithoutStart,
    /// A new text or binary frame inside a fragmented message (RFC 6455 5.4).
    MessageInterrupted,
    /// A close frame with a payload of one byte (RFC 6455 5.5.1).
    CloseTooShort,
    /// A close code that must not be on the wire (RFC 6455 7.4).
    CloseCodeInvalid(u16),
    /// The reason of a close frame is not UTF-8 (RFC 6455 5.5.1).
    CloseReasonNotUtf8,
    /// A text message is not UTF-8 (RFC 6455 8.1).
    TextNotUtf8,
    /// A message is larger than the server's limit (RFC 6455 7.4.1, code 1009).
    MessageTooBig,
    /// A data frame where the client may send none (RFC 6455 7.4.1, code 1008).
    DataRefused,
    /// The compressed bytes of a message are not a whole DEFLATE stream (RFC 7692 7.2.2).
    DeflateInvalid,
}

impl ProtocolError {
    /// The code of the close frame that answers this error (RFC 6455 7.4.1).
    pub fn close_code(self) -> CloseCode {
        match self {
            Self::ReservedBits
            | Self::ReservedOpcode(_)
            | Self::Unmasked
            | Self::NonMinimalLength
            | Self::LengthOverflow
            | Self::ControlTooLong
            | Self::ControlFragmented
            | Self::ContinuationWithoutStart
            | Self::MessageInterrupted
            | Self::CloseTooShort
            | Self::CloseCodeInvalid(_) => CloseCode::Protocol,
            Self::CloseReasonNotUtf8 | Self::TextNotUtf8 | Self::DeflateInvalid => CloseCode::Invalid,
            Self::MessageTooBig => CloseCode::Size,
            Self::DataRefused => CloseCode::Policy,
        }
    }

    /// What is wrong, as the close frame says it: for the author of the client, without data from the peer.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReservedBits => "reserved bits set",
            Self::ReservedOpcode(_) => "reserved opcode",
            Self::Unmasked => "frame not masked",
            Self::NonMinimalLength => "payload length not in its shortest form",
            Self::LengthOverflow => "payload length exceeds 63 bits",
            Self::ControlTooLong => "control frame longer than 125 bytes",
            Self::ControlFragmented => "control frame fragmented",
            Self::ContinuationWithoutStart => "continuation without a message",
            Self::MessageInterrupted => "new message inside a fragmented one",
            Self::CloseTooShort => "close frame of one byte",
            Self::CloseCodeInvalid(_) => "close code not allowed",
            Self::CloseReasonNotUtf8 => "close reason not UTF-8",
            Self::TextNotUtf8 => "text not UTF-8",
            Self::MessageTooBig => "message too big",
            Self::DeflateInvalid => "compressed message invalid",
            Self::DataRefused => "no messages are taken here",
        }
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())?;
        match self {
            Self::ReservedOpcode(opcode) => write!(f, ": {opcode}"),
            Self::CloseCodeInvalid(code) => write!(f, ": {code}"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for ProtocolError {}

#[cfg(test)]
mod tests {
    use super::super::close;
    use super::*;

    const EVERY: [ProtocolError; 16] = [
        ProtocolError::ReservedBits,
        ProtocolError::ReservedOpcode(3),
        ProtocolError::Unmasked,
        ProtocolError::NonMinimalLength,
        ProtocolError::LengthOverflow,
        ProtocolError::ControlTooLong,
        ProtocolError::ControlFragmented,
        ProtocolError::ContinuationWithoutStart,
        ProtocolError::MessageInterrupted,
        ProtocolError::CloseTooShort,
        ProtocolError::CloseCodeInvalid(999),
        ProtocolError::CloseReasonNotUtf8,
        ProtocolError::TextNotUtf8,
        ProtocolError::MessageTooBig,
        ProtocolError::DataRefused,
        ProtocolError::DeflateInvalid,
    ];

    #[test]
    fn every_error_has_a_sendable_code_and_text_that_fits_a_close_frame() {
        for error in EVERY {
            assert!(close::is_sendable(error.close_code()), "{error:?}");
            assert!(error.to_string().len() <= close::MAX_REASON_BYTES, "{error:?}");
        }
    }

    #[test]
    fn reasons_are_words_and_tell_errors_apart() {
        let mut names: Vec<_> = EVERY.iter().map(|error| error.as_str()).collect();
        assert!(names.iter().all(|name| name.contains(' ') && !name.contains('_')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), EVERY.len());
    }
}
