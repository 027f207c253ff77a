//! Paths of routes: `/chat`, `/rooms/{room}`, `/sub/{*topics}`.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use crate::ws::handshake::percent_decode;
use crate::ws::{Rejection, Request};

/// The path of a route.
///
/// Segments are compared one by one; `{name}` stands for one segment that is not empty, `{*name}` at the end for
/// all the rest, be it empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PathPattern(Vec<Segment>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Parameter(Arc<str>),
    Rest(Arc<str>),
}

/// A path that no route can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidPath {
    path: String,
    why: &'static str,
}

impl fmt::Display for InvalidPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route {:?}: {}", self.path, self.why)
    }
}

impl Error for InvalidPath {}

/// What stands in a request's path where its route has `{name}`, as the extension of the request. Values of
/// `{name}` are percent-decoded, those of `{*name}` are as they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathParameters(Vec<(Arc<str>, String)>);

static NO_PARAMETERS: PathParameters = PathParameters(Vec::new());

impl PathParameters {
    /// The parameters of a request that a route has taken; none for any other.
    #[must_use]
    pub fn of(request: &Request) -> &Self {
        request.extensions().get().unwrap_or(&NO_PARAMETERS)
    }

    /// The value of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| **known == *name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PathPattern {
    pub(crate) fn parse(path: &str) -> Result<Self, InvalidPath> {
        let invalid = |why| InvalidPath { path: path.to_owned(), why };
        let rest = path.strip_prefix('/').ok_or(invalid("expected a path that begins with /"))?;
        let mut segments = Vec::new();
        let mut names = Vec::new();
        for text in rest.split('/') {
            if let Some(Segment::Rest(_)) = segments.last() {
                return Err(invalid("nothing may follow {*name}"));
            }
            let name = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
            segments.push(match (name, name.and_then(|name| name.strip_prefix('*'))) {
                (_, Some(name)) => Segment::Rest(name.into()),
                (Some(name), _) => Segment::Parameter(name.into()),
                (None, _) if text.contains(['{', '}', '?', '#']) => {
                    return Err(invalid("expected whole segments {name}, and neither ? nor #"));
                }
                (None, _) => Segment::Literal(text.to_owned()),
            });
            if let Some(name) = name.map(|name| name.trim_start_matches('*')) {
                if name.is_empty() || name.contains(['{', '}', '*']) || names.contains(&name) {
                    return Err(invalid("expected a name of its own in each {}"));
                }
                names.push(name);
            }
        }
        Ok(Self(segments))
    }

    /// The parameters if the pattern fits a path. Error: 400 for a parameter that is not valid when decoded.
    pub(crate) fn matches(&self, path: &str) -> Result<Option<PathParameters>, Rejection> {
        let mut rest = path.strip_prefix('/');
        let mut values = Vec::new();
        for segment in &self.0 {
            let Some(left) = rest else { return Ok(None) };
            if let Segment::Rest(name) = segment {
                values.push((name.clone(), left.to_owned()));
                rest = None;
                break;
            }
            let (text, next) = match memchr::memchr(b'/', left.as_bytes()) {
                Some(end) => (&left[..end], Some(&left[end + 1..])),
                None => (left, None),
            };
            match segment {
                Segment::Rest(_) => {}
                Segment::Parameter(_) if text.is_empty() => return Ok(None),
                Segment::Parameter(name) => values.push((name.clone(), text.to_owned())),
                Segment::Literal(literal) => {
                    if text != literal && percent_decode(text).ok().as_deref() != Some(literal) {
                        return Ok(None);
                    }
                }
            }
            rest = next;
        }
        if rest.is_some() {
            return Ok(None);
        }
        for (segment, (_, value)) in
            self.0.iter().filter(|s| !matches!(s, Segment::Literal(_))).zip(&mut values)
        {
            if let Segment::Parameter(_) = segment {
                *value = percent_decode(value)?.into_owned();
            }
        }
        Ok(Some(PathParameters(values)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pattern: &str, path: &str) -> Option<Vec<String>> {
        let parameters = PathPattern::parse(pattern).unwrap().matches(path).unwrap();
        parameters.map(|parameters| parameters.0.into_iter().map(|(_, value)| value).collect())
    }

    fn some(texts: &[&str]) -> Option<Vec<String>> {
        Some(texts.iter().map(|&text| text.to_owned()).collect())
    }

    #[test]
    fn literals_match_themselves_only() {
        assert_eq!(values("/chat", "/chat"), some(&[]));
        assert_eq!(values("/chat", "/ch%61t"), some(&[]));
        assert_eq!(values("/", "/"), some(&[]));
        for path in ["/", "/chat/", "/chats", "/Chat", "//chat", "/chat/more", "/%zz"] {
            assert_eq!(values("/chat", path), None, "{path}");
        }
    }

    #[test]
    fn parameters_take_one_segment_decoded() {
        assert_eq!(values("/rooms/{room}", "/rooms/a%20b%2Fc"), some(&["a b/c"]));
        assert_eq!(values("/{a}/x/{b}", "/1/x/2"), some(&["1", "2"]));
        for path in ["/rooms", "/rooms/", "/rooms/a/", "/rooms/a/b", "/room/a"] {
            assert_eq!(values("/rooms/{room}", path), None, "{path}");
        }
        let pattern = PathPattern::parse("/rooms/{room}").unwrap();
        assert!(pattern.matches("/rooms/%ff").is_err());
        assert_eq!(pattern.matches("/other/%ff").unwrap(), None);
    }

    #[test]
    fn the_rest_is_taken_as_it_is() {
        assert_eq!(values("/sub/{*topics}", "/sub/a/b%2C,c"), some(&["a/b%2C,c"]));
        assert_eq!(values("/sub/{*topics}", "/sub/"), some(&[""]));
        assert_eq!(values("/sub/{*topics}", "/sub"), None);
        assert_eq!(values("/{*path}", "/"), some(&[""]));
        assert_eq!(values("/{a}/{*rest}", "/x/y/z"), some(&["x", "y/z"]));
    }

    #[test]
    fn paths_that_mean_nothing_are_refused_with_their_name() {
        for path in
            ["", "chat", "/{}", "/{*}", "/{a}/{a}", "/{*a}/b", "/a{b}", "/{a", "/a?b", "/a#b", "/{{a}}"]
        {
            let error = PathPattern::parse(path).unwrap_err();
            assert!(error.to_string().contains(&format!("{path:?}")), "{error}");
        }
    }
}
