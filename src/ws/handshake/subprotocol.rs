//! Choosing the subprotocol (RFC 6455 4.2.2 and 11.3.4).

use http::header::SEC_WEBSOCKET_PROTOCOL;

use super::{Rejection, Request, is_token_byte, tokens};

/// The first that the client offers and that is `supported`: the client lists them in its order of preference (RFC 6455
/// 4.1).
///
/// `Ok(None)`: none is used. With `strict`, a client that offers subprotocols must offer one of ours, even
/// if there are none of ours; a client that offers none passes. Names are compared byte by byte.
///
/// # Errors
/// 400 for an offer that is not a list of tokens, and for a strict mismatch.
pub fn select_subprotocol<'a>(
    request: &Request,
    supported: &'a [String],
    strict: bool,
) -> Result<Option<&'a str>, Rejection> {
    if !request.headers().contains_key(SEC_WEBSOCKET_PROTOCOL) {
        return Ok(None);
    }
    let offers = || tokens(request.headers(), SEC_WEBSOCKET_PROTOCOL);
    if !offers().all(|offer| offer.iter().all(|&byte| is_token_byte(byte))) {
        return Err(Rejection::bad_request("the header Sec-WebSocket-Protocol is invalid"));
    }
    let chosen = offers().find_map(|offer| supported.iter().find(|name| offer == name.as_bytes()));
    if chosen.is_none() && strict && offers().next().is_some() {
        return Err(Rejection::subprotocol());
    }
    Ok(chosen.map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::super::RejectReason;
    use super::*;

    fn select(lines: &[&str], strict: bool) -> Result<Option<String>, RejectReason> {
        let supported = ["v2.chat".to_owned(), "v1.chat".to_owned()];
        let mut request = Request::new(());
        for line in lines {
            request.headers_mut().append(SEC_WEBSOCKET_PROTOCOL, line.parse().unwrap());
        }
        select_subprotocol(&request, &supported, strict)
            .map(|name| name.map(str::to_owned))
            .map_err(|rejection| rejection.reason)
    }

    #[test]
    fn the_clients_preference_decides() {
        for strict in [true, false] {
            for lines in [
                &["v2.chat, v1.chat"][..],
                &["v2.chat", "v1.chat"],
                &["other,v2.chat"],
                &[" v2.chat "],
                &["v2.chat,,v2.chat"],
            ] {
                assert_eq!(select(lines, strict), Ok(Some("v2.chat".to_owned())), "{lines:?}");
            }
            assert_eq!(select(&["v1.chat, v2.chat"], strict), Ok(Some("v1.chat".to_owned())));
            assert_eq!(select(&["other", "v1.chat"], strict), Ok(Some("v1.chat".to_owned())));
        }
    }

    #[test]
    fn strict_wants_one_of_ours_from_a_client_that_offers_any() {
        for lines in [&["other"][..], &["V2.chat"], &["v2.chat2"]] {
            assert_eq!(select(lines, true), Err(RejectReason::Subprotocol), "{lines:?}");
            assert_eq!(select(lines, false), Ok(None), "{lines:?}");
        }
        for lines in [&[][..], &[""], &[" , "]] {
            assert_eq!(select(lines, true), Ok(None), "{lines:?}");
        }
        let mut request = Request::new(());
        request.headers_mut().append(SEC_WEBSOCKET_PROTOCOL, "any".parse().unwrap());
        let none_of_ours = select_subprotocol(&request, &[], true);
        assert_eq!(none_of_ours.unwrap_err().reason, RejectReason::Subprotocol);
    }

    #[test]
    fn offers_that_are_not_tokens_are_refused() {
        for line in ["a b", "v2.chat, \"x\"", "a/b", "é", "v2.chat;q=1"] {
            assert_eq!(select(&[line], false), Err(RejectReason::BadRequest), "{line:?}");
        }
    }
}
