//! The routes of the control port, and `/pub/<topic>`: publish, look at a topic, delete it.

use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use serde::Serialize;
use subtle::ConstantTimeEq;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::dispatcher::{Answer, Command};
use super::places::{BODY_PROGRESS_BYTES, Place};
use super::{ControlSettings, Shared, batch, health, live, metrics, status};
use crate::clock;
use crate::config::PublishToken;
use crate::frame::Frame;
use crate::shard::message::{Overloaded, Receipt, Source};
use crate::topic::TopicName;
use crate::ws::MessageKind;
use crate::ws::handshake::names_loopback;

/// Time for a request's body; over it: 408.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes that are still taken from a client that has been refused.
const DISCARD_BYTES: usize = 4 * 1024 * 1024;

/// Time for which they are.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// Time for the answers of owner shards to one request; over it: 503.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What `Retry-After` says when the shards are full: they drain within milliseconds, its unit is the second.
pub(super) const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(live::live_page))
        .route("/pub", post(batch::publish_all))
        // The topic is read from the raw path: decoding it twice would change it.
        .route("/pub/", topic_methods())
        .route("/pub/{*topic}", topic_methods())
        .route("/metrics", get(metrics::metrics))
        .route("/status", get(status::status))
        .route("/live", get(health::live))
        .route("/ready", get(health::ready))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .with_state(shared)
}

fn topic_methods() -> MethodRouter<Arc<Shared>> {
    get(inspect).post(publish).delete(delete)
}

async fn not_found(uri: Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("there is no {}; GET / lists what there is", uri.path()))
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not possible on {}", uri.path()))
}

/// An answer that is not success: a status, a sentence, and a header where the status asks for one.
#[derive(Debug)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) message: Cow<'static, str>,
    header: Option<(HeaderName, HeaderValue)>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, message: message.into(), header: None }
    }

    fn with_header(self, name: HeaderName, value: HeaderValue) -> Self {
        Self { header: Some((name, value)), ..self }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body<'a> {
            error: &'a str,
        }
        let mut response = (self.status, Json(Body { error: &self.message })).into_response();
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

#[derive(Serialize)]
struct Published<'a> {
    topic: &'a str,
    subscribers: u64,
    epoch: String,
    offset: u64,
}

async fn publish(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let mut body = Payload::new(body, &head);
    let (topic, frame) = match read_publish(&shared.settings.load_full(), &head, &mut body).await {
        Ok(publish) => publish,
        Err(error) => {
            body.discard().await;
            return Err(error);
        }
    };
    let (named, source) = (topic.clone(), Source::Http);
    let receipt = shared.ask(|reply| Command::Publish { topic: named, frame, source, reply }).await?;
    let answer = Published {
        topic: topic.as_str(),
        subscribers: receipt.subscribers,
        epoch: receipt.position.epoch_text(),
        offset: receipt.position.offset,
    };
    Ok((publish_status(&receipt), Json(answer)).into_response())
}

/// 201 for a message that somebody is sent, 202 for one that nobody is subscribed to.
pub(super) fn publish_status(receipt: &Receipt) -> StatusCode {
    if receipt.subscribers == 0 { StatusCode::ACCEPTED } else { StatusCode::CREATED }
}

/// What is wrong with a request is looked for in this order: who asks, for which topic, with what.
async fn read_publish(
    settings: &ControlSettings,
    head: &Parts,
    body: &mut Payload,
) -> Result<(TopicName, Arc<Frame>), ApiError> {
    authorize(settings.publish_token.as_ref(), &head.headers)?;
    let topic = topic(&head.uri)?;
    let kind = kind(&head.headers);
    let payload = body.read(settings.max_message_bytes, "--max-message-size").await?;
    if kind == MessageKind::Text && simdutf8::basic::from_utf8(&payload).is_err() {
        let reason = "the body is not UTF-8; bytes need Content-Type: application/octet-stream";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason));
    }
    Ok((topic, Frame::new(kind, &payload, clock::monotonic_nanos(), None)))
}

#[derive(Serialize)]
struct Inspected<'a> {
    topic: &'a str,
    subscribers: u64,
    messages: u64,
    epoch: String,
    offset: u64,
}

async fn inspect(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, ApiError> {
    authorize(shared.settings.load().publish_token.as_ref(), request.headers())?;
    let topic = topic(request.uri())?;
    let status = shared.ask(|reply| Command::Inspect { topic: topic.clone(), reply }).await?;
    let answer = Inspected {
        topic: topic.as_str(),
        subscribers: status.subscribers,
        messages: status.messages,
        epoch: status.position.epoch_text(),
        offset: status.position.offset,
    };
    Ok(Json(answer).into_response())
}

async fn delete(State(shared): State<Arc<Shared>>, request: Request) -> Result<StatusCode, ApiError> {
    authorize(shared.settings.load().publish_token.as_ref(), request.headers())?;
    let topic = topic(request.uri())?;
    shared.ask(|reply| Command::Delete { topic: topic.clone(), reply }).await?;
    debug!(%topic, "topic deleted");
    Ok(StatusCode::NO_CONTENT)
}

fn topic(uri: &Uri) -> Result<TopicName, ApiError> {
    TopicName::from_path(uri.path().strip_prefix("/pub/").unwrap_or_default())
        .map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, error.to_string()))
}

