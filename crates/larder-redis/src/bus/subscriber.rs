use std::io;

use bytes::Bytes;
use larder::backplane::Notice;
use larder::store::StoreError;
use redis::{ConnectionAddr, RedisError, Value};
use tokio::net::TcpStream;

use super::frame::{self, MAX_FRAME_BYTES};
use super::wire::{Item, Socket, Wire};
use super::{Names, fresh_incarnation};
use crate::error::{failure, refusal};
use crate::options::Plan;
use crate::reply::is_not_available;
use crate::scripts::BUS_LISTEN;

/// A connection that listens to one channel, and does nothing else.
///
/// It is not the one that commands share: a listener that the server cuts off because it is slow
/// must not take the commands with it, and only a connection of its own can be read with a bound
/// on what is kept.
pub(super) struct Subscriber<'a> {
    wire: Wire,
    place: &'a str,
    channel: &'a [u8],
    /// Tells one server's life from another; 0 where the server does not say.
    server: u64,
}

/// What INFO server returns at most, and what a push holds.
const MAX_ITEM_BYTES: usize = {
    let info = 32 << 10;
    if MAX_FRAME_BYTES > info {
        MAX_FRAME_BYTES
    } else {
        info
    }
};

impl<'a> Subscriber<'a> {
    /// Connects, prepares the channel and subscribes to it, within the time to connect.
    pub(super) async fn open(plan: &'a Plan, names: &'a Names) -> Result<Self, StoreError> {
        let opening = Self::subscribe(plan, names);
        match tokio::time::timeout(plan.options.connect_timeout, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(lost(&plan.place, io::ErrorKind::TimedOut.into())),
        }
    }

    async fn subscribe(plan: &'a Plan, names: &'a Names) -> Result<Self, StoreError> {
        let place = &*plan.place;
        let socket = connect(plan).await.map_err(|error| lost(place, error))?;
        let mut subscriber = Self {
            wire: Wire::new(socket, MAX_ITEM_BYTES),
            place,
            channel: &names.channel,
            server: 0,
        };
        subscriber.sign_in(plan).await?;
        let run_id = subscriber.run_id().await?;
        subscriber.server = run_id.as_deref().map_or(0, fingerprint);
        subscriber.prepare(names, run_id.as_deref()).await?;
        subscriber.join().await?;
        Ok(subscriber)
    }

    pub(super) fn server(&self) -> u64 {
        self.server
    }

    /// What was told next.
    pub(super) async fn next(&mut self) -> Result<Notice, StoreError> {
        loop {
            let parts = self
                .wire
                .push()
                .await
                .map_err(|error| lost(self.place, error))?;
            match <[Item; 3]>::try_from(parts) {
                Ok([Item::Bytes(kind), _, frame]) if kind == b"message" => {
                    return Ok(match frame {
                        Item::Bytes(frame) => frame::read(&Bytes::from(frame)),
                        _ => Notice::Unreadable,
                    });
                }
                Ok([Item::Bytes(kind), ..]) if kind == b"unsubscribe" => {
                    return Err(StoreError::unavailable(format!(
                        "Redis at {} ended the subscription",
                        self.place
                    )));
                }
                Ok(_) => {}
                Err(parts) => {
                    if let [Item::Error(said)] = parts.as_slice() {
                        return Err(self.refused(said));
                    }
                }
            }
        }
    }

    async fn sign_in(&mut self, plan: &Plan) -> Result<(), StoreError> {
        let settings = plan.client.get_connection_info().redis_settings();
        if let Some(password) = settings.password() {
            let mut command: Vec<&[u8]> = vec![b"AUTH"];
            command.extend(settings.username().map(str::as_bytes));
            command.push(password.as_bytes());
            if let Item::Error(_) = self.ask(&command).await? {
                return Err(StoreError::refused(format!(
                    "Redis at {} refused the user name or password of the URL",
                    self.place
                )));
            }
        }
        if plan.database != 0 {
            let database = plan.database.to_string();
            self.ask_ok(&[b"SELECT", database.as_bytes()]).await?;
        }
        Ok(())
    }

    /// What a server calls its life: random, and new with every start. `None` where the user may not
    /// ask.
    async fn run_id(&mut self) -> Result<Option<String>, StoreError> {
        match self.ask(&[b"INFO", b"server"]).await? {
            Item::Bytes(info) => Ok(field(&String::from_utf8_lossy(&info), "run_id:")),
            Item::Error(said) if is_forbidden(&said) => Ok(None),
            Item::Error(said) => Err(self.refused(&said)),
            _ => Ok(None),
        }
    }

