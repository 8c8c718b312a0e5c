//! An API server for tests, on this machine. It answers each request by its first line.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

/// Status code and body.
pub type Answered = (u16, String);

/// What is answered to a request, of which the first line is given.
pub trait Answer: Fn(&str) -> Answered + Send + Sync + 'static {}

impl<F: Fn(&str) -> Answered + Send + Sync + 'static> Answer for F {}

/// Answers requests until the test ends; returns the server's address.
pub fn serve(answer: impl Answer) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let (connection, answer) = (connection.unwrap(), answer.clone());
            std::thread::spawn(move || respond(connection, &*answer));
        }
    });
    format!("http://{address}")
}

/// Answers one request.
pub fn respond(mut connection: TcpStream, answer: &impl Answer) -> std::io::Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut lines = reader.by_ref().lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let mut length = 0;
    while let Some(line) = lines.next().transpose()?.filter(|line| !line.is_empty()) {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or_default();
        }
    }
    // A body that is left unread would reset the connection.
    io::copy(&mut reader.take(length), &mut io::sink())?;
    let (code, body) = answer(&request);
    write!(
        connection,
        "HTTP/1.1 {code} x\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{body}"
    )
}
