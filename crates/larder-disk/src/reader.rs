//! The threads that read. What they wait for is the disk; nothing else may block them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use larder::clock::Millis;
use larder::envelope::Header;
use larder::store::{LeaseRequest, Leased, Position, StoreResult};

use crate::index::Locked;
use crate::leases::Taken;
use crate::queue::Popped;
use crate::record;
use crate::shared::{Reply, Shared, cut};
use crate::tree::{Tree, TreeError};

/// How often a read with a lease starts over because the key was written meanwhile.
const MAX_RETRIES: usize = 8;

/// A read that needs the disk.
#[derive(Debug)]
pub(crate) enum Read {
    Get {
        keys: Vec<Bytes>,
        limit: usize,
        reply: Reply<Vec<Option<Bytes>>>,
    },
    Lease {
        keys: Vec<Bytes>,
        request: LeaseRequest,
        /// Where the counter of the request stood, before anything was leased.
        since: Option<Position>,
        reply: Reply<Vec<Leased>>,
    },
    /// The keys of entries, from one tree key on and before another, in their order.
    Keys {
        from: Vec<u8>,
        to: Vec<u8>,
        max: usize,
        reply: Reply<Vec<Bytes>>,
    },
}

/// Reads until the queue is closed.
pub(crate) fn run(shared: &Arc<Shared>) {
    while let Popped::Item(read) = shared.reads.pop(None) {
        // A reply that a panic drops is an error to its caller; the thread must live on.
        let _ = catch_unwind(AssertUnwindSafe(|| answer(shared, read)));
    }
}

fn answer(shared: &Shared, read: Read) {
    match read {
        // Nobody waits any more: the budget of the read is spent.
        Read::Get { reply, .. } if reply.is_closed() => {}
        Read::Lease { reply, .. } if reply.is_closed() => {}
        Read::Keys { reply, .. } if reply.is_closed() => {}
        Read::Get { keys, limit, reply } => {
            let _ = reply.send(with_tree(shared, |tree| get(shared, tree, &keys, limit)));
        }
        Read::Keys {
            from,
            to,
            max,
            reply,
        } => {
            let _ = reply.send(with_tree(shared, |tree| keys(tree, &from, &to, max)));
        }
        Read::Lease {
            keys,
            request,
            since,
            reply,
        } => {
            let leased = with_tree(shared, |tree| {
                lease_each(shared, tree, &keys, &request, since)
            });
            if let Err(Ok(unheard)) = reply.send(leased) {
                give_back(shared, &keys, &unheard, &request);
            }
        }
    }
}

fn with_tree<T>(
    shared: &Shared,
    read: impl FnOnce(&Tree) -> Result<T, TreeError>,
) -> StoreResult<T> {
    match shared.tree().as_ref() {
        Some(tree) => read(tree).map_err(|error| shared.failure(error)),
        None => Err(shared.readable().err().unwrap_or_else(|| shared.closed())),
    }
}

fn get(
    shared: &Shared,
    tree: &Tree,
    keys: &[Bytes],
    limit: usize,
) -> Result<Vec<Option<Bytes>>, TreeError> {
    let wall = shared.wall();
    keys.iter()
        .map(|key| {
            // The index knows already, without the disk, of most that are absent.
            if shared.index.lock(key).touch(wall).is_none() {
                return Ok(None);
            }
            let found = shared.find(tree, key)?;
            let value = found.as_deref().and_then(|record| live_value(record, wall));
            Ok(value.map(|value| show_lease(shared, key, cut(value, limit))))
        })
        .collect()
}

fn keys(tree: &Tree, from: &[u8], to: &[u8], max: usize) -> Result<Vec<Bytes>, TreeError> {
    let found = tree.keys(from, to, max)?;
    Ok(found
        .iter()
        .filter_map(|tree_key| record::key_of_entry(tree_key))
        .map(Bytes::copy_from_slice)
        .collect())
}

/// Writes the lease that stands on a value into its header, where a store that shares its leases
/// between processes would have it.
fn show_lease(shared: &Shared, key: &[u8], value: Bytes) -> Bytes {
    let standing = shared.index.leases().standing(key, shared.monotonic());
    let (Some((token, until)), Some(header)) = (standing, Header::parse(&value)) else {
        return value;
    };
    let mut value = Vec::from(value);
    let header = Header {
        lease: Some(token),
        lease_until: until,
        ..header
    };
    value[..Header::LEN].copy_from_slice(&header.to_bytes());
    value.into()
}

