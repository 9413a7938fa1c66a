//! A write that is still on its way on a connection that was given up must not arrive after an
//! invalidation that was sent later: it would bring an old value back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use common::*;
use larder::store::Store;
use larder_redis::Redis;
use larder_testkit::RedisServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

#[tokio::test]
async fn what_it_still_carries_is_not_carried_out() {
    let server = RedisServer::start().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let store = Redis::with_options(&url, hasty()).unwrap();
    let arrive = Arc::new(Notify::new());
    let network = tokio::spawn(slow_road(listener, server.address(), arrive.clone()));

    let name = key("k");
    unavailable(set(&store, &name, &fresh("old value")).await);
    store.ping().await.unwrap();
    delete(&store, &name).await.unwrap();

    arrive.notify_one();
    network.await.unwrap().await.unwrap();
    assert_eq!(calls(&server, "set"), 0);
    assert_eq!(get(&store, &name).await.unwrap(), None);
}

/// On the first connection the old value stands still until it is told to arrive; the second is as
/// usual. The task that is returned ends when the server has taken all that the first one carried.
async fn slow_road(
    listener: TcpListener,
    server: std::net::SocketAddr,
    arrive: Arc<Notify>,
) -> JoinHandle<()> {
    let (mut client, _) = listener.accept().await.unwrap();
    let mut upstream = TcpStream::connect(server).await.unwrap();
    let first = tokio::spawn(async move {
        let held = forward_until(b"old value", &mut client, &mut upstream).await;
        arrive.notified().await;
        // A server that forgot the connection resets it.
        let _ = upstream.write_all(&held).await;
        let _ = upstream.shutdown().await;
        let _ = upstream.read_to_end(&mut Vec::new()).await;
    });
    let (mut client, _) = listener.accept().await.unwrap();
    let mut upstream = TcpStream::connect(server).await.unwrap();
    tokio::spawn(async move { copy_bidirectional(&mut client, &mut upstream).await });
    first
}

/// Forwards both ways until the client sends `word`, and returns what was not forwarded.
async fn forward_until(word: &[u8], client: &mut TcpStream, upstream: &mut TcpStream) -> Vec<u8> {
    let (mut asked, mut answered) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let bytes = &asked[..read.unwrap()];
                if bytes.windows(word.len()).any(|window| window == word) {
                    return bytes.to_vec();
                }
                upstream.write_all(bytes).await.unwrap();
            }
            read = upstream.read(&mut answered) => {
                client.write_all(&answered[..read.unwrap()]).await.unwrap();
            }
        }
    }
}
