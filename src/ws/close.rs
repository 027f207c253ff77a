//! Close codes and the payload of close frames (RFC 6455 5.5.1 and 7.4).
//!
//! Invariant: nothing written here carries a code that must not be on the wire, and nothing read here
//! is handed on with such a code.

use std::fmt;

use super::error::ProtocolError;
use super::frame::{self, MAX_CONTROL_BYTES};
use super::utf8;

/// The longest reason that fits a close frame, in bytes: a control payload less the code.
pub const MAX_REASON_BYTES: usize = MAX_CONTROL_BYTES - 2;

/// Why a connection is closed (RFC 6455 7.4). [`CloseCode::default`] is [`CloseCode::Normal`], 1000.
///
/// Made of a number by `CloseCode::from(4001)`, and a number again by `u16::from`; each number has one code.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// 1000: the connection has served its purpose.
    #[default]
    Normal,
    /// 1001: the server goes away, or the page of the client.
    Away,
    /// 1002: the peer broke the protocol.
    Protocol,
    /// 1003: data of a kind that is not accepted.
    Unsupported,
    /// 1005: a close frame without a code. Never sent.
    Status,
    /// 1006: the connection was lost without a close frame. Never sent.
    Abnormal,
    /// 1007: data that is not what its kind says, such as text that is not UTF-8.
    Invalid,
    /// 1008: a message that is against the rules here.
    Policy,
    /// 1009: a message that is too large.
    Size,
    /// 1010: a client misses an extension that the server did not grant.
    Extension,
    /// 1011: something unexpected went wrong in the server.
    Error,
    /// 1012: the server restarts; come back after a random pause.
    Restart,
    /// 1013: the server has too much to do; come back later.
    Again,
    /// 1014: a gateway got no good answer from the server behind it.
    BadGateway,
    /// 1015: the TLS handshake failed. Never sent.
    Tls,
    /// 1004 and 1016 to 2999: of the protocol's future. Never sent.
    Reserved(u16),
    /// 3000 to 3999: registered with IANA.
    Iana(u16),
    /// 4000 to 4999: for whatever an application and its clients agree on.
    Library(u16),
    /// No code at all. Never sent.
    Bad(u16),
}

impl From<CloseCode> for u16 {
    fn from(code: CloseCode) -> Self {
        match code {
            CloseCode::Normal => 1000,
            CloseCode::Away => 1001,
            CloseCode::Protocol => 1002,
            CloseCode::Unsupported => 1003,
            CloseCode::Status => 1005,
            CloseCode::Abnormal => 1006,
            CloseCode::Invalid => 1007,
            CloseCode::Policy => 1008,
            CloseCode::Size => 1009,
            CloseCode::Extension => 1010,
            CloseCode::Error => 1011,
            CloseCode::Restart => 1012,
            CloseCode::Again => 1013,
            CloseCode::BadGateway => 1014,
            CloseCode::Tls => 1015,
            CloseCode::Reserved(code)
            | CloseCode::Iana(code)
            | CloseCode::Library(code)
            | CloseCode::Bad(code) => code,
        }
    }
}

impl From<u16> for CloseCode {
    fn from(code: u16) -> Self {
        match code {
            1000 => Self::Normal,
            1001 => Self::Away,
            1002 => Self::Protocol,
            1003 => Self::Unsupported,
            1005 => Self::Status,
            1006 => Self::Abnormal,
            1007 => Self::Invalid,
            1008 => Self::Policy,
            1009 => Self::Size,
            1010 => Self::Extension,
            1011 => Self::Error,
            1012 => Self::Restart,
            1013 => Self::Again,
            1014 => Self::BadGateway,
            1015 => Self::Tls,
            1004 | 1016..=2999 => Self::Reserved(code),
            3000..=3999 => Self::Iana(code),
            4000..=4999 => Self::Library(code),
            _ => Self::Bad(code),
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        u16::from(*self).fmt(f)
    }
}

/// Code and reason of a close frame, borrowed from where it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseFrame<'e> {
    /// A code that is valid on the wire.
    pub code: CloseCode,
    /// The peer's words, at most [`MAX_REASON_BYTES`]; may be empty.
    pub reason: &'e str,
}

/// True if a close frame may carry `code` (RFC 6455 7.4 and the IANA registry).
pub fn is_sendable(code: CloseCode) -> bool {
    matches!(u16::from(code), 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Reads the unmasked payload of a close frame. An empty payload is `Ok(None)`.
///
/// # Errors
/// One byte ([`ProtocolError::CloseTooShort`]), a code that must not be on the wire
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
            // tungstenite knows the same list without 1014.
            let theirs = tungstenite::protocol::frame::coding::CloseCode::from(code);
            assert_eq!(theirs.is_allowed(), expected && code != 1014, "{code}");
        }
    }

    #[test]
    fn every_number_is_one_code_and_the_default_is_normal() {
        for code in 0..=u16::MAX {
            assert_eq!(u16::from(CloseCode::from(code)), code);
            assert_eq!(CloseCode::from(code).to_string(), code.to_string());
        }
        assert_eq!((CloseCode::default(), u16::from(CloseCode::default())), (CloseCode::Normal, 1000));
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
