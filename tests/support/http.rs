//! A small blocking HTTP/1.1 client for the control port, and the response head reader of the handshake.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::PATIENCE;

/// An HTTP response; the body is empty where only the head was read.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {} {}", self.status, self.text()))
    }

    /// Panics unless the status is the expected one.
    #[track_caller]
    pub fn expect(self, status: u16) -> Response {
        assert_eq!(self.status, status, "unexpected status: {self:?} body {}", self.text());
        self
    }
}

/// A keep-alive connection to an HTTP server.
pub struct Http {
    stream: TcpStream,
    host: String,
    /// How long an answer may take; [`PATIENCE`] at first.
    pub limit: Duration,
}

impl Http {
    pub fn connect(address: SocketAddr) -> io::Result<Http> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Http { stream, host: address.to_string(), limit: PATIENCE })
    }

    /// Sends one request and reads the whole answer.
    pub fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let length = body.len().to_string();
        let mut headers = headers.to_vec();
        if !body.is_empty() || method == "POST" {
            headers.push(("Content-Length", &length));
        }
        self.request_raw(method, target, &headers, body)
    }

    /// The same without a `Content-Length`: the body frames itself (chunks, say).
    pub fn request_raw(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let mut request = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\n", self.host);
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += "\r\n";
        let mut bytes = request.into_bytes();
        bytes.extend_from_slice(body);
        // A server may answer (413, say) and close before it has read a large body: the answer counts.
        let sent = self.stream.write_all(&bytes);
        match read_response(&mut self.stream, self.limit) {
            Err(error) => Err(sent.err().unwrap_or(error)),
            answered => answered,
        }
    }

    pub fn get(&mut self, target: &str) -> io::Result<Response> {
        self.request("GET", target, &[], b"")
    }

    pub fn post(&mut self, target: &str, body: &[u8]) -> io::Result<Response> {
        self.request("POST", target, &[], body)
    }
}

/// One request on a connection of its own.
pub fn once(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Response> {
    let headers = [headers, &[("Connection", "close")]].concat();
    Http::connect(address)?.request(method, target, &headers, body)
}

/// Reads a head and the body that belongs to it.
pub fn read_response(stream: &mut TcpStream, limit: Duration) -> io::Result<Response> {
    let deadline = Instant::now() + limit;
    let (mut response, mut rest) = read_head(stream, deadline)?;
    if response.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        response.body = read_chunked(stream, rest, deadline)?;
    } else if let Some(length) = response.header("content-length") {
        let length: usize = length.trim().parse().map_err(|_| broken("bad Content-Length"))?;
        while rest.len() < length {
            read_more(stream, &mut rest, deadline)?;
        }
        response.body = rest;
    } else if response.status != 204 {
        while read_some(stream, &mut rest, deadline)? > 0 {}
        response.body = rest;
    }
    Ok(response)
}

/// Reads a response up to its empty line; what came after that line is returned beside it.
pub fn read_head(stream: &mut TcpStream, deadline: Instant) -> io::Result<(Response, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        read_more(stream, &mut bytes, deadline)?;
    };
    let rest = bytes.split_off(end + 4);
    let head = String::from_utf8(bytes).map_err(|_| broken("a response head that is not UTF-8"))?;
    let mut lines = head.trim_end().split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line
        .strip_prefix("HTTP/1.")
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| broken(&format!("a bad status line: {status_line:?}")))?;
    let headers = lines
        .map(|line| {
            let (name, value) =
                line.split_once(':').ok_or_else(|| broken(&format!("a bad header: {line:?}")))?;
            Ok((name.to_owned(), value.trim().to_owned()))
        })
        .collect::<io::Result<_>>()?;
    Ok((Response { status, headers, body: Vec::new() }, rest))
}

fn read_chunked(stream: &mut TcpStream, mut bytes: Vec<u8>, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let Some(line_end) = bytes.windows(2).position(|window| window == b"\r\n") else {
            read_more(stream, &mut bytes, deadline)?;
            continue;
        };
        let line = String::from_utf8_lossy(&bytes[..line_end]).into_owned();
        let size = usize::from_str_radix(line.trim(), 16).map_err(|_| broken("a bad chunk size"))?;
        while bytes.len() < line_end + 2 + size + 2 {
            read_more(stream, &mut bytes, deadline)?;
        }
        body.extend_from_slice(&bytes[line_end + 2..line_end + 2 + size]);
        bytes.drain(..line_end + 2 + size + 2);
        if size == 0 {
            return Ok(body);
        }
    }
}

/// Reads once; 0 at the end of the stream.
fn read_some(stream: &mut TcpStream, into: &mut Vec<u8>, deadline: Instant) -> io::Result<usize> {
    let mut buffer = [0; 16 * 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            // Of a process that was stopped and goes on.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => {
                let count = outcome?;
                into.extend_from_slice(&buffer[..count]);
                return Ok(count);
            }
        }
    }
}

/// Reads once; the end of the stream is an error.
fn read_more(stream: &mut TcpStream, into: &mut Vec<u8>, deadline: Instant) -> io::Result<()> {
    match read_some(stream, into, deadline)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
