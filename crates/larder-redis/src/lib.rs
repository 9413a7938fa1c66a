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
//! Needs Redis 5 or later, or any Valkey, as one server that takes writes, with Lua
//! ([permissions](#permissions-on-the-server)).
//!
//! In reading order:
//! - `options`: [`Redis`]' URL and [`RedisOptions`], checked into what the rest works with;
//! - `store`: [`Redis`], each operation of [`Store`](larder::store::Store) as commands;
//! - `scripts`: the operations that read and write in one step, in Lua;
//! - `misses`: whether a read asks plainly first, or for a lease at once;
//! - `watch`: waiting until a key changes;
//! - `bus`: [`RedisBus`], each operation of [`Backplane`](larder::backplane::Backplane), and the
//!   connection that listens, or what listens to the server's pushes in its place;
//! - `command` and `reply`: what is sent, and what the answers mean;
//! - `connection`: one connection for all callers that makes and heals itself;
//! - `link`: a connection while it lasts, and the bound on what waits in it;
//! - `pushes`: what a server says by itself on a connection, and who waits for it;
//! - `error`: what a server's refusals mean for a tier.
//!
#![doc = include_str!("../docs/acl.md")]
#![forbid(unsafe_code)]

mod bus;
mod command;
mod connection;
mod error;
mod link;
mod misses;
mod options;
mod pushes;
mod reply;
mod scripts;
mod store;
mod watch;

pub use bus::RedisBus;
pub use error::ConfigError;
pub use options::{BusKind, RedisOptions};
pub use store::Redis;
