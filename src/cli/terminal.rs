//! Our own terminal: raw while a program has it, its size, the keys that leave a program alone, and what of a line may be shown on it.

use rustix::termios::{LocalModes, OptionalActions, OutputModes, Termios};

/// Our terminal while its keys are another program's: nothing is interpreted here. Dropped, it is as it was.
pub struct Raw(Termios);

impl Raw {
    /// `None` when standard input is no terminal, or raw already.
    pub fn enter() -> anyhow::Result<Option<Raw>> {
        let stdin = std::io::stdin();
        let Ok(before) = rustix::termios::tcgetattr(&stdin) else {
            return Ok(None);
        };
        // somebody else's work, and bytes that came already would be lost
        if !before.local_modes.contains(LocalModes::ICANON) {
            return Ok(None);
        }
        let mut raw = before.clone();
        raw.make_raw();
        // what goes elsewhere, and perhaps from there to this terminal, has no carriage returns of its own
        if !rustix::termios::isatty(std::io::stdout()) {
            raw.output_modes = before.output_modes;
        }
        rustix::termios::tcsetattr(&stdin, OptionalActions::Flush, &raw)?;
        Ok(Some(Raw(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // nothing better can be done about a terminal that is gone
        let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0);
    }
}

/// Our terminal while only what a terminal prints is shown on it: that has its carriage returns already. Keys stay ours, ctrl-c too.
/// Dropped, it is as it was.
pub struct Shown(Termios);

impl Shown {
    /// `None` when standard output is no terminal.
    pub fn enter() -> anyhow::Result<Option<Shown>> {
        let stdout = std::io::stdout();
        let Ok(before) = rustix::termios::tcgetattr(&stdout) else {
            return Ok(None);
        };
        let mut modes = before.clone();
        modes.output_modes.remove(OutputModes::OPOST);
        rustix::termios::tcsetattr(&stdout, OptionalActions::Drain, &modes)?;
        Ok(Some(Shown(before)))
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        // as for Raw
        let _ = rustix::termios::tcsetattr(std::io::stdout(), OptionalActions::Drain, &self.0);
    }
}

/// Rows and columns of our terminal: the program's has them from the start, not only once it runs and we wait for it.
pub fn size() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(std::io::stdin()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// ctrl-p, which the program gets only with the key after it.
const FIRST: u8 = 0x10;
/// ctrl-q.
const SECOND: u8 = 0x11;

/// Looks for ctrl-p ctrl-q among the keys.
#[derive(Debug, Default)]
pub struct Keys {
    first: bool,
}

impl Keys {
    /// What of the keys is for the program, and whether it is left alone from here on.
    pub fn pass(&mut self, keys: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(keys.len() + 1);
        for key in keys {
            match (self.first, *key) {
                (true, SECOND) => return (passed, true),
                (true, FIRST) => passed.push(FIRST),
                (false, FIRST) => self.first = true,
                (first, key) => {
                    passed.extend(first.then_some(FIRST));
                    passed.push(key);
                    self.first = false;
                }
            }
        }
        (passed, false)
    }
}

/// A line as it may be shown beside others: of what controls a terminal (ECMA-48) only colours are left. A program that was alone with its
/// own terminal moves the cursor, asks questions that ours would answer as if we had typed, and renames windows.
pub fn plain(line: &[u8]) -> Vec<u8> {
    let mut shown = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some((byte, after)) = rest.split_first() {
        let length = match *byte {
            ESC => sequence(after),
            // C1 in UTF-8
            0xc2 if after
                .first()
                .is_some_and(|next| (0x80..0xa0).contains(next)) =>
            {
                2
            }
            0..0x20 | 0x7f if !b"\t\n".contains(byte) => 1,
            _ => 0,
        };
        let (piece, after) = rest.split_at_checked(length.max(1)).unwrap_or((rest, &[]));
        if length == 0 || (piece.starts_with(b"\x1b[") && piece.ends_with(b"m")) {
            shown.extend_from_slice(piece);
        }
        rest = after;
    }
    shown
}

const ESC: u8 = 0x1b;

/// Length of the sequence that begins with ESC, given what follows; one that is cut off takes all.
fn sequence(after: &[u8]) -> usize {
    let end = match after.first() {
        Some(b'[') => after
            .iter()
            .skip(1)
            .position(|byte| (0x40..0x7f).contains(byte))
            .map(|at| at + 2),
        // strings, which end with BEL or ESC \
        Some(b']' | b'P' | b'X' | b'^' | b'_') => after
            .iter()
            .position(|byte| *byte == 7 || *byte == ESC)
            .map(|at| at + 1 + usize::from(after.get(at) == Some(&ESC))),
        Some(_) => after
            .iter()
            .position(|byte| (0x30..0x7f).contains(byte))
            .map(|at| at + 1),
        None => None,
    };
    // the line feed is not its
    1 + end.unwrap_or(after.len() - usize::from(after.ends_with(b"\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_line_text_and_colours_are_shown() {
        for (line, shown) in [
            ("plain \u{e4}\u{20ac}\t\n", "plain \u{e4}\u{20ac}\t\n"),
            ("\x1b[1;31mred\x1b[m\r\n", "\x1b[1;31mred\x1b[m\n"),
            ("a\x1b[6nb\x1b[2J\x1b[?1049hc\n", "abc\n"),
            ("\x1b]0;title\x07x\x1b]0;title\x1b\\y\n", "xy\n"),
            ("\x1bP+q\x1b\\a\x1b(Bb\x1bcd\n", "abd\n"),
            ("1%\r2%\x08\x7f\x00\n", "1%2%\n"),
            ("\u{9b}6nx\u{85}y\n", "6nxy\n"),
            ("cut\x1b[12\n", "cut\n"),
            ("cut\x1b]0;t", "cut"),
            ("cut\x1b", "cut"),
            ("cut\x1b\n", "cut\n"),
        ] {
            let found = plain(line.as_bytes());
            assert_eq!(String::from_utf8_lossy(&found), shown, "{line:?}");
        }
        assert_eq!(plain(b"\xff\xc2"), b"\xff\xc2");
    }

    #[test]
    fn keys_that_leave() {
        for (pieces, passed, leaves) in [
            (&[&b"abc"[..]][..], &b"abc"[..], false),
            (&[b"\x10\x11"], b"", true),
            (&[b"\x10", b"\x11"], b"", true),
            (&[b"a\x10\x11b"], b"a", true),
            (&[b"\x10a"], b"\x10a", false),
            (&[b"\x10", b"a\x10"], b"\x10a", false),
            (&[b"\x10\x10\x11"], b"\x10", true),
            (&[b"\x11\x10a\x11"], b"\x11\x10a\x11", false),
        ] {
            let mut keys = Keys::default();
            let mut all = Vec::new();
            let mut left = false;
            for piece in pieces {
                let (some, leave) = keys.pass(piece);
                all.extend(some);
                left |= leave;
            }
            assert_eq!((all.as_slice(), left), (passed, leaves), "{pieces:?}");
        }
    }
}
