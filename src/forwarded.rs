//! What a proxy says of its client's address: the PROXY protocol, and `X-Forwarded-For`.
//!
//! Nothing here is believed by itself: whose word counts is for the caller to say. Bytes in, an address out; no
//! socket.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;
use ppp::{v1, v2};

/// Longest header of version 1, with its line end: the protocol's own bound.
const MAX_V1_BYTES: usize = 107;

/// Longest header of version 2 that is waited for: addresses, and what a proxy may add about TLS.
pub(crate) const MAX_V2_BYTES: usize = 4096;

/// What version 1 begins with.
const V1_PREFIX: &[u8] = b"PROXY ";

/// Bytes of version 2 before its addresses; the last two are the length of what follows.
const V2_FIXED_BYTES: usize = 16;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A header of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProxyHeader {
    /// The client; `None` where the proxy speaks for itself or does not know.
    pub(crate) client: Option<SocketAddr>,
    /// Bytes of the header; what follows is the client's.
    pub(crate) length: usize,
}

/// Bytes that are no header of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoProxyHeader;

/// Reads a header at the front of `bytes`; `Ok(None)` while it may become one.
pub(crate) fn parse_proxy_header(bytes: &[u8]) -> Result<Option<ProxyHeader>, NoProxyHeader> {
    let begins = |prefix: &[u8]| {
        let common = prefix.len().min(bytes.len());
        bytes[..common] == prefix[..common]
    };
    // The header is cut out here, so that the parsers see whole ones only, wherever the stream was split.
    if begins(V1_PREFIX) {
        return parse_v1(bytes);
    }
    if begins(v2::PROTOCOL_PREFIX) {
        return parse_v2(bytes);
    }
    Err(NoProxyHeader)
}

fn parse_v1(bytes: &[u8]) -> Result<Option<ProxyHeader>, NoProxyHeader> {
    let line = &bytes[..bytes.len().min(MAX_V1_BYTES)];
    let Some(end) = line.iter().position(|&byte| byte == b'\n') else {
        return if bytes.len() < MAX_V1_BYTES { Ok(None) } else { Err(NoProxyHeader) };
    };
    let length = end + 1;
    let header = v1::Header::try_from(&bytes[..length]).map_err(|_| NoProxyHeader)?;
    if header.header.len() != length {
        return Err(NoProxyHeader);
    }
    let client = match header.addresses {
        v1::Addresses::Unknown => None,
        v1::Addresses::Tcp4(tcp) => Some(SocketAddr::new(tcp.source_address.into(), tcp.source_port)),
        v1::Addresses::Tcp6(tcp) => Some(SocketAddr::new(tcp.source_address.into(), tcp.source_port)),
    };
    Ok(Some(ProxyHeader { client, length }))
}

