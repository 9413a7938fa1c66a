//! The keys that were hot at the last shutdown, in a file.
//!
//! ```text
//! magic "LARDHOT\n" | format u16 | length u16, name of the cache | count u32
//!   | per key: length u32, the key in its encoded form, the hottest first | xxh3 u64 of all before
//! ```
//!
//! All numbers are little-endian. Values are not in it: they would be as old as the file.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::key::{self, CacheKey, MAX_KEY_BYTES};

const MAGIC: &[u8; 8] = b"LARDHOT\n";
const FORMAT: u16 = 1;
/// No file is larger, and none larger is read.
const MOST_BYTES: usize = 256 << 20;

/// The hottest `at_most` keys of a cache in their encoded form, the hottest first: those that the
/// sketch of popular keys knows, then what the policy thinks of.
pub(super) fn hottest<K, V>(cache: &Cache<K, V>, at_most: usize) -> Vec<Bytes>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let popular = cache.inner().watchers.top();
    let first: HashSet<&K> = popular.iter().take(at_most).collect();
    let left = at_most - first.len();
    let mut hottest = BinaryHeap::new();
    let others = cache.entries().filter(|entry| !first.contains(&entry.key));
    for (at, entry) in others.enumerate() {
        let is_hotter = |coldest: &Reverse<Ranked<K>>| coldest.0.heat < entry.heat;
        if hottest.len() == left {
            if !hottest.peek().is_some_and(is_hotter) {
                continue;
            }
            hottest.pop();
        }
        hottest.push(Reverse(Ranked {
            heat: entry.heat,
            at,
            key: entry.key,
        }));
    }
    let others = hottest.into_sorted_vec().into_iter();
    let others = others.map(|Reverse(ranked)| ranked.key);
    let all = popular.iter().take(at_most).cloned().chain(others);
    all.filter_map(|key| key::encode(b"", &key).ok()).collect()
}

/// A key by its heat; of two that are as hot, the one that was seen first is the hotter.
struct Ranked<K> {
    heat: u8,
    at: usize,
    key: K,
}

impl<K> Ord for Ranked<K> {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_heat = self.heat.cmp(&other.heat);
        by_heat.then(other.at.cmp(&self.at))
    }
}

impl<K> PartialOrd for Ranked<K> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<K> PartialEq for Ranked<K> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<K> Eq for Ranked<K> {}

/// The content of a file with as many of `keys`, hottest first, as it may hold, and how many those
/// are.
pub(super) fn encode(cache: &str, keys: &[Bytes]) -> (Vec<u8>, usize) {
    let mut file = Vec::new();
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&FORMAT.to_le_bytes());
    // A name has at most 64 bytes.
    file.extend_from_slice(&(cache.len() as u16).to_le_bytes());
    file.extend_from_slice(cache.as_bytes());
    let mut left = MOST_BYTES - file.len() - 12;
    let fits = |key: &&Bytes| {
        let fits = key.len() + 4 <= left;
        left = left.saturating_sub(key.len() + 4);
        fits
    };
    let count = keys.iter().take_while(fits).count();
    file.extend_from_slice(&(count as u32).to_le_bytes());
    for key in &keys[..count] {
        file.extend_from_slice(&(key.len() as u32).to_le_bytes());
        file.extend_from_slice(key);
    }
    let sum = xxh3_64(&file);
    file.extend_from_slice(&sum.to_le_bytes());
    (file, count)
}

/// The keys in a file; what is wrong with it is a sentence.
pub(super) fn decode<K: CacheKey>(cache: &str, file: &[u8]) -> Result<Vec<K>, String> {
    let mut rest = file
        .strip_prefix(MAGIC)
        .ok_or("it holds no hot keys of larder")?;
    let format = u16::from_le_bytes(take(&mut rest)?);
    if format != FORMAT {
        return Err(format!(
            "it is of format {format}, and this version reads {FORMAT}"
        ));
    }
    let (content, sum) = file.split_at(file.len().saturating_sub(8).max(MAGIC.len() + 2));
    if sum != xxh3_64(content).to_le_bytes() {
        return Err("it is damaged: its checksum is wrong".to_owned());
    }
    let length = u16::from_le_bytes(take(&mut rest)?);
    let name = take_slice(&mut rest, length.into())?;
    if name != cache.as_bytes() {
        let name = name.escape_ascii();
        return Err(format!("it is of cache `{name}`"));
    }
    let count = u32::from_le_bytes(take(&mut rest)?);
    let mut keys = Vec::new();
    for at in 0..count {
        let length = u32::from_le_bytes(take(&mut rest)?) as usize;
        // No key is empty either; a file of nothing else would grow to many times its size.
        if length == 0 || length > MAX_KEY_BYTES {
            return Err(format!("key {at} in it is {length} bytes long"));
        }
        let key = take_slice(&mut rest, length)?;
        let other =
            || format!("key {at} in it is none of this cache; did the type of keys change?");
        keys.push(K::decode(key).ok_or_else(other)?);
    }
    if rest.len() != 8 {
        return Err("there is more in it than its keys".to_owned());
    }
    Ok(keys)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], String> {
    let (taken, left) = rest.split_first_chunk().ok_or_else(too_short)?;
    *rest = left;
    Ok(*taken)
}

fn take_slice<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], String> {
    let (taken, left) = rest.split_at_checked(length).ok_or_else(too_short)?;
    *rest = left;
    Ok(taken)
}

fn too_short() -> String {
    "it ends too early".to_owned()
}

/// Writes a file as a whole or not at all: beside its place first, then moved there.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<()> {
    let written = beside(path).and_then(|draft| {
        let moved = draft_at(&draft, content).and_then(|()| fs::rename(&draft, path));
        moved.inspect_err(|_| drop(fs::remove_file(&draft)))
    });
    written.map_err(|cause| Error::file(path, "could not be written", cause))
}

/// A path in the same directory that nobody else uses.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name();
    let mut name = name.ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{:016x}.draft", fastrand::u64(..)));
    Ok(path.with_file_name(name))
}

fn draft_at(draft: &Path, content: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    // Keys may be names of people.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(draft)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Reads a file, if it is not larger than any that is written here.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let bounded = File::open(path).and_then(|file| {
        let mut content = Vec::new();
        file.take(MOST_BYTES as u64 + 1).read_to_end(&mut content)?;
        Ok(content)
    });
    let content = bounded.map_err(|cause| Error::file(path, "could not be read", cause))?;
    if content.len() > MOST_BYTES {
        return Err(unusable(path, "it is larger than any that larder writes"));
    }
    Ok(content)
}

/// An error that says what is wrong with a file.
pub(super) fn unusable(path: &Path, problem: &str) -> Error {
    let cause = io::Error::new(io::ErrorKind::InvalidData, problem.to_owned());
    Error::file(path, "cannot be used", cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_an_empty_key_is_refused() {
        let key = key::encode(b"", &"tea".to_owned()).unwrap();
        let (file, _) = encode("c", std::slice::from_ref(&key));
        assert_eq!(decode::<String>("c", &file).unwrap(), ["tea"]);
        let (file, _) = encode("c", &[key, Bytes::new()]);
        let problem = decode::<String>("c", &file).unwrap_err();
        assert!(problem.contains("key 1"), "{problem}");
    }
}