    async fn prepare(&mut self, names: &Names, run_id: Option<&str>) -> Result<(), StoreError> {
        let server = run_id.unwrap_or_default().as_bytes();
        let incarnation = fresh_incarnation();
        let [position, journal] = names.keys();
        let code = BUS_LISTEN.code().as_bytes();
        let call = [b"EVAL", code, b"2", position, journal, server, &incarnation];
        self.ask_ok(&call).await
    }

    async fn join(&mut self) -> Result<(), StoreError> {
        let subscribe: [&[u8]; 2] = [b"SUBSCRIBE", self.channel];
        let sent = self.wire.send(&subscribe).await;
        sent.map_err(|error| lost(self.place, error))?;
        let parts = self
            .wire
            .push()
            .await
            .map_err(|error| lost(self.place, error))?;
        match parts.as_slice() {
            [Item::Bytes(kind), ..] if kind == b"subscribe" => Ok(()),
            [Item::Error(said)] if is_forbidden(said) => Err(StoreError::refused(format!(
                "Redis at {} does not let this user listen: {said} \
                 (grant it +subscribe and the channel &{})",
                self.place,
                String::from_utf8_lossy(self.channel)
            ))),
            [Item::Error(said)] => Err(self.refused(said)),
            _ => Err(self.senseless()),
        }
    }

    async fn ask(&mut self, command: &[&[u8]]) -> Result<Item, StoreError> {
        let answer = self.wire.ask(command).await;
        answer.map_err(|error| lost(self.place, error))
    }

    async fn ask_ok(&mut self, command: &[&[u8]]) -> Result<(), StoreError> {
        match self.ask(command).await? {
            Item::Status(_) => Ok(()),
            Item::Error(said) => Err(self.refused(&said)),
            _ => Err(self.senseless()),
        }
    }

    fn refused(&self, said: &str) -> StoreError {
        match server_error(said) {
            Some(error) => refusal(self.place, &error),
            None => self.senseless(),
        }
    }

    fn senseless(&self) -> StoreError {
        crate::reply::Replies { place: self.place }.senseless()
    }
}

async fn connect(plan: &Plan) -> io::Result<Box<dyn Socket>> {
    match plan.client.get_connection_info().addr() {
        ConnectionAddr::Tcp(host, port) => {
            let stream = TcpStream::connect((&**host, *port)).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
        #[cfg(unix)]
        ConnectionAddr::Unix(path) => Ok(Box::new(tokio::net::UnixStream::connect(path).await?)),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// What the end of a connection means.
fn lost(place: &str, error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => StoreError::unavailable(format!(
            "Redis at {place} closed the connection of the listener"
        )),
        io::ErrorKind::InvalidData => StoreError::unavailable(format!(
            "what answers at {place} does not answer as Redis does"
        ))
        .with_source(error),
        _ => failure(place, RedisError::from(error)),
    }
}

/// An error of the server as the rest of the crate knows it.
fn server_error(said: &str) -> Option<redis::ServerError> {
    match redis::parse_redis_value(format!("-{said}\r\n").as_bytes()) {
        Ok(Value::ServerError(error)) => Some(error),
        _ => None,
    }
}

fn is_forbidden(said: &str) -> bool {
    server_error(said).is_some_and(|error| is_not_available(&error))
}

pub(super) fn field(info: &str, name: &str) -> Option<String> {
    let value = info.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// A number for a name, the same in every process: FNV-1a, 64 bits. Never 0.
pub(super) fn fingerprint(name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_by_its_run_id() {
        let info = "# Server\r\nredis_version:7.0.15\r\nrun_id:abc123\r\ntcp_port:6379\r\n";
        assert_eq!(field(info, "run_id:").as_deref(), Some("abc123"));
        assert_eq!(field("# Server\r\nrun_id:\r\n", "run_id:"), None);
        assert_eq!(field("", "run_id:"), None);
        assert_eq!(fingerprint("a"), 0xaf63_dc4c_8601_ec8c, "as published");
        assert_ne!(fingerprint("abc123"), fingerprint("abc124"));
    }

    #[test]
    fn what_a_server_forbids_is_told_from_what_it_cannot_do_yet() {
        assert!(is_forbidden("NOPERM this user has no permissions"));
        assert!(is_forbidden("ERR unknown command 'INFO'"));
        assert!(!is_forbidden(
            "LOADING Redis is loading the dataset in memory"
        ));
    }
}
