//! Redis and Valkey as a shared tier of [larder].
//!
//! ```no_run
//! use larder::Larder;
//! use larder_redis::Redis;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let larder = Larder::builder("shop")
//!     .shared(Redis::new("redis://127.0.0.1")?) // parses only; connects when first used
//!     .build()?;
//! # drop(larder);
//! # Ok(())
//! # }
//! ```
//!
//! Needs Redis 5 or later, or any Valkey, as one server that takes writes.
//!
//! In reading order:
//! - `options`: [`Redis`]' URL and [`RedisOptions`], checked into what the rest works with;
//! - `store`: [`Redis`], each operation of [`Store`](larder::store::Store) as commands;
//! - `scripts`: the four operations that read and write in one step, in Lua;
//! - `connection`: one connection for all callers that makes and heals itself;
//! - `link`: a connection while it lasts, and the bound on what waits in it;
//! - `error`: what a server's refusals mean for a tier.

#![forbid(unsafe_code)]

mod connection;
mod error;
mod link;
mod options;
mod scripts;
mod store;

pub use error::ConfigError;
pub use options::RedisOptions;
pub use store::Redis;
