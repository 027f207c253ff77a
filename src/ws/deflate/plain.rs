//! A plain inflater (RFC 1951), slow and obvious: the witness for what the compressor really emits.

/// Length codes 257..=285: base and extra bits.
const LENGTHS: [(usize, u32); 29] = [
    (3, 0),
    (4, 0),
    (5, 0),
    (6, 0),
    (7, 0),
    (8, 0),
    (9, 0),
    (10, 0),
    (11, 1),
    (13, 1),
    (15, 1),
    (17, 1),
    (19, 2),
    (23, 2),
    (27, 2),
    (31, 2),
    (35, 3),
    (43, 3),
    (51, 3),
    (59, 3),
    (67, 4),
    (83, 4),
    (99, 4),
    (115, 4),
    (131, 5),
    (163, 5),
    (195, 5),
    (227, 5),
    (258, 0),
];
/// The order in which the lengths of the code-length code are sent.
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// What a payload holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Inflated {
    pub(super) message: Vec<u8>,
    /// The farthest that a copy looks back.
    pub(super) max_distance: usize,
}

/// Inflates a payload to which the tail was added. `None` if it is not a series of whole blocks.
pub(super) fn inflate(bytes: &[u8]) -> Option<Inflated> {
    let mut bits = Bits { bytes, at: 0 };
    let mut out = Inflated::default();
    let mut is_final = false;
    while !is_final && bits.at < bytes.len() * 8 {
        // Fewer than three bits before the end cannot begin a block; the tail always ends on one.
        is_final = bits.take(1)? == 1;
        match bits.take(2)? {
            0 => stored_block(&mut bits, &mut out)?,
            1 => {
                let lengths: Vec<u32> = (0..288)
                    .map(|symbol| match symbol {
                        0..=143 => 8,
                        144..=255 => 9,
                        256..=279 => 7,
                        _ => 8,
                    })
                    .collect();
                compressed_block(&mut bits, &mut out, &Code::new(&lengths), &Code::new(&[5; 30]))?;
            }
            2 => {
                let (literals, distances) = dynamic_codes(&mut bits)?;
                compressed_block(&mut bits, &mut out, &literals, &distances)?;
            }
            _ => return None,
        }
    }
    Some(out)
}

fn stored_block(bits: &mut Bits<'_>, out: &mut Inflated) -> Option<()> {
    bits.at = bits.at.next_multiple_of(8);
    let (len, complement) = (bits.take(16)?, bits.take(16)?);
    if len != !complement & 0xffff {
        return None;
    }
    for _ in 0..len {
        out.message.push(bits.take(8)? as u8);
    }
    Some(())
}

fn compressed_block(
    bits: &mut Bits<'_>,
    out: &mut Inflated,
    literals: &Code,
    distances: &Code,
) -> Option<()> {
    loop {
        match literals.read(bits)? {
            literal @ 0..=255 => out.message.push(literal as u8),
            256 => return Some(()),
            symbol => {
                let (base, extra) = *LENGTHS.get(symbol - 257)?;
                let len = base + bits.take(extra)?;
                let symbol = distances.read(bits)?;
                let distance = match symbol {
                    0..=3 => symbol + 1,
                    _ => {
                        let extra = (symbol as u32 - 2) / 2;
                        ((2 + symbol % 2) << extra) + 1 + bits.take(extra)?
                    }
                };
                out.max_distance = out.max_distance.max(distance);
                for _ in 0..len {
                    let from = out.message.len().checked_sub(distance)?;
                    out.message.push(out.message[from]);
                }
            }
        }
    }
}

fn dynamic_codes(bits: &mut Bits<'_>) -> Option<(Code, Code)> {
    let literals = bits.take(5)? + 257;
    let distances = bits.take(5)? + 1;
    let mut lengths = [0; 19];
    for &symbol in &ORDER[..bits.take(4)? + 4] {
        lengths[symbol] = bits.take(3)? as u32;
    }
    let code = Code::new(&lengths);
    let mut lengths = Vec::new();
    while lengths.len() < literals + distances {
        let (length, times) = match code.read(bits)? {
            16 => (*lengths.last()?, 3 + bits.take(2)?),
            17 => (0, 3 + bits.take(3)?),
            18 => (0, 11 + bits.take(7)?),
            length => (length as u32, 1),
        };
        lengths.extend(std::iter::repeat_n(length, times));
    }
    Some((Code::new(&lengths[..literals]), Code::new(&lengths[literals..])))
}

/// Bits from the lowest of each byte on.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn take(&mut self, count: u32) -> Option<usize> {
        let mut value = 0;
        for i in 0..count {
            let byte = *self.bytes.get(self.at / 8)?;
            value |= usize::from(byte >> (self.at % 8) & 1) << i;
            self.at += 1;
        }
        Some(value)
    }
}

/// A canonical Huffman code: for each code word its length, value and symbol.
struct Code {
    words: Vec<(u32, usize, usize)>,
}

impl Code {
    fn new(lengths: &[u32]) -> Self {
        let mut words = Vec::new();
        let mut value = 0;
        for len in 1..=15 {
            for (symbol, _) in lengths.iter().enumerate().filter(|&(_, &l)| l == len) {
                words.push((len, value, symbol));
                value += 1;
            }
            value <<= 1;
        }
        Self { words }
    }

    fn read(&self, bits: &mut Bits<'_>) -> Option<usize> {
        let mut value = 0;
        for len in 1..=15 {
            value = value << 1 | bits.take(1)?;
            if let Ok(i) = self.words.binary_search_by(|&(l, v, _)| (l, v).cmp(&(len, value))) {
                return Some(self.words[i].2);
            }
        }
        None
    }
}
