//! Settings from the environment. An unsupported setting ends the process at its start, so that no
//! case passes by accident.

use std::time::Duration;

use axum::extract::OriginalUri;
use http::{HeaderName, Method};
use steadfast_server::{EventId, IdempotencyLayer, OnUnknown, Scope, SharedStore, Store, WebhookLayer};

use crate::Result;
use crate::control::{Failpoint, Switches};
use crate::damage::Damage;

pub(crate) struct Settings {
    pub(crate) port: u16,
    pub(crate) store: String,
    pub(crate) max_records: usize,
    pub(crate) exec_log: Option<String>,
    pub(crate) failpoint: Option<Failpoint>,
    pub(crate) compression: bool,
    pub(crate) cors: bool,
    /// Whether a 5xx of a handler releases the key.
    pub(crate) retry_5xx: bool,
    lease: Duration,
    retention: Duration,
    max_body: usize,
    max_response: usize,
    lapsed: OnUnknown,
    post_and_patch_only: bool,
    key_per_route: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            port: 0,
            store: "memory".to_owned(),
            max_records: 100_000,
            exec_log: None,
            failpoint: None,
            compression: false,
            cors: false,
            retry_5xx: false,
            lease: Duration::from_secs(10),
            retention: Duration::from_secs(24 * 3600),
            max_body: 64 * 1024,
            max_response: 64 * 1024,
            lapsed: OnUnknown::Reject,
            post_and_patch_only: false,
            key_per_route: false,
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn number<T: std::str::FromStr>(name: &str, default: T) -> Result<T> {
    match variable(name) {
        None => Ok(default),
        Some(value) => value.parse().map_err(|_| format!("{name}={value} is no number that fits").into()),
    }
}

impl Settings {
    pub(crate) fn from_environment() -> Result<Self> {
        let base = Self::default();
        let mut settings = Self {
            port: number("PORT", 0)?,
            store: variable("STORE").unwrap_or(base.store),
            max_records: number("MAX_RECORDS", base.max_records)?,
            exec_log: variable("EXEC_LOG"),
            failpoint: variable("FAILPOINT").map(|name| Failpoint::new(&name)).transpose()?,
            compression: variable("COMPRESSION").is_some_and(|value| value == "1"),
            cors: variable("CORS").is_some_and(|value| value == "1"),
            lease: Duration::from_millis(number("LEASE_MS", 10_000)?),
            retention: Duration::from_millis(number("RETENTION_MS", 86_400_000)?),
            max_body: number("MAX_BODY", base.max_body)?,
            max_response: number("MAX_RESPONSE", base.max_response)?,
            ..Self::default()
        };
        // These stores use their servers' clocks, so there is nothing to offset in this process.
        let reads_no_clock = ["redis", "postgres"].contains(&settings.store.as_str());
        if number("CLOCK_OFFSET_MS", 0_i64)? != 0 && !reads_no_clock {
            return Err("CLOCK_OFFSET_MS is not offered".into());
        }
        for choice in variable("PROFILE").unwrap_or_default().split(',').filter(|choice| !choice.is_empty()) {
            settings.choose(choice)?;
        }
        Ok(settings)
    }

