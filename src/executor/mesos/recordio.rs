//! RecordIO: records on a stream, each its length in decimal digits, a newline, and as many bytes.
//!
//! Owns where a record begins and ends. *Invariants:* memory grows with the bytes that came, never with a length that was only
//! promised; after an error the stream has no meaning, and the error stays. Leaves to others: what a record means.

/// Longest record, in bytes.
pub const RECORD_MAX: usize = 64 << 20;
/// Digits of [`RECORD_MAX`], with a few zeros in front.
const DIGITS_MAX: usize = 20;
/// Memory that is kept for later pieces, in bytes.
const KEPT: usize = 64 << 10;

/// A stream that is no RecordIO.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Broken {
    /// Something else than digits and a newline; shown as text.
    #[error("expected the length of a record, found {0:?}")]
    Length(String),
    /// A record that is empty.
    #[error("a record has no bytes")]
    Empty,
    /// A record beyond [`RECORD_MAX`].
    #[error("a record has {0} bytes, more than the {RECORD_MAX} that are read")]
    TooLong(usize),
}

/// Takes bytes in any pieces and gives records.
#[derive(Debug, Default)]
pub struct Records {
    /// What came and was not given; `used` bytes of it were.
    pending: Vec<u8>,
    used: usize,
    /// Length of the record that has begun.
    length: Option<usize>,
}

impl Records {
    /// The next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.drain(..self.used);
        self.used = 0;
        if self.pending.is_empty() {
            self.pending.shrink_to(KEPT);
        }
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole record, if it came already.
    pub fn next_record(&mut self) -> Result<Option<&[u8]>, Broken> {
        let Some(length) = self.next_length()? else {
            return Ok(None);
        };
        let end = self.used.saturating_add(length);
        let Some(record) = self.pending.get(self.used..end) else {
            return Ok(None);
        };
        self.length = None;
        self.used = end;
        Ok(Some(record))
    }

    /// Bytes that came and are no whole record yet: for readers with a bound of their own.
    pub fn waiting(&self) -> usize {
        self.pending.len().saturating_sub(self.used)
    }

    /// Whether the stream, if it ends here, ends within a record.
    pub fn is_within(&self) -> bool {
        self.length.is_some() || self.used < self.pending.len()
    }

    fn next_length(&mut self) -> Result<Option<usize>, Broken> {
        if self.length.is_none() {
            let rest = self.pending.get(self.used..).unwrap_or_default();
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            match rest.get(digits) {
                Some(b'\n') if (1..=DIGITS_MAX).contains(&digits) => {
                    self.length = Some(parse(&rest[..digits])?);
                    self.used += digits + 1;
                }
                None if digits <= DIGITS_MAX => {}
                _ => {
                    let shown = &rest[..rest.len().min(DIGITS_MAX + 1)];
                    return Err(Broken::Length(String::from_utf8_lossy(shown).into_owned()));
                }
            }
        }
        Ok(self.length)
    }
}

fn parse(digits: &[u8]) -> Result<usize, Broken> {
    let length = digits.iter().fold(0usize, |length, digit| {
        length
            .saturating_mul(10)
            .saturating_add(usize::from(digit - b'0'))
    });
    match length {
        0 => Err(Broken::Empty),
        1..=RECORD_MAX => Ok(length),
        _ => Err(Broken::TooLong(length)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What comes of a stream in these pieces.
    fn read<'a>(
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(Vec<Vec<u8>>, bool), Broken> {
        let (mut records, mut found) = (Records::default(), Vec::new());
        for piece in pieces {
            records.push(piece);
            while let Some(record) = records.next_record()? {
                found.push(record.to_vec());
            }
        }
        Ok((found, records.is_within()))
    }

    #[test]
    fn streams() {
        let long = format!("{}\n", RECORD_MAX + 1);
        for (stream, expected) in [
            ("", Ok((vec![], false))),
            ("1", Ok((vec![], true))),
            ("1\n", Ok((vec![], true))),
            ("1\na", Ok((vec!["a"], false))),
            ("1\na2", Ok((vec!["a"], true))),
            ("1\na2\n\n\n1\nb", Ok((vec!["a", "\n\n", "b"], false))),
            ("0003\nabc", Ok((vec!["abc"], false))),
            ("2\né", Ok((vec!["é"], false))),
            ("67108864\n", Ok((vec![], true))),
            ("0\n", Err(Broken::Empty)),
            ("\n", Err(Broken::Length("\n".to_owned()))),
            ("-1\n", Err(Broken::Length("-1\n".to_owned()))),
            ("+1\na", Err(Broken::Length("+1\na".to_owned()))),
            (" 1\n", Err(Broken::Length(" 1\n".to_owned()))),
            ("1\r\n", Err(Broken::Length("1\r\n".to_owned()))),
            ("1\nab\n", Err(Broken::Length("b\n".to_owned()))),
            ("<html>", Err(Broken::Length("<html>".to_owned()))),
            (&long, Err(Broken::TooLong(RECORD_MAX + 1))),
            ("99999999999999999999\n", Err(Broken::TooLong(usize::MAX))),
            (
                "000000000000000000001\na",
                Err(Broken::Length("000000000000000000001".to_owned())),
            ),
        ] {
            let expected = expected.map(|(records, within)| {
                let bytes = records.into_iter().map(|it: &str| it.as_bytes().to_vec());
                (bytes.collect::<Vec<_>>(), within)
            });
            assert_eq!(read([stream.as_bytes()]), expected, "{stream:?}");
        }
    }

    #[test]
    fn recorded_stream_split_at_every_byte() {
        let stream = include_bytes!("../../../tests/fixtures/mesos/events.recordio");
        let whole = read([&stream[..]]).unwrap();
        assert_eq!((whole.0.len(), whole.1), (22, false));
        assert_eq!(read(stream.chunks(1)).unwrap(), whole);
        for at in 0..stream.len() {
            let (before, after) = stream.split_at(at);
            assert_eq!(read([before, after]).unwrap(), whole, "{at}");
        }
    }

    #[test]
    fn memory_is_given_back() {
        let mut records = Records::default();
        let body = vec![b'x'; 4 << 20];
        records.push(format!("{}\n", body.len()).as_bytes());
        records.push(&body);
        assert_eq!(records.next_record().unwrap(), Some(&body[..]));
        records.push(b"1\na");
        assert!(records.pending.capacity() <= KEPT);
        assert_eq!(records.next_record().unwrap(), Some(&b"a"[..]));
    }

    proptest! {
        #[test]
        fn any_stream(pieces in any::<Vec<Vec<u8>>>()) {
            let _ = read(pieces.iter().map(Vec::as_slice));
        }
    }
}
