//! The places of the control port: how many connections there may be, and which one makes room for a newcomer.
//!
//! Invariants:
//! 1. There are never more connections than places: a newcomer waits until the one cut for it has gone.
//! 2. Only a connection that waits for its client's next request head is cut, and of those the one that has waited
//!    longest. Bytes of a head do not make its waiting new, so a client that sends its head slowly is as silent as one
//!    that sends none. One with a request in progress, or an answer yet to be sent, keeps its place.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::clock;

/// All places, taken or not.
pub(super) struct Places {
    count: usize,
    taken: Mutex<Vec<Arc<Place>>>,
    /// Something happened that a newcomer may have waited for: a place is free, or a connection waits for its client.
    changed: Arc<Notify>,
}

/// What the holder of a place is at.
pub(super) struct Place {
    /// Since when it has waited for a request, in nanoseconds of [`clock::monotonic_nanos`]; 0: it does not.
    waits_since_nanos: AtomicU64,
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
            changed.await;
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
        let waiting = taken
            .iter()
            .filter_map(|place| Some((place.waits_since_nanos.load(Relaxed), place)).filter(|w| w.0 > 0));
        let longest = waiting.min_by_key(|(since, _)| *since);
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
            waits_since_nanos: AtomicU64::new(clock::monotonic_nanos().max(1)),
            is_answering: AtomicBool::new(false),
            is_cut: AtomicBool::new(false),
            cut: Notify::new(),
            changed,
        }
    }

    /// A request has come.
    pub(super) fn begin_answer(&self) {
        self.is_answering.store(true, Relaxed);
        self.waits_since_nanos.store(0, Relaxed);
    }

    /// The answer is known, and yet to be sent.
    pub(super) fn end_answer(&self) {
        self.is_answering.store(false, Relaxed);
    }

    /// All that was to be sent has been; whatever comes next comes from the client.
    pub(super) fn wait_for_client(&self) {
        if !self.is_answering.load(Relaxed) && self.waits_since_nanos.load(Relaxed) == 0 {
            self.waits_since_nanos.store(clock::monotonic_nanos().max(1), Relaxed);
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
    use std::time::Duration;

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
}
