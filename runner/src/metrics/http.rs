//! One HTTP/1.1 connection: one request, one answer (RFC 9112).

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long a request and its answer may take together.
const LIMIT: Duration = Duration::from_secs(10);

/// The longest head of a request, in bytes.
const LONGEST_HEAD: usize = 8 << 10;
const MOST_HEADERS: usize = 64;

/// A stream whose reads and writes can be limited in time.
pub(super) trait Stream: Read + Write + Send + 'static {
    fn limit(&self, limit: Duration) -> io::Result<()>;
    fn finish(&self) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn limit(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))?;
        self.set_write_timeout(Some(limit))
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Stream for UnixStream {
    fn limit(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))?;
        self.set_write_timeout(Some(limit))
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// Answers one request with what `figures` says, and ends the connection. An error means that the
/// other side was too slow or has gone.
pub(super) fn serve(mut stream: impl Stream, figures: impl FnOnce() -> String) -> io::Result<()> {
    let deadline = Instant::now() + LIMIT;
    let head = read_head(&mut stream, deadline)?;
    let answer = answer(&head, figures);
    write_all(&mut stream, &answer, deadline)?;
    stream.finish()
}

/// Says that there are too many connections.
pub(super) fn refuse(mut stream: impl Stream) {
    let text = "too many connections\n";
    // Whoever does not take it at once hears nothing.
    let _ = stream.limit(Duration::from_millis(10));
    let _ = stream.write(&response("503 Service Unavailable", "", text, true));
}

fn read_head(stream: &mut impl Stream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    loop {
        stream.limit(left(deadline)?)?;
        let count = match stream.read(&mut part) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        head.extend_from_slice(&part[..count]);
        let ends = |end: &[u8]| head.windows(end.len()).any(|window| window == end);
        if ends(b"\r\n\r\n") || ends(b"\n\n") || head.len() > LONGEST_HEAD {
            return Ok(head);
        }
    }
}

fn write_all(stream: &mut impl Stream, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.limit(left(deadline)?)?;
        match stream.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ErrorKind::TimedOut.into());
    }
    Ok(left)
}

/// The answer to a request's head.
fn answer(head: &[u8], figures: impl FnOnce() -> String) -> Vec<u8> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    if head.len() > LONGEST_HEAD {
        let status = "431 Request Header Fields Too Large";
        return response(status, "", "the request is too long\n", true);
    }
    let (Ok(httparse::Status::Complete(_)), Some(method), Some(target)) =
        (request.parse(head), request.method, request.path)
    else {
        return response("400 Bad Request", "", "this is no HTTP request\n", true);
    };
    let with_body = match method {
        "GET" => true,
        "HEAD" => false,
        _ => {
            let allow = "Allow: GET, HEAD\r\n";
            return response(
                "405 Method Not Allowed",
                allow,
                "only GET is served\n",
                true,
            );
        }
    };
    let path = target.split('?').next().unwrap_or_default();
    if path != "/metrics" {
        return response(
            "404 Not Found",
            "",
            "the figures are at /metrics\n",
            with_body,
        );
    }
    response("200 OK", "", &figures(), with_body)
}

fn response(status: &str, header: &str, body: &str, with_body: bool) -> Vec<u8> {
    let mut response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n{header}\r\n",
        body.len()
    );
    if with_body {
        response.push_str(body);
    }
    response.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(request: &str) -> String {
        let answer = answer(request.as_bytes(), || "figures\n".to_owned());
        String::from_utf8(answer).unwrap()
    }

    #[test]
    fn requests_are_answered_as_they_deserve() {
        let metrics = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
        assert!(metrics.contains("\r\nContent-Length: 8\r\n"), "{metrics}");
        assert!(metrics.contains("text/plain; version=0.0.4"), "{metrics}");
        assert!(metrics.ends_with("\r\n\r\nfigures\n"), "{metrics}");
        assert!(ask("GET /metrics?x=1 HTTP/1.0\r\n\r\n").ends_with("figures\n"));
        let head = ask("HEAD /metrics HTTP/1.1\r\n\r\n");
        assert!(head.ends_with("\r\n\r\n") && head.contains("Content-Length: 8"));
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(LONGEST_HEAD));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100));
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("GET /metrics/x HTTP/1.1\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("hello\r\n\r\n", "400"),
            ("\0\0\0\n\n", "400"),
            (&long, "431"),
            (&many, "400"),
        ] {
            let answer = ask(request);
            let start = format!("HTTP/1.1 {status} ");
            assert!(answer.starts_with(&start), "{request:.40}: {answer}");
        }
    }

    #[test]
    fn a_request_may_come_in_pieces() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let serving = std::thread::spawn(move || serve(server, || "figures\n".to_owned()));
        for piece in ["GET /met", "rics HTTP/1.1\r\n", "Host: x\r\n\r", "\n"] {
            client.write_all(piece.as_bytes()).unwrap();
        }
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("figures\n"), "{answer}");
        serving.join().unwrap().unwrap();
    }

    #[test]
    fn whoever_goes_away_is_forgotten() {
        let (client, server) = UnixStream::pair().unwrap();
        drop(client);
        serve(server, || unreachable!("nobody asks")).unwrap_err();
    }
}
