//! Messages of the subprotocol `ws+meta.nchan`: `id: EPOCH:OFFSET`, perhaps a content type, an empty line, the
//! payload. No socket, no clock.

use std::fmt;

use serde::Deserialize;

/// Name of the subprotocol in the handshake.
pub(crate) const SUBPROTOCOL: &str = "ws+meta.nchan";
/// What a payload begins with that is the server's word on a resume.
const NOTICE_START: &[u8] = b"{\"recovered\":";
const EPOCH_DIGITS: usize = 16;

/// Place of a message within its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Id {
    pub(crate) epoch: u64,
    pub(crate) offset: u64,
}

impl fmt::Display for Id {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}:{}", self.epoch, self.offset)
    }
}

/// One message taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Framed<'a> {
    pub(crate) id: Id,
    /// What the content type says, if there is one: text, or binary data.
    pub(crate) text: Option<bool>,
    pub(crate) payload: &'a [u8],
}

/// Takes a message apart; `None` if it is not exactly of the form.
pub(crate) fn split(message: &[u8]) -> Option<Framed<'_>> {
    let rest = message.strip_prefix(b"id: ")?;
    let (epoch, rest) = rest.split_at_checked(EPOCH_DIGITS)?;
    let epoch = hexadecimal(epoch)?;
    let rest = rest.strip_prefix(b":")?;
    let digits = rest.iter().position(|byte| *byte == b'\n')?;
    let offset = decimal(&rest[..digits])?;
    let rest = &rest[digits + 1..];
    let (text, rest) = if let Some(rest) = rest.strip_prefix(b"content-type: text/plain\n") {
        (Some(true), rest)
    } else if let Some(rest) = rest.strip_prefix(b"content-type: application/octet-stream\n") {
        (Some(false), rest)
    } else {
        (None, rest)
    };
    Some(Framed { id: Id { epoch, offset }, text, payload: rest.strip_prefix(b"\n")? })
}

/// The server's word on a resume.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// What was missed follows.
    Recovered,
    /// What was missed is gone; live messages of `topic` follow from the one after this place.
    NotRecovered { topic: String, id: Id },
    /// It begins like one and cannot be understood.
    Malformed,
}

/// Reads `payload` as a notice, if it is one.
pub(crate) fn notice(payload: &[u8]) -> Option<Notice> {
    #[derive(Deserialize)]
    struct Text<'a> {
        recovered: bool,
        #[serde(borrow)]
        topic: std::borrow::Cow<'a, str>,
        epoch: &'a str,
        offset: u64,
    }
    if !payload.starts_with(NOTICE_START) {
        return None;
    }
    let text: Option<Text<'_>> = serde_json::from_slice(payload).ok();
    let read = |text: Text<'_>| {
        let epoch = hexadecimal(text.epoch.as_bytes()).filter(|_| text.epoch.len() == EPOCH_DIGITS)?;
        Some(match text.recovered {
            true => Notice::Recovered,
            false => {
                Notice::NotRecovered { topic: text.topic.into_owned(), id: Id { epoch, offset: text.offset } }
            }
        })
    };
    Some(text.and_then(read).unwrap_or(Notice::Malformed))
}

/// The number that `digits` (at least one, small letters) are.
#[inline]
pub(crate) fn hexadecimal(digits: &[u8]) -> Option<u64> {
    let digit = |byte: &u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if digits.is_empty() || digits.len() > EPOCH_DIGITS {
        return None;
    }
    digits.iter().try_fold(0, |number, byte| Some(number << 4 | u64::from(digit(byte)?)))
}

#[inline]
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || (digits.len() > 1 && digits[0] == b'0') {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, byte| match byte {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_apart() {
        let id = Id { epoch: 0x0123_4567_89ab_cdef, offset: 42 };
        for (message, text, payload) in [
            ("id: 0123456789abcdef:42\n\nhello", None, "hello"),
            ("id: 0123456789abcdef:42\ncontent-type: text/plain\n\n", Some(true), ""),
            ("id: 0123456789abcdef:42\ncontent-type: application/octet-stream\n\n\n\n", Some(false), "\n\n"),
        ] {
            let expected = Framed { id, text, payload: payload.as_bytes() };
            assert_eq!(split(message.as_bytes()), Some(expected), "{message:?}");
        }
        assert_eq!(id.to_string(), "0123456789abcdef:42");
        assert_eq!(Id { epoch: 1, offset: 0 }.to_string(), "0000000000000001:0");
    }

    #[test]
    fn no_other_form_passes() {
        let good = b"id: 0123456789abcdef:42\ncontent-type: text/plain\n\n";
        for cut in 0..good.len() {
            assert_eq!(split(&good[..cut]), None, "cut at {cut}");
        }
        for bad in [
            "ID: 0123456789abcdef:42\n\n",
            "id: 0123456789ABCDEF:42\n\n",
            "id: 123:42\n\n",
            "id: 0123456789abcdef:\n\n",
            "id: 0123456789abcdef:042\n\n",
            "id: 0123456789abcdef:+2\n\n",
            "id: 0123456789abcdef:18446744073709551616\n\n",
            "id: 0123456789abcdef:42\r\n\r\n",
            "id: 0123456789abcdef:42\ncontent-type: text/html\n\n",
        ] {
            assert_eq!(split(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn notices_are_told_from_payloads() {
        let lost = br#"{"recovered":false,"topic":"a\"b","epoch":"00000000000000ff","offset":7}"#;
        let id = Id { epoch: 255, offset: 7 };
        assert_eq!(notice(lost), Some(Notice::NotRecovered { topic: "a\"b".into(), id }));
        let kept = br#"{"recovered":true,"topic":"a","epoch":"00000000000000ff","offset":7}"#;
        assert_eq!(notice(kept), Some(Notice::Recovered));
        assert_eq!(notice(br#"{"topic":"a"}"#), None);
        for bad in [
            r#"{"recovered":false}"#,
            r#"{"recovered":false,"topic":"a","epoch":"ff","offset":7}"#,
            r#"{"recovered":false,"topic":"a","epoch":"00000000000000ff","offset":-7}"#,
            r#"{"recovered":"#,
        ] {
            assert_eq!(notice(bad.as_bytes()), Some(Notice::Malformed), "{bad}");
        }
    }
}
