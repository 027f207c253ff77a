//! Settings as environment variables: their names, and those that only look like one.

use std::ffi::OsString;

use super::load::settings;

/// Prefix of the environment variables: `--send-queue` is `CORECAST_SEND_QUEUE`.
const PREFIX: &str = "CORECAST_";

/// A known name is taken for the one that was meant if no more than one in so many letters is wrong.
const LETTERS_PER_MISTAKE: usize = 8;

/// Protocols in the names of variables that stand for a port.
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// The variable of a flag, which is given without the dashes.
pub(super) fn variable(long: &str) -> String {
    format!("{PREFIX}{}", long.to_ascii_uppercase().replace('-', "_"))
}

/// Warnings of variables that begin like those of settings, and are none: misspelled ones, one sentence each. An empty
/// one counts as not set. What a container platform sets in each container for a service called `corecast…` is nobody's
/// mistake.
#[must_use]
pub fn environment_warnings(environment: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<String> {
    let known: Vec<String> = settings().chain(["config".to_owned()]).map(|long| variable(&long)).collect();
    let mut unknown: Vec<String> = environment
        .into_iter()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .filter(|(name, value)| name.starts_with(PREFIX) && !known.contains(name) && !value.is_empty())
        .filter(|(name, value)| !is_of_a_platform(name, value))
        .map(|(name, _)| name)
        .collect();
    unknown.sort_unstable();
    unknown.iter().map(|name| warning(name, &known)).collect()
}

fn warning(name: &str, known: &[String]) -> String {
    let shown = name.escape_debug();
    let nearest = known.iter().map(|other| (distance(name, other), other)).min();
    let help = match nearest {
        Some((distance, other)) if distance <= name.len() / LETTERS_PER_MISTAKE => {
            format!("did you mean {other}?")
        }
        _ => "--help names all flags, and --send-queue is CORECAST_SEND_QUEUE".to_owned(),
    };
    format!("the environment variable {shown} is no setting, and is not looked at; {help}")
}

/// Whether Kubernetes or Docker sets such a variable to tell where a service is: `…_SERVICE_HOST`, `…_SERVICE_PORT`,
/// `…_SERVICE_PORT_NAME`, `…_PORT` with a URL, `…_PORT_8080_TCP` and `…_PORT_8080_TCP_ADDR`, with `_PORT` or `_PROTO` likewise.
fn is_of_a_platform(name: &str, value: &str) -> bool {
    let is_port = |rest: &str| {
        let mut parts = rest.split('_');
        let number = parts.next().is_some_and(|part| part.parse::<u16>().is_ok());
        number && parts.next().is_some_and(|part| PROTOCOLS.contains(&part))
    };
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT_")
        || name.ends_with("_SERVICE_PORT")
        || (name.ends_with("_PORT") && value.contains("://"))
        || name.match_indices("_PORT_").any(|(at, port)| is_port(&name[at + port.len()..]))
}

/// The least number of letters that turn one word into another when they are put in, left out, or replaced.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings(variables: &[(&str, &str)]) -> Vec<String> {
        environment_warnings(variables.iter().map(|(name, value)| (name.into(), value.into())))
    }

    #[test]
    fn a_misspelled_variable_is_named_with_the_one_that_was_meant() {
        let told = warnings(&[
            ("CORECAST_LISTN", "s3cret"),
            ("CORECAST_KEEP_ALIVE", "s3cret"),
            ("CORECAST_ALLOWED_ORIGINS", "s3cret"),
            ("CORECAST_TOKEN", "s3cret"),
            ("CORECAST_listen", "s3cret"),
        ]);
        let said = |wanted: &str| {
            told.iter().find(|line| line.contains(&format!(" {wanted} is no setting"))).expect(wanted)
        };
        assert_eq!(told.len(), 5);
        assert!(told.iter().all(|line| !line.contains("s3cret")), "the value may be a secret: {told:?}");
        assert!(said("CORECAST_LISTN").ends_with("did you mean CORECAST_LISTEN?"));
        assert!(said("CORECAST_KEEP_ALIVE").ends_with("did you mean CORECAST_KEEPALIVE?"));
        assert!(said("CORECAST_ALLOWED_ORIGINS").ends_with("did you mean CORECAST_ALLOWED_ORIGIN?"));
        assert!(said("CORECAST_TOKEN").contains("--help names all flags"));
        assert!(said("CORECAST_listen").contains("--help names all flags"));
    }

    #[test]
    fn settings_empty_variables_and_those_of_platforms_are_no_mistakes() {
        for long in settings() {
            assert_eq!(warnings(&[(&variable(&long), "x")]), Vec::<String>::new());
        }
        let fine = [
            ("CORECAST_CONFIG", "x"),
            ("CORECAST_LISTN", ""),
            ("LISTN", "x"),
            ("CORECAST_SERVICE_HOST", "10.0.0.1"),
            ("CORECAST_SERVICE_PORT", "8080"),
            ("CORECAST_SERVICE_PORT_HTTP", "8080"),
            ("CORECAST_PORT", "tcp://10.0.0.1:8080"),
            ("CORECAST_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
            ("CORECAST_PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("CORECAST_PORT_8080_TCP_PORT", "8080"),
            ("CORECAST_PORT_8080_UDP_PROTO", "udp"),
            ("CORECAST_CONTROL_PORT_8081_TCP", "tcp://10.0.0.1:8081"),
            ("CORECAST_CONTROL_SERVICE_HOST", "10.0.0.1"),
        ];
        assert_eq!(warnings(&fine), Vec::<String>::new());
        let mistakes =
            [("CORECAST_PORT_X_TCP", "x"), ("CORECAST_PORT", "80"), ("CORECAST_CONTROL_PORT", "81")];
        assert_eq!(warnings(&mistakes).len(), 3);
    }

    #[test]
    fn a_distance_counts_letters() {
        for (one, other, letters) in [
            ("", "", 0),
            ("abc", "abc", 0),
            ("abc", "", 3),
            ("abc", "axc", 1),
            ("ab", "abc", 1),
            ("xab", "ab", 1),
        ] {
            assert_eq!(distance(one, other), letters, "{one} {other}");
            assert_eq!(distance(other, one), letters, "{other} {one}");
        }
    }
}
