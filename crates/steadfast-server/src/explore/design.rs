//! The explored design: the crate's own, or a broken one that is known from the field.
//!
//! A broken design differs in one place, and is the same model otherwise.

use super::world::{LEASE, RETENTION, TOMBSTONE, Ticket, World};
use crate::FinishOutcome;
use crate::store::model::{ModelClaim, ModelClaimOutcome, ModelEnd, ModelRecordState};

/// The design of the store and the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Design {
    /// The crate's own design.
    Ours,
    /// One time to live for the claim and for the record, as in `SET key value NX EX 86400`.
    OneTtl,
    /// Any caller that completes an operation writes its record.
    NoFence,
    /// A claim whose lease is over is as if it had never been made.
    ForgetsOnLapse,
    /// The store makes the token, and returns it in its reply.
    ServerMakesToken,
    /// A client that disconnects ends the handler, and its key is released.
    ReleasesOnHangUp,
    /// A claim takes over an unknown outcome, whatever its request.
    IgnoresRequest,
    /// A cancelled or released claim leaves no tombstone.
    NoTombstone,
}

impl Design {
    pub(super) fn tombstone(self) -> u64 {
        if self == Self::NoTombstone { 0 } else { TOMBSTONE }
    }

    pub(super) fn store_makes_token(self) -> bool {
        self == Self::ServerMakesToken
    }

    pub(super) fn releases_on_hang_up(self) -> bool {
        self == Self::ReleasesOnHangUp
    }

    /// Returns the token under which a claim is kept.
    pub(super) fn token(self, world: &mut World, ticket: Ticket) -> u16 {
        if !self.store_makes_token() {
            return ticket.token;
        }
        world.history.arrivals += 1;
        // Beyond all tokens that callers make.
        10 + world.history.arrivals
    }

    pub(super) fn claim(self, world: &mut World, ticket: Ticket) -> ModelClaimOutcome {
        let Ticket { key, request, take_over, .. } = ticket;
        let token = self.token(world, ticket);
        let (mut lease, mut retention) = (LEASE, RETENTION);
        let known = world.store.get(key);
        match self {
            Self::OneTtl => (lease, retention) = (LEASE + RETENTION, 0),
            Self::ForgetsOnLapse if has_lapsed(world, key) => world.store.forget_key(key),
            Self::IgnoresRequest if take_over && matches!(known, Some(ModelRecordState::Unknown { .. })) => {
                world.store.forget_key(key);
            }
            _ => {}
        }
        world.store.claim(ModelClaim { id: key, token, request, lease, retention, take_over })
    }

    pub(super) fn finish(self, world: &mut World, ticket: Ticket, end: ModelEnd) -> FinishOutcome {
        // Without late copies, which have a story of their own.
        let is_at_it = world.held().any(|(_, held)| held.token == ticket.token);
        let is_unfenced = self == Self::NoFence && is_at_it && matches!(end, ModelEnd::Completed { .. });
        let holder = world.store.holder(ticket.key).filter(|_| is_unfenced);
        world.store.finish(ticket.key, holder.unwrap_or(ticket.token), end)
    }
}

/// Returns whether the lease is over and the claim has not ended, so that it could still be
/// renewed.
fn has_lapsed(world: &World, key: u8) -> bool {
    let is_unknown = matches!(world.store.get(key), Some(ModelRecordState::Unknown { .. }));
    is_unknown && world.store.holder(key).is_some_and(|token| world.store.clone().renew(key, token, LEASE))
}
