//! `POST /pub`: many messages in one request, each with an outcome of its own.
//!
//! Invariants:
//! 1. Items go to the topics' owners in the order of the array, so one topic's items are published in it.
//! 2. An item that is refused stops none behind it. A body that is refused publishes nothing.
//! 3. At most [`WINDOW`] items are on their way at a time.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::api::{
    ANSWER_TIMEOUT, ApiError, Awaited, Payload, RETRY_AFTER_SECONDS, answer, authorize, publish_status,
};
use super::dispatcher::Command;
use super::{ControlSettings, Shared};
use crate::clock;
use crate::frame::Frame;
use crate::shard::mesh::RING_MESSAGES;
use crate::shard::message::{Receipt, Source};
use crate::topic::TopicName;
use crate::ws::MessageKind;

/// Items of one batch; over it: 413.
pub(super) const MAX_ITEMS: usize = 1024;

/// Payload bytes for which a batch has room in any case. One message of the largest size fits as well.
const PAYLOAD_BYTES: usize = 1024 * 1024;

/// Bytes of an item beside its payload: a topic's 128, names and punctuation.
const ITEM_BYTES: usize = 256;

/// Items on their way at a time: a part of a ring, so that a batch for one topic is not refused for its own
/// length and leaves room for others.
const WINDOW: usize = RING_MESSAGES / 4;

const FORM: &str = r#"{"topic": "...", "data": "text"} or {"topic": "...", "data_base64": "..."}"#;

/// Bytes of a batch's body; over it: 413. It is that of as many payload bytes as there is room for, in base64.
/// Text may need more: JSON writes a control character with six.
fn max_body_bytes(max_message_bytes: usize) -> usize {
    let base64 = PAYLOAD_BYTES.max(max_message_bytes).div_ceil(3).saturating_mul(4);
    base64.saturating_add(MAX_ITEMS * ITEM_BYTES)
}

/// Publishes the items of the body.
pub(super) async fn publish_all(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let mut body = Payload::new(body, &head);
    let payload = match read_body(&shared.settings.load_full(), &head, &mut body).await {
        Ok(payload) => payload,
        Err(error) => {
            body.discard().await;
            return Err(error);
        }
    };
    let items = Items::read(&payload)?;
    let outcomes = publish_items(&shared, &items.0).await;
    let overloaded = outcomes.iter().any(Outcome::is_overloaded);
    let mut response = Json(outcomes).into_response();
    if overloaded {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS);
    }
    Ok(response)
}

async fn read_body(
    settings: &ControlSettings,
    head: &Parts,
    body: &mut Payload,
) -> Result<Vec<u8>, ApiError> {
    authorize(settings.publish_token.as_ref(), &head.headers)?;
    body.read(max_body_bytes(settings.max_message_bytes), "the limit of a batch").await
}

async fn publish_items<'a>(shared: &Shared, items: &[&'a RawValue]) -> Vec<Outcome<'a>> {
    // One deadline for all: with a dead shard a batch takes no longer than a single publish.
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let mut outcomes = Vec::with_capacity(items.len());
    let mut underway: VecDeque<Underway<'_>> = VecDeque::with_capacity(items.len().min(WINDOW));
    for item in items {
        if underway.len() == WINDOW {
            if let Some(first) = underway.pop_front() {
                outcomes.push(first.finish(deadline).await);
            }
        }
        underway.push_back(Underway::begin(shared, deadline, item).await);
    }
    for item in underway {
        outcomes.push(item.finish(deadline).await);
    }
    outcomes
}

/// An item that was handed to its owner, or refused before.
struct Underway<'a> {
    topic: Option<Cow<'a, str>>,
    awaited: Result<Awaited<Receipt>, ApiError>,
}

impl<'a> Underway<'a> {
    async fn begin(shared: &Shared, deadline: Instant, json: &'a RawValue) -> Self {
        let (topic, message) = read_item(json, shared.settings.load().max_message_bytes);
        let awaited = match message {
            Ok((topic, frame)) => {
                let source = Source::Http;
                shared.submit(deadline, |reply| Command::Publish { topic, frame, source, reply }).await
            }
            Err(error) => Err(error),
        };
        Self { topic, awaited }
    }

    async fn finish(self, deadline: Instant) -> Outcome<'a> {
        let Self { topic, awaited } = self;
        let outcome = match awaited {
            Ok(awaited) => answer(deadline, awaited).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(receipt) => Outcome::Published {
                status: publish_status(&receipt).as_u16(),
                topic,
                subscribers: receipt.subscribers,
                epoch: receipt.position.epoch_text(),
                offset: receipt.position.offset,
            },
            Err(error) => Outcome::Refused { status: error.status.as_u16(), topic, error: error.message },
        }
    }
}