/// The value in a record, unless it expired.
fn live_value(record: &[u8], wall: Millis) -> Option<&[u8]> {
    record::split_entry(record)
        .filter(|(deadline, _)| wall < *deadline)
        .map(|(_, value)| value)
}

fn lease_each(
    shared: &Shared,
    tree: &Tree,
    keys: &[Bytes],
    request: &LeaseRequest,
    since: Option<Position>,
) -> Result<Vec<Leased>, TreeError> {
    let mut leased = Vec::with_capacity(keys.len());
    for key in keys {
        match lease(shared, tree, key, request, since) {
            Ok(one) => leased.push(one),
            Err(error) => {
                give_back(shared, keys, &leased, request);
                return Err(error);
            }
        }
    }
    Ok(leased)
}

/// Reads one key and takes the lease on it if it holds no fresh value.
///
/// The value is read without a lock, so the lease is taken only if the key was not written since:
/// else somebody's fill may just have ended the lease that this one would follow.
fn lease(
    shared: &Shared,
    tree: &Tree,
    key: &Bytes,
    request: &LeaseRequest,
    since: Option<Position>,
) -> Result<Leased, TreeError> {
    for _ in 0..MAX_RETRIES {
        if let Some(leased) = lease_absent(shared, key, request, since) {
            return Ok(leased);
        }
        let wall = shared.wall();
        let Some(before) = shared.index.lock(key).touch(wall) else {
            continue;
        };
        let record = shared.find(tree, key)?;
        let content = classify(record.as_deref(), wall, request.stale_at);
        if let Content::Fresh(value) = content {
            return Ok(Leased::Value(cut(value, request.limit)));
        }
        let mut locked = shared.index.lock(key);
        if locked.slot().map(|slot| slot.sequence()) != Some(before.sequence()) {
            continue;
        }
        let stale = match content {
            Content::Stale(value) => Some(cut(value, request.limit)),
            Content::Foreign => {
                locked.hide();
                None
            }
            Content::Fresh(_) | Content::Absent => None,
        };
        return Ok(take(shared, &locked, key, request, stale, since));
    }
    Ok(Leased::Held { stale: None })
}

/// Takes the lease on a key that the index does not hold; `None` if it does hold it.
pub(crate) fn lease_absent(
    shared: &Shared,
    key: &Bytes,
    request: &LeaseRequest,
    since: Option<Position>,
) -> Option<Leased> {
    let locked = shared.index.lock(key);
    match locked.live(shared.wall()) {
        Some(_) => None,
        None => Some(take(shared, &locked, key, request, None, since)),
    }
}

fn take(
    shared: &Shared,
    locked: &Locked<'_>,
    key: &[u8],
    request: &LeaseRequest,
    stale: Option<Bytes>,
    since: Option<Position>,
) -> Leased {
    let taken = locked
        .leases()
        .take(key, request.token, shared.monotonic(), request.lease_for);
    match taken {
        Taken::Acquired => Leased::Acquired { stale, since },
        Taken::Held => Leased::Held { stale },
    }
}

/// Releases leases whose caller has gone: nobody else could, before they end.
pub(crate) fn give_back(
    shared: &Shared,
    keys: &[Bytes],
    leased: &[Leased],
    request: &LeaseRequest,
) {
    for (key, leased) in keys.iter().zip(leased) {
        if let Leased::Acquired { .. } = leased {
            shared.index.leases().release(key, request.token);
        }
    }
}

/// What a key holds, as far as leases care.
#[derive(Debug, PartialEq, Eq)]
enum Content<'a> {
    /// Nothing, or a minimum version and no value.
    Absent,
    /// Not an envelope.
    Foreign,
    Stale(&'a [u8]),
    Fresh(&'a [u8]),
}

fn classify(record: Option<&[u8]>, wall: Millis, stale_at: Millis) -> Content<'_> {
    let Some(value) = record.and_then(|record| live_value(record, wall)) else {
        return Content::Absent;
    };
    match Header::parse(value) {
        None => Content::Foreign,
        Some(_) if value.len() == Header::LEN => Content::Absent,
        Some(header) if !header.is_fresh(stale_at) => Content::Stale(value),
        Some(_) => Content::Fresh(value),
    }
}
