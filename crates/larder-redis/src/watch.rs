use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder::envelope::Header;
use larder::store::{StoreError, StoreResult};
use redis::{Cmd, Value};

use crate::command::{BATCH_COMMANDS, get_range};
use crate::connection::Connection;
use crate::link::{Batch, Link};
use crate::options::{Plan, Tracking};
use crate::reply::Replies;

/// Waiting until somebody else's lease on a key is gone.
///
/// A fill, a release, a delete, an eviction, whatever changes the key: the server itself pushes that
/// to a connection for which it watches the key (`CLIENT TRACKING`), so that nobody who writes has
/// to say anything. The connection is made by the first wait, and apart from that of the commands:
/// it speaks RESP3, which not every server does, and reads pay nothing for it.
pub(crate) struct Watch {
    connection: Connection,
}

impl Watch {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            connection: Connection::new(plan.tracking(Tracking::OptIn)),
        }
    }

    pub(crate) fn close(&self) {
        self.connection.close();
    }

    /// Waits until the lease on one of the keys may be gone. It is registered before the server
    /// begins to watch, and what is there then is looked at: nothing slips in between.
    pub(crate) async fn until_changed(&self, keys: &[Bytes]) -> StoreResult<()> {
        let link = self.connection.current().await?;
        let Some(pushes) = link.pushes() else {
            return Err(StoreError::unsupported(
                "the server does not push, or does not let this user ask it to",
            ));
        };
        let wait = pushes.wait(keys)?;
        let mut first_end = Duration::MAX;
        for keys in keys.chunks(BATCH_COMMANDS / 2) {
            match self.leased_for(&link, keys).await? {
                Some(left) => first_end = first_end.min(left),
                None => return Ok(()),
            }
        }
        // An owner that died leaves a lease whose end nobody pushes.
        let _over = tokio::time::timeout(first_end, wait.told()).await;
        Ok(())
    }

    /// Has the server watch the keys, and says how long the first of the leases lasts that it finds
    /// there; `None` if a key has none.
    async fn leased_for(&self, link: &Arc<Link>, keys: &[Bytes]) -> StoreResult<Option<Duration>> {
        let replies = Replies {
            place: self.connection.place(),
        };
        let mut commands: Vec<Cmd> = keys.iter().flat_map(watched).collect();
        commands.push(redis::cmd("TIME"));
        let batch = Batch::of(commands.into_iter());
        let mut answers = self.connection.send_on(link, batch).await?;
        let now = replies.time(answers.pop().unwrap_or(Value::Nil))?;
        let mut first_end = u64::MAX;
        for (at, answer) in answers.into_iter().enumerate() {
            // Each header comes behind the permission to watch it.
            if at % 2 == 0 {
                replies.all_done(vec![answer])?;
                continue;
            }
            let header = replies.value(answer)?;
            let header = header.and_then(|header| Header::parse(&header));
            let leased = header.filter(|header| header.lease.is_some());
            first_end = first_end.min(leased.map_or(0, |header| header.lease_until));
        }
        // By the server's clock, as the scripts have it.
        let left = first_end.saturating_sub(now);
        Ok((left > 0).then(|| Duration::from_millis(left)))
    }
}

/// Reads what may be a lease, and has the server watch the key.
fn watched(key: &Bytes) -> [Cmd; 2] {
    let mut watch = redis::cmd("CLIENT");
    watch.arg("CACHING").arg("YES");
    [watch, get_range(key, Header::LEN - 1)]
}
