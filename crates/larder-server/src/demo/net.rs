//! Listening on loopback, and a light HTTP/1.1 client for it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use axum::body::Bytes;
use axum::http::header::HOST;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use axum::serve::ListenerExt;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;

use crate::refusal::Refusal;

/// Connections that may wait to be accepted: a stampede arrives at once.
const BACKLOG: u32 = 4_096;
/// No answer of the shop is longer.
const BODY_LIMIT: usize = 1 << 20;
/// Nobody waits longer for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Listens on `port` of 127.0.0.1; 0 takes a free one.
///
/// # Errors
/// A [`Refusal`] if the port is taken.
pub(crate) fn listen(port: u16) -> Result<TcpListener, Refusal> {
    let refuse = |error: std::io::Error| {
        let why = match error.kind() {
            std::io::ErrorKind::AddrInUse => "it is taken".to_owned(),
            _ => error.to_string(),
        };
        Refusal::new(format!(
            "cannot listen on port {port} of 127.0.0.1 ({why}); choose another with --port"
        ))
    };
    let socket = TcpSocket::new_v4().map_err(refuse)?;
    if cfg!(unix) {
        // Connections of an earlier run that linger must not keep the port from us.
        socket.set_reuseaddr(true).map_err(refuse)?;
    }
    socket
        .bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .map_err(refuse)?;
    socket.listen(BACKLOG).map_err(refuse)
}

/// A router that is being served until this is ended or dropped.
pub(crate) struct Served {
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Served {
    /// Serves `router` to whoever connects to `listener`.
    pub(crate) fn start(listener: TcpListener, router: Router) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = listener.tap_io(|stream| {
            // Small answers must not wait for more to send.
            let _ = stream.set_nodelay(true);
        });
        let task = tokio::spawn(async move {
            let ended = async {
                let _ = stopped.await;
            };
            let _ = axum::serve(listener, router)
                .with_graceful_shutdown(ended)
                .await;
        });
        Self {
            stop: Some(stop),
            task,
        }
    }

    /// Lets the requests that are running come to their end, for at most `patience`.
    pub(crate) async fn end(mut self, patience: Duration) {
        self.stop.take();
        let _ = timeout(patience, &mut self.task).await;
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What came back.
pub(crate) struct Reply {
    /// The status.
    pub(crate) status: StatusCode,
    /// The headers.
    pub(crate) headers: HeaderMap,
    /// The whole body.
    pub(crate) body: Bytes,
}

/// A connection that is kept for the next request.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: HeaderValue,
    driver: AbortHandle,
}

impl Connection {
    /// Connects to `address`.
    pub(crate) async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = timeout(PATIENCE, TcpStream::connect(address))
            .await
            .context("connecting took too long")??;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(async move {
            // What goes wrong on the connection fails the request that waits for it.
            let _ = connection.await;
        });
        Ok(Self {
            sender,
            host: HeaderValue::from_str(&address.to_string())?,
            driver: driver.abort_handle(),
        })
    }

    /// Asks for `path`.
    pub(crate) async fn get(&mut self, path: &str) -> anyhow::Result<Reply> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    /// Sends `body` to `path` and reads the answer.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<Reply> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse()?;
        request.headers_mut().insert(HOST, self.host.clone());
        let exchange = async {
            self.sender.ready().await?;
            let (head, body) = self.sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, BODY_LIMIT).collect().await;
            let body = body.map_err(anyhow::Error::from_boxed)?.to_bytes();
            Ok(Reply {
                status: head.status,
                headers: head.headers,
                body,
            })
        };
        timeout(PATIENCE, exchange)
            .await
            .context("no answer in time")?
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// One request on a connection of its own; an error unless the answer is a success.
pub(crate) async fn request(
    address: SocketAddr,
    method: Method,
    path: &str,
    body: impl Into<Bytes>,
) -> anyhow::Result<Bytes> {
    let mut connection = Connection::open(address).await?;
    let reply = connection.send(method.clone(), path, body.into()).await?;
    if !reply.status.is_success() {
        let said = String::from_utf8_lossy(&reply.body).into_owned();
        bail!("{method} {path}: {} {said}", reply.status);
    }
    Ok(reply.body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_refused_in_one_sentence() {
        let first = listen(0).expect("a free port");
        let port = first.local_addr().expect("bound").port();
        let refused = listen(port).expect_err("taken").to_string();
        assert_eq!(
            refused,
            format!(
                "cannot listen on port {port} of 127.0.0.1 (it is taken); \
                 choose another with --port"
            )
        );
    }
}
