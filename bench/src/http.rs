//! The parts of HTTP/1.1 that the driver's two servers need, over blocking connections: one request after another, whole
//! bodies, small responses. A thread per connection costs one `read` and one `write` per request, and no event loop uses the
//! CPU of the process that is measured.

use std::io::{self, Read, Write};

/// Maximum size of a request's head in bytes, far above what any peer sends.
const MAX_HEAD: usize = 64 * 1024;

/// A request, borrowed from its connection's buffer.
pub struct Request<'b> {
    pub method: &'b str,
    pub target: &'b str,
    head: &'b str,
    pub body: &'b [u8],
}

impl<'b> Request<'b> {
    /// The value of the first header of that name.
    pub fn header(&self, name: &str) -> Option<&'b str> {
        header(self.head, name)
    }
}

/// A connection and the bytes that were read from it.
pub struct Connection<S> {
    stream: S,
    buffer: Vec<u8>,
    /// Number of bytes of `buffer` that hold input.
    filled: usize,
    /// Number of bytes of the last returned request.
    taken: usize,
    out: Vec<u8>,
}

impl<S: Read + Write> Connection<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: vec![0; 64 * 1024], filled: 0, taken: 0, out: Vec::new() }
    }

    /// The next request; `None` once the peer has closed.
    pub fn request(&mut self) -> io::Result<Option<Request<'_>>> {
        self.buffer.copy_within(self.taken..self.filled, 0);
        self.filled -= self.taken;
        self.taken = 0;
        let head_end = loop {
            if let Some(end) = memchr::memmem::find(&self.buffer[..self.filled], b"\r\n\r\n") {
                break end;
            }
            if self.filled > MAX_HEAD {
                return Err(io::Error::other("the head of a request does not end"));
            }
            if !self.read_more()? {
                return if self.filled == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        };
        let body_start = head_end + 4;
        let head = text(&self.buffer[..head_end])?;
        let body_end = if header(head, "transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
        {
            // The chunks are joined in place. aws-lambda-ric sends its responses in this form.
            let (mut from, mut to) = (body_start, body_start);
            loop {
                let line_end = self.find(from, b"\r\n")?;
                let size = text(&self.buffer[from..line_end])?.split(';').next().unwrap_or_default().trim();
                let size = usize::from_str_radix(size, 16).map_err(io::Error::other)?;
                let chunk = line_end + 2;
                self.fill(chunk + size + 2)?;
                self.buffer.copy_within(chunk..chunk + size, to);
                to += size;
                from = chunk + size + 2;
                if size == 0 {
                    break;
                }
            }
            self.taken = from;
            to
        } else {
            let length = match header(head, "content-length") {
                None => 0,
                Some(length) => length.parse::<usize>().map_err(io::Error::other)?,
            };
            self.fill(body_start + length)?;
            self.taken = body_start + length;
            self.taken
        };
        let head = text(&self.buffer[..head_end])?;
        let (request_line, head) = head.split_once("\r\n").unwrap_or((head, ""));
        let mut words = request_line.split(' ');
        let (Some(method), Some(target)) = (words.next(), words.next()) else {
            return Err(io::Error::other("the request line is invalid"));
        };
        Ok(Some(Request { method, target, head, body: &self.buffer[body_start..body_end] }))
    }

    /// Responds to the last returned request.
    pub fn respond(&mut self, status: &str, headers: &str, body: &[u8]) -> io::Result<()> {
        self.out.clear();
        write!(self.out, "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len())?;
        self.out.extend_from_slice(body);
        self.stream.write_all(&self.out)?;
        self.stream.flush()
    }

    fn find(&mut self, from: usize, needle: &[u8]) -> io::Result<usize> {
        loop {
            if let Some(place) = memchr::memmem::find(&self.buffer[from..self.filled.max(from)], needle) {
                return Ok(from + place);
            }
            self.fill(self.filled.max(from) + 1)?;
        }
    }

    /// Reads until `filled` is at least `end`.
    fn fill(&mut self, end: usize) -> io::Result<()> {
        while self.filled < end {
            if self.buffer.len() < end {
                self.buffer.resize(end.next_power_of_two(), 0);
            }
            if !self.read_more()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    fn read_more(&mut self) -> io::Result<bool> {
        if self.filled == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        let read = self.stream.read(&mut self.buffer[self.filled..])?;
        self.filled += read;
        Ok(read > 0)
    }
}

fn text(bytes: &[u8]) -> io::Result<&str> {
    std::str::from_utf8(bytes).map_err(io::Error::other)
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.split("\r\n").find_map(|line| {
        let (known, value) = line.split_once(':')?;
        known.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pieces(Vec<Vec<u8>>, Vec<u8>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let piece = self.0.remove(0);
            buffer[..piece.len()].copy_from_slice(&piece);
            Ok(piece.len())
        }
    }

    impl Write for Pieces {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn requests_are_read_however_they_are_cut() {
        let input = b"POST /a HTTP/1.1\r\nContent-Length: 3\r\nX: y\r\n\r\nabcGET /b HTTP/1.1\r\n\r\n\
            POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nWiki\r\n5;x=y\r\npedia\r\n0\r\n\r\nGET /d HTTP/1.1\r\n\r\n";
        for size in [1, 2, 7, 64, input.len()] {
            let pieces = input.chunks(size).map(<[u8]>::to_vec).collect();
            let mut connection = Connection::new(Pieces(pieces, Vec::new()));
            let mut seen = Vec::new();
            while let Some(request) = connection.request().unwrap() {
                seen.push((request.target.to_owned(), request.body.to_vec(), request.header("x").map(str::to_owned)));
            }
            let expected =
                [("/a", &b"abc"[..], Some("y")), ("/b", b"", None), ("/c", b"Wikipedia", None), ("/d", b"", None)];
            assert_eq!(
                seen,
                expected.map(|(target, body, x)| (target.to_owned(), body.to_vec(), x.map(str::to_owned)))
            );
        }
    }
}
