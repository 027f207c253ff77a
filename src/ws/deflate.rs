//! Compressing and inflating single messages (RFC 7692 7.2), in raw DEFLATE without context takeover.
//!
//! Invariants:
//!
//! 1. Neither direction keeps anything from one message to the next, so one [`Inflater`] and one
//!    [`Deflater`] per window size serve any number of connections of a shard.
//! 2. Inflating stops at the message limit: memory is bounded by the limit, whatever the input claims.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::error::ProtocolError;

/// The empty stored block that ends each message and is left out on the wire (RFC 7692 7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];
/// A final empty stored block. Reading it as such proves that the message ended between two blocks.
const FINAL_BLOCK: [u8; 5] = [0x01, 0x00, 0x00, 0xff, 0xff];
/// How many final blocks a message may have. Each makes the inflater start over, so their cost is bounded.
const MAX_FINAL_BLOCKS: usize = 16;
/// Inflated bytes of memory that are kept for the next message.
const KEPT_BYTES: usize = 64 * 1024;
/// The first output buffer, in bytes, if the message limit allows it.
const FIRST_OUTPUT_BYTES: usize = 1024;

/// Inflates messages, one at a time. About 48 KB of state beside the last message, of which the next one
/// keeps at most 64 KiB of memory.
#[derive(Debug)]
pub struct Inflater {
    state: Decompress,
    output: Vec<u8>,
}

impl Default for Inflater {
    fn default() -> Self {
        Self::new()
    }
}

impl Inflater {
    /// An inflater with the full window, which reads what was compressed with any.
    pub fn new() -> Self {
        Self { state: Decompress::new(false), output: Vec::new() }
    }

    /// Inflates one message, given its payload as received (without the tail).
    ///
    /// Stored blocks, final blocks and a payload of no bytes (an empty message) are understood.
    ///
    /// # Errors
    /// [`ProtocolError::MessageTooBig`] once the output exceeds `max_message_bytes`,
    /// [`ProtocolError::DeflateInvalid`] if the payload is not a series of whole blocks.
    pub fn inflate(&mut self, payload: &[u8], max_message_bytes: usize) -> Result<&[u8], ProtocolError> {
        self.output.clear();
        self.output.shrink_to(KEPT_BYTES);
        if !payload.is_empty() {
            self.inflate_blocks(payload, max_message_bytes)?;
        }
        Ok(&self.output)
    }

    fn inflate_blocks(&mut self, payload: &[u8], max_message_bytes: usize) -> Result<(), ProtocolError> {
        self.state.reset(false);
        let mut rest = payload;
        for _ in 0..MAX_FINAL_BLOCKS {
            let ended = self.feed(&mut rest, max_message_bytes)?;
            if !ended {
                return self.check_end(max_message_bytes);
            }
            // RFC 7692 7.2.3.4: after a final block comes at least the start of the block that is left out. A
            // payload that ends with the final block itself is complete, too.
            if rest.is_empty() {
                return Ok(());
            }
            self.state.reset(false);
        }
        Err(ProtocolError::DeflateInvalid)
    }

    /// Reads the tail that was left out and proves that it was read as blocks, not as data.
    fn check_end(&mut self, max_message_bytes: usize) -> Result<(), ProtocolError> {
        let output_bytes = self.output.len();
        let tail_ended = self.feed(&mut &TAIL[..], max_message_bytes)?;
        let mut final_block = &FINAL_BLOCK[..];
        let is_whole = !tail_ended
            && self.feed(&mut final_block, max_message_bytes)?
            && final_block.is_empty()
            && self.output.len() == output_bytes;
        if is_whole { Ok(()) } else { Err(ProtocolError::DeflateInvalid) }
    }

    /// Inflates all of `input`, or up to the end of a final block, which is told by `true`.
    fn feed(&mut self, input: &mut &[u8], max_message_bytes: usize) -> Result<bool, ProtocolError> {
        // One byte more than allowed tells "full" from "beyond".
        let max_output_bytes = max_message_bytes.saturating_add(1);
        loop {
            if self.output.len() == self.output.capacity() {
                let ahead = self.output.len().max(FIRST_OUTPUT_BYTES);
                self.output.reserve_exact(ahead.min(max_output_bytes - self.output.len()));
            }
            let (read_before, written_before) = (self.state.total_in(), self.output.len());
            let status = self.state.decompress_vec(input, &mut self.output, FlushDecompress::None);
            let read = (self.state.total_in() - read_before) as usize;
            *input = &input[read..];
            if self.output.len() > max_message_bytes {
                return Err(ProtocolError::MessageTooBig);
            }
            match status {
                Ok(Status::StreamEnd) => return Ok(true),
                // Room is left in the output, so the input is used up and nothing is held back.
                Ok(Status::Ok | Status::BufError) if self.output.len() < self.output.capacity() => {
                    return if input.is_empty() { Ok(false) } else { Err(ProtocolError::DeflateInvalid) };
                }
                Ok(Status::Ok | Status::BufError) if read > 0 || self.output.len() > written_before => {}
                Ok(Status::Ok | Status::BufError) | Err(_) => return Err(ProtocolError::DeflateInvalid),
            }
        }
    }
}

/// Compresses messages, one at a time, with one window size. About 0.3 MB for the full window.
#[derive(Debug)]
pub struct Deflater {
    state: Compress,
}

impl Deflater {
    /// A compressor whose window has 2^`window_bits` bytes: 9 to 15; others are taken to the nearest of these.
    ///
    /// [`Negotiated`](super::Negotiated) never holds others.
    pub fn new(window_bits: u8) -> Self {
        let window_bits = window_bits.clamp(9, 15);
        Self { state: Compress::new_with_window_bits(Compression::default(), false, window_bits) }
    }

    /// Appends the compressed form of one message to `out`, without the tail: the payload of a frame with RSV1.
    ///
    /// The result may be larger than `message`, by few bytes. Cannot fail: the state is fresh, and the message is
    /// only data to it.
    ///
    /// # Panics
    /// Where the compressor breaks that promise: its own fault, whatever the message.
    pub fn deflate(&mut self, message: &[u8], out: &mut Vec<u8>) {
        self.state.reset();
        let start = out.len();
        let mut rest = message;
        loop {
            // zlib's bound and the flush; a flush into less than 6 bytes would be repeated.
            out.reserve(rest.len() + rest.len() / 8 + 64);
            let read_before = self.state.total_in();
            let status = self.state.compress_vec(rest, out, FlushCompress::Sync);
            status.expect("a compressor that was just reset takes any input");
            rest = &rest[(self.state.total_in() - read_before) as usize..];
            if rest.is_empty() && out.len() < out.capacity() {
                break;
            }
        }
        debug_assert!(out.len() >= start + TAIL.len() && out.ends_with(&TAIL));
        out.truncate(out.len() - TAIL.len());
    }
}

#[cfg(test)]
mod tests;
