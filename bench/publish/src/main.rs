//! Publishes by HTTP as fast as a server takes it, and counts the answers.
//!
//! Each connection is one thread that keeps a fixed number of requests on their way: it sends as many as it has got
//! answers. Only the status of an answer is looked at, and its length, so that the client costs little. Exit code 1
//! if any answer was not a success.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

/// Time for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Publishes by HTTP as fast as a server takes it.
#[derive(Clone, Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Address of the control port, IP:PORT
    #[arg(long, default_value = "127.0.0.1:8081")]
    control: SocketAddr,
    /// Topic to publish to; a number is appended for each connection with --spread
    #[arg(long, default_value = "bench")]
    topic: String,
    /// Publish to a topic of its own on each connection
    #[arg(long)]
    spread: bool,
    /// Connections
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    connections: u32,
    /// Requests on their way on each connection; more than 1 is pipelining
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    depth: u32,
    /// Bytes of one message
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=65536))]
    payload: u32,
    /// Messages of one request; with more than 1 they go as a batch
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    batch: u32,
    /// Seconds to go on
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Bearer token
    #[arg(long)]
    token: Option<String>,
}

/// What a connection came to.
#[derive(Default)]
struct Counts {
    answers: u64,
    refused: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let start = Instant::now();
    let end = start + Duration::from_secs(arguments.seconds);
    let workers: Vec<_> = (0..arguments.connections)
        .map(|number| {
            let request = request(&arguments, number);
            let arguments = arguments.clone();
            thread::spawn(move || run(&arguments, &request, end))
        })
        .collect();
    let (mut total, mut failed) = (Counts::default(), false);
    for worker in workers {
        match worker.join() {
            Ok(Ok(counts)) => {
                total.answers += counts.answers;
                total.refused += counts.refused;
            }
            Ok(Err(error)) => {
                eprintln!("publish: {}: {error}", arguments.control);
                failed = true;
            }
            Err(_) => failed = true,
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{} connections, {} requests on their way on each, {} B, {} messages a request",
        arguments.connections, arguments.depth, arguments.payload, arguments.batch
    );
    let messages = total.answers * u64::from(arguments.batch);
    println!("{messages} publishes in {seconds:.2} s: {:.0} a second", messages as f64 / seconds);
    println!("{} requests refused", total.refused);
    if failed || total.refused > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn request(arguments: &Arguments, number: u32) -> Vec<u8> {
    let topic = match arguments.spread {
        true => format!("{}{number}", arguments.topic),
        false => arguments.topic.clone(),
    };
    let payload = "x".repeat(arguments.payload as usize);
    let (target, body) = match arguments.batch {
        1 => (format!("/pub/{topic}"), payload),
        count => {
            let item = format!("{{\"topic\":\"{topic}\",\"data\":\"{payload}\"}}");
            ("/pub".to_owned(), format!("[{}]", vec![item; count as usize].join(",")))
        }
    };
    let token = arguments.token.as_ref().map(|token| format!("Authorization: Bearer {token}\r\n"));
    format!(
        "POST {target} HTTP/1.1\r\nHost: {}\r\n{}Content-Length: {}\r\n\r\n{body}",
        arguments.control,
        token.unwrap_or_default(),
        body.len()
    )
    .into_bytes()
}

fn run(arguments: &Arguments, request: &[u8], end: Instant) -> io::Result<Counts> {
    let mut stream = TcpStream::connect(arguments.control)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    let many = request.repeat(arguments.depth as usize);
    let mut counts = Counts::default();
    let (mut bytes, mut filled) = (vec![0; 256 * 1024], 0);
    let mut waiting = arguments.depth as usize;
    stream.write_all(&many)?;
    while waiting > 0 {
        let count = stream.read(&mut bytes[filled..])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += count;
        let (mut taken, mut answers) = (0, 0);
        while let Some((length, success)) = answer(&bytes[taken..filled])? {
            taken += length;
            answers += 1;
            counts.refused += u64::from(!success);
        }
        bytes.copy_within(taken..filled, 0);
        filled -= taken;
        counts.answers += answers as u64;
        waiting -= answers;
        if Instant::now() < end {
            stream.write_all(&many[..answers * request.len()])?;
            waiting += answers;
        }
    }
    Ok(counts)
}

/// Length of the first answer, if it is there as a whole, and whether it is a success.
fn answer(bytes: &[u8]) -> io::Result<Option<(usize, bool)>> {
    let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "an answer without a status or a length");
    let text = std::str::from_utf8(&bytes[..head]).map_err(|_| bad())?;
    let status = text.split(' ').nth(1).ok_or_else(bad)?;
    let length = text.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let whole = head + 4 + length.ok_or_else(bad)?;
    Ok((bytes.len() >= whole).then_some((whole, status.starts_with('2'))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let two = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 429 x\r\ncontent-length: 0\r\n\r\n";
        let (length, success) = answer(two).unwrap().unwrap();
        assert_eq!((length, success), (46, true));
        assert_eq!(answer(&two[length..]).unwrap(), Some((two.len() - length, false)));
        for cut in 0..length {
            assert_eq!(answer(&two[..cut]).unwrap(), None);
        }
        assert!(answer(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
