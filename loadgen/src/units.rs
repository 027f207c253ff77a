//! Values of the command line: durations, sizes, CPU lists, address ranges, URLs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

/// Most addresses that a range may name.
const SOURCES_MAX: u32 = 4096;
/// CPU numbers from here on are refused as mistakes.
const CPU_LIMIT: usize = 4096;

/// Parses `250ms`, `10s`, `1.5m`, `2h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const ACCEPTED: &str = "expected a number with unit ms, s, m or h, e.g. 250ms or 10s";
    let (number, unit) = split_unit(text).ok_or(ACCEPTED)?;
    let seconds = match unit {
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(ACCEPTED.into()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| ACCEPTED.into())
}

/// Parses a duration as [`duration`] does, but not zero.
pub(crate) fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("expected more than 0".into()),
        duration => Ok(duration),
    }
}

/// Parses `64`, `64B`, `16KiB`, `1MiB` into bytes.
pub(crate) fn size(text: &str) -> Result<usize, String> {
    const ACCEPTED: &str =
        "expected a whole number of bytes, with or without unit B, KiB or MiB, e.g. 64B or 16KiB";
    let (number, unit) = split_unit(text).ok_or(ACCEPTED)?;
    let factor = match unit {
        "" | "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        _ => return Err(ACCEPTED.into()),
    };
    let bytes = number * factor;
    if bytes.fract() == 0.0 && bytes < 4e9 { Ok(bytes as usize) } else { Err(ACCEPTED.into()) }
}

fn split_unit(text: &str) -> Option<(f64, &str)> {
    let digits = text.find(|symbol: char| !symbol.is_ascii_digit() && symbol != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit))
}

/// CPUs to run threads on, e.g. `0-3,8`; each once, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CpuList(pub(crate) Vec<usize>);

impl std::str::FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const ACCEPTED: &str = "expected CPU numbers and ranges, e.g. 0-3,8";
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: usize = first.trim().parse().map_err(|_| ACCEPTED)?;
            let last: usize = last.trim().parse().map_err(|_| ACCEPTED)?;
            if first > last || last >= CPU_LIMIT {
                return Err(ACCEPTED.into());
            }
            cpus.extend(first..=last);
        }
        cpus.sort_unstable();
        match cpus.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("CPU {} is named twice", pair[0])),
            None => Ok(Self(cpus)),
        }
    }
}

/// Inclusive range of local IPv4 addresses, `10.0.0.1-10.0.0.9` or one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SourceRange(pub(crate) Vec<Ipv4Addr>);

impl std::str::FromStr for SourceRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const ACCEPTED: &str = "expected IPv4 addresses A-B, A not above B, e.g. 127.0.0.1-127.0.0.8";
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let first: Ipv4Addr = first.trim().parse().map_err(|_| ACCEPTED)?;
        let last: Ipv4Addr = last.trim().parse().map_err(|_| ACCEPTED)?;
        let (first, last) = (first.to_bits(), last.to_bits());
        if first > last {
            return Err(ACCEPTED.into());
        }
        if last - first >= SOURCES_MAX {
            return Err(format!("more than {SOURCES_MAX} addresses"));
        }
        Ok(Self((first..=last).map(Ipv4Addr::from_bits).collect()))
    }
}

/// A `ws://` URL, resolved once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    /// As it was written.
    pub(crate) text: String,
    /// Host and port as they go into the `Host` header.
    pub(crate) authority: String,
    /// Path and query.
    pub(crate) path: String,
    /// Where to connect.
    pub(crate) address: SocketAddr,
}

impl std::str::FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("wss://") {
            return Err("TLS is not supported, expected ws://HOST:PORT/PATH".into());
        }
        let rest = text.strip_prefix("ws://").ok_or("expected ws://HOST:PORT/PATH")?;
        let cut = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(cut);
        if authority.is_empty() || path.chars().any(|symbol| symbol <= ' ' || symbol == '#' || symbol > '~') {
            return Err("expected ws://HOST:PORT/PATH without spaces or #".into());
        }
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let target = if has_port { authority.to_owned() } else { format!("{authority}:80") };
        let addresses: Vec<SocketAddr> =
            target.to_socket_addrs().map_err(|error| format!("host {authority}: {error}"))?.collect();
        let address = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
        Ok(Self {
            text: text.to_owned(),
            authority: authority.to_owned(),
            path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
            address: *address.ok_or_else(|| format!("host {authority} has no address"))?,
        })
    }
}

