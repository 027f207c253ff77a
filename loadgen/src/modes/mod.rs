//! One file per mode. A mode says how connections react; threads, sockets and measuring are shared.

pub(crate) mod connect;
pub(crate) mod echo;
pub(crate) mod fanout;
pub(crate) mod idle;
pub(crate) mod storm;
pub(crate) mod verify;

/// Local ports that one source address is used for when each connection is opened once or ends with a reset.
pub(crate) const PORTS_PER_ADDRESS: usize = 5_000;
/// Source addresses on loopback when connections come and go, so that ports in TIME_WAIT do not run short.
pub(crate) const CHURN_ADDRESSES: usize = 64;
