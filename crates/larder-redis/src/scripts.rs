use std::sync::LazyLock;

use larder::store::StoreResult;
use redis::{Cmd, Script, ServerErrorKind, Value};

use crate::connection::Connection;
use crate::link::Batch;

/// A Lua script that reads and writes one key in one step.
pub(crate) struct Lua {
    code: &'static str,
    hash: String,
}

macro_rules! lua {
    ($(#[$doc:meta])* $name:ident, $file:literal) => {
        $(#[$doc])*
        pub(crate) static $name: LazyLock<Lua> = LazyLock::new(|| Lua::new(include_str!($file)));
    };
}

lua! {
    /// Reads an entry and takes the lease where there is none fresh.
    LEASE, "scripts/lease.lua"
}
lua! {
    /// Stores a value under its lease.
    FILL, "scripts/fill.lua"
}
lua! {
    /// Gives a lease back.
    RELEASE, "scripts/release.lua"
}
lua! {
    /// Makes a value stale in place.
    EXPIRE, "scripts/expire.lua"
}

/// Whether a script may run twice with the same arguments.
#[derive(Clone, Copy)]
pub(crate) enum Repeat {
    Harmless,
    Never,
}

impl Lua {
    fn new(code: &'static str) -> Self {
        let hash = Script::new(code).get_hash().into();
        Self { code, hash }
    }

    /// Runs the script `count` times in one round trip. `arguments` appends the key and the
    /// arguments of each run.
    ///
    /// The server is asked by the script's hash. Where it does not know it, because it was
    /// restarted or its scripts were flushed, the runs that it refused go again with the code.
    pub(crate) async fn run(
        &self,
        connection: &Connection,
        repeat: Repeat,
        count: usize,
        payload_bytes: usize,
        arguments: impl Fn(&mut Cmd, usize),
    ) -> StoreResult<Vec<Value>> {
        let batch = |runs: &[usize], command: &str, script: &str| {
            let commands = runs.iter().map(|&run| {
                let mut call = redis::cmd(command);
                call.arg(script).arg(1);
                arguments(&mut call, run);
                call
            });
            Batch::of(commands).carrying(payload_bytes)
        };
        let all: Vec<usize> = (0..count).collect();
        let by_hash = batch(&all, "EVALSHA", &self.hash);
        let mut replies = match repeat {
            Repeat::Harmless => connection.send_repeatable(by_hash).await?,
            Repeat::Never => connection.send(by_hash).await?,
        };
        let unknown: Vec<usize> = all
            .into_iter()
            .filter(|&run| replies.get(run).is_some_and(is_unknown))
            .collect();
        if !unknown.is_empty() {
            let by_code = batch(&unknown, "EVAL", self.code);
            for (run, reply) in unknown.into_iter().zip(connection.send(by_code).await?) {
                replies[run] = reply;
            }
        }
        Ok(replies)
    }
}

fn is_unknown(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.kind() == Some(ServerErrorKind::NoScript))
}