/// What became of an item, as it stands in the answer.
#[derive(Serialize)]
#[serde(untagged)]
enum Outcome<'a> {
    Published {
        status: u16,
        topic: Option<Cow<'a, str>>,
        subscribers: u64,
        epoch: String,
        offset: u64,
    },
    Refused {
        status: u16,
        /// As the item names it; `null` where it does not.
        topic: Option<Cow<'a, str>>,
        error: Cow<'static, str>,
    },
}

impl Outcome<'_> {
    fn is_overloaded(&self) -> bool {
        matches!(self, Self::Refused { status: 429, .. })
    }
}

/// The items of a body, each still to be read: a bad one must not spoil the others.
struct Items<'a>(Vec<&'a RawValue>);

impl<'a> Items<'a> {
    fn read(body: &'a [u8]) -> Result<Self, ApiError> {
        let bad = |reason: &dyn fmt::Display| {
            let reason = format!("the body is not a JSON array of {FORM}: {reason}");
            ApiError::new(StatusCode::BAD_REQUEST, reason)
        };
        let text = simdutf8::compat::from_utf8(body).map_err(|error| bad(&error))?;
        let Counted { items, more } = serde_json::from_str(text).map_err(|error| bad(&error))?;
        if more {
            let reason = format!("a batch has at most {MAX_ITEMS} items; none of these was published");
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, reason));
        }
        Ok(Self(items))
    }
}

/// The first items of an array, and whether there are more than the limit: those are passed over, so that an
/// array of a million zeros takes no memory.
struct Counted<'a> {
    items: Vec<&'a RawValue>,
    more: bool,
}

impl<'de> Deserialize<'de> for Counted<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Array;
        impl<'de> Visitor<'de> for Array {
            type Value = Counted<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
                let (mut items, mut more) = (Vec::new(), false);
                while items.len() < MAX_ITEMS {
                    match array.next_element()? {
                        Some(item) => items.push(item),
                        None => return Ok(Counted { items, more }),
                    }
                }
                while array.next_element::<IgnoredAny>()?.is_some() {
                    more = true;
                }
                Ok(Counted { items, more })
            }
        }
        deserializer.deserialize_seq(Array)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Item<'a> {
    #[serde(borrow)]
    topic: Cow<'a, str>,
    data: Option<String>,
    data_base64: Option<String>,
}

/// As much of a bad item as names it in the answer.
#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    topic: Cow<'a, str>,
}

/// A message and where it goes.
type Message = (TopicName, Arc<Frame>);

/// The topic as the item names it, if it does, and the message, if it is one.
fn read_item(json: &RawValue, max_message_bytes: usize) -> (Option<Cow<'_, str>>, Result<Message, ApiError>) {
    let bad = |reason: &dyn fmt::Display| {
        ApiError::new(StatusCode::BAD_REQUEST, format!("the item is not {FORM}: {reason}"))
    };
    // An array of values in the right order would do for serde.
    if !json.get().starts_with('{') {
        return (None, Err(bad(&"it is no object")));
    }
    match serde_json::from_str::<Item<'_>>(json.get()) {
        Ok(Item { topic, data, data_base64 }) => {
            let message = read_message(&topic, data, data_base64, max_message_bytes);
            (Some(topic), message)
        }
        Err(error) => {
            let named = serde_json::from_str::<Named<'_>>(json.get());
            (named.ok().map(|named| named.topic), Err(bad(&error)))
        }
    }
}

