//! Removing the keys under a prefix that the caller condemns. The caller's verdict runs in the
//! caller's task; only keys come up from the readers, and condemned ones go down to the writer, a
//! few hundred at a time, so that other operations get through.

use bytes::Bytes;
use larder::store::{StoreResult, Swept};

use crate::reader::Read;
use crate::record;
use crate::store::Disk;
use crate::writer::{CHUNK, Job, Presence};

/// What the caller wants: who goes, and who hears of it.
pub(crate) struct Sweep<'a> {
    pub(crate) condemned: &'a (dyn Fn(&[u8]) -> bool + Send + Sync),
    pub(crate) progress: &'a (dyn Fn(Swept) + Send + Sync),
}

impl Disk {
    /// Leases come first: one whose fill is on its way is void when the writer has removed its key,
    /// or its value stands in the tree by then and is found there.
    pub(crate) async fn sweep_under(&self, prefix: &[u8], sweep: Sweep<'_>) -> StoreResult<Swept> {
        self.shared.readable()?;
        let mut swept = Swept::default();
        let now = self.shared.monotonic();
        let leased = self.shared.index.leases().under(prefix, now);
        for keys in leased.chunks(CHUNK) {
            let bare = |key: &&Bytes| self.shared.index.lock(key).slot().is_none();
            swept.seen += keys.iter().filter(bare).count() as u64;
            swept.removed += self.condemn(keys, Presence::Indexed, &sweep).await?;
            (sweep.progress)(swept);
        }
        let mut from = record::entry_key(prefix);
        let to = record::end_of_prefix(&from);
        loop {
            let keys = self.keys(from, to.clone()).await?;
            let known = |key: &&Bytes| self.shared.index.lock(key).slot().is_some();
            swept.seen += keys.iter().filter(known).count() as u64;
            swept.removed += self.condemn(&keys, Presence::OnDisk, &sweep).await?;
            (sweep.progress)(swept);
            match keys.last() {
                Some(last) if keys.len() == CHUNK => {
                    from = record::entry_key(last);
                    from.push(0);
                }
                _ => break,
            }
        }
        self.write(0, Job::SweepEnd).await?;
        Ok(swept)
    }

    async fn keys(&self, from: Vec<u8>, to: Vec<u8>) -> StoreResult<Vec<Bytes>> {
        let max = CHUNK;
        self.read(|reply| Read::Keys {
            from,
            to,
            max,
            reply,
        })
        .await
    }

    /// Removes what is condemned of `keys`; answers how many of them there were.
    async fn condemn(
        &self,
        keys: &[Bytes],
        presence: Presence,
        sweep: &Sweep<'_>,
    ) -> StoreResult<u64> {
        let condemned = |key: &&Bytes| (sweep.condemned)(key);
        let keys: Vec<Bytes> = keys.iter().filter(condemned).cloned().collect();
        if keys.is_empty() {
            return Ok(0);
        }
        let weight = keys.iter().map(Bytes::len).sum();
        self.write(weight, |reply| Job::Sweep(keys, presence, reply))
            .await
    }
}
