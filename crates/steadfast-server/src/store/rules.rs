//! Who may take a key over: the rule of the contract that every store written in Rust shares.

use super::id::{ClaimToken, Fingerprint};

/// The claim that has a key, as a store knows it.
///
/// For stores that decide in Rust. Those that decide in SQL or Lua say the same there.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::exhaustive_structs, reason = "a store fills it in; another field is for its author to see")]
pub struct KeyHolder {
    /// The token of the claim.
    pub token: ClaimToken,
    /// The request that it was made for.
    pub fingerprint: Fingerprint,
    /// Whether the claim has not ended, whatever became of its lease.
    pub is_running: bool,
    /// Whether the outcome is unknown: the lease ran out, or the claim ended so.
    pub is_unknown: bool,
}

impl KeyHolder {
    /// Returns whether a claim may have the key: it is the same claim, repeated, or it takes over
    /// an operation whose outcome is unknown. Either is for the same request.
    ///
    /// A token whose claim has ended takes nothing over.
    ///
    /// ```
    /// use steadfast_server::{ClaimToken, Fingerprint, KeyHolder};
    ///
    /// let (first, other) = (ClaimToken::from_bytes([1; 16]), ClaimToken::from_bytes([2; 16]));
    /// let request = Fingerprint::of("POST /charges");
    /// let holder = KeyHolder { token: first, fingerprint: request, is_running: true, is_unknown: true };
    /// assert!(holder.gives_way_to(other, request, true));
    /// assert!(!holder.gives_way_to(other, request, false), "it did not ask to take over");
    /// assert!(!holder.gives_way_to(other, Fingerprint::of("POST /refunds"), true), "another request");
    /// ```
    #[must_use]
    pub fn gives_way_to(&self, token: ClaimToken, fingerprint: Fingerprint, take_over: bool) -> bool {
        let is_same_claim = self.token == token;
        let may_repeat = is_same_claim && self.is_running;
        let may_take_over = !is_same_claim && take_over && self.is_unknown;
        (may_repeat || may_take_over) && self.fingerprint == fingerprint
    }
}
