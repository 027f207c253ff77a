//! The path of a request target, decoded.

use std::borrow::Cow;

use super::{Rejection, Request};

/// The segments of the path, percent-decoded: `/sub/a%2Cb` gives `sub` and `a,b`.
///
/// The leading slash is no segment; a trailing one, and a doubled one, give an empty segment. Works for
/// origin-form and absolute-form targets.
///
/// # Errors
/// 400 as for [`percent_decode`].
pub fn path_segments(request: &Request) -> Result<Vec<Cow<'_, str>>, Rejection> {
    let path = request.uri().path();
    path.strip_prefix('/').unwrap_or(path).split('/').map(percent_decode).collect()
}

/// Decodes `%XX` (RFC 3986 2.1).
///
/// # Errors
/// 400 for a `%` without two hex digits, and for bytes that are not UTF-8.
pub fn percent_decode(text: &str) -> Result<Cow<'_, str>, Rejection> {
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    loop {
        match rest {
            [] => break,
            [b'%', high, low, after @ ..] => {
                let (Some(high), Some(low)) = (hex_value(*high), hex_value(*low)) else {
                    return Err(bad_percent());
                };
                decoded.push(high << 4 | low);
                rest = after;
            }
            [b'%', ..] => return Err(bad_percent()),
            [byte, after @ ..] => {
                decoded.push(*byte);
                rest = after;
            }
        }
    }
    match String::from_utf8(decoded) {
        Ok(decoded) => Ok(Cow::Owned(decoded)),
        Err(_) => Err(Rejection::bad_request("the path is not UTF-8")),
    }
}

fn bad_percent() -> Rejection {
    Rejection::bad_request("the path has a % without two hex digits")
}

fn hex_value(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_encoding_is_decoded_or_refused() {
        for (text, decoded) in [
            ("", "0"),
            ("plain", "plain0"),
            ("a%2Cb", "a,b0"),
            ("%e2%82%AC", "€0"),
            ("100%25", "100%0"),
            ("%2525", "%250"),
            ("é", "é0"),
        ] {
            // The suffix makes sure that what follows an escape is kept.
            assert_eq!(percent_decode(&format!("{text}0")).unwrap(), decoded);
        }
        for text in ["%", "a%", "%4", "%4g", "%g4", "%%41", "% 1", "%+1", "%é", "%ff", "%c3", "%ed%a0%80"] {
            assert!(percent_decode(text).is_err(), "{text}");
        }
        assert!(matches!(percent_decode("plain"), Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn segments_of_both_target_forms() {
        let segments = |target: &str| {
            let mut request = Request::new(());
            *request.uri_mut() = target.parse().unwrap();
            path_segments(&request).map(|segments| segments.iter().map(|s| s.to_string()).collect::<Vec<_>>())
        };
        for prefix in ["", "http://example.com", "ws://example.com:80"] {
            assert_eq!(segments(&format!("{prefix}/")).unwrap(), [""]);
            assert_eq!(segments(&format!("{prefix}/sub/a,b?since=1/2")).unwrap(), ["sub", "a,b"]);
            assert_eq!(segments(&format!("{prefix}/sub/a%2Fb/")).unwrap(), ["sub", "a/b", ""]);
            assert_eq!(segments(&format!("{prefix}//sub")).unwrap(), ["", "sub"]);
            assert!(segments(&format!("{prefix}/sub/%zz")).is_err());
        }
        assert_eq!(segments("http://example.com").unwrap(), [""]);
    }
}
