//! The places of the control port: how many connections there may be, and which one makes room for a newcomer.
//!
//! Invariants:
//! 1. There are never more connections than places: a newcomer waits until the one cut for it has gone.
//! 2. Only a connection that waits for its client is cut, and of those the one that has waited longest. Bytes of a head
//!    do not make its waiting new, so a client that sends its head slowly is as silent as one that sends none. A body has
//!    [`BODY_PATIENCE`] for each [`BODY_PROGRESS_BYTES`] first. One whose request is here, or whose answer is yet to be
//!    sent, keeps its place.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::clock;

/// Bytes of a body that are progress.
pub(super) const BODY_PROGRESS_BYTES: usize = 1024;

/// Time that a body has for so many before its connection may be cut.
pub(super) const BODY_PATIENCE: Duration = Duration::from_secs(2);

/// Time after which a newcomer looks again for one whose body is late: nothing tells it so.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// All places, taken or not.
pub(super) struct Places {
    count: usize,
    taken: Mutex<Vec<Arc<Place>>>,
    /// Something happened that a newcomer may have waited for: a place is free, or a connection waits for its client.
    changed: Arc<Notify>,
}

/// What the holder of a place is at.
pub(super) struct Place {
    /// Since when it has waited too long for its client, in nanoseconds of [`clock::monotonic_nanos`]: for a request from the
    /// first moment on. It may lie ahead; 0: it does not wait.
    late_since_nanos: AtomicU64,
    /// The handler of a request runs.
    is_answering: AtomicBool,
    is_cut: AtomicBool,
    cut: Notify,
    changed: Arc<Notify>,
}

/// A place that is taken; it is free again when this is dropped.
pub(super) struct Taken {
    places: Arc<Places>,
    place: Arc<Place>,
}

impl Places {
    pub(super) fn new(count: usize) -> Arc<Self> {
        Arc::new(Self { count, taken: Mutex::default(), changed: Arc::default() })
    }

    /// Takes a place: a free one, or else that of the connection which has waited longest for its client. `on_cut` is
    /// called for each one cut. One newcomer at a time may wait here.
    pub(super) async fn take(self: &Arc<Self>, mut on_cut: impl FnMut()) -> Taken {
        loop {
            let changed = self.changed.notified();
            if let Some(place) = self.take_free() {
                return Taken { places: self.clone(), place };
            }
            if self.cut_longest_waiting() {
                on_cut();
            }
            let _ = timeout(LOOK_INTERVAL, changed).await;
        }
    }

    /// Waits until no place is taken.
    pub(super) async fn all_free(&self) {
        loop {
            let changed = self.changed.notified();
            if self.lock().is_empty() {
                return;
            }
            changed.await;
        }
    }

    fn take_free(&self) -> Option<Arc<Place>> {
        let mut taken = self.lock();
        (taken.len() < self.count).then(|| {
            let place = Arc::new(Place::new(self.changed.clone()));
            taken.push(place.clone());
            place
        })
    }

    /// Not before the one cut last has gone.
    fn cut_longest_waiting(&self) -> bool {
        let taken = self.lock();
        if taken.iter().any(|place| place.is_cut.load(Relaxed)) {
            return false;
        }
        let now_nanos = clock::monotonic_nanos();
        let late = taken.iter().map(|place| (place.late_since_nanos.load(Relaxed), place));
        let longest =
            late.filter(|(since, _)| (1..=now_nanos).contains(since)).min_by_key(|(since, _)| *since);
        longest.inspect(|(_, place)| place.cut()).is_some()
    }

    /// Nothing is left half done under it, so a panic elsewhere does not matter.
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Place>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Of a newcomer, which waits for its first request.
    fn new(changed: Arc<Notify>) -> Self {
        Self {
            late_since_nanos: AtomicU64::new(clock::monotonic_nanos().max(1)),
            is_answering: AtomicBool::new(false),
            is_cut: AtomicBool::new(false),
            cut: Notify::new(),
            changed,
        }
    }

    /// A request has come.
    pub(super) fn begin_answer(&self) {
        self.is_answering.store(true, Relaxed);
        self.late_since_nanos.store(0, Relaxed);
    }

