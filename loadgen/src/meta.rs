//! Messages of the subprotocol `ws+meta.nchan`: `id: EPOCH:OFFSET`, perhaps a content type, an empty line, the
//! payload. No socket, no clock.

use std::fmt;

use serde::Deserialize;

/// Name of the subprotocol in the handshake.
pub(crate) const SUBPROTOCOL: &str = "ws+meta.nchan";
/// What the payload of the server's word on a resume begins with, if no content type says that it is one.
const NOTICE_START: &[u8] = b"{\"recovered\":";
const CONTENT_TYPE: &[u8] = b"content-type: ";
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

/// What the content type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Text,
    Binary,
    /// The server's word on a resume.
    Notice,
}

impl Content {
    fn of(name: &[u8]) -> Option<Self> {
        match name {
            b"text/plain" => Some(Self::Text),
            b"application/octet-stream" => Some(Self::Binary),
            b"application/vnd.corecast.notice+json" => Some(Self::Notice),
            _ => None,
        }
    }
}

/// One message taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Framed<'a> {
    pub(crate) id: Id,
    /// Of a message that has a content type.
    pub(crate) content: Option<Content>,
    pub(crate) payload: &'a [u8],
}

/// Takes a message apart; `None` if it is not exactly of the form.
pub(crate) fn split(message: &[u8]) -> Option<Framed<'_>> {
    let rest = message.strip_prefix(b"id: ")?;
    let (epoch, rest) = rest.split_at_checked(EPOCH_DIGITS)?;
    let epoch = hexadecimal(epoch)?;
    let rest = rest.strip_prefix(b":")?;
    let (offset, mut rest) = line(rest)?;
    let offset = decimal(offset)?;
    let mut content = None;
    if let Some(typed) = rest.strip_prefix(CONTENT_TYPE) {
        let (name, after) = line(typed)?;
        (content, rest) = (Some(Content::of(name)?), after);
    }
    Some(Framed { id: Id { epoch, offset }, content, payload: rest.strip_prefix(b"\n")? })
}

/// Bytes up to a line feed, and those after it.
#[inline]
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((&bytes[..end], &bytes[end + 1..]))
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

/// Reads `message` as a notice, if it is one.
pub(crate) fn notice(message: &Framed<'_>) -> Option<Notice> {
    #[derive(Deserialize)]
    struct Text<'a> {
        recovered: bool,
        #[serde(borrow)]
        topic: std::borrow::Cow<'a, str>,
        epoch: &'a str,
        offset: u64,
    }
    let is_notice = match message.content {
        Some(content) => content == Content::Notice,
        None => message.payload.starts_with(NOTICE_START),
    };
    if !is_notice {
        return None;
    }
    let text: Option<Text<'_>> = serde_json::from_slice(message.payload).ok();
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
        let (text, binary) = (Content::Text, Content::Binary);
        for (message, content, payload) in [
            ("id: 0123456789abcdef:42\n\nhello", None, "hello"),
            ("id: 0123456789abcdef:42\ncontent-type: text/plain\n\n", Some(text), ""),
            ("id: 0123456789abcdef:42\ncontent-type: application/octet-stream\n\n\n\n", Some(binary), "\n\n"),
        ] {
            let expected = Framed { id, content, payload: payload.as_bytes() };
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
        let of = |content, payload: &str| {
            notice(&Framed { id: Id { epoch: 1, offset: 1 }, content, payload: payload.as_bytes() })
        };
        let told = Some(Content::Notice);
        let lost = r#"{"recovered":false,"topic":"a\"b","epoch":"00000000000000ff","offset":7}"#;
        let id = Id { epoch: 255, offset: 7 };
        for content in [None, told] {
            let expected = Notice::NotRecovered { topic: "a\"b".into(), id };
            assert_eq!(of(content, lost), Some(expected));
        }
        assert_eq!(of(Some(Content::Text), lost), None, "somebody published what looks like one");
        let kept = r#"{"recovered":true,"topic":"a","epoch":"00000000000000ff","offset":7}"#;
        assert_eq!(of(told, kept), Some(Notice::Recovered));
        assert_eq!(of(None, r#"{"topic":"a"}"#), None);
        assert_eq!(of(told, r#"{"topic":"a"}"#), Some(Notice::Malformed));
        for bad in [
            r#"{"recovered":false}"#,
            r#"{"recovered":false,"topic":"a","epoch":"ff","offset":7}"#,
            r#"{"recovered":false,"topic":"a","epoch":"00000000000000ff","offset":-7}"#,
            r#"{"recovered":"#,
        ] {
            assert_eq!(of(None, bad), Some(Notice::Malformed), "{bad}");
        }
    }
}
