//! Decisions taken from the front of a fuzz input.
//!
//! Written so that a small change of the input stays a small change of what is tested: decisions are
//! single bytes, and cuts come from a seed instead of from bytes among the payload.

/// Reads a fuzz input from its front. At the end every read gives zeros or nothing.
#[derive(Debug)]
pub struct Source<'a> {
    rest: &'a [u8],
}

impl<'a> Source<'a> {
    /// The whole of `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    /// The next byte; zero at the end.
    pub fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or_default()
    }

    /// Up to `count` bytes.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (front, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        front
    }

    /// One of `options`, by the next byte.
    pub fn choose<T: Copy>(&mut self, options: &[T]) -> T {
        options[usize::from(self.byte()) % options.len()]
    }

    /// Two bytes that say where the input is cut.
    pub fn cuts(&mut self) -> Cuts {
        Cuts::new(u16::from_le_bytes([self.byte(), self.byte()]))
    }

    /// True if nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// All that is left.
    pub fn rest(self) -> &'a [u8] {
        self.rest
    }
}

/// Sizes of pieces, drawn from a seed. Zero is among them: a read of no bytes must do no harm.
#[derive(Debug, Clone)]
pub struct Cuts {
    state: u64,
    /// Pieces have less bytes than this.
    max_piece_bytes: u64,
}

impl Cuts {
    /// The cuts of a seed: its lowest bits choose how large pieces are, the others where the cuts fall.
    pub fn new(seed: u16) -> Self {
        let max_piece_bytes = [3, 8, 20, 130, 1500, 70_000][usize::from(seed % 6)];
        Self { state: u64::from(seed) | 0x9e37_79b9_0000_0000, max_piece_bytes }
    }

    /// Bytes of the next piece.
    fn next_piece_bytes(&mut self) -> usize {
        // xorshift64: not zero, since the initial state is not.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        ((self.state >> 20) % self.max_piece_bytes) as usize
    }

    /// Cuts `bytes` into pieces.
    pub fn pieces(mut self, mut bytes: &[u8]) -> Vec<&[u8]> {
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(self.next_piece_bytes().min(bytes.len()));
            pieces.push(piece);
            bytes = rest;
        }
        pieces
    }
}