/// An answer of a topic's owner that is on its way.
pub(super) type Awaited<T> = oneshot::Receiver<Result<T, Overloaded>>;

impl Shared {
    /// Asks a topic's owner, and waits for the answer for a bounded time.
    async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, ApiError> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let awaited = self.submit(deadline, command).await?;
        answer(deadline, awaited).await
    }

    /// Hands over a command, unless the deadline has passed. One task's commands reach an owner in their order.
    pub(super) async fn submit<T>(
        &self,
        deadline: Instant,
        command: impl FnOnce(Answer<T>) -> Command,
    ) -> Result<Awaited<T>, ApiError> {
        let (reply, awaited) = oneshot::channel();
        let too_late = || {
            let reason = format!("its turn did not come within {} s; it had no effect", seconds());
            Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, reason))
        };
        if Instant::now() >= deadline {
            return too_late();
        }
        match timeout_at(deadline, self.commands.send(command(reply))).await {
            Ok(Ok(())) => Ok(awaited),
            Ok(Err(_)) => Err(ending()),
            Err(_) => too_late(),
        }
    }
}

/// Waits for an answer until the deadline.
pub(super) async fn answer<T>(deadline: Instant, awaited: Awaited<T>) -> Result<T, ApiError> {
    match timeout_at(deadline, awaited).await {
        Ok(Ok(Ok(answer))) => Ok(answer),
        Ok(Ok(Err(overloaded))) => {
            let reason = match overloaded {
                Overloaded::Rings => "the shards cannot take more now; this had no effect",
                Overloaded::Topics => "there is no room for another topic (--max-topics); this had no effect",
            };
            Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, reason)
                .with_header(header::RETRY_AFTER, RETRY_AFTER_SECONDS))
        }
        Ok(Err(_)) => Err(ending()),
        Err(_) => Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the topic's shard has not answered within {} s; this may still take effect", seconds()),
        )),
    }
}

fn seconds() -> u64 {
    ANSWER_TIMEOUT.as_secs()
}

/// The dispatcher or the shard has ended.
fn ending() -> ApiError {
    let reason = "the server is ending; whether this had an effect is not known";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, reason)
}

/// Checks that the request may use `/pub`: by its token, or where none is set, by not being another site's
/// page: a browser sends those to loopback as readily as the user's own.
pub(super) fn authorize(token: Option<&PublishToken>, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(token) = token else {
        return match is_cross_origin(headers) {
            false => Ok(()),
            true => Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "pages of other origins may use /pub only with a token (--publish-token)",
            )),
        };
    };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, given) = value.as_bytes().split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(given.trim_ascii())
    });
    // The time of the comparison tells the token's length and nothing else.
    if given.is_some_and(|given| bool::from(given.ct_eq(token.expose().as_bytes()))) {
        return Ok(());
    }
    let (message, challenge) = match given {
        None => ("/pub needs the header Authorization: Bearer <token>", "Bearer realm=\"corecast\""),
        Some(_) => ("the token is not the right one", "Bearer realm=\"corecast\", error=\"invalid_token\""),
    };
    Err(ApiError::new(StatusCode::UNAUTHORIZED, message)
        .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge)))
}

fn is_cross_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return false;
    };
    let host = headers.get(header::HOST).map(HeaderValue::as_bytes).unwrap_or_default();
    // Without a token the port is on loopback: a page of any other name came here by a name that its owner has pointed
    // at this machine.
    if !names_loopback(host) {
        return true;
    }
    let authority = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    !authority.is_some_and(|(_, authority)| authority.as_bytes().eq_ignore_ascii_case(host))
}

/// Binary for `application/octet-stream`, text for anything else.
fn kind(headers: &HeaderMap) -> MessageKind {
    let media_type = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let essence = media_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    match essence.eq_ignore_ascii_case(b"application/octet-stream") {
        true => MessageKind::Binary,
        false => MessageKind::Text,
    }
}

/// A request's body on its way in.
pub(super) struct Payload {
    body: Body,
    declared: Option<u64>,
    /// The client sends nothing until it is asked to, which the first read does.
    awaits_continue: bool,
    /// The connection's, which may be lost while the body is waited for.
    place: Option<Arc<Place>>,
}

