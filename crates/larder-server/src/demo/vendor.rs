//! The third party: a price service on a port of its own, slow, and at times dead.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::Path;
use axum::http::Method;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::net;

/// How long the third party takes for every answer.
pub(crate) const LATENCY: Duration = Duration::from_millis(150);

/// What the third party says a product costs elsewhere.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Quote {
    /// The product.
    pub(crate) product: u64,
    /// The price in cents.
    pub(crate) cents: u64,
}

/// The third party's server.
pub(crate) struct Vendor {
    address: SocketAddr,
    alive: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Vendor {
    /// Opens for business on a free port.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let listener = net::listen(0)?;
        let address = listener.local_addr().context("the third party's port")?;
        let (alive, watching) = watch::channel(true);
        let task = tokio::spawn(accept(listener, watching));
        Ok(Self {
            address,
            alive,
            task,
        })
    }

    /// Where to ask.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Dies: every connection breaks at once, and every new one as soon as it is made.
    pub(crate) fn kill(&self) {
        self.alive.send_replace(false);
    }

    /// Comes back.
    pub(crate) fn revive(&self) {
        self.alive.send_replace(true);
    }
}

impl Drop for Vendor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The port stays bound while the third party is dead, so that nobody else takes it meanwhile.
async fn accept(listener: TcpListener, mut alive: watch::Receiver<bool>) {
    let router = Router::new().route("/quote/{product}", get(quote));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            changed = alive.changed() => {
                if changed.is_err() {
                    return;
                }
                if !*alive.borrow_and_update() {
                    connections.shutdown().await;
                }
            }
            Ok((stream, _)) = listener.accept() => {
                if *alive.borrow() {
                    connections.spawn(serve(stream, router.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, router: Router) {
    let _ = stream.set_nodelay(true);
    let service = TowerToHyperService::new(router);
    // A connection that breaks is the other side's trouble.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn quote(Path(product): Path<u64>) -> Vec<u8> {
    tokio::time::sleep(LATENCY).await;
    let cents = 500 + product.wrapping_mul(2_654_435_761) % 40_000;
    serde_json::to_vec(&Quote { product, cents }).unwrap_or_default()
}

/// The shop's side: asks the third party, and counts how often.
#[derive(Clone)]
pub(crate) struct VendorClient {
    address: SocketAddr,
    calls: Arc<AtomicU64>,
}

impl VendorClient {
    /// A client of the third party at `address`.
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            calls: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Calls made so far.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// What `product` costs elsewhere.
    pub(crate) async fn quote(&self, product: u64) -> anyhow::Result<Quote> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let path = format!("/quote/{product}");
        let body = net::request(self.address, Method::GET, &path, "")
            .await
            .context("the third party does not answer")?;
        serde_json::from_slice(&body).context("the third party talks nonsense")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_third_party_answers_dies_and_comes_back() {
        let vendor = Vendor::start().await.expect("started");
        let client = VendorClient::new(vendor.address());
        assert_eq!(client.quote(17).await.expect("an answer").product, 17);
        vendor.kill();
        let error = client.quote(17).await.expect_err("dead");
        assert_eq!(error.to_string(), "the third party does not answer");
        vendor.revive();
        assert!(client.quote(17).await.is_ok());
        assert_eq!(client.calls(), 3);
    }
}
