//! Refuses connections from addresses on a list.

use crate::address_rules::AddressRules;
use crate::component::Component;

/// Refuses connections from addresses and networks on a list that may be changed from any thread at any time:
/// Ratchet's `IpBlackList`.
///
/// Where every route of a server has such a list, a refused address is cut as soon as it is accepted, before it
/// costs anything; one behind a trusted proxy is as soon as the PROXY header is here. Where only some routes have, or
/// the proxy names the address in `X-Forwarded-For`, its request for one of those is answered with 403. All are
/// counted in `handshakes_rejected_total{reason="address"}`. Connections that are open stay.
///
/// ```
/// # use corecast::{AddressRules, App, Component, decorators::IpDenyList};
/// # struct Chat;
/// # impl Component for Chat {}
/// let rules = AddressRules::default();
/// rules.deny("192.0.2.0/24")?;
/// let denied = rules.clone();
/// let app = App::new("localhost", 8080).route("/chat", move || IpDenyList::new(Chat, denied.clone()));
/// // Later, from any thread:
/// rules.deny("198.51.100.7")?;
/// # Ok::<(), corecast::InvalidNetwork>(())
/// ```
#[derive(Debug)]
pub struct IpDenyList<C> {
    inner: C,
    rules: AddressRules,
}

impl<C: Component> IpDenyList<C> {
    /// Wraps a component.
    pub fn new(inner: C, rules: AddressRules) -> Self {
        Self { inner, rules }
    }
}

impl<C: Component> Component for IpDenyList<C> {
    fn inner(&mut self) -> Option<&mut dyn Component> {
        Some(&mut self.inner)
    }

    fn address_rules(&mut self) -> Vec<AddressRules> {
        let mut rules = self.inner.address_rules();
        rules.push(self.rules.clone());
        rules
    }
}
