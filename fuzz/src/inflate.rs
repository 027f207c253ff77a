//! A second inflater (RFC 1951), slow and strict, that says what `Inflater` must say of any bytes.
//!
//! It refuses what zlib refuses: codes that are oversubscribed, or incomplete other than by being a single
//! code of one bit, and copies from before the start. It works bit by bit and shares nothing with zlib.

/// How many final blocks a message may have, as `ws::deflate` states it.
const MAX_FINAL_BLOCKS: usize = 16;
/// What was left out of the payload (RFC 7692 7.2.1), and a final empty block to prove that it was read as a block.
const END: [u8; 9] = [0x00, 0x00, 0xff, 0xff, 0x01, 0x00, 0x00, 0xff, 0xff];
/// Length codes 257..=285: base and extra bits.
const LENGTHS: [(usize, u32); 29] = {
    let mut lengths = [(258, 0); 29];
    let (mut base, mut code) = (3, 0);
    while code < 28 {
        let extra = if code < 8 { 0 } else { code as u32 / 4 - 1 };
        lengths[code] = (base, extra);
        base += 1 << extra;
        code += 1;
    }
    lengths
};
/// The order in which the lengths of the code-length code are sent.
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Why a payload is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The message exceeds the limit.
    TooBig,
    /// Not a series of whole blocks.
    Invalid,
}

/// A message, and the farthest that a copy in it looks back.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Inflated {
    /// The message.
    pub message: Vec<u8>,
    /// Bytes between a copy and its source; 0 without copies.
    pub max_distance: usize,
}

/// Inflates the payload of a message, without its tail as it is on the wire.
pub fn inflate(payload: &[u8], max_message_bytes: usize) -> Result<Inflated, Refusal> {
    let bytes = [payload, &END].concat();
    let mut reader = Reader {
        bytes: &bytes,
        at: 0,
        payload_bits: payload.len() * 8,
        spilled: false,
        start: 0,
        max_message_bytes,
        out: Inflated::default(),
    };
    if payload.is_empty() {
        return Ok(reader.out);
    }
    for _ in 0..MAX_FINAL_BLOCKS {
        while !reader.block()? {}
        let end = reader.at.div_ceil(8);
        // The last block of the message is final itself, or the one that was added to prove the end.
        if end == payload.len() || (end == bytes.len() && !reader.spilled) {
            return Ok(reader.out);
        }
        if end > payload.len() {
            return Err(Refusal::Invalid);
        }
        reader.at = end * 8;
        reader.start = reader.out.message.len();
    }
    Err(Refusal::Invalid)
}

/// Bits from the lowest of each byte on, and what they came to.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Bits of the payload; those behind it may not add to the message.
    payload_bits: usize,
    /// They did: the payload is cut short.
    spilled: bool,
    /// Where in the message the blocks since the last final one began.
    start: usize,
    max_message_bytes: usize,
    out: Inflated,
}

