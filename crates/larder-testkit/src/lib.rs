//! What tests of larder need, and tests of services and stores built on it.
//!
//! A store of your own is checked by the same suite as larder's own stores:
//!
//! ```
//! use std::sync::Arc;
//! use larder_testkit::{ManualClock, MemoryStore, Subject};
//!
//! async fn open() -> Subject {
//!     let clock = ManualClock::new();
//!     let store = MemoryStore::new(clock.clone());
//!     Subject::new(Arc::new(store)).with_clock(clock)
//! }
//!
//! larder_testkit::store_suite!(open); // one test per sentence of the contract
//! ```
//!
//! In reading order: [`larder()`] and [`settle`] · [`ManualClock`] · [`Gate`] and [`LoadCounter`]
//! for loaders · [`MemoryStore`] and [`FaultyStore`] as tiers · [`FaultyBus`] and
//! [`Ear`] between processes · [`store_suite!`] and [`bus_suite!`] · [`RedisServer`] and
//! [`PostgresServer`] · [`Twin`], another process, and [`Peer`], one that answers · [`ChaosProxy`] in front of servers · `SmallDisk`
//! (Linux) · [`seeds`] for bounded random tests.

#![forbid(unsafe_code)]

pub mod bus_suite;
mod chaos_proxy;
mod child;
mod ear;
mod error;
mod faulty_bus;
mod faulty_store;
mod gate;
mod larders;
mod load_counter;
mod manual_clock;
mod memory_store;
mod moved_clock;
mod peer;
mod ports;
mod postgres_server;
mod redis_server;
mod resp;
mod seeds;
#[cfg(target_os = "linux")]
mod small_disk;
mod spawner;
pub mod store_suite;
mod twin;

pub use bus_suite::BusSubject;
pub use chaos_proxy::{ChaosProxy, Direction, LinkFault};
pub use ear::Ear;
pub use error::Error;
pub use faulty_bus::{BusFault, BusOperation, FaultyBus};
pub use faulty_store::{FaultyStore, Operation, StoreFault};
pub use gate::Gate;
pub use larders::{larder, larder_with, settle};
pub use load_counter::{Load, LoadCounter};
pub use manual_clock::ManualClock;
pub use memory_store::MemoryStore;
pub use moved_clock::Offset;
pub use peer::{NoAnswer, Peer};
pub use postgres_server::PostgresServer;
pub use redis_server::RedisServer;
pub use resp::Reply;
pub use seeds::{Seed, seeded, seeds};
#[cfg(target_os = "linux")]
pub use small_disk::SmallDisk;
pub use store_suite::Subject;
pub use twin::Twin;