    fn choose(&mut self, choice: &str) -> Result<()> {
        match choice {
            // A handler's panic and a process's death both leave an unknown outcome here.
            "crash=rerun" | "panic=rerun" => self.lapsed = OnUnknown::Rerun,
            "handler_5xx=retry_5xx" => self.retry_5xx = true,
            "unsafe_methods=post_patch_only" => self.post_and_patch_only = true,
            "key_scope=per_route_keys" => self.key_per_route = true,
            "crash=refuse_unknown"
            | "panic=refuse_unknown"
            | "handler_5xx=store_5xx"
            | "unsafe_methods=cover_all_unsafe"
            | "key_scope=global_keys"
            | "key_syntax=compat"
            | "key_params=ignore_params"
            | "set_cookie=strip_header"
            | "big_response=store_marker"
            | "json_fingerprint=bytes"
            | "content_type=body_only"
            | "multipart=bytes"
            | "busy=conflict"
            | "disconnect=detached_handler"
            | "prefer_wait=wait"
            | "memory=memory_store"
            | "retention_from=from_completion"
            | "first_sent=ignored"
            | "early_data=dedupe_early"
            | "event_window=windowed"
            | "cors=cors_enabled" => {}
            other => return Err(format!("PROFILE: {other} is not offered").into()),
        }
        Ok(())
    }
    pub(crate) fn redb(&self) -> Result<crate::redb::ReopenedStore> {
        let folder = variable("STORE_PATH").ok_or("STORE=redb wants a STORE_PATH")?;
        let path = std::path::Path::new(&folder).join("keys.redb");
        crate::redb::ReopenedStore::open(path, u64::try_from(self.max_records)?)
    }
    pub(crate) async fn postgres(&self) -> Result<crate::postgres::Database> {
        if self.max_records < Self::default().max_records {
            return Err("MAX_RECORDS: nobody counts the records in PostgreSQL".into());
        }
        let (url, schema) = Self::postgres_address()?;
        crate::postgres::Database::open(&url, &schema, self.failpoint.clone()).await
    }
    fn postgres_address() -> Result<(String, String)> {
        let url = variable("STORE_URL").ok_or("STORE=postgres wants a STORE_URL")?;
        Ok((url, variable("STORE_NS").unwrap_or_else(|| "conformance".to_owned())))
    }
    fn redis_address() -> Result<(String, String)> {
        let url = variable("STORE_URL").ok_or("STORE=redis wants a STORE_URL")?;
        Ok((url, format!("{}:", variable("STORE_NS").unwrap_or_default())))
    }
    pub(crate) async fn redis(&self) -> Result<steadfast_redis::RedisStore> {
        if self.max_records < Self::default().max_records {
            return Err("MAX_RECORDS: nobody counts the records in Redis".into());
        }
        let (url, prefix) = Self::redis_address()?;
        Ok(steadfast_redis::RedisStore::connect(&url).await?.prefix(prefix))
    }

    /// Returns the access to the records of this store.
    pub(crate) fn damage(&self, switches: &Switches) -> Damage {
        if let ("redis", Ok((url, prefix))) = (self.store.as_str(), Self::redis_address()) {
            return Damage::Redis { url, prefix };
        }
        if let ("postgres", Ok((url, schema))) = (self.store.as_str(), Self::postgres_address()) {
            return Damage::Postgres { url, schema };
        }
        Damage::Memory(switches.clone())
    }

    /// Returns the layer of `/webhook`: ids in a header, consumers by the path.
    pub(crate) fn events<S: Store>(&self, store: SharedStore<S>) -> WebhookLayer<S> {
        let id = EventId::header(HeaderName::from_static("x-event-id"));
        WebhookLayer::with_shared_store(store, "webhook", id)
            .consumer(|parts| Some(parts.uri.path().to_owned()))
            .lease(self.lease)
            .retention(self.retention)
            .max_body(self.max_body)
    }

    /// Returns the scope of the routes without authentication: one caller, or one for each route if
    /// the case requires it.
    pub(crate) fn scope(&self) -> Scope {
        if self.key_per_route {
            return Scope::from_fn(|parts| Some(parts.uri.path().to_owned()));
        }
        Scope::single_caller()
    }

    pub(crate) fn layer<S: Store>(&self, store: SharedStore<S>, scope: Scope) -> IdempotencyLayer<S> {
        // Some routers here are nested, and their paths would look alike.
        let whole = |parts: &http::request::Parts| {
            let uri = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |original| &original.0);
            uri.path_and_query().map_or_else(String::new, ToString::to_string)
        };
        let mut layer = IdempotencyLayer::with_shared_store(store, scope)
            .target(whole)
            .lease(self.lease)
            .retention(self.retention)
            .max_body(self.max_body)
            .max_response(self.max_response)
            .on_unknown(self.lapsed);
        if self.post_and_patch_only {
            layer = layer.methods([Method::POST, Method::PATCH]);
        }
        layer
    }
}
