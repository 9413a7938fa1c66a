//! Faults of a network, switched while it runs.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests may panic as the tests do"
)]

use std::io::ErrorKind;
use std::num::NonZeroU32;
use std::time::Duration;

use larder_testkit::{ChaosProxy, Direction, LinkFault, RedisServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

/// Long enough that nothing of it passes in a test.
const EVER: Duration = Duration::from_secs(3600);
/// How long something that must not come is waited for.
const A_MOMENT: Duration = Duration::from_millis(50);

/// A client and a server, connected through a proxy.
struct Line {
    proxy: ChaosProxy,
    listener: TcpListener,
    client: TcpStream,
    server: TcpStream,
}

impl Line {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = ChaosProxy::start(listener.local_addr().unwrap())
            .await
            .unwrap();
        let client = TcpStream::connect(proxy.address()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        Self {
            proxy,
            listener,
            client,
            server,
        }
    }
}

async fn expect(stream: &mut TcpStream, bytes: &[u8]) {
    let mut found = vec![0; bytes.len()];
    stream.read_exact(&mut found).await.unwrap();
    assert_eq!(found, bytes);
}

async fn expect_nothing(stream: &mut TcpStream) {
    let mut byte = [0];
    let found = timeout(A_MOMENT, stream.read(&mut byte)).await;
    assert!(found.is_err(), "got {found:?}");
}

#[tokio::test]
async fn without_faults_bytes_and_ends_pass_both_ways() {
    let mut line = Line::new().await;
    let long: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
    let (mut from_client, mut to_server) = line.client.split();
    let sent = async {
        to_server.write_all(&long).await.unwrap();
        to_server.shutdown().await.unwrap();
    };
    let mut found = Vec::new();
    tokio::join!(sent, async {
        line.server.read_to_end(&mut found).await.unwrap()
    });
    assert!(found == long);
    line.server.write_all(b"still open").await.unwrap();
    drop(line.server);
    let mut answer = String::new();
    from_client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "still open");
    assert_eq!(line.proxy.connections(), 1);
}

#[tokio::test]
async fn a_delay_holds_bytes_back_one_way_until_it_is_lifted() {
    let mut line = Line::new().await;
    line.proxy
        .inject([Direction::ToClient], LinkFault::Delay(EVER));
    line.client.write_all(b"ask").await.unwrap();
    expect(&mut line.server, b"ask").await;
    line.server.write_all(b"answer").await.unwrap();
    expect_nothing(&mut line.client).await;
    line.proxy.heal();
    expect(&mut line.client, b"answer").await;

    line.proxy
        .inject(Direction::BOTH, LinkFault::Delay(A_MOMENT));
    let asked = Instant::now();
    for n in 0..20 {
        line.client.write_all(&[n; 1_000]).await.unwrap();
    }
    for n in 0..20 {
        expect(&mut line.server, &[n; 1_000]).await;
    }
    assert!(asked.elapsed() >= A_MOMENT);
}

