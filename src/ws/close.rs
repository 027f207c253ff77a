//! Close codes and the payload of close frames (RFC 6455 5.5.1 and 7.4).
//!
//! Invariant: nothing written here carries a code that must not be on the wire, and nothing read here
//! is handed on with such a code.

pub use tungstenite::protocol::frame::coding::CloseCode;

use super::error::ProtocolError;
use super::frame::{self, MAX_CONTROL_BYTES};
use super::utf8;

/// The longest reason that fits a close frame, in bytes: a control payload less the code.
pub const MAX_REASON_BYTES: usize = MAX_CONTROL_BYTES - 2;

/// Code and reason of a close frame, borrowed from where it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseFrame<'e> {
    /// A code that is valid on the wire.
    pub code: CloseCode,
    /// The peer's words, at most [`MAX_REASON_BYTES`]; may be empty.
    pub reason: &'e str,
}

/// True if a close frame may carry `code` (RFC 6455 7.4 and the IANA registry).
///
/// tungstenite's `CloseCode::is_allowed` agrees but for 1014 (bad gateway), which it does not know.
pub fn is_sendable(code: CloseCode) -> bool {
    matches!(u16::from(code), 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Reads the unmasked payload of a close frame. An empty payload is `Ok(None)`.
///
/// Errors: one byte ([`ProtocolError::CloseTooShort`]), a code that must not be on the wire
/// ([`ProtocolError::CloseCodeInvalid`]), a reason that is not UTF-8
/// ([`ProtocolError::CloseReasonNotUtf8`]).
pub fn parse(payload: &[u8]) -> Result<Option<CloseFrame<'_>>, ProtocolError> {
    let (code, reason) = match payload {
        [] => return Ok(None),
        [_] => return Err(ProtocolError::CloseTooShort),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
    };
    if !is_sendable(code.into()) {
        return Err(ProtocolError::CloseCodeInvalid(code));
    }
    let reason = utf8::check(reason).map_err(|_| ProtocolError::CloseReasonNotUtf8)?;
    Ok(Some(CloseFrame { code: code.into(), reason }))
}

/// Appends a whole close frame to `out`.
///
/// `None`, and the codes that stand for a missing one (1005, 1006), give a frame without payload. A reason
/// beyond [`MAX_REASON_BYTES`] is cut at a character boundary. Another code that must not be on the wire is
/// the server's own mistake and is sent as 1011.
pub fn encode(code: Option<CloseCode>, reason: &str, out: &mut Vec<u8>) {
    let code = match code {
        None | Some(CloseCode::Status | CloseCode::Abnormal) => return frame::encode_close(&[], out),
        Some(code) if is_sendable(code) => code,
        Some(_) => CloseCode::Error,
    };
    let reason = cut_at_char(reason, MAX_REASON_BYTES).as_bytes();
    let mut payload = [0; MAX_CONTROL_BYTES];
    payload[..2].copy_from_slice(&u16::from(code).to_be_bytes());
    payload[2..2 + reason.len()].copy_from_slice(reason);
    frame::encode_close(&payload[..2 + reason.len()], out);
}

/// Appends the close frame that answers the peer's: its code without its reason (RFC 6455 5.5.1).
pub fn encode_reply(peers: Option<CloseFrame<'_>>, out: &mut Vec<u8>) {
    encode(peers.map(|frame| frame.code), "", out);
}

/// The longest prefix of `text` that has at most `max_bytes` bytes and ends between characters.
fn cut_at_char(text: &str, max_bytes: usize) -> &str {
    if text.len() <= max_bytes {
        return text;
    }
    let end = (0..=max_bytes).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(code: Option<CloseCode>, reason: &str) -> Vec<u8> {
        let mut out = Vec::new();
        encode(code, reason, &mut out);
        out
    }

    #[test]
    fn every_code_is_classified_as_rfc_6455_and_iana_say() {
        for code in 0..=u16::MAX {
            let named = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014];
            let expected = named.contains(&code) || (3000..5000).contains(&code);
            assert_eq!(is_sendable(code.into()), expected, "{code}");
            // tungstenite knows the same list without 1014; if this changes, its own check may serve.
            assert_eq!(CloseCode::from(code).is_allowed(), expected && code != 1014, "{code}");
        }
    }

    #[test]
    fn payloads_are_read() {
        assert_eq!(parse(&[]), Ok(None));
        assert_eq!(parse(&[3]), Err(ProtocolError::CloseTooShort));
        assert_eq!(parse(&[3, 232]), Ok(Some(CloseFrame { code: CloseCode::Normal, reason: "" })));
        assert_eq!(
            parse(b"\x0f\xa0caf\xc3\xa9"),
            Ok(Some(CloseFrame { code: CloseCode::Library(4000), reason: "café" }))
        );
        assert_eq!(parse(b"\x03\xe8caf\xc3"), Err(ProtocolError::CloseReasonNotUtf8));
        for code in [0u16, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535] {
            assert_eq!(parse(&code.to_be_bytes()), Err(ProtocolError::CloseCodeInvalid(code)));
        }
        assert_eq!(parse(&[3, 246]).map(|frame| frame.map(|frame| u16::from(frame.code))), Ok(Some(1014)));
    }

    #[test]
    fn frames_are_built() {
        assert_eq!(encoded(Some(CloseCode::Normal), ""), [0x88, 2, 3, 232]);
        assert_eq!(encoded(Some(CloseCode::Policy), "slow consumer"), b"\x88\x0f\x03\xf0slow consumer");
        assert_eq!(encoded(None, "ignored"), [0x88, 0]);
        assert_eq!(encoded(Some(CloseCode::Status), "ignored"), [0x88, 0]);
        assert_eq!(encoded(Some(CloseCode::from(1014)), ""), [0x88, 2, 3, 246]);
        assert_eq!(encoded(Some(CloseCode::Tls), ""), [0x88, 2, 3, 243]);
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        for pad in 0..4 {
            let reason = "x".repeat(pad) + &"€".repeat(60);
            let frame = encoded(Some(CloseCode::Normal), &reason);
            let parsed = parse(&frame[2..]).unwrap().unwrap();
            assert!(reason.starts_with(parsed.reason));
            assert!((MAX_REASON_BYTES - 2..=MAX_REASON_BYTES).contains(&parsed.reason.len()));
        }
    }

    #[test]
    fn the_reply_has_the_peers_code_and_no_reason() {
        let mut out = Vec::new();
        encode_reply(parse(b"\x0f\xa0bye").unwrap(), &mut out);
        assert_eq!(out, [0x88, 2, 0x0f, 0xa0]);
        out.clear();
        encode_reply(None, &mut out);
        assert_eq!(out, [0x88, 0]);
    }
}
