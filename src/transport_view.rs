//! What is known of the client that sends the requests, and so how much its errors tell.

use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::Url;

/// What is known of the client that sends the requests.
#[derive(Debug)]
pub struct TransportView {
    /// It may follow redirects or repeat requests unseen. It can become so, but never the reverse.
    is_opaque: AtomicBool,
    /// The body that it gets is the one that is written, so a probe can watch it.
    pub(crate) sees_body: bool,
    /// The transport is this crate's own, so nobody has told it to speak HTTP/2 with prior
    /// knowledge.
    pub(crate) is_as_made: bool,
    /// Requests in the clear are HTTP/1: the transport is this crate's own, and there is no proxy
    /// over TLS.
    pub(crate) clear_is_http1: bool,
}

impl TransportView {
    /// A client of which nothing is known. A failure without a response is ambiguous, whatever its
    /// error says.
    #[must_use]
    pub fn opaque() -> Self {
        Self { is_opaque: AtomicBool::new(true), sees_body: false, is_as_made: false, clear_is_http1: false }
    }

    /// A client below which there is nothing but the network. The progress of an upload can be
    /// seen. It may still follow redirects.
    #[must_use]
    pub fn innermost() -> Self {
        Self { sees_body: true, ..Self::opaque() }
    }

    /// An innermost client that neither follows redirects nor repeats a request.
    #[must_use]
    pub fn exact() -> Self {
        Self { is_opaque: AtomicBool::new(false), ..Self::innermost() }
    }

    /// The reqwest client of a steadfast client.
    pub(crate) fn own(is_opaque: bool, is_as_made: bool, clear_is_http1: bool) -> Self {
        Self { is_opaque: AtomicBool::new(is_opaque), sees_body: true, is_as_made, clear_is_http1 }
    }

    pub(crate) fn is_opaque(&self) -> bool {
        // One flag that guards no other memory.
        self.is_opaque.load(Ordering::Relaxed)
    }

    /// Compares the address of a response with that of its request. If they differ, the client
    /// has followed a redirect, so it is opaque from now on.
    pub(crate) fn check(&self, sent_to: &Url, answered_from: &Url) {
        if self.is_opaque() || is_same(sent_to, answered_from) {
            return;
        }
        self.is_opaque.store(true, Ordering::Relaxed);
        tracing::warn!(
            target: "steadfast",
            "the client below follows redirects, although it was said to follow none: from now on every failure \
             without a response counts as ambiguous"
        );
    }
}

/// Returns whether a response comes from the address that its request was sent to. Only the
/// fragment is not sent. A response that was made of parts may have no address.
pub(crate) fn is_same(sent_to: &Url, answered_from: &Url) -> bool {
    answered_from.host_str() == Some(NO_ADDRESS) || without_fragment(sent_to) == without_fragment(answered_from)
}

fn without_fragment(url: &Url) -> Option<&str> {
    url.as_str().split('#').next()
}

/// What reqwest puts in the place of an address that a response does not have.
const NO_ADDRESS: &str = "no.url.provided.local";
