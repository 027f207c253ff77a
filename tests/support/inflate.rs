//! A small inflater (RFC 1951), slow and plain. It shares nothing with the server's and tells how far back
//! the compressor reached, which is the one way to see whether it kept to the agreed window.

/// A message inflated, and the greatest distance of any copy in it.
#[derive(Debug)]
pub struct Inflated {
    pub bytes: Vec<u8>,
    pub farthest: usize,
}

/// Inflates the payload of a permessage-deflate message: the stream without its last four bytes (RFC 7692 7.2.2).
pub fn message(payload: &[u8]) -> Result<Inflated, String> {
    let payload = [payload, &[0, 0, 0xFF, 0xFF]].concat();
    let mut bits = Bits { bytes: &payload, at: 0 };
    let mut inflated = Inflated { bytes: Vec::new(), farthest: 0 };
    loop {
        let last = bits.take(1)? == 1;
        match bits.take(2)? {
            0 => stored(&mut bits, &mut inflated)?,
            1 => block(&mut bits, &mut inflated, &Codes::fixed())?,
            2 => {
                let codes = Codes::read(&mut bits)?;
                block(&mut bits, &mut inflated, &codes)?;
            }
            _ => return Err("a block of type 3".into()),
        }
        // The four bytes added above are an empty stored block that is not the last: the input ends behind it.
        if last || bits.at == payload.len() * 8 {
            return Ok(inflated);
        }
    }
}

struct Bits<'a> {
    bytes: &'a [u8],
    /// Bits taken.
    at: usize,
}

impl Bits<'_> {
    /// The next bits, the first of them lowest.
    fn take(&mut self, count: usize) -> Result<usize, String> {
        let mut value = 0;
        for bit in 0..count {
            let byte = *self.bytes.get(self.at / 8).ok_or("the stream ends too early")?;
            value |= usize::from(byte >> (self.at % 8) & 1) << bit;
            self.at += 1;
        }
        Ok(value)
    }
}

fn stored(bits: &mut Bits<'_>, inflated: &mut Inflated) -> Result<(), String> {
    bits.at = bits.at.next_multiple_of(8);
    let (length, inverse) = (bits.take(16)?, bits.take(16)?);
    if length != inverse ^ 0xFFFF {
        return Err("a stored block whose length is not confirmed".into());
    }
    for _ in 0..length {
        inflated.bytes.push(bits.take(8)? as u8);
    }
    Ok(())
}

/// A Huffman code in canonical form.
struct Huffman {
    /// How many symbols have each length; index 0 is unused.
    counts: [usize; 16],
    /// The symbols, by length and then by value.
    symbols: Vec<usize>,
}

impl Huffman {
    fn new(lengths: &[usize]) -> Huffman {
        let mut counts = [0; 16];
        let mut symbols: Vec<usize> = (0..lengths.len()).filter(|&symbol| lengths[symbol] > 0).collect();
        symbols.sort_by_key(|&symbol| lengths[symbol]);
        symbols.iter().for_each(|&symbol| counts[lengths[symbol]] += 1);
        Huffman { counts, symbols }
    }

    fn decode(&self, bits: &mut Bits<'_>) -> Result<usize, String> {
        let (mut code, mut first, mut index) = (0, 0, 0);
        for count in &self.counts[1..] {
            code |= bits.take(1)?;
            if code < first + count {
                return Ok(self.symbols[index + code - first]);
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        Err("a code that stands for nothing".into())
    }
}

struct Codes {
    literals: Huffman,
    distances: Huffman,
}

impl Codes {
    fn fixed() -> Codes {
        let lengths: Vec<usize> = (0..288)
            .map(|symbol| match symbol {
                0..=143 => 8,
                144..=255 => 9,
                256..=279 => 7,
                _ => 8,
            })
            .collect();
        Codes { literals: Huffman::new(&lengths), distances: Huffman::new(&[5; 30]) }
    }

    fn read(bits: &mut Bits<'_>) -> Result<Codes, String> {
        const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
        let (literals, distances) = (bits.take(5)? + 257, bits.take(5)? + 1);
        let mut lengths = [0; 19];
        for &symbol in &ORDER[..bits.take(4)? + 4] {
            lengths[symbol] = bits.take(3)?;
        }
        let code = Huffman::new(&lengths);
        let mut lengths = Vec::new();
        while lengths.len() < literals + distances {
            let (value, times) = match code.decode(bits)? {
                16 => (*lengths.last().ok_or("a repetition of nothing")?, 3 + bits.take(2)?),
                17 => (0, 3 + bits.take(3)?),
                18 => (0, 11 + bits.take(7)?),
                length => (length, 1),
            };
            lengths.extend(std::iter::repeat_n(value, times));
        }
        let (literals, distances) = lengths.split_at(literals);
        Ok(Codes { literals: Huffman::new(literals), distances: Huffman::new(distances) })
    }
}

fn block(bits: &mut Bits<'_>, inflated: &mut Inflated, codes: &Codes) -> Result<(), String> {
    loop {
        let length = match codes.literals.decode(bits)? {
            literal @ 0..=255 => {
                inflated.bytes.push(literal as u8);
                continue;
            }
            256 => return Ok(()),
            symbol @ 257..=264 => symbol - 254,
            symbol @ 265..=284 => grown(bits, symbol - 261, 4)? + 3,
            285 => 258,
            _ => return Err("a length that does not exist".into()),
        };
        let distance = match codes.distances.decode(bits)? {
            symbol @ 0..=3 => symbol + 1,
            symbol @ 4..=29 => grown(bits, symbol - 2, 2)? + 1,
            _ => return Err("a distance that does not exist".into()),
        };
        inflated.farthest = inflated.farthest.max(distance);
        let from = inflated.bytes.len().checked_sub(distance).ok_or("a distance beyond the beginning")?;
        for at in from..from + length {
            inflated.bytes.push(inflated.bytes[at]);
        }
    }
}

/// The value of a symbol with extra bits: `steps` symbols share each number of extra bits, from 1 on.
fn grown(bits: &mut Bits<'_>, symbol: usize, steps: usize) -> Result<usize, String> {
    let extra = symbol / steps;
    Ok(((steps + symbol % steps) << extra) + bits.take(extra)?)
}
