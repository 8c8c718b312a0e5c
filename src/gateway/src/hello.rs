//! The first bytes of a TLS connection, before it is known what becomes of it.

use std::time::Duration;

use agentsandbox_egress::client_hello::{self, HELLO_MAX, Hello};
use agentsandbox_egress::deny::Deny;
use agentsandbox_egress::name::HostName;
use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;

use crate::client_io::Prefixed;

/// What is read at once. Most ClientHellos fit.
const STEP: usize = 2 << 10;

/// A ClientHello and what was read with it.
#[derive(Debug)]
pub struct Opening {
    /// The host that the client wants.
    pub host: HostName,
    /// All bytes so far.
    pub bytes: Bytes,
}

/// What a connection began with instead, as far as it can be told.
#[derive(Debug)]
pub struct NoOpening {
    /// Why it goes no further.
    pub deny: Deny,
    /// The name that the client wants.
    pub name: String,
}

/// Reads a ClientHello that names a host in the clear.
///
/// # Errors
/// Anything else; also one that does not come in time.
pub async fn read(stream: &mut Prefixed, patience: Duration) -> Result<Opening, NoOpening> {
    let no = |deny| NoOpening {
        deny,
        name: String::new(),
    };
    let mut bytes = BytesMut::new();
    let hello = async {
        loop {
            bytes.reserve(STEP);
            // Never more than is looked at: what comes behind it is not kept here.
            let read = stream.read_buf(&mut bytes).await.unwrap_or(0);
            match client_hello::parse(&bytes) {
                Hello::Partial if read > 0 && bytes.len() < HELLO_MAX => {}
                Hello::Partial => return Hello::NotTls,
                hello => return hello,
            }
        }
    };
    let hello = tokio::time::timeout(patience, hello)
        .await
        .map_err(|_| no(Deny::NotTls))?;
    let Hello::Complete {
        server_name,
        encrypted,
        ..
    } = hello
    else {
        return Err(no(Deny::NotTls));
    };
    let Some(name) = server_name else {
        return Err(no(Deny::ServerNameMissing));
    };
    if encrypted {
        return Err(NoOpening {
            deny: Deny::EncryptedClientHello,
            name,
        });
    }
    match HostName::parse(&name) {
        Ok(host) => Ok(Opening {
            host,
            bytes: bytes.freeze(),
        }),
        Err(deny) => Err(NoOpening { deny, name }),
    }
}
