//! Durable operations for [`steadfast`]: written down before the first byte leaves, and carried out
//! across restarts.

// The files, in the order of their imports:
//
// * `id`, `end`, `entry`, `clock`, `change`: values
// * `codec`: entries as bytes
// * `rules`: what each change does to an entry; pure, and the contract of every store
// * `store`: the trait of a store
// * `model`: a store in memory, which is the rules and nothing else

mod change;
mod clock;
#[doc(hidden)]
pub mod codec;
mod end;
mod entry;
mod id;
#[doc(hidden)]
pub mod model;
pub mod rules;
mod store;

pub use self::change::{Change, Outcome, Refusal, Terms};
pub use self::clock::{HighWater, Now};
pub use self::codec::CodecError;
pub use self::end::{Answer, End, Failed};
pub use self::entry::{Entry, State, StoredRequest};
pub use self::id::OperationId;
pub use self::store::{Applied, OutboxStore, OutboxStoreError, Submitted, Usage};
