//! Removing the client's mask (RFC 6455 5.3).
//!
//! Masking is its own inverse, so tests mask with the same function. The loops are plain safe Rust over
//! pieces of fixed size, which the compiler turns into vector instructions.

/// Bytes handled per step of the main loop: two SSE2 registers.
const BLOCK_BYTES: usize = 32;
/// Bytes handled per step of what is left: one machine word.
const WORD_BYTES: usize = 8;

/// XORs `payload` with `key` in place, where `payload` starts `offset` bytes into the frame's payload.
///
/// `offset` counts from the frame's first payload byte, so that a frame which arrives in pieces can be
/// unmasked piece by piece. Cannot fail.
#[inline]
pub fn unmask(payload: &mut [u8], key: [u8; 4], offset: usize) {
    let [a, b, c, d] = rotate(key, offset);
    let key = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut blocks = payload.chunks_exact_mut(BLOCK_BYTES);
    for block in &mut blocks {
        block.chunks_exact_mut(WORD_BYTES).for_each(|word| xor_word(word, key));
    }
    let mut words = blocks.into_remainder().chunks_exact_mut(WORD_BYTES);
    words.by_ref().for_each(|word| xor_word(word, key));
    for (byte, key) in words.into_remainder().iter_mut().zip(key.to_ne_bytes()) {
        *byte ^= key;
    }
}

/// XORs the first [`WORD_BYTES`] of `word`.
#[inline]
fn xor_word(word: &mut [u8], key: u64) {
    if let Some(word) = word.first_chunk_mut() {
        *word = (u64::from_ne_bytes(*word) ^ key).to_ne_bytes();
    }
}

/// The key as it applies to a payload that starts `offset` bytes into the frame.
fn rotate(key: [u8; 4], offset: usize) -> [u8; 4] {
    // Big-endian puts key[0] on top, so a left rotation by whole bytes moves the key forward.
    u32::from_be_bytes(key).rotate_left((offset % 4) as u32 * 8).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 6455 5.3 word for word.
    fn unmask_plainly(payload: &mut [u8], key: [u8; 4], offset: usize) {
        for (i, byte) in payload.iter_mut().enumerate() {
            *byte ^= key[(i + offset) % 4];
        }
    }

    #[test]
    fn rfc_6455_example() {
        let mut payload = [0x7f, 0x9f, 0x4d, 0x51, 0x58];
        unmask(&mut payload, [0x37, 0xfa, 0x21, 0x3d], 0);
        assert_eq!(&payload, b"Hello");
    }

    #[test]
    fn every_length_start_and_offset_equals_the_plain_twin() {
        let key = [0x37, 0xfa, 0x21, 0x3d];
        let bytes: Vec<u8> = (0..200u8).map(|i| i.wrapping_mul(29)).collect();
        for start in 0..34 {
            for len in 0..140 {
                for offset in 0..9 {
                    let mut ours = bytes.clone();
                    let mut plain = bytes.clone();
                    unmask(&mut ours[start..start + len], key, offset);
                    unmask_plainly(&mut plain[start..start + len], key, offset);
                    assert_eq!(ours, plain, "start {start} len {len} offset {offset}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_payload_in_any_pieces_equals_the_plain_twin(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            key in any::<[u8; 4]>(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        ) {
            let mut plain = bytes.clone();
            unmask_plainly(&mut plain, key, 0);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let mut ours = bytes;
            let mut start = 0;
            for end in cuts {
                unmask(&mut ours[start..end], key, start);
                start = end;
            }
            prop_assert_eq!(ours, plain);
        }
    }
}
