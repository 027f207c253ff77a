//! What the fuzz targets check, one module per target.
//!
//! `tests/fuzz_regressions.rs` includes this file and runs the same checks on kept inputs under
//! `cargo test`, so a target cannot rot unnoticed. It uses nothing but the public API of [`corecast::ws`]
//! and tungstenite as a witness.
//!
//! Each module has `check(data)`, which takes any bytes and panics on a finding.

pub mod deflate;
pub mod differential;
pub mod handshake;
pub mod inflate;
pub mod session;
pub mod source;
pub mod stream;