#[tokio::test]
async fn what_falls_into_a_blackhole_stays_there_the_end_excepted() {
    let mut line = Line::new().await;
    line.proxy.inject(Direction::BOTH, LinkFault::Blackhole);
    line.client.write_all(b"lost").await.unwrap();
    line.server.write_all(b"lost").await.unwrap();
    expect_nothing(&mut line.server).await;
    expect_nothing(&mut line.client).await;
    line.proxy.heal();
    line.client.write_all(b"found").await.unwrap();
    expect(&mut line.server, b"found").await;

    line.proxy.inject(Direction::BOTH, LinkFault::Blackhole);
    drop(line.server);
    expect_nothing(&mut line.client).await;
    line.proxy.heal();
    assert_eq!(line.client.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_reset_is_a_reset_on_both_sides() {
    let mut line = Line::new().await;
    line.proxy.reset_connections();
    for stream in [&mut line.client, &mut line.server] {
        let error = stream.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    let mut again = TcpStream::connect(line.proxy.address()).await.unwrap();
    let (mut server, _) = line.listener.accept().await.unwrap();
    again.write_all(b"new connections live").await.unwrap();
    expect(&mut server, b"new connections live").await;
    assert_eq!(
        (line.proxy.connections(), line.proxy.open_connections()),
        (2, 1)
    );
}

#[tokio::test]
async fn a_cut_lets_so_many_bytes_pass_and_ends_the_connection() {
    let mut line = Line::new().await;
    line.server.write_all(b"before").await.unwrap();
    expect(&mut line.client, b"before").await;
    line.proxy
        .inject([Direction::ToClient], LinkFault::Truncate(3));
    line.server.write_all(b"answer").await.unwrap();
    let mut found = Vec::new();
    line.client.read_to_end(&mut found).await.unwrap();
    assert_eq!(found, b"ans");
    assert_eq!(line.server.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_throttle_lets_bytes_pass_slowly_and_whole() {
    let mut line = Line::new().await;
    line.proxy.inject(
        Direction::BOTH,
        LinkFault::Throttle(NonZeroU32::new(2_000).unwrap()),
    );
    let began = Instant::now();
    let sent: Vec<u8> = (0..400u32).map(|n| n as u8).collect();
    line.client.write_all(&sent).await.unwrap();
    expect(&mut line.server, &sent).await;
    assert!(
        began.elapsed() >= Duration::from_millis(150),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn what_is_held_back_arrives_whole_and_at_once() {
    let mut line = Line::new().await;
    line.proxy.inject([Direction::ToClient], LinkFault::Hold);
    for piece in [&b"one "[..], b"two ", b"three"] {
        let received = line.proxy.received(Direction::ToClient);
        line.server.write_all(piece).await.unwrap();
        while line.proxy.received(Direction::ToClient) == received {
            tokio::task::yield_now().await;
        }
    }
    let mut found = [0; 100];
    let early = timeout(Duration::from_millis(50), line.client.read(&mut found));
    assert!(early.await.is_err(), "held back");
    line.proxy.heal();
    let length = line.client.read(&mut found).await.unwrap();
    assert_eq!(&found[..length], b"one two three");
    line.server.write_all(b"four").await.unwrap();
    expect(&mut line.client, b"four").await;
}

#[tokio::test]
async fn refused_connections_find_the_same_port_open_again() {
    let mut line = Line::new().await;
    line.proxy.refuse().await;
    let error = TcpStream::connect(line.proxy.address()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    line.client.write_all(b"open ones stay").await.unwrap();
    expect(&mut line.server, b"open ones stay").await;
    line.proxy.accept().await;
    let mut again = TcpStream::connect(line.proxy.address()).await.unwrap();
    let (mut server, _) = line.listener.accept().await.unwrap();
    server.write_all(b"hello").await.unwrap();
    expect(&mut again, b"hello").await;
}

#[tokio::test]
async fn a_dropped_proxy_takes_its_connections_along() {
    let Line {
        proxy,
        mut client,
        mut server,
        listener,
    } = Line::new().await;
    let address = proxy.address();
    drop(proxy);
    assert!(matches!(client.read(&mut [0]).await, Ok(0) | Err(_)));
    assert!(matches!(server.read(&mut [0]).await, Ok(0) | Err(_)));
    let error = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    drop(listener);
}

#[tokio::test]
async fn a_reader_that_stalls_stalls_the_writer() {
    let mut line = Line::new().await;
    let much = vec![0; 64 << 20];
    let sent = timeout(Duration::from_millis(300), line.client.write_all(&much)).await;
    assert!(sent.is_err(), "64 MiB went somewhere");
}

#[tokio::test]
async fn a_dead_upstream_is_a_reset_for_the_client() {
    let line = Line::new().await;
    let proxy = line.proxy;
    drop((line.listener, line.server, line.client));
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    let error = client.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn it_stands_in_front_of_a_real_server() {
    let server = RedisServer::start().unwrap();
    let proxy = ChaosProxy::start(server.address()).await.unwrap();
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    client.write_all(b"PING\r\n").await.unwrap();
    expect(&mut client, b"+PONG\r\n").await;
}
