//! A layer blob as its uncompressed stream: hashed for the diff_id, and stopped when it swells
//! beyond reason.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use super::archive::{Compression, decompress};
use super::digest::{Digest, HashingReader};

/// gzip reaches 1032:1 at best; zstd's better ratios need nothing but zeros.
const MAX_RATIO: u64 = 1100;
/// The ratio is of no interest below this many bytes.
const RATIO_FLOOR: u64 = 1 << 30;
/// Uncompressed bytes of one layer.
const MAX_BYTES: u64 = 4 << 40;

/// The uncompressed stream of a layer blob.
pub(super) struct Layer<'a> {
    stream: HashingReader<Bounded<'a>>,
    compressed: Rc<Cell<u64>>,
    compression: Compression,
}

impl<'a> Layer<'a> {
    /// `size`: bytes of the blob.
    pub(super) fn open(input: impl Read + 'a, size: u64) -> io::Result<Layer<'a>> {
        let compressed = Rc::new(Cell::new(0));
        let (reader, compression) = decompress(Counted {
            inner: input,
            count: compressed.clone(),
        })?;
        let bounded = Bounded {
            reader,
            left: MAX_BYTES.min(RATIO_FLOOR.max(size.saturating_mul(MAX_RATIO))),
        };
        Ok(Layer {
            stream: HashingReader::new(bounded),
            compressed,
            compression,
        })
    }

    /// Bytes read of the blob.
    pub(super) fn compressed(&self) -> u64 {
        self.compressed.get()
    }

    pub(super) fn compression(&self) -> Compression {
        self.compression
    }

    /// diff_id and size of what was read.
    pub(super) fn finish(self) -> (Digest, u64) {
        self.stream.finish()
    }
}

impl Read for Layer<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

struct Bounded<'a> {
    reader: Box<dyn Read + 'a>,
    left: u64,
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "it decompresses to more than {MAX_RATIO} times its size: no sane layer, refused"
                ),
            )
        })?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_bomb_is_stopped() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        let zeros = vec![0u8; 1 << 20];
        for _ in 0..1100 {
            encoder.write_all(&zeros).unwrap();
        }
        let bomb = encoder.finish().unwrap();
        let mut layer = Layer::open(&bomb[..], bomb.len() as u64).unwrap();
        let error = io::copy(&mut layer, &mut io::sink()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("1100 times"), "{error}");
    }
}
