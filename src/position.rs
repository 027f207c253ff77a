//! Places in a topic: which message a client has had last, and where a subscriber begins.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::str::FromStr;

/// A place in a topic, written `EPOCH:OFFSET`: behind the message of that offset. The id of that message, too.
///
/// Offsets count 1, 2, 3 … within an epoch; the epoch is chosen at random when the server starts, and is another one when
/// a topic was forgotten meanwhile. 16 hexadecimal digits, a colon, decimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// The epoch.
    pub epoch: u64,
    /// The offset; 0 is before the first message.
    pub offset: u64,
}

impl Position {
    /// An epoch for a server that starts. The standard library seeds every process's hashers from the system's random
    /// numbers: it differs between starts, and is no secret.
    pub(crate) fn random_epoch() -> u64 {
        RandomState::new().hash_one(())
    }

    /// The epoch as it is written.
    pub(crate) fn epoch_text(self) -> String {
        format!("{:016x}", self.epoch)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}:{}", self.epoch, self.offset)
    }
}

/// Where in a topic a subscriber begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the next message.
    Now,
    /// Behind a message that it has had, if all that came since is kept; else with the next message.
    After(Position),
    /// With the last so many messages, as far as they are kept.
    Latest(u64),
}

/// Whether a subscriber is told where it begins: in a text message ahead of all others of the topic, the JSON object
/// `{"recovered": …, "topic": …, "epoch": …, "offset": …}`; the next message is the one behind that offset. Unless it is
/// `Never`, the same is said when messages were dropped because the client read too slowly (`SlowConsumer::Drop`), or were
/// no longer kept when the topic's turn came among others that it catches up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It is not.
    Never,
    /// If it does not begin where it wanted to, because what came since is not kept: `"recovered": false`.
    IfLost,
    /// In any case.
    Always,
}

/// A text is no [`Position`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidPosition;

impl fmt::Display for InvalidPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a position is EPOCH:OFFSET, with 16 hexadecimal digits and a number")
    }
}

impl std::error::Error for InvalidPosition {}

impl FromStr for Position {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Self, InvalidPosition> {
        let (epoch, offset) = text.split_once(':').ok_or(InvalidPosition)?;
        let is_hexadecimal = epoch.len() == 16 && epoch.bytes().all(|digit| digit.is_ascii_hexdigit());
        let is_decimal = !offset.is_empty() && offset.bytes().all(|digit| digit.is_ascii_digit());
        if !is_hexadecimal || !is_decimal {
            return Err(InvalidPosition);
        }
        let epoch = u64::from_str_radix(epoch, 16).map_err(|_| InvalidPosition)?;
        Ok(Self { epoch, offset: offset.parse().map_err(|_| InvalidPosition)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_is_written() {
        for position in [
            Position { epoch: 0, offset: 0 },
            Position { epoch: 0xab, offset: 12 },
            Position { epoch: u64::MAX, offset: u64::MAX },
        ] {
            assert_eq!(position.to_string().parse(), Ok(position));
        }
        assert_eq!(Position { epoch: 0xab, offset: 12 }.to_string(), "00000000000000ab:12");
    }

    #[test]
    fn epochs_differ() {
        assert_ne!(Position::random_epoch(), Position::random_epoch());
        assert_eq!(Position { epoch: 0xab, offset: 12 }.epoch_text(), "00000000000000ab");
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            ":",
            "ab:1",
            "00000000000000ab",
            "00000000000000ab:",
            "00000000000000ab:-1",
            "00000000000000ab:+1",
            "+0000000000000ab:1",
            "00000000000000ab:18446744073709551616",
            "00000000000000ag:1",
            "00000000000000ab:1 ",
            "000000000000000ab:1",
            "00000000000000ab:1:2",
        ] {
            assert_eq!(text.parse::<Position>(), Err(InvalidPosition), "{text}");
        }
    }
}
