//! The kubelet's side of an exec connection, played over a pipe.

use super::*;
use serde_json::json;
use tokio_tungstenite::tungstenite::protocol::Role;

type Side = WebSocketStream<DuplexStream>;

async fn pair() -> (Side, Side) {
    let (near, far) = tokio::io::duplex(16 << 10);
    (
        WebSocketStream::from_raw_socket(near, Role::Client, None).await,
        WebSocketStream::from_raw_socket(far, Role::Server, None).await,
    )
}

fn message(channel: u8, data: &[u8]) -> Message {
    Message::binary([&[channel], data].concat())
}

fn failed(code: i32) -> Vec<u8> {
    serde_json::to_vec(
        &json!({"status": "Failure", "reason": "NonZeroExitCode", "message": "it failed",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}}),
    )
    .unwrap()
}

async fn all(mut stream: DuplexStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn streams_come_apart_and_the_exit_code_after_them() {
    let (near, mut far) = pair().await;
    let exec = start(near, Input::None, None);
    far.send(message(STDOUT, b"")).await.unwrap();
    far.send(message(STDOUT, b"out")).await.unwrap();
    far.send(message(STDERR, b"err")).await.unwrap();
    far.send(message(OUTCOME, &failed(7))).await.unwrap();
    let (stdout, stderr) = tokio::join!(all(exec.stdout), all(exec.stderr));
    assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"out"[..], &b"err"[..]));
    assert_eq!(exec.end.exit_code().await.unwrap(), 7);
}

#[tokio::test]
async fn input_is_passed_and_ended_byte_for_byte() {
    let (near, mut far) = pair().await;
    let mut exec = start(near, Input::Passed, None);
    let sent: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let mut stdin = exec.stdin.take().unwrap();
    let expected = sent.clone();
    tokio::spawn(async move {
        stdin.write_all(&sent).await.unwrap();
        stdin.shutdown().await.unwrap();
    });
    let mut got = Vec::new();
    loop {
        let data = far.next().await.unwrap().unwrap().into_data();
        if data[0] == CLOSE {
            assert_eq!(data[1..], [STDIN]);
            break;
        }
        assert_eq!(data[0], STDIN);
        got.extend_from_slice(&data[1..]);
    }
    assert!(got == expected);
    far.send(message(OUTCOME, br#"{"status": "Success"}"#))
        .await
        .unwrap();
    assert_eq!(exec.end.exit_code().await.unwrap(), 0);
}

#[tokio::test]
async fn a_command_that_ends_before_it_has_read_its_input_ends_the_writer() {
    let (near, mut far) = pair().await;
    let mut exec = start(near, Input::Passed, None);
    let mut stdin = exec.stdin.take().unwrap();
    let writer = tokio::spawn(async move { stdin.write_all(&vec![0; 8 << 20]).await });
    far.next().await.unwrap().unwrap();
    far.send(message(OUTCOME, &failed(3))).await.unwrap();
    assert_eq!(exec.end.exit_code().await.unwrap(), 3);
    assert_eq!(
        writer.await.unwrap().unwrap_err().kind(),
        std::io::ErrorKind::BrokenPipe
    );
}

#[tokio::test]
async fn output_that_nobody_reads_any_more_does_not_hold_up_the_end() {
    let (near, mut far) = pair().await;
    let exec = start(near, Input::Held, None);
    drop(exec.stdout);
    for _ in 0..20 {
        far.send(message(STDOUT, &vec![b'y'; 32 << 10])).await.unwrap();
    }
    far.send(message(OUTCOME, &failed(1))).await.unwrap();
    assert_eq!(exec.end.exit_code().await.unwrap(), 1);
}

#[tokio::test]
async fn a_connection_that_breaks_is_no_exit_code_and_a_late_end_is_told() {
    let (near, far) = pair().await;
    let exec = start(near, Input::Held, None);
    drop(far);
    assert!(matches!(exec.end.exit_code().await, Err(Error::Disconnected(_))));
    let (near, _far) = pair().await;
    let exec = start(near, Input::Held, Some(Duration::from_millis(20)));
    assert_eq!(all(exec.stdout).await, b"");
    let late = exec.end.exit_code().await;
    assert!(matches!(late, Err(Error::StepTimeout(_))));
}

#[tokio::test]
async fn nothing_is_sent_to_hold_a_connection_open() {
    let (near, mut far) = pair().await;
    tokio::time::pause();
    let exec = start(near, Input::Held, None);
    let sent = tokio::time::timeout(Duration::from_hours(1), far.next()).await;
    assert!(sent.is_err(), "{sent:?}");
    drop(exec);
    let closed = far.next().await;
    assert!(
        matches!(closed, None | Some(Err(_) | Ok(Message::Close(_)))),
        "{closed:?}"
    );
}

#[test]
fn exit_codes_come_from_the_status() {
    let status = |value| serde_json::from_value::<Status>(value).unwrap();
    assert_eq!(exit_code(&status(json!({"status": "Success"}))).unwrap(), 0);
    let broken = status(json!({"status": "Failure", "message": "container not found"}));
    assert!(matches!(exit_code(&broken), Err(Error::Disconnected(why)) if why == "container not found"));
}
