//! One file per mode. A mode says how connections react; threads, sockets and measuring are shared.

pub(crate) mod connect;
pub(crate) mod echo;
pub(crate) mod fanout;
pub(crate) mod idle;