fn parse_v2(bytes: &[u8]) -> Result<Option<ProxyHeader>, NoProxyHeader> {
    let Some(&[high, low]) = bytes.get(V2_FIXED_BYTES - 2..V2_FIXED_BYTES) else {
        return Ok(None);
    };
    let length = V2_FIXED_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_V2_BYTES {
        return Err(NoProxyHeader);
    }
    let Some(header) = bytes.get(..length) else {
        return Ok(None);
    };
    let header = v2::Header::try_from(header).map_err(|_| NoProxyHeader)?;
    let client = match (header.command, header.addresses) {
        // A health check of the proxy's own; what addresses it gives are to be ignored.
        (v2::Command::Local, _) => None,
        (v2::Command::Proxy, _) if header.protocol == v2::Protocol::Datagram => return Err(NoProxyHeader),
        (v2::Command::Proxy, v2::Addresses::IPv4(tcp)) => {
            Some(SocketAddr::new(tcp.source_address.into(), tcp.source_port))
        }
        (v2::Command::Proxy, v2::Addresses::IPv6(tcp)) => {
            Some(SocketAddr::new(tcp.source_address.into(), tcp.source_port))
        }
        (v2::Command::Proxy, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => None,
    };
    Ok(Some(ProxyHeader { client, length }))
}

/// Whether an address is one of the networks'.
pub(crate) fn is_trusted(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// An entry of `X-Forwarded-For` that is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoAddress;

/// The client that a trusted proxy names: each proxy adds whom it speaks to on the right, so it is the rightmost
/// address that is not a trusted proxy itself, or the leftmost one if all are. `None` without the header. What
/// stands left of the client came from the client, and is not looked at. An entry without port gives port 0.
pub(crate) fn forwarded_for(headers: &HeaderMap, trusted: &[IpNet]) -> Result<Option<SocketAddr>, NoAddress> {
    let mut client = None;
    for line in headers.get_all(X_FORWARDED_FOR).into_iter().rev() {
        for entry in line.as_bytes().rsplit(|&byte| byte == b',') {
            let address = parse_entry(entry.trim_ascii()).ok_or(NoAddress)?;
            client = Some(address);
            if !is_trusted(trusted, address.ip()) {
                return Ok(client);
            }
        }
    }
    Ok(client)
}

/// An address, with or without port; IPv6 also in brackets.
fn parse_entry(entry: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(entry).ok()?;
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    let address = text.parse::<IpAddr>().ok().or_else(bracketed);
    address.map(|address| SocketAddr::new(address, 0)).or_else(|| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [v2::PROTOCOL_PREFIX, &[0x20 | command, family], &length, body].concat()
    }

    const V4_BODY: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 1, 0xC0, 0xDE, 0, 80];

    fn headers() -> Vec<(Vec<u8>, Option<&'static str>)> {
        let v6_body = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[7], &[0; 16], &[0, 9, 0, 80]].concat();
        let with_tlv = [&V4_BODY[..], &[4, 0, 3, 0, 0, 0]].concat();
        vec![
            (b"PROXY TCP4 192.0.2.1 198.51.100.1 49374 80\r\n".to_vec(), Some("192.0.2.1:49374")),
            (b"PROXY TCP6 2001:db8::7 ::1 9 80\r\n".to_vec(), Some("[2001:db8::7]:9")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n".to_vec(), None),
            (v2(1, 0x11, &V4_BODY), Some("192.0.2.1:49374")),
            (v2(1, 0x21, &v6_body), Some("[2001:db8::7]:9")),
            (v2(1, 0x11, &with_tlv), Some("192.0.2.1:49374")),
            (v2(0, 0x11, &V4_BODY), None),
            (v2(0, 0, &[]), None),
            (v2(1, 0, &[1, 2, 3]), None),
            (v2(1, 0x31, &[b'x'; 216]), None),
        ]
    }

    #[test]
    fn headers_are_read_whole_and_in_any_pieces() {
        for (header, client) in headers() {
            for end in 0..header.len() {
                assert_eq!(parse_proxy_header(&header[..end]), Ok(None), "{}", header.escape_ascii());
            }
            let client = client.map(|client| client.parse().unwrap());
            let expected = Ok(Some(ProxyHeader { client, length: header.len() }));
            assert_eq!(parse_proxy_header(&header), expected, "{}", header.escape_ascii());
            let followed = [&header[..], b"GET / HTTP/1.1\r\n\r\n"].concat();
            assert_eq!(parse_proxy_header(&followed), expected, "{}", header.escape_ascii());
        }
    }

    #[test]
    fn what_is_no_header_is_refused_as_soon_as_that_shows() {
        let long = [&b"PROXY TCP4 "[..], &[b'1'; 200]].concat();
        let huge = [v2::PROTOCOL_PREFIX, &[0x21, 0x11, 0xFF, 0xFF]].concat();
        let cases: Vec<Vec<u8>> = vec![
            b"GET / HTTP/1.1\r\n".to_vec(),
            b"\x16\x03\x01".to_vec(),
            b"PROXY\r\n".to_vec(),
            b"PROXY TCP4\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 198.51.100.1 1 2\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 198.51.100.1 1 65536\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::7 ::1 9 80\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 198.51.100.1 1 2 3\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1\r198.51.100.1 1 2\r\n".to_vec(),
            b"PROXY UDP4 192.0.2.1 198.51.100.1 1 2\r\n".to_vec(),
            b"PROXY TCP4 \xFF 198.51.100.1 1 2\r\n".to_vec(),
            long,
            huge,
            v2(2, 0x11, &V4_BODY),
            v2(1, 0x12, &V4_BODY),
            v2(1, 0x11, &V4_BODY[..11]),
            v2(1, 0x41, &V4_BODY),
            b"\r\n\r\n\0\r\nQUIX".to_vec(),
        ];
        for bytes in cases {
            assert_eq!(parse_proxy_header(&bytes), Err(NoProxyHeader), "{}", bytes.escape_ascii());
        }
    }

    fn client(lines: &[&str]) -> Result<Option<String>, NoAddress> {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "2001:db8:ffff::/48".parse().unwrap()];
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(X_FORWARDED_FOR, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        forwarded_for(&headers, &trusted).map(|client| client.map(|client| client.to_string()))
    }

    #[test]
    fn the_client_is_the_rightmost_address_that_is_no_proxy() {
        for (lines, expected) in [
            (&[][..], None),
            (&["192.0.2.1"], Some("192.0.2.1:0")),
            (&["203.0.113.9, 192.0.2.1"], Some("192.0.2.1:0")),
            (&["203.0.113.9, 192.0.2.1, 10.1.1.1"], Some("192.0.2.1:0")),
            (&["192.0.2.1", "10.1.1.1", "2001:db8:ffff::1"], Some("192.0.2.1:0")),
            (&["10.2.2.2, 10.1.1.1"], Some("10.2.2.2:0")),
            (&["192.0.2.1:99"], Some("192.0.2.1:99")),
            (&["2001:db8::1"], Some("[2001:db8::1]:0")),
            (&["[2001:db8::1]"], Some("[2001:db8::1]:0")),
            (&["[2001:db8::1]:99 "], Some("[2001:db8::1]:99")),
            // Left of the client stands what the client sent.
            (&["nonsense, 192.0.2.1,10.1.1.1"], Some("192.0.2.1:0")),
        ] {
            assert_eq!(client(lines), Ok(expected.map(str::to_owned)), "{lines:?}");
        }
        for lines in [
            &[""][..],
            &["unknown"],
            &["192.0.2.1,"],
            &["192.0.2.1, , 10.1.1.1"],
            &["192.0.2.1", "x"],
            &["192.0.2.300"],
            &["[192.0.2.1]"],
            &["é"],
        ] {
            assert_eq!(client(lines), Err(NoAddress), "{lines:?}");
        }
    }

    #[test]
    fn trust_is_by_network_of_either_family() {
        let networks = ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        let trusted = |address: &str| is_trusted(&networks, address.parse().unwrap());
        assert!(trusted("10.9.9.9") && trusted("::1") && trusted("::ffff:10.0.0.1"));
        assert!(!trusted("11.0.0.1") && !trusted("::2"));
    }
}
