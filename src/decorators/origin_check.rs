//! Refuses browsers' pages of other origins.

use crate::component::Component;
use crate::ws::{OriginPolicy, Rejection, Request};

/// Refuses with 403 pages whose origin is not allowed: Ratchet's `OriginCheck`. A request without `Origin` is not a
/// browser's and passes.
///
/// A route checks origins already ([`crate::App::allowed_origins`]); this is for a component that brings its own
/// list along.
#[derive(Debug)]
pub struct OriginCheck<C> {
    inner: C,
    policy: OriginPolicy,
}

impl<C: Component> OriginCheck<C> {
    /// Wraps a component. Origins are `https://example.com`, a host, or `*` for any.
    ///
    /// # Panics
    /// When an origin is none of these; in a route's factory that ends the start of the server.
    pub fn new<O: Into<String>>(inner: C, origins: impl IntoIterator<Item = O>) -> Self {
        let origins: Vec<String> = origins.into_iter().map(Into::into).collect();
        match OriginPolicy::parse(&origins) {
            Ok(policy) => Self { inner, policy },
            Err(error) => panic!("origin {error}"),
        }
    }
}

impl<C: Component> Component for OriginCheck<C> {
    fn inner(&mut self) -> Option<&mut dyn Component> {
        Some(&mut self.inner)
    }

    fn on_request(&mut self, request: &Request) -> Result<(), Rejection> {
        self.policy.check(request)?;
        self.inner.on_request(request)
    }
}
