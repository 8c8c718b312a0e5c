//! JSON lines over the one connection between recorder and supervisor, bounded on both sides.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message of the supervisor, in bytes.
pub const FROM_SUPERVISOR_MAX: usize = 64 << 10;
/// Longest message of the recorder, in bytes: a command with files.
pub const FROM_RECORDER_MAX: usize = 2 << 20;

/// One side of the connection.
pub struct Channel {
    stream: TcpStream,
    buffer: Vec<u8>,
    outgoing: Vec<u8>,
    longest: usize,
}

/// What came of one look at the connection.
pub enum Received<T> {
    /// A whole message.
    Message(T),
    /// Nothing whole yet.
    Nothing,
    /// The other side is gone, or does not speak the protocol.
    Broken,
}

impl Channel {
    /// Takes messages of at most `longest` bytes.
    pub fn new(stream: TcpStream, longest: usize) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            outgoing: Vec::new(),
            longest,
        })
    }

    /// The connection, to poll.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends one message whole.
    pub fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        self.queue(message)?;
        self.stream.set_nonblocking(false)?;
        self.stream
            .set_write_timeout(Some(std::time::Duration::from_secs(5)))?;
        self.stream.write_all(&self.outgoing)?;
        self.outgoing.clear();
        Ok(())
    }

    /// Puts one message behind those that wait to be sent; [`Channel::flush`] sends them.
    pub fn queue(&mut self, message: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.outgoing, message)?;
        self.outgoing.push(b'\n');
        Ok(())
    }

    /// Bytes that wait to be sent.
    pub fn queued(&self) -> usize {
        self.outgoing.len()
    }

    /// Sends what can be sent without waiting.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.outgoing.is_empty() {
            return Ok(());
        }
        self.stream.set_nonblocking(true)?;
        let mut sent = 0;
        let result = loop {
            match self.stream.write(&self.outgoing[sent..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => {
                    sent += length;
                    if sent == self.outgoing.len() {
                        break Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.outgoing.drain(..sent);
        result
    }

    /// Says no more, and waits until the other side has heard everything and left, so long at most. Whoever leaves with
    /// something unread resets the connection, which can take its last words with it.
    pub fn finish(&mut self, patience: std::time::Duration) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        let _ = self.stream.set_nonblocking(false);
        let until = std::time::Instant::now() + patience;
        let mut ignored = [0; 4096];
        loop {
            let left = until.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() || self.stream.set_read_timeout(Some(left)).is_err() {
                return;
            }
            match self.stream.read(&mut ignored) {
                Ok(length) if length > 0 => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    }

    /// Looks for one message, without waiting.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Received<T> {
        if let Some(message) = self.take_line() {
            return message;
        }
        if self.stream.set_nonblocking(true).is_err() {
            return Received::Broken;
        }
        let mut piece = [0; 16 << 10];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return Received::Broken,
                Ok(length) => {
                    self.buffer.extend_from_slice(&piece[..length]);
                    if let Some(message) = self.take_line() {
                        return message;
                    }
                    if self.buffer.len() > self.longest {
                        return Received::Broken;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Received::Nothing,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Received::Broken,
            }
        }
    }

    fn take_line<T: DeserializeOwned>(&mut self) -> Option<Received<T>> {
        let end = self.buffer.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.buffer.drain(..=end).collect();
        Some(serde_json::from_slice(&line).map_or(Received::Broken, Received::Message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn pair(longest: usize) -> (Channel, Channel) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let other = listener.accept().unwrap().0;
        (
            Channel::new(one, longest).unwrap(),
            Channel::new(other, longest).unwrap(),
        )
    }

    fn wait(channel: &mut Channel) -> Received<String> {
        for _ in 0..10_000 {
            match channel.receive() {
                Received::Nothing => std::thread::yield_now(),
                other => return other,
            }
        }
        Received::Nothing
    }

    #[test]
    fn messages_arrive_whole_and_in_order() {
        let (mut one, mut other) = pair(1 << 20);
        let long = "x".repeat(100_000);
        one.send(&"first").unwrap();
        let sender = std::thread::spawn({
            let long = long.clone();
            move || one.send(&long).map(|()| one)
        });
        assert!(matches!(wait(&mut other), Received::Message(text) if text == "first"));
        let second = loop {
            match other.receive::<String>() {
                Received::Message(text) => break text,
                Received::Nothing => std::thread::yield_now(),
                Received::Broken => panic!("broken"),
            }
        };
        assert_eq!(second, long);
        drop(sender.join().unwrap().unwrap());
        assert!(matches!(wait(&mut other), Received::Broken));
    }

    #[test]
    fn an_endless_line_and_nonsense_break_the_connection() {
        let (mut one, mut other) = pair(100);
        one.stream.write_all(&vec![b'x'; 20_000]).unwrap();
        assert!(matches!(wait(&mut other), Received::Broken));
        let (mut one, mut other) = pair(100);
        one.stream.write_all(b"{nonsense\n").unwrap();
        assert!(matches!(wait(&mut other), Received::Broken));
    }
}
