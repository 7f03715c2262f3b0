//! Whose key it is.
//!
//! A key is chosen by a client, and two clients may choose the same one. If their records were one,
//! the second would be answered with what the first was told. So the identity of a record is the
//! caller's scope and the key together, and the layer cannot be built without a scope.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::request::Parts;

use super::host::host_of;

type Name = Arc<dyn Fn(&Parts) -> Option<String> + Send + Sync>;

/// The callers that an [`IdempotencyLayer`](super::IdempotencyLayer) tells apart. Equal keys of two
/// scopes are two operations.
///
/// ```
/// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
///
/// /// Set by the authentication that stands outside of the layer.
/// #[derive(Clone)]
/// struct Caller {
///     subject: String,
/// }
///
/// let scope = Scope::from_extension(|caller: &Caller| caller.subject.clone());
/// let layer = IdempotencyLayer::new(MemoryStore::new(), scope).required();
/// ```
///
/// # Choose a stable principal
///
/// A scope is a verified principal that stays the same for as long as a record is kept: the subject
/// of a token, an account, a tenant.
///
/// **Never use the bytes of a credential.** Tokens are refreshed and API keys are rotated, often
/// between two attempts of one operation. The second attempt would then be a new operation, and run
/// again.
///
/// A scope also has to be *verified*. A header that any client can set lets one client read what
/// another was answered.
///
/// # Changing a scope
///
/// A scope that says something else than before makes every key new: a repeat of an earlier
/// operation runs again. Change it while no records are kept, or let the closure go on giving
/// earlier callers their earlier names.
#[derive(Clone)]
pub struct Scope(Kind);

#[derive(Clone)]
enum Kind {
    Fixed(Arc<str>),
    IdempotencyStatus(Name),
}

impl Scope {
    /// Declares that there is only one caller, so that keys alone tell operations apart.
    ///
    /// Right for a service with one client, for example behind a gateway of your own, and for
    /// tests. **With two callers, the second to send a key is answered with the first one's
    /// response.**
    #[must_use]
    pub fn single_caller() -> Self {
        Self::fixed("")
    }

    /// Takes the scope from the request's head. `None` or an empty name refuses the request with
    /// 403: callers who cannot be told apart would share their answers.
    ///
    /// ```
    /// use steadfast_server::Scope;
    ///
    /// #[derive(Clone)]
    /// struct Claims {
    ///     tenant: String,
    ///     subject: String,
    /// }
    ///
    /// // Two names in one: the length keeps ("a", "b/c") and ("a/b", "c") apart.
    /// let scope = Scope::from_fn(|parts| {
    ///     let Claims { tenant, subject } = parts.extensions.get()?;
    ///     Some(format!("{}:{tenant}/{subject}", tenant.len()))
    /// });
    /// ```
    #[must_use]
    pub fn from_fn(name: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Kind::IdempotencyStatus(Arc::new(name)))
    }

    /// Takes the scope from an extension of the request, which something outside of the layer has
    /// set. A request without it is refused with 403, and so is an empty name.
    #[must_use]
    pub fn from_extension<T>(name: impl Fn(&T) -> String + Send + Sync + 'static) -> Self
    where
        T: Send + Sync + 'static,
    {
        Self::from_fn(move |parts| parts.extensions.get().map(&name))
    }

    /// Declares that each host has one caller: the scope is the request's host name, in lower case
    /// and without its port. A request without a host is refused with 403.
    ///
    /// A client chooses the host that it sends. Use this only where something in front of the layer
    /// has verified that the caller may use that host.
    ///
    /// [`IdempotencyLayer::host`](super::IdempotencyLayer::host) does not change it. Behind a proxy
    /// that writes a `Host` of its own, take the name from your proxy's header, by
    /// [`from_fn`](Self::from_fn).
    #[must_use]
    pub fn by_host() -> Self {
        Self::from_fn(|parts| host_of(parts).map(Cow::into_owned))
    }

    /// The same scope for every request.
    pub(super) fn fixed(name: impl Into<Arc<str>>) -> Self {
        Self(Kind::Fixed(name.into()))
    }

    /// The scope of this request; `None` if it cannot be told.
    pub(super) fn of(&self, parts: &Parts) -> Option<Cow<'_, str>> {
        match &self.0 {
            Kind::Fixed(name) => Some(Cow::Borrowed(name)),
            Kind::IdempotencyStatus(name) => name(parts).filter(|name| !name.is_empty()).map(Cow::Owned),
        }
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Fixed(_) => "Scope(fixed)",
            Kind::IdempotencyStatus(_) => "Scope(by request)",
        })
    }
}
