//! Tables of what few connections have, by slot.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Values by slot, for what too few connections have to give it a place in each slot.
pub(crate) type BySlot<V> = SlotMap<u32, V>;

/// A table whose keys are made of slots and of other numbers that this process has chosen.
pub(crate) type SlotMap<K, V> = HashMap<K, V, BuildHasherDefault<SlotHasher>>;

/// Hashes numbers that no peer can choose: slots are given out in turn, so there is nothing to defend against.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SlotHasher(u64);

/// An odd number near 2^64 divided by the golden ratio: neighbouring numbers differ in the low bits of the product,
/// which choose the place, and in its high bits, by which places are told apart.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for SlotHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u32(u32::from(byte)));
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0.rotate_left(32) ^ u64::from(number)).wrapping_mul(SPREAD);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::{BuildHasher, Hash};

    use super::*;

    /// The most of `keys` that have the same `bits` of their hash, beginning at bit `from`.
    fn most_alike<K: Hash>(keys: impl Iterator<Item = K>, from: u32, bits: u32) -> usize {
        let hasher = BuildHasherDefault::<SlotHasher>::default();
        let mut counts = vec![0; 1 << bits];
        keys.for_each(|key| counts[(hasher.hash_one(key) >> from) as usize & ((1 << bits) - 1)] += 1);
        counts.into_iter().max().unwrap()
    }

    #[test]
    fn slots_are_spread_over_places_and_marks() {
        assert_eq!(most_alike(0..1_u32 << 16, 0, 16), 1);
        assert!(most_alike(0..1_u32 << 14, 57, 7) <= 2 << 7);
        // As it is with every other connection of many, and with pairs.
        assert!(most_alike((0..1_u32 << 14).map(|slot| slot * 2), 0, 14) <= 2);
        let pairs = || (0..1_u32 << 7).flat_map(|slot| (0..1_u32 << 7).map(move |topic| (slot, topic)));
        assert!(most_alike(pairs(), 0, 14) <= 16);
        assert!(most_alike(pairs(), 57, 7) <= 2 << 7);
        let hasher = BuildHasherDefault::<SlotHasher>::default();
        assert_eq!(pairs().map(|pair| hasher.hash_one(pair)).collect::<HashSet<_>>().len(), 1 << 14);
    }
}
