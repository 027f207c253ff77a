//! Values as a person writes them: sizes, durations, CPU lists, addresses, secrets.
//!
//! Each kind has one parser, one text form that the parser takes back, and one sentence about what it
//! accepts. Flags, environment and file all come through here.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

/// What a size may look like.
const SIZE_FORM: &str = "expected a whole number of bytes with B, KiB or MiB, such as 64KiB";

/// What a duration may look like.
const DURATION_FORM: &str = "expected a whole number with ms, s, m or h, such as 10s, or 0";

/// What a socket address may look like.
const ADDRESS_FORM: &str = "expected IP:PORT, such as 127.0.0.1:8080 or [::1]:8080";

/// What a network may look like.
const NETWORK_FORM: &str = "expected an address such as 192.0.2.1, or a network such as 192.0.2.0/24";

/// What a list of CPUs may look like.
const CPUS_FORM: &str = "expected CPU numbers and ranges, such as 0-3,8";

/// Highest CPU number that a list may name: the kernel's own bound on a CPU set (CPU_SETSIZE) less one.
const MAX_CPU: usize = 1023;

/// Units of a size and what they multiply by, the largest first.
const SIZE_UNITS: [(&str, usize); 3] = [("MiB", 1024 * 1024), ("KiB", 1024), ("B", 1)];

/// Units of a duration in milliseconds, the largest first. `ms` stands before `s`, its own ending.
const DURATION_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("ms", 1), ("s", 1_000)];

/// Reads a size in bytes: `B`, `KiB`, `MiB` or a bare number.
pub(super) fn parse_size(text: &str) -> Result<usize, String> {
    let (digits, unit) = split_unit(text, SIZE_FORM)?;
    let factor = match unit {
        "" => 1,
        unit => SIZE_UNITS.iter().find(|(name, _)| *name == unit).ok_or(SIZE_FORM)?.1,
    };
    let number: usize = digits.parse().map_err(|_| SIZE_FORM)?;
    number.checked_mul(factor).ok_or_else(|| "larger than this machine can address".to_owned())
}

/// Writes a size so that [`parse_size`] reads it back.
pub(super) fn format_size(bytes: usize) -> String {
    let (unit, factor) =
        SIZE_UNITS.into_iter().find(|(_, factor)| bytes != 0 && bytes % factor == 0).unwrap_or(("B", 1));
    format!("{}{unit}", bytes / factor)
}

/// Reads a duration in milliseconds: `ms`, `s`, `m`, `h`, or a bare `0`.
pub(super) fn parse_duration(text: &str) -> Result<u64, String> {
    let (digits, unit) = split_unit(text, DURATION_FORM)?;
    let number: u64 = digits.parse().map_err(|_| DURATION_FORM)?;
    let factor = match unit {
        "" if number == 0 => 0,
        unit => DURATION_UNITS.iter().find(|(name, _)| *name == unit).ok_or(DURATION_FORM)?.1,
    };
    number.checked_mul(factor).ok_or_else(|| "longer than can be counted in milliseconds".to_owned())
}

/// Writes a duration so that [`parse_duration`] reads it back.
pub(super) fn format_duration(millis: u64) -> String {
    match millis {
        0 => "0".to_owned(),
        _ if millis % 3_600_000 == 0 => format!("{}h", millis / 3_600_000),
        _ if millis % 60_000 == 0 => format!("{}m", millis / 60_000),
        _ if millis % 1_000 == 0 => format!("{}s", millis / 1_000),
        _ => format!("{millis}ms"),
    }
}

fn split_unit<'a>(text: &'a str, form: &str) -> Result<(&'a str, &'a str), String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    match end {
        0 => Err(form.to_owned()),
        _ => Ok((&text[..end], text[end..].trim_start())),
    }
}

/// Reads a socket address.
pub(super) fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.trim().parse().map_err(|_| ADDRESS_FORM.to_owned())
}

/// Reads a network in CIDR notation; an address is the network of itself.
pub(super) fn parse_network(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network.map(|network| network.trunc()).map_err(|_| NETWORK_FORM.to_owned())
}

/// Reads a switch.
pub(super) fn parse_bool(text: &str) -> Result<bool, String> {
    match text.trim() {
        "true" | "on" | "yes" | "1" => Ok(true),
        "false" | "off" | "no" | "0" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// Reads a number of at least one.
pub(super) fn parse_count(text: &str) -> Result<u64, String> {
    match text.trim().parse() {
        Ok(0) | Err(_) => Err("expected a whole number of at least 1".to_owned()),
        Ok(number) => Ok(number),
    }
}

/// Reads a number that may be zero.
pub(super) fn parse_number(text: &str) -> Result<usize, String> {
    text.trim().parse().map_err(|_| "expected a whole number".to_owned())
}

/// Reads a number of shards.
pub(super) fn parse_cores(text: &str) -> Result<usize, String> {
    usize::try_from(parse_count(text)?).map_err(|error| error.to_string())
}

/// Serializes a size as [`format_size`] writes it.
pub(super) fn serialize_size<S: Serializer>(bytes: &usize, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format_size(*bytes))
}

/// Serializes networks as [`parse_network`] reads them.
pub(super) fn serialize_networks<S: Serializer>(
    networks: &[IpNet],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(networks.iter().map(ToString::to_string))
}

/// Serializes a duration as [`format_duration`] writes it.
pub(super) fn serialize_duration<S: Serializer>(millis: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format_duration(*millis))
}

/// Where the control port listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlAddress {
    /// No HTTP at all. Signals still work.
    Off,
    /// On this address.
    At(SocketAddr),
}

