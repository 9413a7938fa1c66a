//! PostgreSQL beside [larder]: rows that change become invalidations, whoever changed them.
//!
//! A [`Feed`] puts triggers on chosen tables. They write what a changed row invalidates into an
//! outbox, in the transaction that changes it, and a follower applies that to a larder:
//!
//! ```no_run
//! use larder_sql::{Feed, FeedConfig, Mapping, TableConfig};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = FeedConfig::new("shop");
//! config.table.push(TableConfig::new(
//!     "public.product",
//!     [
//!         Mapping::Key("product:{id}".into()),
//!         Mapping::Tag("category:{category_id}".into()),
//!     ],
//! ));
//! let feed = Feed::at("postgres://app@localhost/shop", config)?;
//! println!("{}", feed.plan().await?); // the SQL, before anything is done
//! feed.install().await?;
//!
//! // In every process: one of them works, the others stand by.
//! # let larder = larder::Larder::builder("shop").build()?;
//! let following = feed.clone();
//! tokio::spawn(async move { following.follow_into(larder).await });
//! # Ok(()) }
//! ```
//!
//! # What is promised
//! A change that is committed is applied at least once, however often followers or the server
//! crash; one that is rolled back never. With [`Wake::Notify`] it is applied some milliseconds
//! after its commit; the order of changes is not kept, which invalidations do not need.
//!
//! # What is not seen
//! What fires no triggers: sessions with `session_replication_role = replica` (also those that
//! apply a logical replication), `ALTER TABLE`, attaching, detaching and dropping a partition, and
//! `TRUNCATE` of a single partition. `TRUNCATE` with templates for tags reads the table once, and in
//! a `REPEATABLE READ` transaction it does not see the rows that others added meanwhile. What was changed before the feed was installed: clear the
//! caches once after the first installation. A column that is renamed or dropped while a template
//! names it makes writes to the table fail until the feed is installed anew: change both in one
//! transaction, or take the mapping out first.
//!
//! # Needs
//! PostgreSQL 13 or later; a connection of its own for each follower, straight to the primary or
//! through a pooler that keeps sessions, because it listens and holds a lock. TLS is a matter of
//! the features of `sqlx` that the program turns on.
//!
//! In reading order:
//! - `config`: [`FeedConfig`], checked into what the rest works with; `template` and `table`: its
//!   two small languages;
//! - `feed`: [`Feed`], and [`Plan`]: what runs against the database;
//! - `catalog`: what is in the database; `plan`: what has to be done about it, pure; `body`: the
//!   function behind the triggers; `quote`: names and texts in SQL;
//! - `follow`: the only control flow of a follower; `link`: its connection; `change`: how an
//!   invalidation stands in the outbox; `into_larder`: who applies it;
//! - `health` and `error`: what is said about it all.

#![forbid(unsafe_code)]

mod body;
mod catalog;
mod change;
mod config;
mod error;
mod feed;
mod follow;
mod health;
mod into_larder;
mod link;
mod plan;
mod quote;
mod table;
mod template;

pub use config::{FeedConfig, FollowOptions, Mapping, TableConfig, Wake};
pub use error::{FeedError, FeedErrorKind, Result};
pub use feed::{Feed, FeedStatus, Follower, Plan};
pub use health::{FollowHealth, Role};