    /// The handler waits for a body, or for more of it.
    pub(super) fn wait_for_body(&self) {
        let patience_nanos = BODY_PATIENCE.as_nanos() as u64;
        self.late_since_nanos.store(clock::monotonic_nanos() + patience_nanos, Relaxed);
    }

    /// The handler waits for no more of it.
    pub(super) fn end_body(&self) {
        self.late_since_nanos.store(0, Relaxed);
    }

    /// The answer is known, and yet to be sent.
    pub(super) fn end_answer(&self) {
        self.is_answering.store(false, Relaxed);
    }

    /// All that was to be sent has been; whatever comes next comes from the client.
    pub(super) fn wait_for_client(&self) {
        if !self.is_answering.load(Relaxed) && self.late_since_nanos.load(Relaxed) == 0 {
            self.late_since_nanos.store(clock::monotonic_nanos().max(1), Relaxed);
            self.changed.notify_one();
        }
    }

    /// Returns when the connection is to end for another.
    pub(super) async fn cut_for_another(&self) {
        self.cut.notified().await;
    }

    fn cut(&self) {
        self.is_cut.store(true, Relaxed);
        self.cut.notify_one();
    }
}

impl Taken {
    pub(super) fn place(&self) -> &Arc<Place> {
        &self.place
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.places.lock().retain(|place| !Arc::ptr_eq(place, &self.place));
        self.places.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn the_one_that_waits_longest_makes_room_and_none_that_is_served() {
        testing::runtime().block_on(async {
            let places = Places::new(3);
            let mut taken = Vec::new();
            for _ in 0..3 {
                taken.push(places.take(|| panic!("there is room")).await);
                std::thread::sleep(Duration::from_millis(1));
            }
            taken[0].place().begin_answer();
            taken[1].place().begin_answer();
            taken[1].place().end_answer();
            taken[1].place().wait_for_client();
            let cuts = AtomicU64::new(0);
            let newcomer = places.take(|| {
                cuts.fetch_add(1, Relaxed);
            });
            let victim = taken.pop().unwrap();
            let leave = async {
                victim.place().cut_for_another().await;
                drop(victim);
            };
            let (newcomer, ()) = tokio::join!(newcomer, leave);
            assert_eq!(cuts.load(Relaxed), 1);

            // With an answer in each place, a newcomer waits until one of them has been sent.
            taken[1].place().begin_answer();
            newcomer.place().begin_answer();
            let patience = Duration::from_millis(20);
            let wait = tokio::time::timeout(patience, places.take(|| panic!("all are served"))).await;
            assert!(wait.is_err());
            taken[0].place().end_answer();
            let wait = tokio::time::timeout(patience, places.take(|| panic!("its answer is unsent"))).await;
            assert!(wait.is_err());
            taken[0].place().wait_for_client();
            let victim = taken.swap_remove(0);
            let leave = async {
                victim.place().cut_for_another().await;
                drop(victim);
            };
            let (another, ()) = tokio::join!(places.take(|| ()), leave);
            drop((taken, newcomer, another));
            places.all_free().await;
        });
    }

    #[test]
    fn a_body_that_does_not_come_makes_room_after_a_while_and_one_that_comes_does_not() {
        testing::runtime().block_on(async {
            let places = Places::new(3);
            let mut taken = Vec::new();
            for _ in 0..3 {
                taken.push(places.take(|| panic!("there is room")).await);
            }
            let [uploading, stalled, complete] = [0, 1, 2].map(|n| taken[n].place().clone());
            for place in [&uploading, &stalled, &complete] {
                place.begin_answer();
                place.wait_for_body();
            }
            complete.end_body();
            let wait = timeout(Duration::from_millis(20), places.take(|| panic!("too soon"))).await;
            assert!(wait.is_err());
            std::thread::sleep(BODY_PATIENCE);
            uploading.wait_for_body();
            let leave = async {
                stalled.cut_for_another().await;
                drop(taken.remove(1));
            };
            let (_newcomer, ()) = tokio::join!(places.take(|| ()), leave);
        });
    }
}