impl ControlAddress {
    /// The address, unless the port is off.
    #[must_use]
    pub fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Off => None,
            Self::At(address) => Some(address),
        }
    }
}

impl FromStr for ControlAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "off" => Ok(Self::Off),
            text => parse_address(text).map(Self::At).map_err(|error| format!("{error}, or off")),
        }
    }
}

impl Serialize for ControlAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_str("off"),
            Self::At(address) => serializer.collect_str(address),
        }
    }
}

/// Exact CPUs, in the order of the shards that run on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| match text.trim().parse::<usize>() {
            Ok(cpu) if cpu > MAX_CPU => {
                Err(format!("CPU {cpu} is above {MAX_CPU}, the highest there can be"))
            }
            parsed => parsed.map_err(|_| CPUS_FORM.to_owned()),
        };
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("the range {first}-{last} runs backwards; {CPUS_FORM}"));
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_slice();
        while let [first, ..] = rest {
            let run = rest.iter().enumerate().take_while(|(step, cpu)| **cpu == first + step).count();
            let comma = if run == rest.len() { "" } else { "," };
            match run {
                1 => write!(f, "{first}{comma}")?,
                _ => write!(f, "{first}-{}{comma}", first + run - 1)?,
            }
            rest = &rest[run..];
        }
        Ok(())
    }
}

impl Serialize for CpuList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The bearer token of the publish API. Its text is in no log line, no error and no printed configuration.
#[derive(Clone, PartialEq, Eq)]
pub struct PublishToken(String);

impl PublishToken {
    /// Takes any text; [`super::Config::validate`] says whether it can serve as a token.
    #[must_use]
    pub fn new(token: impl Into<String>) -> Self {
        Self(token.into())
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for PublishToken {
    fn from(token: &str) -> Self {
        Self::new(token)
    }
}

impl fmt::Debug for PublishToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublishToken(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_every_unit() {
        let cases =
            [("0", 0), ("17", 17), ("17B", 17), ("64KiB", 65_536), ("2MiB", 2_097_152), (" 1 KiB ", 1024)];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "KiB", "64KB", "64k", "64kib", "1.5MiB", "-1", "1GiB", "0x10", "64KiBKiB", "é"] {
            assert_eq!(parse_size(text), Err(SIZE_FORM.to_owned()), "{text}");
        }
        assert!(parse_size("18446744073709551615MiB").unwrap_err().contains("larger"));
    }

    #[test]
    fn durations_take_every_unit() {
        let cases =
            [("0", 0), ("0s", 0), ("250ms", 250), ("10s", 10_000), ("5m", 300_000), ("2h", 7_200_000)];
        for (text, millis) in cases {
            assert_eq!(parse_duration(text), Ok(millis), "{text}");
        }
        for text in ["", "10", "s", "10sec", "1.5s", "-1s", "1d", "10S"] {
            assert_eq!(parse_duration(text), Err(DURATION_FORM.to_owned()), "{text}");
        }
        assert!(parse_duration("18446744073709551615h").unwrap_err().contains("longer"));
    }

    #[test]
    fn what_is_written_is_read_back() {
        for bytes in [0, 1, 1023, 1024, 1536, 65_536, 1 << 20, (1 << 20) + 1, 3 << 20] {
            assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }
        assert_eq!((format_size(65_536).as_str(), format_size(1536).as_str()), ("64KiB", "1536B"));
        for millis in [0, 1, 999, 1000, 1500, 30_000, 60_000, 90_000, 3_600_000] {
            assert_eq!(parse_duration(&format_duration(millis)), Ok(millis));
        }
        for (text, written) in [("0-3,8", "0-3,8"), ("3,2,1", "3,2,1"), ("0,1,2,5,5", "0-2,5,5"), ("7", "7")]
        {
            assert_eq!(text.parse::<CpuList>().unwrap().to_string(), written);
        }
    }

    #[test]
    fn cpu_lists_say_what_is_wrong() {
        assert_eq!("0-3, 8".parse(), Ok(CpuList(vec![0, 1, 2, 3, 8])));
        for text in ["", "a", "1-", "-1", "0,,1", "1-2-3"] {
            assert_eq!(text.parse::<CpuList>(), Err(CPUS_FORM.to_owned()), "{text}");
        }
        assert!("3-1".parse::<CpuList>().unwrap_err().contains("runs backwards"));
        assert!("0-99999999999".parse::<CpuList>().unwrap_err().contains("above 1023"));
    }

    #[test]
    fn control_is_an_address_or_off() {
        assert_eq!("off".parse(), Ok(ControlAddress::Off));
        assert_eq!("[::1]:1".parse::<ControlAddress>().unwrap().address().unwrap().port(), 1);
        assert_eq!("no".parse::<ControlAddress>(), Err(format!("{ADDRESS_FORM}, or off")));
    }

    #[test]
    fn networks_are_cidr_or_one_address() {
        for (text, written) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("192.0.2.1", "192.0.2.1/32"),
            (" 2001:db8::1/32 ", "2001:db8::/32"),
            ("::1", "::1/128"),
        ] {
            let network = parse_network(text).unwrap();
            assert_eq!(network.to_string(), written);
            assert_eq!(parse_network(written), Ok(network));
        }
        for text in ["", "10.0.0.0/33", "proxy.example", "10.0.0", "::/129", "1.2.3.4:80"] {
            assert_eq!(parse_network(text), Err(NETWORK_FORM.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_token_does_not_show() {
        assert_eq!(format!("{:?}", PublishToken::new("s3cret")), "PublishToken(hidden)");
    }
}