/// Local addresses to spread `connections` towards `target` over; empty leaves the choice to the kernel.
///
/// One local address has about 28,000 ephemeral ports towards one target. `ports_per_address` leaves room for
/// those that are still in TIME_WAIT.
pub(crate) fn choose_sources(
    target: SocketAddr,
    wanted: Option<&SourceRange>,
    connections: usize,
    ports_per_address: usize,
) -> Vec<IpAddr> {
    if let Some(range) = wanted {
        return range.0.iter().copied().map(IpAddr::V4).collect();
    }
    match target.ip() {
        IpAddr::V4(address) if address.is_loopback() => {
            let count = connections.div_ceil(ports_per_address).clamp(1, SOURCES_MAX as usize) as u32;
            let first = Ipv4Addr::LOCALHOST.to_bits();
            (first..first + count).map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))).collect()
        }
        _ => Vec::new(),
    }
}

/// Nanoseconds as text with three digits and a unit that fits.
pub(crate) struct Nanoseconds(pub(crate) u64);

impl fmt::Display for Nanoseconds {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (value, unit) = match self.0 {
            0..1_000 => return formatter.pad(&format!("{} ns", self.0)),
            1_000..1_000_000 => (self.0 as f64 / 1e3, "µs"),
            1_000_000..1_000_000_000 => (self.0 as f64 / 1e6, "ms"),
            _ => (self.0 as f64 / 1e9, "s"),
        };
        let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
        formatter.pad(&format!("{value:.digits$} {unit}"))
    }
}

/// A count with a comma between thousands.
pub(crate) struct Thousands(pub(crate) u64);

impl fmt::Display for Thousands {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::with_capacity(digits.len() * 4 / 3 + 1);
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index) % 3 == 0 {
                text.push(',');
            }
            text.push(digit);
        }
        formatter.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_take_the_units_of_the_contract() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(size("64"), Ok(64));
        assert_eq!(size("16KiB"), Ok(16384));
        assert_eq!(size("1MiB"), Ok(1 << 20));
        for bad in ["", "10", "s", "-1s", "1 s", "1d", "1e3s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        for bad in ["", "KiB", "1.3B", "64kb", "-1"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cpu_lists_are_sorted_and_name_each_once() {
        assert_eq!("8,0-2".parse(), Ok(CpuList(vec![0, 1, 2, 8])));
        assert_eq!("8,0-2,1".parse::<CpuList>(), Err("CPU 1 is named twice".into()));
        for bad in ["", "a", "3-1", "1-", "99999"] {
            assert!(bad.parse::<CpuList>().is_err(), "{bad}");
        }
    }

    #[test]
    fn url_parts_and_refusals() {
        let url: Url = "ws://127.0.0.1:9000/pubsub/bench?x=1".parse().unwrap();
        assert_eq!((url.authority.as_str(), url.path.as_str()), ("127.0.0.1:9000", "/pubsub/bench?x=1"));
        assert_eq!(url.address, "127.0.0.1:9000".parse().unwrap());
        assert_eq!("ws://127.0.0.1".parse::<Url>().unwrap().address.port(), 80);
        assert_eq!("ws://[::1]:9/".parse::<Url>().unwrap().address, "[::1]:9".parse().unwrap());
        for bad in ["http://a/", "ws://", "wss://127.0.0.1/", "ws://127.0.0.1:9/a b", "ws://127.0.0.1:99999/"]
        {
            assert!(bad.parse::<Url>().is_err(), "{bad}");
        }
    }

    #[test]
    fn loopback_gets_as_many_sources_as_its_ports_need() {
        let loopback = "127.0.0.1:80".parse().unwrap();
        assert_eq!(choose_sources(loopback, None, 1, 5000).len(), 1);
        let four = choose_sources(loopback, None, 20_000, 5000);
        assert_eq!(four.len(), 4);
        assert_eq!(four[3], "127.0.0.4".parse::<IpAddr>().unwrap());
        assert!(choose_sources("10.1.2.3:80".parse().unwrap(), None, 20_000, 5000).is_empty());
        let range = "10.0.0.254-10.0.1.1".parse::<SourceRange>().unwrap();
        assert_eq!(choose_sources(loopback, Some(&range), 1, 5000).len(), 4);
        for bad in ["", "10.0.0.2-10.0.0.1", "::1", "10.0.0.0-11.0.0.0"] {
            assert!(bad.parse::<SourceRange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_are_readable() {
        let text = |value| Nanoseconds(value).to_string();
        assert_eq!([text(7), text(1_234), text(45_678_000)], ["7 ns", "1.23 µs", "45.7 ms"]);
        assert_eq!(Thousands(1_234_567).to_string(), "1,234,567");
        assert_eq!(Thousands(999).to_string(), "999");
    }
}
