//! How many connections each address has, over all cores: for `--max-connections-per-ip`.
//!
//! One table for the process, of atomics and without a lock: every shard counts in it as it accepts. An address
//! of IPv4 counts by itself, one of IPv6 by its /64, which is what a single subscriber is given.
//!
//! Invariants:
//! 1. A bucket is one cache line. Where an address belongs follows from its mixed key alone: the high bits choose
//!    the bucket, the low ones stand in the entry beside the count. The mixing is reversible, so two addresses
//!    never share a count.
//! 2. An entry whose count falls to zero is free again, in the same step.
//! 3. No address is ever counted above the limit. Two cores that take in the first connections of an address in
//!    the same instant may give it two entries; the count is the sum of both. Where they find each other over the
//!    limit so, both may be refused.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Entries of a bucket: a cache line of them.
const ENTRIES: usize = 8;

/// Bits of an entry that count.
const COUNT_BITS: u32 = 16;

/// Bits of a mixed key that stand in the entry; the others choose the bucket.
const TAG_BITS: u32 = 64 - COUNT_BITS;

/// Least and most buckets, as powers of two: 4 MiB to 64 MiB. Below the least, the bucket would not tell those
/// bits of the key that the entry does not hold.
const BUCKET_BITS: (u32, u32) = (64 - TAG_BITS, 20);

/// An address as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AddressKey(u64);

impl AddressKey {
    /// The key of an address.
    pub(super) fn new(address: IpAddr) -> Self {
        match address.to_canonical() {
            // In a /64 of multicast, which no connection comes from.
            IpAddr::V4(address) => Self(0xFFFF_FFFF_0000_0000 | u64::from(address.to_bits())),
            IpAddr::V6(address) => Self((address.to_bits() >> 64) as u64),
        }
    }
}

#[derive(Default)]
#[repr(align(64))]
struct Bucket([AtomicU64; ENTRIES]);

/// The table. Its memory is taken when the first connection is counted.
pub(super) struct AddressCounts {
    bucket_bits: u32,
    /// Unknown to clients, so that none can choose addresses that crowd one bucket.
    seed: u64,
    buckets: OnceLock<Box<[Bucket]>>,
}

impl std::fmt::Debug for AddressCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AddressCounts").field("bucket_bits", &self.bucket_bits).finish_non_exhaustive()
    }
}

impl AddressCounts {
    /// An empty table for that many connections. It has a bucket for each, so that even if all come from different
    /// addresses not one bucket in 500,000 is full; an address that finds its bucket full is refused.
    pub(super) fn new(max_connections: u64) -> Self {
        let wanted = max_connections.checked_next_power_of_two().map_or(64, u64::trailing_zeros);
        let bucket_bits = wanted.clamp(BUCKET_BITS.0, BUCKET_BITS.1);
        Self { bucket_bits, seed: RandomState::new().hash_one(0), buckets: OnceLock::new() }
    }

    /// Counts a connection; false, and not counted, if its address has as many as the limit.
    pub(super) fn acquire(&self, key: AddressKey, limit: u16) -> bool {
        let (bucket, tag) = self.place(key);
        loop {
            let (sum, entry) = look(bucket, tag);
            let Some((entry, before)) = entry.filter(|_| sum < u64::from(limit)) else {
                return false;
            };
            let after = if before == 0 { tag << COUNT_BITS | 1 } else { before + 1 };
            if entry.compare_exchange(before, after, SeqCst, SeqCst).is_err() {
                continue;
            }
            // Another core may have counted in another entry meanwhile.
            if look(bucket, tag).0 <= u64::from(limit) {
                return true;
            }
            self.release(key);
            return false;
        }
    }

    /// Takes back one [`AddressCounts::acquire`] that was true.
    pub(super) fn release(&self, key: AddressKey) {
        let (bucket, tag) = self.place(key);
        // One is there as long as this connection is counted, but may change places while it is looked for.
        loop {
            for entry in &bucket.0 {
                let before = entry.load(SeqCst);
                if !counts(before, tag) {
                    continue;
                }
                let after = if count(before) == 1 { 0 } else { before - 1 };
                if entry.compare_exchange(before, after, SeqCst, SeqCst).is_ok() {
                    return;
                }
            }
            std::hint::spin_loop();
        }
    }

    fn place(&self, key: AddressKey) -> (&Bucket, u64) {
        let make = || (0..1_usize << self.bucket_bits).map(|_| Bucket::default()).collect();
        let buckets = self.buckets.get_or_init(make);
        let mixed = mix(key.0 ^ self.seed);
        let bucket = (mixed >> (64 - self.bucket_bits)) as usize;
        (&buckets[bucket], mixed & ((1 << TAG_BITS) - 1))
    }

