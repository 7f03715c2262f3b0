//! The scripts, and the meaning of their replies.
//!
//! The keys of a script are passed in `KEYS` and share a hash tag, so a Cluster can run it on the
//! node that has them. Every script except `identity.lua` begins with `entry.lua`.

use std::time::Duration;

use redis::{ErrorKind, FromRedisValue, ParsingError, RedisError, Script, ServerErrorKind, Value};
use steadfast_server::{Fingerprint, Record, RecordError, RecordState, StoreError, StoreLimit};

/// The scripts by name. Redis knows them by their hash; the client sends the text if Redis lacks
/// it.
#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) claim: Script,
    pub(super) renew: Script,
    pub(super) complete: Script,
    pub(super) release: Script,
    pub(super) unknown: Script,
    pub(super) cancel: Script,
    pub(super) look: Script,
}

macro_rules! script {
    ($name:literal) => {
        Script::new(concat!(include_str!("scripts/entry.lua"), include_str!(concat!("scripts/", $name, ".lua"))))
    };
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            claim: script!("claim"),
            renew: script!("renew"),
            complete: script!("complete"),
            release: script!("release"),
            unknown: script!("unknown"),
            cancel: script!("cancel"),
            look: script!("look"),
        }
    }
}

type Bytes = Option<Vec<u8>>;

/// The reply of a script about a key: version, fingerprint, retention, record, and the milliseconds
/// left of the lease. Zero or less means that the claim has lapsed.
pub(super) type Known = (Bytes, Bytes, Bytes, Bytes, i64);

/// The reply to a claim.
pub(super) enum Answer {
    Won,
    Cancelled,
    Known(Known),
}

impl FromRedisValue for Answer {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        match value {
            Value::Nil => Ok(Self::Won),
            Value::Int(_) => Ok(Self::Cancelled),
            known => Known::from_redis_value(known).map(Self::Known),
        }
    }
}

/// Returns the state that these fields describe.
pub(super) fn state((version, fingerprint, retention, record, lease_left): Known) -> Result<RecordState, RecordError> {
    match number(version)? {
        1 => {}
        other => return Err(RecordError::Version(u8::try_from(other).unwrap_or(u8::MAX))),
    }
    let fingerprint = fingerprint.and_then(|bytes| bytes.try_into().ok()).ok_or(RecordError::Damaged)?;
    let fingerprint = Fingerprint::from_bytes(fingerprint);
    if let Some(record) = record {
        return Ok(RecordState::completed(fingerprint, Record::decode(&record)?));
    }
    number(retention)?;
    Ok(match u64::try_from(lease_left) {
        Ok(left @ 1..) => RecordState::in_progress(fingerprint, Duration::from_millis(left)),
        _ => RecordState::unknown(fingerprint),
    })
}

fn number(digits: Bytes) -> Result<u64, RecordError> {
    let text = digits.and_then(|bytes| String::from_utf8(bytes).ok());
    text.and_then(|text| text.parse().ok()).ok_or(RecordError::Damaged)
}

/// Converts an error of Redis into the store's error.
pub(super) fn store_error(error: RedisError) -> StoreError {
    if says(&error, "OOM") {
        return StoreError::Full(StoreLimit::new("maxmemory", "raise maxmemory of the Redis server"));
    }
    // The record's name holds another type of value, which the store must not change.
    if says(&error, "WRONGTYPE") {
        return StoreError::Unreadable(RecordError::Damaged);
    }
    StoreError::Unavailable(error.into())
}

/// Returns whether the server is not the primary, or not at the moment. Another connection to the
/// same name may lead to its successor, while a demoted primary keeps its existing connections.
pub(super) fn is_wrong_server(error: &RedisError) -> bool {
    // In this order: a replica refuses a write; a replica without its primary refuses everything; a
    // restarted server still loads its data; a primary was demoted during a WAIT; a primary has
    // lost its replicas.
    const SIGNS: [&str; 5] = ["READONLY", "MASTERDOWN", "LOADING", "UNBLOCKED", "NOREPLICAS"];
    // A connection manager keeps a connection whose login failed, for ever (redis 1.8).
    error.kind() == ErrorKind::AuthenticationFailed || SIGNS.iter().any(|sign| says(error, sign))
}

/// Before Redis 7, the code of an error inside a script is in its text only.
fn says(error: &RedisError, code: &str) -> bool {
    let inside = format!("{code} ");
    let errors = error.clone().into_server_errors();
    errors.is_some_and(|errors| {
        errors
            .iter()
            .any(|(_, error)| error.code() == code || error.details().is_some_and(|details| details.contains(&inside)))
    })
}

/// Returns whether Redis lacks the script: it has restarted, or is new to this client.
pub(super) fn lacks_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}
