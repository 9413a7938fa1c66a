//! A multi-tier cache for services: typed values in process memory, shared tiers below it, loads
//! that run once however many ask, and invalidations that win over every load under way.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> larder::Result<()> {
//! use larder::{Cache, Larder, Loaded};
//!
//! async fn load_product(id: u64) -> Result<Loaded<String>, std::io::Error> {
//!     Ok(match id {
//!         7 => Loaded::value("espresso machine".to_owned()),
//!         _ => Loaded::absent(),
//!     })
//! }
//!
//! let larder = Larder::builder("shop").build()?; // add tiers here: a disk, a Redis server
//! let products: Cache<u64, String> = larder
//!     .cache("product")
//!     .ttl("1h")
//!     .jitter(0.1)
//!     .grace("6h")
//!     .negative_ttl("30s")
//!     .build()?;
//!
//! let product = products.get_or_load(&7, |load| load_product(load.into_key())).await?;
//! assert_eq!(product.as_deref().map(String::as_str), Some("espresso machine"));
//!
//! let _ = products.invalidate(&7).await?;
//! assert!(products.get(&7).await?.is_none());
//! # Ok(()) }
//! ```
//!
//! The modules in reading order: `larder` and `cache` are the face; `read`, `look` and `write` are
//! the only control flow; `policy`, `fence`, `flight`, `fill`, `loader`, `tier` and `memory` are
//! what they call, and none of them calls back. `events` and `template` say what invalidates what,
//! `sampler` how often the cache is wrong. With the feature `macros`, `calls` is what functions that are
//! `#[cached]` are made of. [`store`] is what a tier must be able to do,
//! [`envelope`] how an entry looks there, [`key`] how a key does, [`clock`] where time comes from.

#![forbid(unsafe_code)]

pub mod backplane;
pub mod clock;
pub mod envelope;
pub mod key;
pub mod store;

mod answer;
mod bus;
mod cache;
#[cfg(feature = "macros")]
mod calls;
mod classes;
mod codec;
mod confirm;
mod courier;
mod entries;
mod entry;
mod epoch;
mod error;
mod events;
mod fence;
mod fill;
mod flight;
mod frequency;
mod glob;
mod invalidation;
mod larder;
mod loader;
mod loading;
mod look;
mod memory;
mod minimum;
mod options;
mod outcome;
mod overlay;
mod policy;
mod progress;
mod read;
mod registry;
mod sampler;
mod scope;
mod sliding;
mod stats;
mod stripes;
mod sync;
mod tags;
mod tasks;
mod template;
mod tier;
mod wire;
mod write;

pub use self::larder::{CacheBuilder, Larder, LarderBuilder, ShutdownReport};
pub use answer::{Answer, Load, Loaded, Stale};
pub use bus::BusStats;
pub use cache::{Cache, Reader};
#[cfg(feature = "macros")]
pub use calls::CallKey;
pub use clock::Clock;
pub use codec::Codec;
pub use courier::{Receipt, Token};
pub use entries::{Entries, Entry};
pub use error::{BoxError, Error, ErrorKind, Result};
pub use invalidation::Invalidation;
pub use key::{AsKey, CacheKey, Key, KeySink};
#[cfg(feature = "macros")]
pub use larder_macros::cached;
pub use loading::{
    BatchLoader, Feed, Loader, LoadingCache, LoadingReader, Prefetch, PrefetchStats, Prefetching,
    RefreshAhead, RefreshAheadStats, Refreshing, Warm, WarmProgress, Warming,
};
pub use options::{CacheOptions, Capacity, Isolation, Policy, Read, RemovalCause, Span, Tiers};
pub use outcome::{Answered, Outcome, Reason, Source, State};
pub use progress::{Matching, Progress};
pub use registry::{AnyCache, Inspected};
pub use sampler::{Sampler, SamplerBuilder, SamplerStats};
pub use scope::{Collected, collect};
pub use stats::CacheStats;
pub use store::Store;
pub use template::{Template, TemplateKind, TemplatePiece};
pub use tier::{Delivery, TierHealth, TierStats};

/// What `#[cached]` writes calls of. Not for calling by hand: it changes with the macro.
#[cfg(feature = "macros")]
#[doc(hidden)]
pub mod __macros {
    pub use crate::calls::*;
}
