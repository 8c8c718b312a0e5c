//! Steps against a small API server on loopback, which speaks exec as the real one does.

use futures::{SinkExt, StreamExt};
use kube::{Client, Config};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::{Error, Sandbox, Sandboxes, Step};

/// Serves one sandbox; each exec echoes its input, prints its own request line on standard error and exits with 3.
async fn serve(protocol: &'static str) -> Sandbox {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(answer(stream, protocol));
        }
    });
    let client = Client::try_from(Config::new(url.parse().unwrap())).unwrap();
    Sandboxes::new(client, "ns").sandbox("job")
}

async fn answer(mut stream: TcpStream, protocol: &'static str) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let line = head.lines().next().unwrap().to_owned();
    if !line.contains("/exec?") {
        let object =
            json!({"metadata": {"name": "job"}, "spec": {"image": "x", "session": {"idleTimeoutSeconds": 1}},
            "status": {"runId": "", "podName": "job-sb00000000", "conditions": [
                {"type": "Succeeded", "status": "True", "reason": "IdleTimeout", "message": "m",
                 "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
            .to_string();
        let length = object.len();
        let answer =
            format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{object}");
        return stream.write_all(answer.as_bytes()).await.unwrap();
    }
    let key = head.lines().find_map(|line| {
        line.to_ascii_lowercase()
            .starts_with("sec-websocket-key:")
            .then(|| line[18..].trim())
    });
    let accept = derive_accept_key(key.unwrap().as_bytes());
    let switch = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
    );
    stream.write_all(switch.as_bytes()).await.unwrap();
    echo(
        WebSocketStream::from_raw_socket(stream, Role::Server, None).await,
        &line,
    )
    .await;
}

async fn echo(mut socket: WebSocketStream<TcpStream>, line: &str) {
    let channel = |number: u8, data: &[u8]| Message::binary([&[number], data].concat());
    // What an API server sends when the connection opens.
    for number in [1, 2] {
        socket.send(channel(number, b"")).await.unwrap();
    }
    if line.contains("command=--stdin") {
        while let Some(Ok(message)) = socket.next().await {
            let data = message.into_data();
            if data[..] == [255, 0] {
                break;
            }
            assert_eq!(data[0], 0);
            socket.send(channel(1, &data[1..])).await.unwrap();
        }
    }
    socket.send(channel(2, line.as_bytes())).await.unwrap();
    if line.contains("command=vanish") {
        let outcome =
            json!({"metadata": {}, "status": "Failure", "message": "container not found"}).to_string();
        return socket.send(channel(3, outcome.as_bytes())).await.unwrap();
    }
    let outcome = json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message": "exit code 3",
        "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}});
    socket
        .send(channel(3, outcome.to_string().as_bytes()))
        .await
        .unwrap();
    socket.close(None).await.unwrap();
}

#[tokio::test]
async fn a_step_is_an_exec_in_the_recorder_container() {
    let sandbox = serve("v5.channel.k8s.io").await;
    let step = Step::new(["a b", "c"]).timeout_seconds(9).env("N", "v");
    let output = sandbox.step(&step, 1000).await.unwrap();
    assert_eq!((output.exit_code, output.stdout.len()), (3, 0));
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(
        line.starts_with("GET /api/v1/namespaces/ns/pods/job-sb00000000/exec?"),
        "{line}"
    );
    for part in ["stdin=true", "stdout=true", "stderr=true", "container=recorder"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(!line.contains("tty=true"), "{line}");
    let command: Vec<&str> = line
        .split(['&', ' '])
        .filter_map(|part| part.strip_prefix("command="))
        .collect();
    assert_eq!(
        command.join(" "),
        "%2Fsandbox-supervisor step --attended --timeout 9 --env N%3Dv -- a+b c"
    );
}

#[tokio::test]
async fn what_a_step_reads_comes_back_byte_for_byte() {
    let sandbox = serve("v5.channel.k8s.io").await;
    let bytes: Vec<u8> = (0..=255).cycle().take(1_000_000).collect();
    let echoed = sandbox
        .step(&Step::new(["cat"]).input(bytes.clone()), 2_000_000)
        .await
        .unwrap();
    assert!(echoed.stdout == bytes);
    let cut = sandbox.step(&Step::new(["cat"]).input(bytes), 1000).await;
    assert!(
        matches!(cut, Err(Error::OutputTooLong { limit: 1000 })),
        "{cut:?}"
    );
}

#[tokio::test]
async fn an_api_server_that_cannot_end_input_is_told_of() {
    let sandbox = serve("v4.channel.k8s.io").await;
    let refused = sandbox.step(&Step::new(["cat"]).input("x"), 1000).await;
    assert!(matches!(refused, Err(Error::OldApiServer)), "{refused:?}");
    assert_eq!(
        sandbox.step(&Step::new(["true"]), 1000).await.unwrap().exit_code,
        3
    );
}

#[tokio::test]
async fn a_step_without_an_end_in_a_session_that_has_ended_says_so() {
    let sandbox = serve("v5.channel.k8s.io").await;
    let ended = sandbox.step(&Step::new(["vanish"]), 1000).await;
    assert!(
        matches!(&ended, Err(Error::RunEnded { reason, .. }) if reason == "IdleTimeout"),
        "{ended:?}"
    );
}
