//! Removing the client's mask (RFC 6455 5.3).
//!
//! Masking is its own inverse, so tests mask with the same function. The loop is plain safe Rust over
//! blocks of fixed size, which the compiler turns into vector instructions.

/// Bytes handled per step of the main loop: two SSE2 registers, and a multiple of the key's length.
const BLOCK_BYTES: usize = 32;

/// XORs `payload` with `key` in place, where `payload` starts `offset` bytes into the frame's payload.
///
/// `offset` counts from the frame's first payload byte, so that a frame which arrives in pieces can be
/// unmasked piece by piece. Cannot fail.
pub fn unmask(payload: &mut [u8], key: [u8; 4], offset: usize) {
    let key = rotate(key, offset);
    let mut block_key = [0; BLOCK_BYTES];
    for part in block_key.chunks_exact_mut(4) {
        part.copy_from_slice(&key);
    }
    let mut blocks = payload.chunks_exact_mut(BLOCK_BYTES);
    for block in &mut blocks {
        for (byte, key) in block.iter_mut().zip(&block_key) {
            *byte ^= key;
        }
    }
    for (byte, key) in blocks.into_remainder().iter_mut().zip(&block_key) {
        *byte ^= key;
    }
}

/// The key as it applies to a payload that starts `offset` bytes into the frame.
fn rotate(key: [u8; 4], offset: usize) -> [u8; 4] {
    // Big-endian puts key[0] on top, so a left rotation by whole bytes moves the key forward.
    u32::from_be_bytes(key)
        .rotate_left((offset % 4) as u32 * 8)
        .to_be_bytes()
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
