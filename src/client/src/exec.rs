//! One `pods/exec` connection: four streams over a WebSocket (`v5.channel.k8s.io`).
//!
//! kube's own [`AttachedProcess`](kube::api::AttachedProcess) is not used, because it sends a ping each minute: an API
//! server that passes the connection on to the kubelet cuts off output that is still under way when anything is sent
//! after the command's end. Nothing is sent here but standard input.

use std::time::Duration;

use futures::stream::{SplitSink, SplitStream};
use futures::{Sink, SinkExt, Stream, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::{Error, Result};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const OUTCOME: u8 = 3;
/// Closes the channel whose number follows.
const CLOSE: u8 = 255;

/// Bytes of a stream that wait for their reader; more stall the connection.
const BUFFER: usize = 64 << 10;
/// Bytes of standard input in one message.
const PIECE: usize = 32 << 10;
/// Longest account of an outcome, in bytes.
const OUTCOME_MAX: usize = 64 << 10;

/// A command that runs in a container. Dropped, its connection is closed.
pub(crate) struct Exec {
    /// Its standard input, if it has one.
    pub stdin: Option<DuplexStream>,
    /// Its standard output.
    pub stdout: DuplexStream,
    /// Its standard error.
    pub stderr: DuplexStream,
    /// Its exit code.
    pub end: End,
}

/// The end of a command. Dropped, the connection is closed.
pub(crate) struct End(JoinHandle<Result<i32>>);

impl End {
    /// The exit code.
    pub async fn exit_code(mut self) -> Result<i32> {
        (&mut self.0)
            .await
            .map_err(|error| Error::Disconnected(error.to_string()))?
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What becomes of the connection's standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// There is none.
    None,
    /// It is open as long as the caller is there, and carries nothing.
    Held,
    /// It carries what the caller writes.
    Passed,
}

/// Moves the streams of a connection in the background. The command's end must be reported within `most`.
pub(crate) fn start<S>(connection: WebSocketStream<S>, input: Input, most: Option<Duration>) -> Exec
where
    WebSocketStream<S>: Sink<Message, Error = WsError> + Stream<Item = Result<Message, WsError>>,
    S: Send + 'static,
{
    let (stdin, input_end) = tokio::io::duplex(BUFFER);
    let (stdout, output_end) = tokio::io::duplex(BUFFER);
    let (stderr, error_end) = tokio::io::duplex(BUFFER);
    let (sink, stream) = connection.split();
    let task = tokio::spawn(async move {
        let giving = async {
            if input == Input::Passed {
                // A connection that broke is noticed by who reads.
                let _ = give(input_end, sink).await;
            } else {
                std::future::pending::<()>().await;
            }
            std::future::pending::<Result<i32>>().await
        };
        let late = async {
            match most {
                Some(most) => tokio::time::sleep(most).await,
                None => std::future::pending().await,
            }
            Err(Error::StepTimeout(most.unwrap_or_default()))
        };
        // Whichever command ends before it has read all: nothing is sent after its end.
        tokio::select! {
            outcome = take(stream, output_end, error_end) => outcome,
            never = giving => never,
            late = late => late,
        }
    });
    Exec {
        stdin: (input == Input::Passed).then_some(stdin),
        stdout,
        stderr,
        end: End(task),
    }
}

/// Sends standard input to its end.
async fn give<S>(
    mut input: DuplexStream,
    mut sink: SplitSink<WebSocketStream<S>, Message>,
) -> Result<(), WsError>
where
    WebSocketStream<S>: Sink<Message, Error = WsError>,
{
    let mut piece = vec![STDIN; PIECE + 1];
    loop {
        let length = input.read(&mut piece[1..]).await.unwrap_or_default();
        if length == 0 {
            sink.send(Message::binary(vec![CLOSE, STDIN])).await?;
            // Held to the connection's end: dropped, it would close.
            std::future::pending::<()>().await;
        }
        sink.send(Message::binary(piece[..=length].to_vec())).await?;
    }
}

/// Takes all that comes, to the outcome.
async fn take<S>(
    mut stream: SplitStream<WebSocketStream<S>>,
    stdout: DuplexStream,
    stderr: DuplexStream,
) -> Result<i32>
where
    WebSocketStream<S>: Stream<Item = Result<Message, WsError>>,
{
    // A reader that is gone loses its stream, and stalls nothing.
    let (mut stdout, mut stderr) = (Some(stdout), Some(stderr));
    let mut outcome = Vec::new();
    while let Some(message) = stream.next().await {
        let message = match message {
            Ok(Message::Binary(message)) => message,
            Ok(Message::Close(_)) => break,
            Ok(_) => continue,
            Err(error) => return Err(Error::Disconnected(error.to_string())),
        };
        let Some((&channel, data)) = message.split_first() else {
            continue;
        };
        let sink = match channel {
            STDOUT => &mut stdout,
            STDERR => &mut stderr,
            OUTCOME => {
                outcome.extend_from_slice(data);
                if outcome.len() > OUTCOME_MAX {
                    return Err(Error::Disconnected("its outcome is endless".to_owned()));
                }
                if let Ok(status) = serde_json::from_slice::<Status>(&outcome) {
                    return exit_code(&status);
                }
                continue;
            }
            _ => continue,
        };
        if let Some(open) = sink
            && open.write_all(data).await.is_err()
        {
            *sink = None;
        }
    }
    Err(Error::Disconnected(String::new()))
}

/// The exit code that the kubelet reports.
fn exit_code(status: &Status) -> Result<i32> {
    if status.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    let causes = status
        .details
        .as_ref()
        .and_then(|details| details.causes.as_deref());
    causes
        .unwrap_or_default()
        .iter()
        .find(|cause| cause.reason.as_deref() == Some("ExitCode"))
        .and_then(|cause| cause.message.as_deref()?.parse().ok())
        .ok_or_else(|| Error::Disconnected(status.message.clone().unwrap_or_default()))
}

#[cfg(test)]
#[path = "exec_tests.rs"]
mod tests;
