//! Topic names: what a client or publisher may call a topic, and which shard owns it.
//!
//! A name is checked once, at the edge, and travels as a [`TopicName`] from there on, so no layer below has
//! to doubt it. Cloning is a reference count; the name may cross cores.

use std::borrow::Borrow;
use std::convert::Infallible;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Longest topic name, in bytes after percent-decoding.
pub const MAX_TOPIC_BYTES: usize = 128;

/// A valid topic name: 1 to [`MAX_TOPIC_BYTES`] bytes of UTF-8 without control characters or commas.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TopicName(Arc<str>);

/// Why a text is not a topic name. The client or publisher that sent it is at fault (HTTP 400).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TopicError {
    /// No bytes at all.
    Empty,
    /// More than [`MAX_TOPIC_BYTES`] bytes after decoding.
    TooLong,
    /// A character that must be percent-encoded, or one that no topic may contain.
    Character,
    /// A `%` that two hexadecimal digits do not follow.
    Escape,
    /// The percent-decoded bytes are not UTF-8.
    Utf8,
    /// More topics than one connection may subscribe to (`--max-subscriptions`).
    TooMany,
}

impl fmt::Display for TopicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "topic is empty",
            Self::TooLong => "topic is longer than 128 bytes",
            Self::Character => {
                "topic has a character other than A-Z a-z 0-9 _ - . : @ = / or percent-encoded UTF-8 \
                 (control characters and commas are never allowed)"
            }
            Self::Escape => "topic has a % that two hexadecimal digits do not follow",
            Self::Utf8 => "topic is not UTF-8 after percent-decoding",
            Self::TooMany => "more topics than one connection may subscribe to",
        })
    }
}

impl std::error::Error for TopicError {}

impl TopicName {
    /// Checks a name that is already decoded.
    ///
    /// # Errors
    /// [`TopicError`] when the name is empty, too long, or has a control character or a comma.
    pub fn new(name: &str) -> Result<Self, TopicError> {
        if name.is_empty() {
            return Err(TopicError::Empty);
        }
        if name.len() > MAX_TOPIC_BYTES {
            return Err(TopicError::TooLong);
        }
        if name.chars().any(|c| c == ',' || c.is_control()) {
            return Err(TopicError::Character);
        }
        Ok(Self(name.into()))
    }

    /// Decodes and checks a name as it stands in a request path.
    ///
    /// # Errors
    /// [`TopicError`], also for characters that the path must carry percent-encoded.
    pub fn from_path(encoded: &str) -> Result<Self, TopicError> {
        if encoded.bytes().all(is_plain) {
            return Self::new(encoded);
        }
        let mut decoded = Vec::with_capacity(encoded.len());
        let mut rest = encoded.bytes();
        while let Some(byte) = rest.next() {
            match byte {
                b'%' => {
                    let digit = |byte: Option<u8>| byte.and_then(|b| (b as char).to_digit(16));
                    let (Some(high), Some(low)) = (digit(rest.next()), digit(rest.next())) else {
                        return Err(TopicError::Escape);
                    };
                    decoded.push((high * 16 + low) as u8);
                }
                _ if is_plain(byte) => decoded.push(byte),
                _ => return Err(TopicError::Character),
            }
        }
        Self::new(std::str::from_utf8(&decoded).map_err(|_| TopicError::Utf8)?)
    }

    /// Decodes and checks a comma-separated list of names as it stands in a request path. A name that is
    /// listed twice is given once, and counts twice against the `most` that there may be.
    ///
    /// # Errors
    /// [`TopicError::TooMany`], or the [`TopicError`] of the first bad name.
    pub fn list_from_path(encoded: &str, most: usize) -> Result<Vec<Self>, TopicError> {
        if encoded.split(',').count() > most {
            return Err(TopicError::TooMany);
        }
        let mut names = Vec::new();
        for part in encoded.split(',') {
            let name = Self::from_path(part)?;
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// The name, decoded.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The shard that orders this topic's messages, of `shards` shards. Every core computes the same answer.
    #[must_use]
    pub fn owner(&self, shards: usize) -> usize {
        // FNV-1a, equal on every core; no secret is needed, as a client that crowds one shard gains nothing
        // that publishing to a single topic would not give it. The last step spreads what short names leave
        // in the low bits (the finalizer of MurmurHash3).
        let hash = self.0.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        let hash = hash ^ (hash >> 33);
        ((u128::from(hash) * shards as u128) >> 64) as usize
    }
}

/// Whether a byte stands for itself in a path.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b':' | b'@' | b'=' | b'/')
}

impl TryFrom<&str> for TopicName {
    type Error = TopicError;

    fn try_from(name: &str) -> Result<Self, TopicError> {
        Self::new(name)
    }
}

impl TryFrom<&String> for TopicName {
    type Error = TopicError;

    fn try_from(name: &String) -> Result<Self, TopicError> {
        Self::new(name)
    }
}

impl TryFrom<String> for TopicName {
    type Error = TopicError;

    fn try_from(name: String) -> Result<Self, TopicError> {
        Self::new(&name)
    }
}

impl From<&Self> for TopicName {
    /// Another reference to the same name.
    fn from(name: &Self) -> Self {
        name.clone()
    }
}

impl From<Infallible> for TopicError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl Hash for TopicName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Borrow<str> for TopicName {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_encoded_names_pass() {
        for (path, name) in [("a", "a"), ("a/b:c@d=e_f-g.h", "a/b:c@d=e_f-g.h"), ("%C3%A9%20%25", "é %")] {
            assert_eq!(TopicName::from_path(path).unwrap().as_str(), name, "{path}");
        }
    }

    #[test]
    fn bad_names_say_why() {
        let long = "x".repeat(MAX_TOPIC_BYTES + 1);
        let cases = [
            ("", TopicError::Empty),
            (long.as_str(), TopicError::TooLong),
            ("a b", TopicError::Character),
            ("a+b", TopicError::Character),
            ("é", TopicError::Character),
            ("a%2Cb", TopicError::Character),
            ("a%00", TopicError::Character),
            ("a%7F", TopicError::Character),
            ("a%C2%80", TopicError::Character),
            ("a%4", TopicError::Escape),
            ("a%zz", TopicError::Escape),
            ("a%+1", TopicError::Escape),
            ("%FF", TopicError::Utf8),
        ];
        for (path, error) in cases {
            assert_eq!(TopicName::from_path(path), Err(error), "{path}");
        }
        assert!(TopicName::from_path(&long[1..]).is_ok());
    }

    #[test]
    fn a_list_keeps_its_order_and_drops_repeats() {
        let names = TopicName::list_from_path("b,a,b", 3).unwrap();
        assert_eq!(names.iter().map(TopicName::as_str).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(TopicName::list_from_path("a,", 3), Err(TopicError::Empty));
        assert_eq!(TopicName::list_from_path("b,a,b", 2), Err(TopicError::TooMany));
    }

    #[test]
    fn owners_are_spread_and_in_range() {
        for shards in [1, 2, 3, 64] {
            let mut seen = vec![0; shards];
            for n in 0..10_000 {
                seen[TopicName::new(&format!("topic-{n}")).unwrap().owner(shards)] += 1;
            }
            let fair = 10_000 / shards;
            assert!(seen.iter().all(|&n| n > fair / 2 && n < fair * 2), "{shards} shards: {seen:?}");
        }
    }
}
