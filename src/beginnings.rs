//! Where a subscriber of the server binary begins, as its URL says: `?since=`, `?last=`, `?last_event_id=`, `?notice=`.

use corecast::{Notice, Position, Rejection, Request, Start};

/// Where a request's subscriptions begin.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Beginnings {
    /// For each topic, where the request names places; else empty.
    starts: Vec<Start>,
    /// When the client is told where it begins.
    pub(crate) notice: Notice,
}

impl Beginnings {
    /// Reads a request for so many topics.
    ///
    /// # Errors
    /// 400 for a parameter that cannot be understood, for two that contradict each other, and for a number of positions
    /// other than that of topics.
    pub(crate) fn of(request: &Request, topics: usize) -> Result<Self, Rejection> {
        let (mut starts, mut last_seen, mut notice) = (Vec::new(), None, None);
        let Some(query) = request.uri().query() else {
            return Ok(Self { starts, notice: Notice::IfLost });
        };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let given = match &*name {
                "since" => since(&value, topics)?,
                "last" => last(&value, topics)?,
                "last_event_id" => {
                    last_seen = Some(last_event_id(&value, topics));
                    continue;
                }
                "notice" => {
                    notice = Some(value == "true");
                    if !matches!(&*value, "true" | "false") {
                        return Err(Rejection::bad_request("notice is true or false"));
                    }
                    continue;
                }
                // What others than us read, such as a cache-buster or a token for a proxy.
                _ => continue,
            };
            if !starts.is_empty() {
                return Err(Rejection::bad_request("since and last exclude each other, and come once"));
            }
            starts = given;
        }
        // Its client adds it to the URL that it was given, whatever that says of the first time.
        let starts = last_seen.unwrap_or(starts);
        let notice = match notice {
            Some(true) => Notice::Always,
            Some(false) => Notice::Never,
            None => Notice::IfLost,
        };
        Ok(Self { starts, notice })
    }

    /// Where the subscription to a topic begins, by its place in the list; `None` is live, without any more ado.
    pub(crate) fn start(&self, topic: usize) -> Option<Start> {
        let live = (self.notice == Notice::Always).then_some(Start::Now);
        self.starts.get(topic).copied().or(live)
    }
}

fn since(value: &str, topics: usize) -> Result<Vec<Start>, Rejection> {
    let positions: Result<Vec<Position>, _> = value.split(',').map(str::parse).collect();
    let positions = positions.map_err(|_| {
        Rejection::bad_request(
            "since is EPOCH:OFFSET, the epoch of 16 hex digits; for several topics one for each, separated by commas",
        )
    })?;
    if positions.len() != topics {
        return Err(Rejection::bad_request("since needs one EPOCH:OFFSET for each topic"));
    }
    Ok(positions.into_iter().map(Start::After).collect())
}

fn last(value: &str, topics: usize) -> Result<Vec<Start>, Rejection> {
    let count = value.parse().map_err(|_| Rejection::bad_request("last is a number of messages"))?;
    Ok(vec![Start::Latest(count); topics])
}

/// What a client of `ws+meta.nchan` adds to the URL when it comes back: the id of one message, whatever its topic. Such a
/// client would repeat a refused request for ever, so what cannot be understood is a place that is not known.
fn last_event_id(value: &str, topics: usize) -> Vec<Start> {
    let unknown = Position { epoch: 0, offset: u64::MAX };
    let position = match topics {
        1 => value.parse().unwrap_or(unknown),
        _ => unknown,
    };
    vec![Start::After(position); topics]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "00000000000000aa:1";

    fn of(query: &str, topics: usize) -> Result<(Vec<Option<Start>>, Notice), ()> {
        let uri = format!("/sub/a{query}");
        let request = http::Request::get(uri).body(()).unwrap();
        let read = Beginnings::of(&request, topics).map_err(|rejection| {
            assert_eq!(rejection.status(), 400);
        })?;
        Ok(((0..topics).map(|topic| read.start(topic)).collect(), read.notice))
    }

    fn after(epoch: u64, offset: u64) -> Option<Start> {
        Some(Start::After(Position { epoch, offset }))
    }

    #[test]
    fn a_request_says_where_it_begins() {
        assert_eq!(of("", 2), Ok((vec![None, None], Notice::IfLost)));
        assert_eq!(of("?x=1&token=since", 1), Ok((vec![None], Notice::IfLost)));
        assert_eq!(of(&format!("?since={ONE}"), 1), Ok((vec![after(0xaa, 1)], Notice::IfLost)));
        assert_eq!(
            of(&format!("?since={}", ONE.replace(':', "%3A")), 1),
            Ok((vec![after(0xaa, 1)], Notice::IfLost))
        );
        let both = format!("?notice=false&since={ONE},00000000000000bb:2");
        assert_eq!(of(&both, 2), Ok((vec![after(0xaa, 1), after(0xbb, 2)], Notice::Never)));
        assert_eq!(of("?last=3", 2), Ok((vec![Some(Start::Latest(3)); 2], Notice::IfLost)));
        assert_eq!(of("?notice=true", 1), Ok((vec![Some(Start::Now)], Notice::Always)));
        assert_eq!(of(&format!("?last_event_id={ONE}"), 1), Ok((vec![after(0xaa, 1)], Notice::IfLost)));
        for first in ["last=10", "since=00000000000000cc:7"] {
            let back = format!("?{first}&last_event_id={ONE}");
            assert_eq!(of(&back, 1), Ok((vec![after(0xaa, 1)], Notice::IfLost)));
        }
        for query in [format!("?last_event_id={ONE}"), "?last_event_id=nonsense".to_owned()] {
            assert_eq!(of(&query, 2), Ok((vec![after(0, u64::MAX); 2], Notice::IfLost)));
        }
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        for query in [
            "?since=",
            "?since=x",
            "?since=00000000000000aa",
            "?last=",
            "?last=-1",
            "?last=x",
            "?notice=",
            "?notice=1",
            "?last=1&last=2",
            "?since=00000000000000aa:1&last=1",
            "?since=00000000000000aa:1,00000000000000aa:1",
        ] {
            assert_eq!(of(query, 1), Err(()), "{query}");
        }
        assert_eq!(of(&format!("?since={ONE}"), 2), Err(()));
    }
}
