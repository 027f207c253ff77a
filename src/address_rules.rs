//! Addresses whose connections are refused. The rules are read on every core and may be changed from any thread.
//!
//! Readers take no lock: a change makes a new list and swaps it in whole.

use std::collections::HashSet;
use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ipnet::IpNet;

/// A list of refused addresses and networks. Clones are the same list; what one changes all see, for every
/// connection accepted afterwards. Connections that are open stay.
///
/// ```
/// use corecast::AddressRules;
///
/// let rules = AddressRules::default();
/// rules.deny("192.0.2.0/24")?;
/// rules.deny("2001:db8::1")?;
/// assert!(rules.denies("192.0.2.77".parse()?));
/// rules.allow("192.0.2.0/24")?;
/// assert!(!rules.denies("192.0.2.77".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
pub struct AddressRules(Arc<ArcSwap<Denied>>);

/// The networks, and the lengths of their prefixes: a look-up tries each length in use.
#[derive(Clone, Default)]
struct Denied {
    networks: HashSet<IpNet>,
    prefix_lengths: Vec<u8>,
}

/// A text that is neither an address nor a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidNetwork(String);

impl fmt::Display for InvalidNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: expected an address such as 192.0.2.1, or a network such as 192.0.2.0/24", self.0)
    }
}

impl Error for InvalidNetwork {}

impl fmt::Debug for AddressRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressRules").field("networks", &self.len()).finish()
    }
}

impl AddressRules {
    /// Refuses an address, or a network in CIDR notation.
    ///
    /// # Errors
    /// [`InvalidNetwork`] when the text is neither.
    pub fn deny(&self, network: &str) -> Result<(), InvalidNetwork> {
        let network = parse(network)?;
        self.change(|networks| {
            networks.insert(network);
        });
        Ok(())
    }

    /// Takes back a [`AddressRules::deny`] of the same address or network; a wider network that is refused stays
    /// refused.
    ///
    /// # Errors
    /// [`InvalidNetwork`] when the text is neither.
    pub fn allow(&self, network: &str) -> Result<(), InvalidNetwork> {
        let network = parse(network)?;
        self.change(|networks| {
            networks.remove(&network);
        });
        Ok(())
    }

    /// Replaces all rules at once.
    ///
    /// # Errors
    /// [`InvalidNetwork`] of the first text that is neither address nor network; the rules stay as they were.
    pub fn replace<'t>(&self, networks: impl IntoIterator<Item = &'t str>) -> Result<(), InvalidNetwork> {
        let all = networks.into_iter().map(parse).collect::<Result<HashSet<_>, _>>()?;
        self.change(|networks| networks.clone_from(&all));
        Ok(())
    }

    /// Whether connections from this address are refused.
    #[must_use]
    pub fn denies(&self, address: IpAddr) -> bool {
        let denied = self.0.load();
        let address = address.to_canonical();
        denied.prefix_lengths.iter().any(|&length| {
            IpNet::new(address, length).is_ok_and(|network| denied.networks.contains(&network.trunc()))
        })
    }

    /// Number of addresses and networks that are refused.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.load().networks.len()
    }

    /// Whether nothing is refused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn change(&self, change: impl Fn(&mut HashSet<IpNet>)) {
        self.0.rcu(|denied| {
            let mut networks = denied.networks.clone();
            change(&mut networks);
            let mut prefix_lengths: Vec<u8> = networks.iter().map(IpNet::prefix_len).collect();
            prefix_lengths.sort_unstable();
            prefix_lengths.dedup();
            Denied { networks, prefix_lengths }
        });
    }
}

fn parse(text: &str) -> Result<IpNet, InvalidNetwork> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    let network = text.parse::<IpNet>().or_else(|_| address());
    network.map(canonical).map_err(|_| InvalidNetwork(text.to_owned()))
}

/// A network as addresses are looked up: addresses of IPv4 that are written as ones of IPv6 are ones of IPv4.
fn canonical(network: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    let network = network.trunc();
    let IpNet::V6(long) = network else { return network };
    let mapped = long.addr().to_ipv4_mapped().zip(long.prefix_len().checked_sub(MAPPED_BITS));
    mapped.and_then(|(address, length)| IpNet::new(address.into(), length).ok()).unwrap_or(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denies(rules: &AddressRules, address: &str) -> bool {
        rules.denies(address.parse().unwrap())
    }

    #[test]
    fn networks_of_both_families_are_refused_and_allowed_again() {
        let rules = AddressRules::default();
        assert!(rules.is_empty() && !denies(&rules, "10.0.0.1"));
        for network in ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "10.1.0.0/16"] {
            rules.deny(network).unwrap();
        }
        for address in ["10.255.0.1", "192.0.2.7", "2001:db8:1::9", "::ffff:10.0.0.1", "::ffff:192.0.2.7"] {
            assert!(denies(&rules, address), "{address}");
        }
        for address in ["11.0.0.1", "192.0.2.8", "2001:db9::", "::1"] {
            assert!(!denies(&rules, address), "{address}");
        }
        rules.allow("10.1.0.0/16").unwrap();
        assert!(denies(&rules, "10.1.2.3"), "the wider network stays");
        rules.allow("10.0.0.0/8").unwrap();
        assert!(!denies(&rules, "10.1.2.3"));
        assert_eq!(rules.len(), 2);
    }

    #[test]
    fn a_network_is_the_same_however_it_is_written() {
        let rules = AddressRules::default();
        rules.deny("10.1.2.3/8").unwrap();
        rules.allow("10.0.0.0/8").unwrap();
        rules.deny("::ffff:1.2.3.4").unwrap();
        rules.allow("1.2.3.4").unwrap();
        rules.deny("::ffff:10.0.0.0/104").unwrap();
        assert!(denies(&rules, "10.1.2.3") && denies(&rules, "::ffff:10.1.2.3"));
        rules.allow("10.0.0.0/8").unwrap();
        assert!(rules.is_empty());
        rules.deny("0.0.0.0/0").unwrap();
        assert!(denies(&rules, "8.8.8.8") && !denies(&rules, "::1"));
    }

    #[test]
    fn what_is_no_network_is_named_and_changes_nothing() {
        let rules = AddressRules::default();
        rules.deny("1.2.3.4").unwrap();
        for text in ["", "1.2.3", "1.2.3.4/33", "::/129", "host", "1.2.3.4/"] {
            assert!(rules.deny(text).unwrap_err().to_string().contains(text), "{text}");
            assert!(rules.allow(text).is_err(), "{text}");
        }
        assert!(rules.replace(["5.6.7.8", "x"]).is_err());
        assert!(denies(&rules, "1.2.3.4"));
        rules.replace(["5.6.7.8"]).unwrap();
        assert!(denies(&rules, "5.6.7.8") && !denies(&rules, "1.2.3.4"));
    }

    #[test]
    fn clones_are_one_list_for_all_threads() {
        let rules = AddressRules::default();
        std::thread::scope(|scope| {
            for n in 0..4 {
                let rules = rules.clone();
                scope.spawn(move || (0..50).for_each(|m| rules.deny(&format!("10.0.{n}.{m}")).unwrap()));
            }
        });
        assert_eq!(rules.len(), 200);
    }
}
