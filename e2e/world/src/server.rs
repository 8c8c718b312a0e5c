//! Listeners, TLS, and which server answers which request.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_rustls::LazyConfigAcceptor;

use crate::World;
use crate::body::{Response, text, with_header};
use crate::journal::bounded;
use crate::{git, models, packages, raw, web, websocket};

/// Longest TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Largest body that is read whole.
pub const BODY_MAX: usize = 16 << 20;

/// How a request came.
#[derive(Clone, Debug)]
pub struct Connection {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The name in the `ClientHello`.
    pub server_name: Option<String>,
    /// The address that was dialled.
    pub local: SocketAddr,
}

/// Serves plain HTTP for ever.
pub async fn serve_plain(world: Arc<World>, listener: TcpListener) {
    loop {
        let Some((stream, connection)) = accept(&world, &listener, "http").await else {
            continue;
        };
        tokio::spawn(serve(Arc::clone(&world), stream, connection));
    }
}

/// Serves HTTPS for ever.
pub async fn serve_tls(world: Arc<World>, listener: TcpListener) {
    loop {
        let Some((stream, connection)) = accept(&world, &listener, "https").await else {
            continue;
        };
        let world = Arc::clone(&world);
        tokio::spawn(async move {
            let _ = tokio::time::timeout(HANDSHAKE, shake_hands(world, stream, connection)).await;
        });
    }
}

async fn accept(
    world: &World,
    listener: &TcpListener,
    scheme: &'static str,
) -> Option<(TcpStream, Connection)> {
    let (stream, _) = listener.accept().await.ok()?;
    let _ = stream.set_nodelay(true);
    let local = stream.local_addr().ok()?;
    world.journal.note(
        "connection",
        json!({"address": local.ip().to_string(), "port": local.port()}),
    );
    let connection = Connection {
        scheme,
        server_name: None,
        local,
    };
    Some((stream, connection))
}

/// Finishes the handshake, and lets the rest run without its bound.
async fn shake_hands(world: Arc<World>, stream: TcpStream, mut connection: Connection) {
    let Ok(start) = LazyConfigAcceptor::new(tokio_rustls::rustls::server::Acceptor::default(), stream).await
    else {
        return;
    };
    connection.server_name = start.client_hello().server_name().map(str::to_owned);
    let name = connection.server_name.as_deref();
    world.journal.note(
        "hello",
        json!({"sni": name, "address": connection.local.ip().to_string()}),
    );
    let Ok(config) = world.authority.server(name) else {
        return;
    };
    let Ok(stream) = start.into_stream(config).await else {
        return;
    };
    if name.is_some_and(|name| name.starts_with("raw.")) {
        tokio::spawn(raw::serve(world, stream));
    } else {
        tokio::spawn(serve(world, stream, connection));
    }
}

/// Serves HTTP/1.1 or HTTP/2 on one connection.
async fn serve<S>(world: Arc<World>, stream: S, connection: Connection)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let (world, connection) = (Arc::clone(&world), connection.clone());
        async move { Ok::<_, Infallible>(handle(&world, &connection, request).await) }
    });
    let _ = Builder::new(TokioExecutor::new())
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await;
}

/// The host that a request names.
pub fn host_of<B>(request: &Request<B>) -> String {
    let authority = request.uri().authority().map(ToString::to_string);
    let header = || {
        let value = request.headers().get(hyper::header::HOST)?;
        Some(bounded(value.as_bytes()))
    };
    authority.or_else(header).unwrap_or_default()
}

async fn handle(world: &Arc<World>, connection: &Connection, request: Request<Incoming>) -> Response {
    note(world, connection, &request);
    let path = request.uri().path().to_owned();
    if path == "/ws" {
        return websocket::upgrade(request);
    }
    if path.starts_with("/git/") {
        return git::serve(world, request).await;
    }
    if let Some(response) = packages::serve(world, &request) {
        return response;
    }
    if path.starts_with("/v1/") {
        let (parts, body) = request.into_parts();
        return match collect(body).await {
            Some(body) => models::serve(&parts, &body).await,
            None => text(413, "too large"),
        };
    }
    let closes = host_of(&request).starts_with("rebind.");
    let response = web::serve(connection, request).await;
    if closes {
        return with_header(response, "connection", "close");
    }
    response
}

/// Writes down what came, headers included: a test looks there for what must never arrive, and for what must.
fn note(world: &World, connection: &Connection, request: &Request<Incoming>) {
    let headers: Vec<[String; 2]> = request
        .headers()
        .iter()
        .map(|(name, value)| [name.to_string(), bounded(value.as_bytes())])
        .collect();
    world.journal.note(
        "request",
        json!({
            "scheme": connection.scheme, "sni": connection.server_name, "host": host_of(request),
            "address": connection.local.ip().to_string(), "port": connection.local.port(),
            "method": request.method().as_str(), "path": bounded(request.uri().path().as_bytes()),
            "query": request.uri().query().map(|query| bounded(query.as_bytes())),
            "version": format!("{:?}", request.version()), "headers": headers,
        }),
    );
}

/// A body, whole, unless it is too large or breaks off.
pub async fn collect(body: Incoming) -> Option<Vec<u8>> {
    let limited = http_body_util::Limited::new(body, BODY_MAX);
    limited.collect().await.ok().map(|body| body.to_bytes().to_vec())
}

/// Sends datagrams back for ever.
pub async fn echo_datagrams(socket: UdpSocket) {
    let mut buffer = [0; 2048];
    loop {
        if let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..length], from).await;
        }
    }
}
