//! The rule who may take a key over. Every store written in Rust shares it.

use super::id::{ClaimToken, Fingerprint};

/// The claim that has a key, as a store knows it.
///
/// For stores that decide in Rust. A store that decides in SQL or Lua applies the same rule there.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::exhaustive_structs, reason = "a store fills it in; another field is for its author to see")]
pub struct KeyHolder {
    /// The token of the claim.
    pub token: ClaimToken,
    /// The request of the claim.
    pub fingerprint: Fingerprint,
    /// Whether the claim has not ended, even if its lease has expired.
    pub is_running: bool,
    /// Whether the outcome is unknown: the lease expired, or the claim ended as unknown.
    pub is_unknown: bool,
}

impl KeyHolder {
    /// Returns whether another claim may have the key. It may if it is the same claim, repeated, or
    /// if it takes over an operation whose outcome is unknown. Both must be for the same request.
    ///
    /// A token whose claim has ended takes over nothing.
    ///
    /// ```
    /// use steadfast_server::{ClaimToken, Fingerprint, KeyHolder};
    ///
    /// let (first, other) = (ClaimToken::from_bytes([1; 16]), ClaimToken::from_bytes([2; 16]));
    /// let request = Fingerprint::of("POST /charges");
    /// // Its lease has expired, and it was not ended.
    /// let (is_running, is_unknown) = (true, true);
    /// let holder = KeyHolder { token: first, fingerprint: request, is_running, is_unknown };
    /// assert!(holder.gives_way_to(other, request, true));
    /// assert!(!holder.gives_way_to(other, request, false), "a takeover must be allowed");
    /// let refund = Fingerprint::of("POST /refunds");
    /// assert!(!holder.gives_way_to(other, refund, true), "another request");
    /// ```
    #[must_use]
    pub fn gives_way_to(&self, token: ClaimToken, fingerprint: Fingerprint, take_over: bool) -> bool {
        let is_same_claim = self.token == token;
        let may_repeat = is_same_claim && self.is_running;
        let may_take_over = !is_same_claim && take_over && self.is_unknown;
        (may_repeat || may_take_over) && self.fingerprint == fingerprint
    }
}