impl Payload {
    pub(super) fn new(body: Body, Parts { headers, extensions, .. }: &Parts) -> Self {
        let declared =
            headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let awaits_continue = headers.contains_key(header::EXPECT);
        Self { body, declared, awaits_continue, place: extensions.get().cloned() }
    }

    /// The whole body, which may have so many bytes by a limit of that name.
    pub(super) async fn read(&mut self, limit: usize, name: &str) -> Result<Vec<u8>, ApiError> {
        if self.declared.is_some_and(|length| length > limit as u64) {
            return Err(too_large(limit, name));
        }
        self.awaits_continue = false;
        self.tell_place(Place::wait_for_body);
        let outcome = tokio::time::timeout(BODY_TIMEOUT, self.collect(limit, name)).await;
        self.tell_place(Place::end_body);
        outcome.unwrap_or_else(|_| {
            let reason = format!("the body took longer than {} s", BODY_TIMEOUT.as_secs());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, reason))
        })
    }

    fn tell_place(&self, what: fn(&Place)) {
        if let Some(place) = &self.place {
            what(place);
        }
    }

    async fn collect(&mut self, limit: usize, name: &str) -> Result<Vec<u8>, ApiError> {
        let (mut payload, mut untold_bytes) = (Vec::new(), 0);
        while let Some(data) = self.next().await {
            let Ok(data) = data else {
                let reason = "the body ended early or is badly encoded";
                return Err(ApiError::new(StatusCode::BAD_REQUEST, reason));
            };
            if data.len() > limit - payload.len() {
                return Err(too_large(limit, name));
            }
            payload.extend_from_slice(&data);
            untold_bytes += data.len();
            if untold_bytes >= BODY_PROGRESS_BYTES {
                untold_bytes = 0;
                self.tell_place(Place::wait_for_body);
            }
        }
        Ok(payload)
    }

    /// The next piece. Trailers are no part of the message: an empty piece stands for them.
    async fn next(&mut self) -> Option<Result<Bytes, axum::Error>> {
        let frame = poll_fn(|context| Pin::new(&mut self.body).poll_frame(context)).await?;
        Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
    }

    /// Takes what a refused client has still to send, within bounds: a connection closed upon unread bytes
    /// is reset, and the reset would overtake the answer.
    pub(super) async fn discard(mut self) {
        if self.awaits_continue {
            return;
        }
        let rest = async {
            let mut left = DISCARD_BYTES;
            while let Some(Ok(data)) = self.next().await {
                if data.len() >= left {
                    return;
                }
                left -= data.len();
            }
        };
        // A client that is still not done has had its chance to be answered.
        let _ = tokio::time::timeout(DISCARD_TIMEOUT, rest).await;
    }
}

fn too_large(limit: usize, name: &str) -> ApiError {
    let message = format!("the body is longer than {name}, {limit} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_token_must_match_to_the_byte() {
        let token = PublishToken::new("s3cret");
        let check = |value| authorize(Some(&token), &headers(&[(header::AUTHORIZATION, value)]));
        for value in ["Bearer s3cret", "bearer s3cret", "BEARER  s3cret "] {
            assert!(check(value).is_ok(), "{value}");
        }
        for value in
            ["", "Bearer", "Bearer ", "Bearer s3cre", "Bearer s3cret2", "Bearer S3cret", "Basic s3cret"]
        {
            let error = check(value).unwrap_err();
            assert_eq!(error.status, StatusCode::UNAUTHORIZED, "{value}");
            assert_eq!(error.header.unwrap().0, header::WWW_AUTHENTICATE);
        }
        assert!(authorize(Some(&token), &HeaderMap::new()).is_err());
        assert!(authorize(None, &HeaderMap::new()).is_ok());
    }

    #[test]
    fn without_a_token_only_the_own_page_may_publish() {
        let check = |origin| {
            let headers = headers(&[(header::HOST, "localhost:8081"), (header::ORIGIN, origin)]);
            authorize(None, &headers).map_err(|error| error.status)
        };
        assert_eq!(check("http://localhost:8081"), Ok(()));
        for origin in ["http://localhost:8082", "https://evil.example", "null", ""] {
            assert_eq!(check(origin), Err(StatusCode::FORBIDDEN), "{origin}");
        }
    }

    #[test]
    fn only_octet_stream_is_binary() {
        let kind_of = |value| kind(&headers(&[(header::CONTENT_TYPE, value)]));
        for value in ["application/octet-stream", "Application/Octet-Stream; charset=x"] {
            assert_eq!(kind_of(value), MessageKind::Binary, "{value}");
        }
        for value in ["", "text/plain", "application/json", "application/octet-streams"] {
            assert_eq!(kind_of(value), MessageKind::Text, "{value}");
        }
        assert_eq!(kind(&HeaderMap::new()), MessageKind::Text);
    }
}
