//! The log of decisions on standard output: one JSON object a line, each with the hash of the one before of its run.
//!
//! Records go through a bounded queue to one writer. What is allowed is recorded before it happens; if there is no room,
//! it does not happen.

use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::record::{Chain, Record, RunIdentity};
use tokio::sync::mpsc;

/// Lines that are written at once.
const BATCH: usize = 1_024;
/// The writer rests so long between two writes: waking it for each record would cost more than the record.
const REST: Duration = Duration::from_millis(2);

/// The log.
pub struct Log {
    lines: mpsc::Sender<String>,
    /// The chain of what no run could be named for.
    strangers: Mutex<Chain>,
}

impl Log {
    /// A log whose lines go to `output`, from a thread of its own. It ends when the log is dropped.
    pub fn start(
        queue: usize,
        output: impl Write + Send + 'static,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (lines, waiting) = mpsc::channel(queue.max(1));
        let writer = std::thread::Builder::new()
            .name("decisions".to_owned())
            .spawn(move || write(waiting, output))?;
        let log = Self {
            lines,
            strangers: Mutex::default(),
        };
        Ok((log, writer))
    }

    /// Appends a run's record.
    ///
    /// # Errors
    /// [`Deny::LogFull`] if it can't be kept; the chain is as if it had never been.
    pub fn append(
        &self,
        chain: &Mutex<Chain>,
        run: Option<&RunIdentity>,
        record: &Record<'_>,
    ) -> Result<(), Deny> {
        let room = self.lines.try_reserve().map_err(|_| Deny::LogFull)?;
        // Under the lock, so that lines stand in the order of their chain.
        let mut chain = chain.lock().unwrap_or_else(PoisonError::into_inner);
        room.send(chain.line(run, record));
        Ok(())
    }

    /// Appends a record that belongs to no run.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub fn append_stranger(&self, record: &Record<'_>) -> Result<(), Deny> {
        self.append(&self.strangers, None, record)
    }

    /// Waits until nothing can be written any more.
    pub async fn broken(&self) {
        self.lines.closed().await;
    }
}

/// Ends when the log is dropped, or when the output is broken: then the queue is closed, and nothing is allowed any more.
fn write(mut waiting: mpsc::Receiver<String>, mut output: impl Write) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut text = Vec::new();
    while waiting.blocking_recv_many(&mut batch, BATCH) > 0 {
        text.clear();
        for line in batch.drain(..) {
            text.extend_from_slice(line.as_bytes());
            text.push(b'\n');
        }
        if let Err(error) = output.write_all(&text).and_then(|()| output.flush()) {
            tracing::error!(%error, "decisions can't be written any more; everything is refused from now on");
            return;
        }
        if waiting.is_empty() && !waiting.is_closed() {
            std::thread::sleep(REST);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc as std_mpsc};

    use agentsandbox_egress::record::{Action, Class};
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn record() -> Record<'static> {
        Record {
            time: Timestamp::UNIX_EPOCH,
            class: Class::Connection,
            action: Action::Allow,
            reason: None,
            destination: "a.example",
            port: Some(443),
            method: None,
            path: None,
            rule: None,
            model: None,
            end: None,
        }
    }

    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn everything_is_written_before_the_log_ends() {
        let output = Arc::new(Mutex::new(Vec::new()));
        let (log, writer) = Log::start(1_000, Shared(output.clone())).unwrap();
        let chain = Mutex::default();
        for _ in 0..700 {
            log.append(&chain, None, &record()).unwrap();
        }
        drop(log);
        writer.join().unwrap();
        let text = String::from_utf8(output.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 700);
    }

    struct Stuck(std_mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_log_refuses_and_its_chain_stays_whole() {
        let (go, gate) = std_mpsc::channel();
        let (log, writer) = Log::start(4, Stuck(gate)).unwrap();
        let chain = Mutex::new(Chain::default());
        let mut kept = 0;
        while log.append(&chain, None, &record()).is_ok() {
            kept += 1;
            assert!(kept < 1_000, "the queue has no bound");
        }
        assert_eq!(log.append(&chain, None, &record()), Err(Deny::LogFull));
        assert_eq!(chain.lock().unwrap().records(), kept);
        drop(go);
        drop(log);
        writer.join().unwrap();
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_broken_log_refuses_everything() {
        let (log, writer) = Log::start(4, Broken).unwrap();
        let chain = Mutex::default();
        let _ = log.append(&chain, None, &record());
        writer.join().unwrap();
        assert_eq!(log.append(&chain, None, &record()), Err(Deny::LogFull));
    }
}
