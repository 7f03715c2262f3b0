//! Durable operations for [`steadfast`]: written down before the first byte leaves, and carried out
//! across restarts.

// The files, in the order of their imports:
//
// * `id`, `end`, `entry`, `clock`, `change`: values
// * `codec`: entries as bytes
// * `rules`: what each change does to an entry; pure, and the contract of every store
// * `store`: the trait of a store
// * `redb`: a store in a file
// * `model`: a store in memory, which is the rules and nothing else
// * `lease`, `verdict`, `question`, `slots`, `event`, `operation`: parts of the engine
// * `gate`: the last check before each request leaves
// * `worker`: one operation, `engine`: what is due, `outbox`, `builder`: what a program calls

mod builder;
mod change;
mod clock;
#[doc(hidden)]
pub mod codec;
mod end;
mod engine;
mod entry;
mod error;
mod event;
mod gate;
mod id;
mod lease;
#[doc(hidden)]
pub mod model;
mod operation;
mod outbox;
mod question;
#[cfg(feature = "redb")]
mod redb;
pub mod rules;
mod slots;
mod store;
mod verdict;
mod worker;

pub use self::builder::OutboxBuilder;
pub use self::change::{Change, Outcome, Refusal, Terms};
pub use self::clock::{HighWater, Now};
pub use self::codec::CodecError;
pub use self::end::{Answer, End, Failed};
pub use self::entry::{Entry, State, StoredRequest};
pub use self::error::OutboxError;
pub use self::event::{OutboxEvent, OutboxEventKind, OutboxMetrics};
pub use self::id::OperationId;
#[doc(hidden)]
pub use self::model::MemoryOutbox;
pub use self::operation::{DurableExt, DurableOperation};
pub use self::outbox::Outbox;
pub use self::question::{Reconciliation, UnknownOperation};
#[cfg(feature = "redb")]
pub use self::redb::{OutboxOpenError, RedbOutbox};
pub use self::store::{Applied, OutboxStore, OutboxStoreError, Submitted, Usage};
