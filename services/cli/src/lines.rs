//! Output of commands, line by line.

/// A line that is longer is told in pieces.
const MAX_LINE: usize = 64 << 10;

/// Bytes as lines without their ends.
#[derive(Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    /// Returns whether the lines are still wanted.
    pub fn push(&mut self, bytes: &[u8], send: &mut impl FnMut(&[u8]) -> bool) -> bool {
        self.0.extend(bytes);
        let mut from = 0;
        while let Some(length) = self.0[from..].iter().position(|&byte| byte == b'\n') {
            if !send(without_return(&self.0[from..from + length])) {
                return false;
            }
            from += length + 1;
        }
        self.0.drain(..from);
        if self.0.len() >= MAX_LINE {
            return send(&std::mem::take(&mut self.0));
        }
        true
    }

    pub fn end(&mut self, send: &mut impl FnMut(&[u8]) -> bool) {
        if !self.0.is_empty() {
            send(without_return(&self.0));
        }
    }
}

/// Of a line that was written over and over, what would be seen at its end.
fn without_return(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    line.rsplit(|&byte| byte == b'\r').next().unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_one_by_one() {
        let mut seen: Vec<String> = Vec::new();
        let mut lines = Lines::default();
        let mut send = |line: &[u8]| {
            seen.push(String::from_utf8_lossy(line).into_owned());
            true
        };
        for piece in ["a\nb", "c\r\n\n10%\r100%\r\nlast"] {
            assert!(lines.push(piece.as_bytes(), &mut send));
        }
        lines.end(&mut send);
        assert_eq!(seen, ["a", "bc", "", "100%", "last"]);
        assert!(!Lines::default().push(b"x\n", &mut |_| false));
        let mut long = Vec::new();
        Lines::default().push(&[b'x'; MAX_LINE + 1], &mut |line| {
            long.push(line.len());
            true
        });
        assert_eq!(long, [MAX_LINE + 1]);
    }
}
