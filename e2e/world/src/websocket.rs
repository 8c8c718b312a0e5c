//! A WebSocket (RFC 6455) that sends every message back.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::body::{Response, answer, full, text, with_header};

/// RFC 6455, section 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const CLOSE: u8 = 8;

/// Turns the request's connection into a WebSocket.
pub fn upgrade(mut request: Request<Incoming>) -> Response {
    let Some(key) = request.headers().get("sec-websocket-key").cloned() else {
        return text(400, "no WebSocket");
    };
    let accepted = accept_key(key.as_bytes());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let _ = echo(TokioIo::new(upgraded)).await;
        }
    });
    let response = answer(101, "text/plain", full(""));
    let response = with_header(response, "upgrade", "websocket");
    let response = with_header(response, "connection", "Upgrade");
    with_header(response, "sec-websocket-accept", &accepted)
}

fn accept_key(key: &[u8]) -> String {
    BASE64.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize())
}

async fn echo<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> std::io::Result<()> {
    loop {
        let (first, second) = (stream.read_u8().await?, stream.read_u8().await?);
        let length = match second & 0x7f {
            126 => usize::from(stream.read_u16().await?),
            127 => return Ok(()),
            length => usize::from(length),
        };
        let mut mask = [0; 4];
        if second & 0x80 != 0 {
            stream.read_exact(&mut mask).await?;
        }
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await?;
        for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
        stream.write_u8(first).await?;
        if let Ok(short) = u8::try_from(length)
            && short < 126
        {
            stream.write_u8(short).await?;
        } else {
            stream.write_u8(126).await?;
            stream
                .write_u16(u16::try_from(length).unwrap_or_default())
                .await?;
        }
        stream.write_all(&payload).await?;
        stream.flush().await?;
        if first & 0x0f == CLOSE {
            return stream.shutdown().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 6455, section 1.3.
    #[test]
    fn a_key_is_accepted_as_the_standard_says() {
        assert_eq!(
            accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[tokio::test]
    async fn a_masked_message_comes_back_unmasked() {
        let (mut near, far) = tokio::io::duplex(1024);
        let served = tokio::spawn(echo(far));
        near.write_all(&[0x81, 0x82, 1, 2, 3, 4, b'h' ^ 1, b'i' ^ 2, 0x88, 0x80, 0, 0, 0, 0])
            .await
            .unwrap();
        let mut back = [0; 6];
        near.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"\x81\x02hi\x88\x00");
        served.await.unwrap().unwrap();
    }
}
