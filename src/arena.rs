//! Bytes that wait for one pass: encoded once, at a fixed place, until the kernel has them.
//!
//! An [`Arena`] is a row of blocks. A block never grows beyond the capacity it was made with, so bytes that
//! were appended stay where they are until [`Arena::clear`]; the batch of sends relies on that. It lives on
//! one core.

/// Capacity of an ordinary block, in bytes.
const BLOCK_BYTES: usize = 64 * 1024;

/// Blocks kept by [`Arena::clear`]; the rest goes back to the allocator.
const KEPT_BLOCKS: usize = 4;

/// A row of blocks of bytes.
#[derive(Debug, Default)]
pub struct Arena {
    blocks: Vec<Vec<u8>>,
    current: usize,
    length: usize,
}

/// Where some bytes lie in an [`Arena`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    block: u32,
    start: u32,
    length: u32,
}

impl Span {
    /// Takes in the bytes of `next` if they follow directly behind these; false if they do not.
    pub fn extend(&mut self, next: Self) -> bool {
        let adjacent = self.block == next.block && self.start + self.length == next.start;
        if adjacent {
            self.length += next.length;
        }
        adjacent
    }
}

impl Arena {
    /// Bytes held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Appends `head` and `tail` as one contiguous run.
    ///
    /// # Panics
    /// When the two together reach 4 GiB; the limits on messages are far below.
    pub fn append(&mut self, head: &[u8], tail: &[u8]) -> Span {
        let length = head.len() + tail.len();
        let fits = |block: &Vec<u8>| block.capacity() - block.len() >= length;
        while self.blocks.get(self.current).is_some_and(|block| !fits(block)) {
            self.current += 1;
        }
        if self.current == self.blocks.len() {
            self.blocks.push(Vec::with_capacity(length.max(BLOCK_BYTES)));
        }
        let block = &mut self.blocks[self.current];
        let start = block.len();
        block.extend_from_slice(head);
        block.extend_from_slice(tail);
        self.length += length;
        assert!(block.len() <= u32::MAX as usize, "a block holds less than 4 GiB");
        Span { block: self.current as u32, start: start as u32, length: length as u32 }
    }

    /// The bytes of a span that this arena gave out since it was last cleared.
    #[must_use]
    pub fn bytes(&self, span: Span) -> &[u8] {
        let start = span.start as usize;
        &self.blocks[span.block as usize][start..start + span.length as usize]
    }

    /// Forgets all bytes and keeps a few blocks for the next pass.
    pub fn clear(&mut self) {
        self.blocks.retain(|block| block.capacity() == BLOCK_BYTES);
        self.blocks.truncate(KEPT_BLOCKS);
        self.blocks.iter_mut().for_each(Vec::clear);
        self.current = 0;
        self.length = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_where_they_are() {
        let mut arena = Arena::default();
        let mut spans = Vec::new();
        for n in 0..2_000_usize {
            let span = arena.append(&[n as u8; 3], &vec![n as u8; n % 700]);
            spans.push((span, arena.bytes(span).as_ptr(), n));
        }
        for (span, place, n) in spans {
            assert_eq!(arena.bytes(span).as_ptr(), place);
            assert_eq!(arena.bytes(span), vec![n as u8; 3 + n % 700]);
        }
        arena.clear();
        assert!(arena.is_empty());
        assert!(arena.blocks.len() <= KEPT_BLOCKS);
    }

    #[test]
    fn a_large_run_gets_a_block_of_its_own() {
        let mut arena = Arena::default();
        arena.append(b"small", b"");
        let span = arena.append(b"head", &vec![7; 3 * BLOCK_BYTES]);
        assert_eq!(arena.bytes(span).len(), 4 + 3 * BLOCK_BYTES);
        arena.clear();
        assert!(arena.blocks.iter().all(|block| block.capacity() == BLOCK_BYTES));
    }

    #[test]
    fn neighbours_join() {
        let mut arena = Arena::default();
        let mut first = arena.append(b"a", b"b");
        let second = arena.append(b"c", b"");
        let third = arena.append(b"d", b"");
        assert!(first.extend(second));
        assert_eq!(arena.bytes(first), b"abc");
        assert!(!{ first }.extend(second));
        assert!(first.extend(third));
        assert_eq!(arena.bytes(first), b"abcd");
    }
}
