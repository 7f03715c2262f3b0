//! The settings of an outbox.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::header::{CONTENT_LANGUAGE, CONTENT_TYPE, DATE, ETAG, LAST_MODIFIED, LOCATION};
use steadfast::{Client, adapter};
use steadfast_core::milliseconds;

use crate::change::Terms;
use crate::engine::{Engine, OnEvent, Principals};
use crate::error::{OutboxError, is_credential};
use crate::event::OutboxEvent;
use crate::outbox::Outbox;
use crate::question::{Reconcile, Reconciliation, UnknownOperation};
use crate::store::OutboxStore;

/// The headers of an answer that are kept.
const KEPT: [HeaderName; 6] = [CONTENT_TYPE, CONTENT_LANGUAGE, LOCATION, ETAG, LAST_MODIFIED, DATE];

/// The settings of an outbox. [`Outbox::open`] makes one.
#[must_use = "an outbox does nothing until it is started"]
pub struct OutboxBuilder<S> {
    store: S,
    settings: Settings,
}

/// What the workers need of the settings.
pub(crate) struct Settings {
    pub(crate) client: Client,
    pub(crate) lease: Duration,
    /// How long after the end of an attempt the server may still act on it.
    pub(crate) settling_time: Duration,
    /// In all, and for each origin.
    pub(crate) workers: (usize, usize),
    /// The first and the longest pause between two rounds.
    pub(crate) backoff: (Duration, Duration),
    pub(crate) poll_interval: Duration,
    pub(crate) keep_answers: Option<Duration>,
    pub(crate) keep_headers: Vec<HeaderName>,
    pub(crate) persist_headers: Vec<HeaderName>,
    pub(crate) reconcile: Option<Reconcile>,
    pub(crate) principals: Option<Principals>,
    pub(crate) on_event: Option<OnEvent>,
}

impl<S> fmt::Debug for OutboxBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { lease, settling_time, workers, .. } = &self.settings;
        f.debug_struct("OutboxBuilder")
            .field("lease", lease)
            .field("settling_time", settling_time)
            .field("workers", workers)
            .finish_non_exhaustive()
    }
}

impl<S: OutboxStore> OutboxBuilder<S> {
    pub(crate) fn new(store: S, client: Client) -> Self {
        let settings = Settings {
            client,
            lease: Duration::from_secs(60),
            settling_time: Duration::from_secs(30),
            workers: (256, 32),
            backoff: (Duration::from_secs(1), Duration::from_secs(300)),
            poll_interval: Duration::from_secs(5),
            keep_answers: None,
            keep_headers: KEPT.to_vec(),
            persist_headers: Vec::new(),
            reconcile: None,
            principals: None,
            on_event: None,
        };
        Self { store, settings }
    }

