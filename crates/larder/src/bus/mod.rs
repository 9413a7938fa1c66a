//! The bus: how what one process invalidates or writes reaches the memory of the others.
//!
//! [`message`] is what is said, [`protocol`] how a listener knows that it missed nothing, [`member`]
//! a larder that listens and speaks, [`apply`] what it does when it hears. [`local`] is the bus
//! within one process.

mod ahead;
mod apply;
pub(crate) mod local;
mod member;
pub(crate) mod message;
mod protocol;

pub(crate) use apply::Census;
pub use member::BusStats;
pub(crate) use member::Member;