fn read_message(
    topic: &str,
    data: Option<String>,
    data_base64: Option<String>,
    max_message_bytes: usize,
) -> Result<Message, ApiError> {
    let bad = |reason: String| ApiError::new(StatusCode::BAD_REQUEST, reason);
    let topic = TopicName::new(topic).map_err(|error| bad(error.to_string()))?;
    let (kind, payload) = match (data, data_base64) {
        (Some(text), None) => (MessageKind::Text, text.into_bytes()),
        (None, Some(base64)) => {
            let bytes = STANDARD.decode(base64).map_err(|error| {
                bad(format!("data_base64 is not base64 of RFC 4648 section 4 with padding: {error}"))
            })?;
            (MessageKind::Binary, bytes)
        }
        (Some(_), Some(_)) => return Err(bad("an item has data or data_base64, not both".to_owned())),
        (None, None) => return Err(bad("the item has neither data nor data_base64".to_owned())),
    };
    if payload.len() > max_message_bytes {
        let reason = format!("the message is longer than --max-message-size, {max_message_bytes} bytes");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, reason));
    }
    Ok((topic, Frame::new(kind, &payload, clock::monotonic_nanos(), None)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::Encoding;

    /// The frame's bytes, or the status and the reason.
    type Bytes = Result<Vec<u8>, (u16, String)>;

    fn item(json: &str) -> (Option<String>, Bytes) {
        let json = serde_json::from_str::<&RawValue>(json).unwrap();
        let (topic, message) = read_item(json, 5);
        let message = message
            .map(|(_, frame)| frame.bytes(Encoding::PLAIN).to_vec())
            .map_err(|error| (error.status.as_u16(), error.message.into_owned()));
        (topic.map(Cow::into_owned), message)
    }

    #[test]
    fn an_item_is_text_or_bytes() {
        for (json, frame) in [
            (r#"{"topic":"a","data":"hello"}"#, &b"\x81\x05hello"[..]),
            (r#" { "data" : "\u00e9\n\"" , "topic" : "a" } "#, b"\x81\x04\xC3\xA9\n\""),
            (r#"{"topic":"a","data":""}"#, b"\x81\x00"),
            (r#"{"topic":"a","data":"x","data_base64":null}"#, b"\x81\x01x"),
            (r#"{"topic":"a","data_base64":"+/8="}"#, b"\x82\x02\xFB\xFF"),
            (r#"{"topic":"a","data_base64":""}"#, b"\x82\x00"),
            (r#"{"topic":"\u0061","data":"x"}"#, b"\x81\x01x"),
        ] {
            assert_eq!(item(json), (Some("a".to_owned()), Ok(frame.to_vec())), "{json}");
        }
    }

    #[test]
    fn a_bad_item_says_what_an_item_is() {
        let a = Some("a");
        for (json, topic, status, says) in [
            (r#"{"topic":"a","data":"123456"}"#, a, 413, "--max-message-size, 5 bytes"),
            (r#"{"topic":"a","data":"€€"}"#, a, 413, "--max-message-size, 5 bytes"),
            (r#"{"topic":"a","data_base64":"MTIzNDU2"}"#, a, 413, "--max-message-size, 5 bytes"),
            (r#"{"topic":"a"}"#, a, 400, "neither data nor data_base64"),
            (r#"{"topic":"a","data":null}"#, a, 400, "neither data nor data_base64"),
            (r#"{"topic":"a","data":"","data_base64":""}"#, a, 400, "not both"),
            (r#"{"topic":"a","data_base64":"-_8="}"#, a, 400, "RFC 4648"),
            (r#"{"topic":"a","data_base64":"+/8"}"#, a, 400, "RFC 4648"),
            (r#"{"topic":"a","data_base64":"+/8=\n"}"#, a, 400, "RFC 4648"),
            (r#"{"topic":"a","data":5}"#, a, 400, r#"or {"topic": "...", "data_base64": "..."}"#),
            (r#"{"topic":"a","data":"\ud800"}"#, a, 400, "hex escape"),
            (r#"{"topic":"a","date":"x"}"#, a, 400, "unknown field `date`"),
            (r#"{"topic":"a","data":"x","data":"y"}"#, a, 400, "duplicate field `data`"),
            (r#"{"topic":"","data":"x"}"#, Some(""), 400, "topic is empty"),
            (r#"{"topic":"a,b","data":"x"}"#, Some("a,b"), 400, "topic has a character"),
            (r#"{"topic":7,"data":"x"}"#, None, 400, "expected a string"),
            (r#"{"data":"x"}"#, None, 400, "missing field `topic`"),
            (r#"["a","x",null]"#, None, 400, "no object"),
            ("null", None, 400, "no object"),
        ] {
            let (named, message) = item(json);
            let (code, reason) = message.unwrap_err();
            assert_eq!((named.as_deref(), code), (topic, status), "{json}: {reason}");
            assert!(reason.contains(says), "{json}: {reason}");
        }
    }

    #[test]
    fn a_body_is_an_array_of_so_many_items() {
        let count = |body: &str| {
            let items = Items::read(body.as_bytes());
            items.map(|items| items.0.len()).map_err(|error| error.status.as_u16())
        };
        assert_eq!(count("[]"), Ok(0));
        assert_eq!(count(r#" [ 1 , {"a":[2,3]}, "x" ] "#), Ok(3));
        let array = |items: usize| format!("[{}]", vec!["0"; items].join(","));
        assert_eq!(count(&array(MAX_ITEMS)), Ok(MAX_ITEMS));
        assert_eq!(count(&array(MAX_ITEMS + 1)), Err(413));
        assert_eq!(count(&array(1_000_000)), Err(413));
        for bad in ["", "{}", "[", "[1,]", "[1 2]", "[1]2", "[{]", "null", r#""[]""#, &array(2000)[..3000]] {
            assert_eq!(count(bad), Err(400), "{bad}");
        }
        assert_eq!(Items::read(b"[\"\xFF\"]").map(|_| ()).unwrap_err().status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn the_largest_message_fits_into_a_batch() {
        for limit in [1, PAYLOAD_BYTES, 10 * PAYLOAD_BYTES] {
            assert!(max_body_bytes(limit) > STANDARD.encode(vec![0; limit]).len() + ITEM_BYTES, "{limit}");
        }
        assert!(max_body_bytes(usize::MAX) > PAYLOAD_BYTES, "no overflow");
    }
}
