//! The callers that share a set of keys.
//!
//! A client chooses its keys, and two clients may choose the same one. If they shared a record, the
//! second would get the first one's response. So a record's identity is the caller's scope and the
//! key together, and you cannot build the layer without a scope.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::request::Parts;

use super::host::host_of;

type Name = Arc<dyn Fn(&Parts) -> Option<String> + Send + Sync>;

/// The part of a record's identity that tells callers apart. Equal keys in two scopes are two
/// operations.
///
/// ```
/// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
///
/// /// Set by the authentication layer outside the idempotency layer.
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
/// Use a verified principal that stays the same for as long as a record is kept: the subject of a
/// token, an account, a tenant.
///
/// **Never use the bytes of a credential.** Tokens are refreshed and API keys are rotated, often
/// between two attempts of one operation. The second attempt would then be a new operation, and run
/// again.
///
/// A scope must also be *verified*. If any client can set a header, that header lets one client
/// read another's responses.
///
/// # Changing a scope
///
/// If a scope changes its value, every key is new: a repeat of an earlier operation runs again.
/// Change it while no records are kept, or keep returning the earlier names for earlier callers.
#[derive(Clone)]
pub struct Scope(ScopeKind);

#[derive(Clone)]
enum ScopeKind {
    Fixed(Arc<str>),
    ByRequest(Name),
}

impl Scope {
    /// Declares that there is only one caller, so keys alone tell operations apart.
    ///
    /// Use it for a service with one client, for example behind your own gateway, and in tests.
    /// **If there are two callers and both send one key, the second gets the first one's
    /// response.**
    #[must_use]
    pub fn single_caller() -> Self {
        Self::fixed("")
    }

    /// Takes the scope from the request's head. `None` or an empty name refuses the request with
    /// 403, because callers that cannot be told apart would share their responses.
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
        Self(ScopeKind::ByRequest(Arc::new(name)))
    }

    /// Takes the scope from an extension of the request, set by a layer outside this one. A request
    /// without the extension, or with an empty name, is refused with 403.
    ///
    /// ```
    /// use axum::{Extension, Router, body::Body, http::Request, routing::post};
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    /// use tower::ServiceExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// #[derive(Clone)]
    /// struct Tenant(&'static str);
    ///
    /// let scope = Scope::from_extension(|tenant: &Tenant| tenant.0.to_owned());
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), scope);
    /// let app: Router =
    ///     Router::new().route("/notes", post(async || "noted")).layer(layer.clone());
    /// let request = || Request::post("/notes").header("idempotency-key", "1").body(Body::empty());
    /// for tenant in ["a", "b"] {
    ///     app.clone().layer(Extension(Tenant(tenant))).oneshot(request()?).await?;
    /// }
    /// assert_eq!(layer.metrics().executed, 2);
    /// // Without a tenant the request is refused.
    /// assert_eq!(app.oneshot(request()?).await?.status(), 403);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn from_extension<T>(name: impl Fn(&T) -> String + Send + Sync + 'static) -> Self
    where
        T: Send + Sync + 'static,
    {
        Self::from_fn(move |parts| parts.extensions.get().map(&name))
    }

    /// Declares that each host has one caller. The scope is the request's host name, in lower case
    /// and without its port. A request without a host is refused with 403.
    ///
    /// A client chooses the host that it sends. Use this only if a layer or proxy in front has
    /// verified that the caller may use that host.
    ///
    /// [`IdempotencyLayer::host`](super::IdempotencyLayer::host) does not change the scope. Behind
    /// a proxy that writes its own `Host`, take the name from your proxy's header with
    /// [`from_fn`](Self::from_fn).
    ///
    /// ```
    /// use axum::{Router, body::Body, http::Request, routing::post};
    /// use steadfast_server::{IdempotencyLayer, MemoryStore, Scope};
    /// use tower::ServiceExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::by_host());
    /// let app: Router =
    ///     Router::new().route("/notes", post(async || "noted")).layer(layer.clone());
    /// for host in ["a.example.com", "b.example.com", "A.example.com:443"] {
    ///     let request = Request::post("/notes").header("host", host);
    ///     let request = request.header("idempotency-key", "1");
    ///     app.clone().oneshot(request.body(Body::empty())?).await?;
    /// }
    /// assert_eq!((layer.metrics().executed, layer.metrics().replayed), (2, 1));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn by_host() -> Self {
        Self::from_fn(|parts| host_of(parts).map(Cow::into_owned))
    }

    /// Uses the same scope for every request.
    pub(super) fn fixed(name: impl Into<Arc<str>>) -> Self {
        Self(ScopeKind::Fixed(name.into()))
    }

    /// Returns the scope of this request. `None` if it has none.
    pub(super) fn of(&self, parts: &Parts) -> Option<Cow<'_, str>> {
        match &self.0 {
            ScopeKind::Fixed(name) => Some(Cow::Borrowed(name)),
            ScopeKind::ByRequest(name) => name(parts).filter(|name| !name.is_empty()).map(Cow::Owned),
        }
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            ScopeKind::Fixed(_) => "Scope(fixed)",
            ScopeKind::ByRequest(_) => "Scope(by request)",
        })
    }
}
