//! Without `--once` the shop stays open, answers by hand, and ends in good order when asked to.
#![cfg(unix)]
#![allow(
    clippy::expect_used,
    reason = "a test that cannot go on should say so and stop"
)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use common::{free_ports, larder};

/// A demo that is killed when the test ends early.
struct Demo {
    child: Child,
    port: u16,
}

impl Demo {
    /// Starts one and reads what it says until a line contains `until`.
    fn start(data: &std::path::Path, until: &str) -> Self {
        let port = free_ports();
        let data = data.to_str().expect("UTF-8");
        let mut command = larder(&[
            "demo",
            "--products",
            "2000",
            "--seconds",
            "1",
            "--data",
            data,
            "--port",
            &port.to_string(),
        ]);
        command
            .env("LARDER_DEMO_STAMPEDE", "50")
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("larder runs");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let told = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains(until)));
        assert!(told.is_some(), "it never said {until:?}");
        // What it says from here on is read by nobody, and must not stop it.
        Self { child, port }
    }

    /// The head and body of the answer to `request`.
    fn ask(&self, request: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("open");
        let length = body.len();
        let head = format!(
            "{request} HTTP/1.1\r\nHost: shop\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{body}"
        );
        stream.write_all(head.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    fn end(mut self, signal: &str) -> Option<i32> {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill")
            .args([signal, &pid])
            .status()
            .expect("kill runs");
        assert!(sent.success());
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_answers_by_hand_and_ends_on_sigterm() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let demo = Demo::start(data.path(), "/stats");

    demo.ask("GET /product/17", "");
    let again = demo.ask("GET /product/17", "");
    assert!(again.contains("x-cache: fresh memory\r\n"), "{again}");
    assert!(
        again.contains("x-cache-explain: fresh from memory"),
        "{again}"
    );

    let updated = demo.ask("PUT /product/17/price", "19.99");
    assert!(updated.contains("\"price_cents\":1999"), "{updated}");
    assert!(updated.contains("\"invalidation\":\"acked\""), "{updated}");
    let new = demo.ask("GET /product/17", "");
    assert!(new.contains("\"price_cents\":1999"), "{new}");
    assert!(new.contains("x-cache: fresh loader\r\n"), "{new}");

    assert!(
        demo.ask("GET /direct/product/17", "")
            .contains("x-cache: off\r\n")
    );
    assert!(
        demo.ask("GET /product/999999", "")
            .starts_with("HTTP/1.1 404")
    );
    assert!(demo.ask("GET /product/x", "").starts_with("HTTP/1.1 400"));
    assert!(
        demo.ask("PUT /product/17/price", "cheap")
            .starts_with("HTTP/1.1 400")
    );
    assert!(demo.ask("GET /stats", "").contains("\"queries\":"));
    assert_eq!(demo.end("-TERM"), Some(0));
}

#[test]
fn in_the_middle_of_the_story_it_ends_on_sigint() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let demo = Demo::start(data.path(), "without the cache:");
    assert_eq!(demo.end("-INT"), Some(130));
}
