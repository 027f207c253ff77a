//! What a service manager such as systemd is told, over the socket that `NOTIFY_SOCKET` names. Without it, nothing.

use sd_notify::NotifyState;

/// Connections are accepted.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// The configuration is being read again; [`ready`] follows.
pub(crate) fn reloading() {
    // Type=notify-reload asks for the time; without a clock there would be no tick either.
    let now = NotifyState::monotonic_usec_now().ok();
    tell(&[&[NotifyState::Reloading][..], now.as_slice()].concat());
}

/// The server drains.
pub(crate) fn stopping(connections: u64) {
    tell(&[NotifyState::Stopping]);
    draining(connections);
}

/// How far the drain is.
pub(crate) fn draining(connections: u64) {
    tell(&[NotifyState::Status(&format!("draining, {connections} connections left"))]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
