use std::sync::LazyLock;

use larder::store::StoreResult;
use redis::{Cmd, Script, ServerErrorKind, Value};

use crate::connection::Connection;
use crate::link::Batch;

/// A Lua script that reads and writes its keys in one step.
pub(crate) struct Lua {
    code: &'static str,
    hash: String,
}

macro_rules! lua {
    ($(#[$doc:meta])* $name:ident, $($file:literal)+) => {
        $(#[$doc])*
        pub(crate) static $name: LazyLock<Lua> =
            LazyLock::new(|| Lua::new(concat!($(include_str!($file)),+)));
    };
}

lua! {
    /// Reads an entry and takes the lease where there is none fresh.
    LEASE, "scripts/common.lua" "scripts/counter.lua" "scripts/lease.lua"
}
lua! {
    /// Stores a value under its lease.
    FILL, "scripts/common.lua" "scripts/counter.lua" "scripts/tags.lua" "scripts/fill.lua"
}
lua! {
    /// Stores a value that has tags, a version, or is a minimum version.
    SET, "scripts/common.lua" "scripts/counter.lua" "scripts/tags.lua" "scripts/set.lua"
}
lua! {
    /// Gives a lease back.
    RELEASE, "scripts/common.lua" "scripts/release.lua"
}
lua! {
    /// Keeps a value for longer.
    TOUCH, "scripts/common.lua" "scripts/touch.lua"
}
lua! {
    /// Makes a value stale in place.
    EXPIRE, "scripts/common.lua" "scripts/expire.lua"
}
lua! {
    /// Notes a member in a set.
    ENLIST, "scripts/common.lua" "scripts/enlist.lua"
}
lua! {
    /// Numbers, keeps and tells a message.
    BUS_PUBLISH, "scripts/common.lua" "scripts/bus.lua" "scripts/bus_publish.lua"
}
lua! {
    /// Tells where a channel stands.
    BUS_BEAT, "scripts/common.lua" "scripts/bus.lua" "scripts/bus_beat.lua"
}
lua! {
    /// Reads the journal of a channel.
    BUS_REPLAY, "scripts/common.lua" "scripts/bus.lua" "scripts/bus_replay.lua"
}
lua! {
    /// Prepares a channel for a listener.
    BUS_LISTEN, "scripts/common.lua" "scripts/bus.lua" "scripts/bus_listen.lua"
}

/// Whether a script may run twice with the same arguments.
#[derive(Clone, Copy)]
pub(crate) enum Repeat {
    Harmless,
    Never,
}

/// What one run of a script is given: its keys, and what stands behind them.
pub(crate) struct Call(Cmd);

impl Call {
    fn new(command: &str, script: &str) -> Self {
        let mut call = redis::cmd(command);
        call.arg(script);
        Self(call)
    }

    /// Names the keys of the run. Comes first, and once.
    pub(crate) fn keys(&mut self, keys: &[&[u8]]) -> &mut Cmd {
        self.0.arg(keys.len()).arg(keys)
    }
}

impl Lua {
    fn new(code: &'static str) -> Self {
        let hash = Script::new(code).get_hash().into();
        Self { code, hash }
    }

    /// What it says.
    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    /// A command that runs the script where the server knows it.
    pub(crate) fn by_hash(&self, arguments: impl FnOnce(&mut Call)) -> Cmd {
        let mut call = Call::new("EVALSHA", &self.hash);
        arguments(&mut call);
        call.0
    }

    /// Runs the script `count` times in one round trip. `arguments` appends the keys and the
    /// arguments of each run.
    ///
    /// The server is asked by the script's hash. Where it does not know it, because it was
    /// restarted or its scripts were flushed, the runs that it refused go again, the first of them
    /// with the code, which teaches it the hash.
    pub(crate) async fn run(
        &self,
        connection: &Connection,
        repeat: Repeat,
        count: usize,
        payload_bytes: usize,
        arguments: impl Fn(&mut Call, usize),
    ) -> StoreResult<Vec<Value>> {
        let command = |run: usize, command: &str, script: &str| {
            let mut call = Call::new(command, script);
            arguments(&mut call, run);
            call.0
        };
        let all: Vec<usize> = (0..count).collect();
        let by_hash = all.iter().map(|&run| command(run, "EVALSHA", &self.hash));
        let by_hash = Batch::of(by_hash).carrying(payload_bytes).running_scripts();
        let mut replies = match repeat {
            Repeat::Harmless => connection.send_repeatable(by_hash).await?,
            Repeat::Never => connection.send(by_hash).await?,
        };
        let unknown: Vec<usize> = all
            .into_iter()
            .filter(|&run| replies.get(run).is_some_and(is_unknown))
            .collect();
        if !unknown.is_empty() {
            let again = unknown.iter().enumerate().map(|(nth, &run)| match nth {
                0 => command(run, "EVAL", self.code),
                _ => command(run, "EVALSHA", &self.hash),
            });
            let again = Batch::of(again).carrying(payload_bytes);
            for (run, reply) in unknown.iter().copied().zip(connection.send(again).await?) {
                replies[run] = reply;
            }
        }
        Ok(replies)
    }
}

fn is_unknown(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.kind() == Some(ServerErrorKind::NoScript))
}