    /// Sets the hook that finds out whether the server has carried out an operation whose outcome is
    /// unknown, and that the client may not send again. Default: none, and such operations end as
    /// [`End::Unknown`](crate::End::Unknown).
    ///
    /// It is asked when the last attempt has [settled](Self::settling_time). If it fails or panics it
    /// is asked again, with growing pauses, until it answers.
    ///
    /// ```no_run
    /// use steadfast::http::StatusCode;
    /// use steadfast_outbox::{Answer, Outbox, Reconciliation, RedbOutbox};
    ///
    /// # async fn example(client: steadfast::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let outbox = Outbox::open(RedbOutbox::open("operations.redb")?, client)
    ///     .reconcile(|unknown| async move {
    ///         let reference = unknown.entry.name.unwrap_or_default();
    ///         let charges = unknown.client.get("/charges").query(&[("reference", reference)]);
    ///         let found = charges.fetch_text().await?;
    ///         Ok::<_, steadfast::Error>(match found.as_str() {
    ///             "[]" => Reconciliation::NotApplied,
    ///             charge => Reconciliation::Applied(Answer::new(StatusCode::OK, charge)),
    ///         })
    ///     })
    ///     .start()
    ///     .await?;
    /// # drop(outbox);
    /// # Ok(())
    /// # }
    /// ```
    pub fn reconcile<F, R, E>(mut self, ask: F) -> Self
    where
        F: Fn(UnknownOperation) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Reconciliation, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.settings.reconcile = Some(Reconcile::new(ask));
        self
    }

    /// Sets where the clients of principals come from
    /// ([`as_principal`](crate::DurableOperation::as_principal)). An operation whose principal is not
    /// known is held. Default: none is known.
    pub fn principals(mut self, resolve: impl Fn(&str) -> Option<Client> + Send + Sync + 'static) -> Self {
        self.settings.principals = Some(Arc::new(resolve));
        self
    }

    /// Sets a closure that hears of each event. It runs on the workers' tasks, so it must not block.
    pub fn on_event(mut self, listener: impl Fn(&OutboxEvent<'_>) + Send + Sync + 'static) -> Self {
        self.settings.on_event = Some(Arc::new(listener));
        self
    }

    /// Sets how long a worker may keep an operation without a sign of life. Each attempt renews it,
    /// and ends before it does. Default: 60 s.
    ///
    /// With a store of several processes an operation of a dead process is taken up only after its
    /// lease. With a file, opening it proves that the process is dead.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// Sets how long after the end of an attempt the server may still act on it. Before that,
    /// [`reconcile`](Self::reconcile) is not asked. Default: 30 s.
    pub fn settling_time(mut self, time: Duration) -> Self {
        self.settings.settling_time = time;
        self
    }

    /// Sets how many operations are carried out at the same time, in all and for each origin.
    /// Default: 256 and 32.
    pub fn workers(mut self, all: usize, per_origin: usize) -> Self {
        self.settings.workers = (all, per_origin);
        self
    }

    /// Sets the first and the longest pause between two rounds of an operation. The pause doubles
    /// with each round, and has jitter. Default: 1 s and 5 min.
    ///
    /// A round is one operation of the client, with its own retries.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.settings.backoff = (first, longest);
        self
    }

    /// Sets how often a store of several processes is asked for operations of other processes.
    /// Default: 5 s.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.settings.poll_interval = interval;
        self
    }

    /// Drops the body of an answer so long after the end, acknowledged or not. Default: bodies are
    /// kept as long as their operations.
    pub fn keep_answers(mut self, time: Duration) -> Self {
        self.settings.keep_answers = Some(time);
        self
    }

    /// Keeps these headers of answers too. They are written to the disk as they are, so a credential
    /// (`Set-Cookie`) is an error at the start. Default: `Content-Type`, `Content-Language`, `Location`,
    /// `ETag`, `Last-Modified` and `Date`.
    pub fn keep_headers(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.settings.keep_headers.extend(names);
        self
    }

    /// Stores these headers of requests too, besides `Content-Type`, `Content-Language` and
    /// `Accept`. They are written to the disk as they are, so name no header that is secret. A credential
    /// (`Authorization`, `Cookie`) is an error at the start.
    pub fn persist_headers(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.settings.persist_headers.extend(names);
        self
    }

    /// Starts the workers. What earlier processes have left is taken up.
    ///
    /// # Errors
    ///
    /// A setting is invalid, such as a lease that is shorter than an attempt, or the store cannot be
    /// read.
    pub async fn start(self) -> Result<Outbox<S>, OutboxError> {
        let Self { store, settings } = self;
        let attempt = settings.check()?;
        // An attempt ends with its lease at the latest. With several processes, its worker may have been
        // stopped before the attempt, and go on after the lease.
        let settling = settings.lease.saturating_add(settings.settling_time);
        let settling = if S::IS_SHARED { settling.saturating_add(attempt) } else { settling };
        let terms = Terms::new(milliseconds(settings.lease), milliseconds(settling));
        // A store that cannot be read is an error now, and not at the first submission.
        store.usage().await?;
        Ok(Outbox::run(Arc::new(Engine::new(store, settings, terms, attempt))))
    }
}

impl Settings {
    /// Checks the settings. Returns how long an attempt takes at most.
    fn check(&self) -> Result<Duration, OutboxError> {
        // The last twentieth of a lease is not used.
        let usable = self.lease - self.lease / 20;
        // An attempt without a limit of its own ends with the lease.
        let attempt = adapter::attempt_timeout(&self.client).unwrap_or(usable / 2);
        if attempt > usable {
            let reason = format!("{:?} is too short for the client's attempt timeout of {attempt:?}", self.lease);
            return Err(OutboxError::setting("lease", reason));
        }
        if self.lease.is_zero() {
            return Err(OutboxError::setting("lease", "it is zero"));
        }
        if self.workers.0 == 0 || self.workers.1 == 0 {
            return Err(OutboxError::setting("workers", "without a worker nothing is sent"));
        }
        if self.backoff.0.is_zero() || self.backoff.1 < self.backoff.0 {
            return Err(OutboxError::setting("backoff", "the first pause is zero, or longer than the longest"));
        }
        if self.poll_interval.is_zero() {
            return Err(OutboxError::setting("poll_interval", "it is zero"));
        }
        for (setting, names) in [("persist_headers", &self.persist_headers), ("keep_headers", &self.keep_headers)] {
            if let Some(name) = names.iter().find(|name| is_credential(name)) {
                let reason = format!("{name} is a credential, which belongs into no file");
                return Err(OutboxError::setting(setting, reason));
            }
        }
        Ok(attempt)
    }
}