    /// Connections counted now.
    #[cfg(test)]
    fn total(&self) -> u64 {
        let buckets = self.buckets.get().map_or(&[][..], |buckets| buckets);
        buckets.iter().flat_map(|bucket| &bucket.0).map(|entry| count(entry.load(SeqCst))).sum()
    }
}

/// What the bucket counts for a tag, and the entry to count in: one that has the tag, else a free one.
fn look(bucket: &Bucket, tag: u64) -> (u64, Option<(&AtomicU64, u64)>) {
    let (mut sum, mut own, mut free) = (0, None, None);
    for entry in &bucket.0 {
        let value = entry.load(SeqCst);
        if counts(value, tag) {
            sum += count(value);
            own = own.or(Some((entry, value)));
        } else if value == 0 {
            free = free.or(Some((entry, value)));
        }
    }
    (sum, own.or(free))
}

fn count(entry: u64) -> u64 {
    entry & ((1 << COUNT_BITS) - 1)
}

fn counts(entry: u64, tag: u64) -> bool {
    entry != 0 && entry >> COUNT_BITS == tag
}

/// The finalizer of MurmurHash3: every bit of the input moves every bit of the result, and no two inputs have
/// the same.
fn mix(mut key: u64) -> u64 {
    key = (key ^ (key >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    key = (key ^ (key >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    key ^ (key >> 33)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    fn key(address: &str) -> AddressKey {
        AddressKey::new(address.parse().unwrap())
    }

    #[test]
    fn addresses_are_counted_apart_up_to_the_limit() {
        let counts = AddressCounts::new(10);
        let (one, two) = (key("192.0.2.1"), key("192.0.2.2"));
        for _ in 0..3 {
            assert!(counts.acquire(one, 3));
        }
        assert!(!counts.acquire(one, 3) && counts.acquire(two, 3));
        assert!(counts.acquire(one, 4), "the limit may be raised meanwhile");
        counts.release(one);
        counts.release(one);
        assert!(counts.acquire(one, 3) && !counts.acquire(one, 3) && !counts.acquire(one, 1));
        (0..3).for_each(|_| counts.release(one));
        counts.release(two);
        assert_eq!(counts.total(), 0);
        for _ in 0..u16::MAX {
            assert!(counts.acquire(two, u16::MAX));
        }
        assert!(!counts.acquire(two, u16::MAX), "the count does not run over");
        assert_eq!(counts.total(), u64::from(u16::MAX));
    }

    #[test]
    fn ipv6_counts_by_64_bits_and_mapped_ipv4_as_ipv4() {
        assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff::9"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        assert_ne!(key("::1"), key("0.0.0.1"));
    }

    #[test]
    fn many_addresses_at_once_are_all_told_apart() {
        let counts = AddressCounts::new(100_000);
        let key = |n: u32| AddressKey::new(IpAddr::from(n.to_be_bytes()));
        let taken = (0..100_000).filter(|&n| counts.acquire(key(n), 1)).count();
        // A full bucket refuses; with a bucket for each address that is one in a million.
        assert!(taken > 99_900, "{taken}");
        assert_eq!((0..100_000).filter(|&n| counts.acquire(key(n), 1)).count(), 0, "no address twice");
        assert_eq!(counts.total(), taken as u64);
    }

    #[test]
    fn the_limit_holds_and_counts_return_to_zero_under_stress() {
        const THREADS: u64 = 8;
        const ROUNDS: u64 = 20_000;
        const LIMIT: u16 = 3;
        let counts = AddressCounts::new(1);
        let held: Vec<AtomicU32> = (0..4).map(|_| AtomicU32::new(0)).collect();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (counts, held) = (&counts, &held);
                scope.spawn(move || {
                    let (mut seed, mut mine) = (thread + 1, Vec::new());
                    for _ in 0..ROUNDS {
                        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let address = (seed >> 40) as usize % held.len();
                        let key = AddressKey::new(IpAddr::from([10, 0, 0, address as u8]));
                        if seed >> 33 & 1 == 0 && counts.acquire(key, LIMIT) {
                            let now = held[address].fetch_add(1, SeqCst) + 1;
                            assert!(now <= LIMIT.into(), "{now} connections of one address");
                            mine.push((address, key));
                        } else if let Some((address, key)) = mine.pop() {
                            held[address].fetch_sub(1, SeqCst);
                            counts.release(key);
                        }
                    }
                    for (address, key) in mine {
                        held[address].fetch_sub(1, SeqCst);
                        counts.release(key);
                    }
                });
            }
        });
        assert_eq!(counts.total(), 0);
        for address in 0..4 {
            let key = AddressKey::new(IpAddr::from([10, 0, 0, address]));
            assert!((0..LIMIT).all(|_| counts.acquire(key, LIMIT)), "all of the limit is there again");
        }
    }
}
