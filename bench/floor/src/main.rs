//! The floor: the least programs that take the same clients as corecast. They are the yardstick of corecast's
//! measurements, not servers to use. One thread, one epoll set, one buffer; no queue, no topics, no limits, no
//! keepalive: a client whose socket buffer is full is dropped.
//!
//! `floor PORT` relays every message to every client. Whatever data messages one `recv` brought are joined into one
//! byte string, which is sent to every client with one `send` each (`MSG_DONTWAIT | MSG_NOSIGNAL`).
//!
//! `floor --echo PORT` sends every message back to its sender: a `read`, the frames made over in place, a `write`.
//!
//! Any path is accepted. SIGINT and SIGTERM end it; it then prints what it did.

mod echo;
mod frame;
mod handshake;
mod relay;
mod sys;

use std::process::ExitCode;

const USAGE: &str = "usage: floor [--echo] [--port] PORT   (1-65535, on 127.0.0.1)";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
struct Arguments {
    port: u16,
    echo: bool,
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("floor: {message}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match serve(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("floor: port {}: {error}", arguments.port);
            ExitCode::from(1)
        }
    }
}

fn serve(arguments: &Arguments) -> std::io::Result<()> {
    sys::stop_on_signals()?;
    let limit = sys::raise_descriptor_limit()?;
    let ready = |role| {
        println!("floor {role} ready on ws://127.0.0.1:{}/ ({limit} descriptors)", arguments.port);
    };
    let totals = if arguments.echo {
        let mut echo = echo::Echo::bind(arguments.port)?;
        ready("echo");
        echo.run()?
    } else {
        let mut relay = relay::Relay::bind(arguments.port)?;
        ready("relay");
        relay.run()?
    };
    println!(
        "floor: {} accepted, {} messages in, {} sends, {} slow clients dropped",
        totals.accepted, totals.messages, totals.sends, totals.slow_dropped
    );
    Ok(())
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut port = None;
    let mut echo = false;
    for argument in arguments {
        match argument.as_str() {
            "--echo" => echo = true,
            "--port" => {}
            text => {
                let text = text.strip_prefix("--port=").unwrap_or(text);
                let number = text.parse::<u16>().ok().filter(|number| *number > 0);
                port = Some(number.ok_or_else(|| format!("{text:?} is not a port"))?);
            }
        }
    }
    Ok(Arguments { port: port.ok_or("no port given")?, echo })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Arguments, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn port_is_accepted_in_every_spelling() {
        for line in ["9000", "--port 9000", "--port=9000"] {
            assert_eq!(parsed(line), Ok(Arguments { port: 9000, echo: false }), "{line}");
        }
        assert_eq!(parsed("--echo 9000"), Ok(Arguments { port: 9000, echo: true }));
    }

    #[test]
    fn bad_port_is_named() {
        assert!(parsed("70000").unwrap_err().contains("70000"));
        assert!(parsed("--verbose").unwrap_err().contains("--verbose"));
        assert!(parsed("").is_err());
    }
}