impl Reader<'_> {
    /// Reads one block. True if it is final.
    fn block(&mut self) -> Result<bool, Refusal> {
        let is_final = self.take(1)? == 1;
        match self.take(2)? {
            0 => self.stored()?,
            1 => {
                let lengths: Vec<usize> = [vec![8; 144], vec![9; 112], vec![7; 24], vec![8; 8]].concat();
                self.compressed(&Code::new(&lengths), &Code::new(&[5; 30]))?;
            }
            2 => {
                let (literals, distances) = self.codes()?;
                self.compressed(&literals, &distances)?;
            }
            _ => return Err(Refusal::Invalid),
        }
        Ok(is_final)
    }

    fn take(&mut self, count: u32) -> Result<usize, Refusal> {
        let mut value = 0;
        for i in 0..count {
            let byte = *self.bytes.get(self.at / 8).ok_or(Refusal::Invalid)?;
            value |= usize::from(byte >> (self.at % 8) & 1) << i;
            self.at += 1;
        }
        Ok(value)
    }

    fn push(&mut self, byte: u8) -> Result<(), Refusal> {
        // Too big is said first, even of a message that is also cut short.
        self.spilled |= self.at > self.payload_bits;
        if self.out.message.len() == self.max_message_bytes {
            return Err(Refusal::TooBig);
        }
        self.out.message.push(byte);
        Ok(())
    }

    fn stored(&mut self) -> Result<(), Refusal> {
        self.at = self.at.next_multiple_of(8);
        let (len, complement) = (self.take(16)?, self.take(16)?);
        if len != !complement & 0xffff {
            return Err(Refusal::Invalid);
        }
        for _ in 0..len {
            let byte = self.take(8)? as u8;
            self.push(byte)?;
        }
        Ok(())
    }

    fn compressed(&mut self, literals: &Code, distances: &Code) -> Result<(), Refusal> {
        loop {
            match self.symbol(literals)? {
                literal @ 0..=255 => self.push(literal as u8)?,
                256 => return Ok(()),
                symbol => {
                    let (base, extra) = *LENGTHS.get(symbol - 257).ok_or(Refusal::Invalid)?;
                    let len = base + self.take(extra)?;
                    let distance = match self.symbol(distances)? {
                        symbol @ 0..=3 => symbol + 1,
                        symbol => {
                            let extra = (symbol as u32 - 2) / 2;
                            ((2 + symbol % 2) << extra) + 1 + self.take(extra)?
                        }
                    };
                    if distance > self.out.message.len() - self.start {
                        return Err(Refusal::Invalid);
                    }
                    self.out.max_distance = self.out.max_distance.max(distance);
                    for _ in 0..len {
                        self.push(self.out.message[self.out.message.len() - distance])?;
                    }
                }
            }
        }
    }

    /// The codes of a dynamic block.
    fn codes(&mut self) -> Result<(Code, Code), Refusal> {
        let (literals, distances) = (self.take(5)? + 257, self.take(5)? + 1);
        let sent = self.take(4)? + 4;
        if literals > 286 || distances > 30 {
            return Err(Refusal::Invalid);
        }
        let mut lengths = [0; 19];
        for &symbol in &ORDER[..sent] {
            lengths[symbol] = self.take(3)?;
        }
        let code = Code::new(&lengths);
        if code.unused != 0 {
            return Err(Refusal::Invalid);
        }
        let mut lengths = Vec::new();
        while lengths.len() < literals + distances {
            let (length, times) = match self.symbol(&code)? {
                16 => (*lengths.last().ok_or(Refusal::Invalid)?, 3 + self.take(2)?),
                17 => (0, 3 + self.take(3)?),
                18 => (0, 11 + self.take(7)?),
                length => (length, 1),
            };
            lengths.extend(std::iter::repeat_n(length, times));
        }
        if lengths.len() > literals + distances || lengths[256] == 0 {
            return Err(Refusal::Invalid);
        }
        let (literals, distances) = (Code::new(&lengths[..literals]), Code::new(&lengths[literals..]));
        if literals.is_usable() && distances.is_usable() {
            Ok((literals, distances))
        } else {
            Err(Refusal::Invalid)
        }
    }

    fn symbol(&mut self, code: &Code) -> Result<usize, Refusal> {
        let (mut word, mut first, mut index) = (0, 0, 0);
        for len in 1..=15 {
            word |= self.take(1)?;
            let count = code.counts[len];
            if word < first + count {
                return Ok(code.symbols[index + word - first]);
            }
            index += count;
            first = (first + count) << 1;
            word <<= 1;
        }
        Err(Refusal::Invalid)
    }
}

/// A canonical Huffman code.
struct Code {
    /// Code words of each length; `counts[0]` are the symbols without one.
    counts: [usize; 16],
    /// Symbols in the order of their code words.
    symbols: Vec<usize>,
    /// Code words of 15 bits that are left over; negative if there are too many.
    unused: isize,
}

impl Code {
    fn new(lengths: &[usize]) -> Self {
        let mut counts = [0; 16];
        lengths.iter().for_each(|&length| counts[length] += 1);
        let unused = (1..16).fold(1 << 15, |unused, len| unused - ((counts[len] as isize) << (15 - len)));
        let mut symbols: Vec<usize> = (0..lengths.len()).filter(|&symbol| lengths[symbol] != 0).collect();
        symbols.sort_by_key(|&symbol| lengths[symbol]);
        Self { counts, symbols, unused }
    }

    /// Complete; or one code of one bit, or none at all.
    fn is_usable(&self) -> bool {
        self.unused == 0 || (self.unused > 0 && self.symbols.len() == self.counts[1])
    }
}
