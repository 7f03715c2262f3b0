//! Durable operations for [`steadfast`]: written down before the first byte leaves, and carried out
//! across restarts.
//!
//! ```no_run
//! use steadfast::{Client, KeyPolicy};
//! use steadfast_outbox::{DurableExt, End, Outbox, RedbOutbox};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder().base_url("https://api.example.com").keys(KeyPolicy::standard()).build()?;
//! let outbox = Outbox::open(RedbOutbox::open("operations.redb")?, client.clone()).start().await?;
//!
//! let charge = client.post("/charges").body("12 EUR").prepare()?.named("order-1042-charge");
//! let id = outbox.submit(charge).await?;
//! if let End::Answer(answer) = outbox.wait(id).await? {
//!     println!("charged: {}", answer.status());
//! }
//! outbox.acknowledge(id).await?;
//! # Ok(())
//! # }
//! ```
//!
//! An outbox promises:
//!
//! * **Nothing is lost.** The request is on the disk before its first byte leaves, and its end before
//!   you see it. The next process takes up what a crash has left.
//! * **Nothing goes twice without a licence.** An operation that may have been processed is sent again
//!   only if that is harmless: by its method, by a key that the API honours and still remembers, or by
//!   your word ([`reconcile`](OutboxBuilder::reconcile)).
//! * **No end is a guess.** [`End::Rejected`] says that the server has carried it out in no attempt.
//!   What nobody knows is [`End::Unknown`].
//!
//! `RedbOutbox` keeps the operations in a file, for one process. `PostgresOutbox` of the crate
//! `steadfast-postgres` (feature `outbox`) keeps them in a table that many processes share, and writes
//! one down in the transaction of your own rows.
//!
//! [The guide](https://docs.rs/steadfast/latest/steadfast/guide/outbox/) says what holds against what,
//! and when an outbox is the wrong tool.

// The files, in the order of their imports:
//
// * `id`, `headers`, `end`, `entry`, `clock`, `change`: values
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
mod headers;
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
pub use self::change::{Change, Evidence, Outcome, Refusal, Terms};
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
