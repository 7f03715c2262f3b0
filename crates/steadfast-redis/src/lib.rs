//! Stores the idempotency records of [`steadfast-server`](steadfast_server) in Redis, for several
//! processes that serve one API.
//!
//! ```no_run
//! use steadfast_redis::RedisStore;
//! use steadfast_server::{IdempotencyLayer, Scope, StoreError};
//!
//! # async fn example() -> Result<(), StoreError> {
//! let store = RedisStore::connect("redis://127.0.0.1").await?;
//! let layer = IdempotencyLayer::new(store, Scope::single_caller()).required();
//! # Ok(())
//! # }
//! ```
//!
//! Each step is one Lua script on one key. Redis runs scripts one at a time and by its own clock,
//! so two processes cannot both claim a key. The settings of Redis decide what a crash of Redis or
//! of its machine can lose: [`RedisStore`] has the table. Record a payment in the database that
//! holds the payment (`steadfast-postgres`).
//!
//! [The guide](https://docs.rs/steadfast/latest/steadfast/guide/server/) compares the stores.

// This file has the rules of the `Store` contract. `script` reads the replies of the scripts,
// `link` connects to Redis, `check` finds settings that lose records. The tests against real
// servers are in the workspace's `tests/it/server/redis*.rs`.

mod check;
mod identity;
mod link;
mod script;

use std::fmt::{self, Write as _};
use std::time::Duration;

use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::{FromRedisValue, ScriptInvocation};
use steadfast_core::{CENTURY, milliseconds};
use steadfast_server::{
    Claim, ClaimOutcome, ClaimRef, End, FinishOutcome, RecordId, RecordState, Store, StoreError, TOMBSTONE,
};

use self::identity::Identity;
use self::link::{CONNECT, Link, within};
use self::script::{Answer, Known, Scripts};

pub use self::check::RedisWarning;
pub use redis;

/// A store that keeps its records in Redis, one hash per key, for any number of processes.
///
/// A released or cancelled token is kept beside the hash as a tombstone, for ten minutes.
///
/// ```no_run
/// use std::time::Duration;
/// use steadfast_server::{IdempotencyLayer, Scope, StoreError};
/// use steadfast_redis::RedisStore;
///
/// # async fn example() -> Result<(), StoreError> {
/// let store = RedisStore::connect("redis://127.0.0.1")
///     .await?
///     .prefix("shop:")
///     .replicas(1, Duration::from_millis(100));
/// let layer = IdempotencyLayer::new(store, Scope::single_caller());
/// # Ok(())
/// # }
/// ```
///
/// | setting | default |
/// | --- | --- |
/// | [`prefix`](Self::prefix) | `steadfast:` |
/// | [`timeout`](Self::timeout) | 1 s for each call |
/// | [`replicas`](Self::replicas) | none: a claim needs the primary alone |
///
/// # Guarantees
///
/// While Redis keeps its data, only one of any number of concurrent claims of a key succeeds,
/// across all processes. A stored response is replayed until its retention ends.
///
/// The settings of Redis decide which data it keeps. If machines fail, this is the weakest of the
/// durable stores. Prefer to record a payment in the database that holds the payment.
///
/// | event | loss |
/// | --- | --- |
/// | a process that uses the store dies | nothing. Its claims lapse and become [unknown](RecordState::Unknown) |
/// | Redis is killed, `appendfsync always` | nothing that was acknowledged |
/// | Redis is killed, `appendfsync everysec` (Redis's default with `appendonly yes`) | nothing that Redis had handed to the operating system; while a sync is slow, Redis holds writes back, for 2 s at most |
/// | the machine is lost, `appendfsync always` | nothing that was acknowledged, if the disk honours syncs |
/// | the machine is lost, `appendfsync everysec` | about the last second; 2 s while a sync is slow |
/// | either, without an append-only file | everything since the last snapshot |
/// | failover to a replica | all that the replica had not received: replication is asynchronous, and no acknowledgement waits for it |
/// | failover, with [`replicas`](Self::replicas) | less: a claim succeeds only after a replica has received it. It is still lost if another replica is promoted, or if all replicas that have it are lost |
/// | memory runs short, `noeviction` | nothing: new claims are refused, see below |
/// | memory runs short, any other policy | any record |
///
/// If a claim is lost, its operation may run twice. If only its end is lost, the operation becomes
/// unknown. [`connect`](RedisStore::connect) warns of the settings that it can see.
///
/// Sources:
/// [persistence](https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/),
/// [replication](https://redis.io/docs/latest/operate/oss_and_stack/management/replication/),
/// [eviction](https://redis.io/docs/latest/develop/reference/eviction/),
/// [`WAIT`](https://redis.io/docs/latest/commands/wait/),
/// [Cluster](https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/).
///
/// # Time
///
/// The store uses Redis's clock alone, so the clocks of your processes do not matter. A key expires
/// with its record, so you need not purge anything. If the clock of Redis's machine jumps, leases
/// and retentions jump with it. At a failover they change by the difference between the two clocks.
///
/// # When Redis is full
///
/// At `maxmemory` (policy `noeviction`) a new claim returns [`StoreError::Full`]. Existing claims
/// continue. Renewals take no room. Ends take some, but Redis accepts them, since it does not stop
/// a script that has begun to write
/// ([`scriptVerifyOOM`](https://github.com/redis/redis/blob/7.0/src/script.c)).
///
/// So an executed operation is recorded, and Redis exceeds `maxmemory` by at most the responses of
/// the running operations. Leave that much memory free on the machine. If the server still refuses
/// an end, the claim lapses.
///
/// The store reserves nothing at the claim. It does not limit the number of records: they may be on
/// many nodes, so it cannot count them.
///
/// # When Redis is unreachable
///
/// A call without a reply in time returns [`StoreError::Unavailable`]. If the connection breaks,
/// the store makes the call once more over a new connection. Every call is safe to repeat.
///
/// The same holds for a server that is not the primary, or not at the moment: `READONLY`,
/// `MASTERDOWN`, `LOADING`, `NOREPLICAS`, `UNBLOCKED`. A demoted primary keeps its clients'
/// connections (Sentinel alone closes them). So the store drops its connection and opens another
/// one to the same name, at most ten times a second. Once the name leads to the new primary, the
/// next call succeeds. Until then, calls return [`StoreError::Unavailable`]. A refused login is
/// tried again in the same way.
///
/// The store cannot replace a connection that you pass to
/// [`from_connection`](RedisStore::from_connection). While that connection leads to the old
/// primary, calls fail. A Cluster's connection finds the new primary by itself. A
/// [`ConnectionManager`] does so only after its connection is closed.
///
/// # Permissions
///
/// `~steadfast:* +evalsha +script|load +hmget +hset +hdel +pttl +pexpire +del +exists +set`;
/// `+info` for the check, `+wait` for replicas.
///
/// # TLS, Cluster, Sentinel
///
/// `rediss://` needs one of the `redis` crate's TLS features (`tokio-rustls-comp`). Enable it
/// through a dependency of your own. For the certificate of a private authority, make the client
/// with `redis::Client::build_with_tls` and pass it to [`connect_with`](Self::connect_with).
///
/// [`from_connection`](RedisStore::from_connection) takes any connection of that crate, including a
/// Cluster's (feature `cluster-async`): all keys of a script are on one node. A prefix with a `{…}`
/// would put all records on one node.
///
/// Needs Redis 5 or later, or a compatible server.
///
/// | tested | with |
/// | --- | --- |
/// | one server, its restart, its loss, and failover to a replica | Redis 7 |
/// | TLS (`rediss://`), with a certificate that is accepted and one that is not | Redis 7 |
/// | Cluster | one node of Redis 7 that has all slots |
/// | [Valkey](https://valkey.io) | the first row, by hand, with a build of its main branch of 2026; not in CI |
///
/// **Not tested:** a Cluster of several nodes, the move of slots between them, and the failover of
/// one of them; Sentinel, apart from a name that leads to the new primary; managed services.
///
/// # The scripts
///
/// Each script begins with this text:
#[doc = "```lua"]
#[doc = include_str!("scripts/entry.lua")]
#[doc = "```\nClaim:\n```lua"]
#[doc = include_str!("scripts/claim.lua")]
#[doc = "```\nRenew:\n```lua"]
#[doc = include_str!("scripts/renew.lua")]
#[doc = "```\nComplete:\n```lua"]
#[doc = include_str!("scripts/complete.lua")]
#[doc = "```\nRelease:\n```lua"]
#[doc = include_str!("scripts/release.lua")]
#[doc = "```\nUnknown:\n```lua"]
#[doc = include_str!("scripts/unknown.lua")]
#[doc = "```\nCancel:\n```lua"]
#[doc = include_str!("scripts/cancel.lua")]
#[doc = "```\nGet:\n```lua"]
#[doc = include_str!("scripts/look.lua")]
#[doc = "```\nIdentity, which has a key of its own and begins without that text:\n```lua"]
#[doc = include_str!("scripts/identity.lua")]
#[doc = "```"]
pub struct RedisStore<C = ConnectionManager> {
    link: Link<C>,
    /// `WAIT` blocks its connection, so claims that wait for replicas have their own.
    claims: Link<C>,
    prefix: String,
    timeout: Duration,
    replicas: Option<Replicas>,
    scripts: Scripts,
    warnings: Vec<RedisWarning>,
    identity: Identity,
}

#[derive(Clone, Copy, Debug)]
struct Replicas {
    number: usize,
    timeout: Duration,
}

impl RedisStore {
    /// Connects to the server at this URL and [checks](Self::check) its settings.
    ///
    /// The URL has the form `redis://[user:password@]host[:port][/database]`. The store logs
    /// warnings and keeps them in [`warnings`](Self::warnings). A broken connection is replaced at
    /// the next call. Connecting takes 1 s at most.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::Unavailable`] if the URL is not valid for Redis, or if the server
    /// cannot be reached.
    ///
    /// ```no_run
    /// use steadfast_redis::RedisStore;
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = RedisStore::connect("redis://127.0.0.1").await?;
    /// if !store.warnings().is_empty() {
    ///     return Err("this Redis may lose records".into());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::connect_with(link::client(url).map_err(script::store_error)?).await
    }

    /// Connects with a client of your own, as [`connect`](Self::connect) does. Use it for settings
    /// that a URL does not have, such as the certificate of a private authority.
    ///
    /// `connect` sets TCP keepalive and a limit of 5 s for a silent peer. Set them on your client
    /// too (`ConnectionInfo::set_tcp_settings`).
    ///
    /// ```no_run
    /// use steadfast_redis::{RedisStore, redis};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// // With the feature `tokio-rustls-comp` of `redis`, `redis::Client::build_with_tls` takes
    /// // certificates.
    /// let client = redis::Client::open("redis://127.0.0.1")?;
    /// let store = RedisStore::connect_with(client).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Returns [`StoreError::Unavailable`] if the server cannot be reached.
    pub async fn connect_with(client: redis::Client) -> Result<Self, StoreError> {
        // Each call has its own time limit. A failed reconnection returns at once, and the next
        // call tries again.
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(None)
            .set_number_of_retries(0);
        let connect = ConnectionManager::new_with_config(client.clone(), config.clone());
        let connection = within(CONNECT, connect).await?;
        // Connects at its first use: `claims` with the first claim that waits for replicas, if
        // there is one.
        let open = move || ConnectionManager::new_lazy_with_config(client.clone(), config.clone());
        let claims = Link::over(open().map_err(script::store_error)?).opened_by(open.clone());
        let mut store =
            Self { link: Link::over(connection.clone()).opened_by(open), claims, ..Self::from_connection(connection) };
        store.warnings = store.check().await;
        Ok(store)
    }

    /// Makes a claim succeed only after this number of replicas has received it (`WAIT`), within
    /// `timeout`. Default: none.
    ///
    /// `timeout` counts in whole milliseconds, at least one. If too few replicas receive the claim,
    /// the call returns [`StoreError::Unavailable`]. The claim still exists: a repeat under the
    /// same token waits for the replicas again. [Cancel](End::Cancelled) a claim that you give up,
    /// as the layer does.
    ///
    /// This reduces the loss at a failover, but does not prevent it: see
    /// [Guarantees](Self#guarantees). The end of an operation waits for no replica.
    ///
    /// Claims then use a connection of their own, on which each waits for the one before. Their
    /// number per second is about the number of round trips to a replica per second. A store made
    /// by [`from_connection`](RedisStore::from_connection) has only that connection: while replicas
    /// are away, its other calls wait too.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use steadfast_redis::RedisStore;
    /// use steadfast_server::StoreError;
    ///
    /// # async fn example() -> Result<(), StoreError> {
    /// let store = RedisStore::connect("redis://127.0.0.1").await?.replicas(1, Duration::from_millis(100));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn replicas(mut self, number: usize, timeout: Duration) -> Self {
        self.replicas = (number > 0).then_some(Replicas { number, timeout });
        self
    }
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> RedisStore<C> {
    /// Uses an existing connection: a Cluster's, a Sentinel's, or one with settings of your own.
    ///
    /// Clones of the connection should share it, and it should reconnect by itself. The store never
    /// replaces it: see [When Redis is unreachable](RedisStore#when-redis-is-unreachable). The
    /// store does not check the settings of the server: call [`check`](Self::check).
    ///
    /// ```no_run
    /// use steadfast_redis::{RedisStore, redis};
    ///
    /// # async fn example() -> Result<(), redis::RedisError> {
    /// let client = redis::Client::open("redis://127.0.0.1")?;
    /// let store = RedisStore::from_connection(client.get_connection_manager().await?).prefix("shop:");
    /// for warning in store.check().await {
    ///     eprintln!("{warning}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn from_connection(connection: C) -> Self {
        Self {
            claims: Link::over(connection.clone()),
            link: Link::over(connection),
            prefix: "steadfast:".to_owned(),
            timeout: Duration::from_secs(1),
            replicas: None,
            scripts: Scripts::new(),
            warnings: Vec::new(),
            identity: Identity::default(),
        }
    }

    /// Sets the beginning of all key names. Default: `steadfast:`.
    ///
    /// The rest of a name is the record's identity in hexadecimal, in braces, or `identity`. Stores
    /// with the same prefix share their records.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        // Another build may have written the records under another prefix.
        self.identity = Identity::default();
        self
    }

    /// Sets the timeout of one call, including reconnection. Default: 1 s.
    ///
    /// The time limit of [`replicas`](RedisStore::replicas) is added to it. The layer calls twice
    /// before it reports the store as unavailable.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Returns the warnings that [`connect`](RedisStore::connect) found.
    #[must_use]
    pub fn warnings(&self) -> &[RedisWarning] {
        &self.warnings
    }

    /// Asks the server, or all primaries of a Cluster, whether it may lose records. Logs and
    /// returns the reasons.
    ///
    /// A server that does not reply is a warning too.
    pub async fn check(&self) -> Vec<RedisWarning> {
        let mut connection = self.link.connection();
        let info = async move { redis::cmd("INFO").query_async(&mut connection).await };
        let warnings = match within(self.timeout, info).await {
            Ok(info) => check::warnings(&info),
            Err(error) => vec![RedisWarning::Unchecked(error.to_string())],
        };
        for warning in &warnings {
            tracing::warn!(target: "steadfast", %warning, "Redis may lose records");
        }
        warnings
    }

    /// Returns the name of a record. The braces make a Cluster keep its tombstones on the same
    /// node.
    fn key(&self, id: &RecordId) -> String {
        let mut key = String::with_capacity(self.prefix.len() + 2 + 64);
        key.push_str(&self.prefix);
        key.push('{');
        push_hex(&mut key, id.as_bytes());
        key.push('}');
        key
    }

    /// Returns the name of a token's tombstone.
    fn tombstone(&self, claim: ClaimRef) -> String {
        let mut key = self.key(&claim.id);
        key.push(':');
        push_hex(&mut key, claim.token.as_bytes());
        key
    }

    /// Runs one script, within the timeout of one call.
    async fn call<T: FromRedisValue>(&self, invocation: &ScriptInvocation<'_>) -> Result<T, StoreError> {
        let call = |mut connection: C| async move { invocation.invoke_async(&mut connection).await };
        within(self.timeout, self.link.call(call)).await
    }

    /// Runs a script that returns 1 if the claim was the caller's.
    async fn fenced(&self, invocation: &ScriptInvocation<'_>) -> Result<FinishOutcome, StoreError> {
        let held: bool = self.call(invocation).await?;
        Ok(if held { FinishOutcome::Stored } else { FinishOutcome::Fenced })
    }

    /// Claims, and waits until the replicas have received the claim.
    async fn claim_received(
        &self,
        replicas: Replicas,
        invocation: &ScriptInvocation<'_>,
    ) -> Result<Answer, StoreError> {
        let waits = milliseconds(replicas.timeout).max(1);
        // In one pipeline, since WAIT counts the writes of its own connection. After a reconnection
        // there would be none to wait for.
        let mut pipeline = redis::pipe();
        pipeline.invoke_script(invocation).cmd("WAIT").arg(replicas.number).arg(waits);
        let (pipeline, script) = (&pipeline, &self.scripts.claim);
        let ask = |mut connection: C| async move {
            match pipeline.query_async(&mut connection).await {
                Err(error) if script::lacks_script(&error) => {
                    script.load_async(&mut connection).await?;
                    pipeline.query_async(&mut connection).await
                }
                answer => answer,
            }
        };
        let timeout = self.timeout.saturating_add(replicas.timeout);
        let (answer, received): (Answer, usize) = within(timeout, self.claims.call(ask)).await?;
        if matches!(answer, Answer::Won) && received < replicas.number {
            let number = replicas.number;
            let error = format!("only {received} of {number} replicas received the claim within {waits} ms");
            return Err(StoreError::Unavailable(error.into()));
        }
        Ok(answer)
    }
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
    }
}

/// Converts a duration into milliseconds for an expiry. Redis refuses expiries past the end of its
/// time, so a century is the maximum. Zero expires at once, as the contract demands; less than a
/// millisecond becomes one.
fn expiry(time: Duration) -> u64 {
    milliseconds(time.min(CENTURY)).max(u64::from(!time.is_zero()))
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Store for RedisStore<C> {
    type Session = ();

    async fn claim(&self, claim: &Claim<'_>) -> Result<ClaimOutcome<()>, StoreError> {
        self.verify_once().await?;
        let (lease, retention) = (expiry(claim.lease), expiry(claim.retention));
        let mut invocation = self.scripts.claim.key(self.key(claim.id));
        invocation
            .key(self.tombstone(claim.reference()))
            .arg(claim.token.as_bytes())
            .arg(claim.fingerprint.as_bytes())
            .arg(retention)
            .arg(lease + retention)
            .arg(u8::from(claim.take_over));
        let answer = match self.replicas {
            None => self.call(&invocation).await?,
            Some(replicas) => self.claim_received(replicas, &invocation).await?,
        };
        match answer {
            Answer::Won => Ok(ClaimOutcome::Acquired(())),
            Answer::Cancelled => Ok(ClaimOutcome::Cancelled),
            Answer::Known(known) => script::state(known).map(ClaimOutcome::Existing).map_err(StoreError::Unreadable),
        }
    }

    async fn renew(&self, claim: ClaimRef, lease: Duration) -> Result<bool, StoreError> {
        self.call(self.scripts.renew.key(self.key(&claim.id)).arg(claim.token.as_bytes()).arg(expiry(lease))).await
    }

    async fn finish(&self, claim: ClaimRef, _: Option<()>, end: &End) -> Result<FinishOutcome, StoreError> {
        let scripts = &self.scripts;
        let script = match end {
            End::Completed(_) => &scripts.complete,
            End::Released => &scripts.release,
            End::Unknown => &scripts.unknown,
            End::Cancelled => &scripts.cancel,
        };
        let mut invocation = script.key(self.key(&claim.id));
        invocation.arg(claim.token.as_bytes());
        match end {
            End::Completed(completion) => {
                invocation.arg(expiry(completion.retention)).arg(completion.record.encode());
            }
            End::Released | End::Cancelled => {
                invocation.key(self.tombstone(claim)).arg(expiry(TOMBSTONE));
            }
            End::Unknown => {}
        }
        self.fenced(&invocation).await
    }

    async fn get(&self, id: &RecordId) -> Result<Option<RecordState>, StoreError> {
        self.verify_once().await?;
        let known: Option<Known> = self.call(&self.scripts.look.key(self.key(id))).await?;
        known.map(script::state).transpose().map_err(StoreError::Unreadable)
    }

    /// Returns 0 without asking the server: Redis removes expired keys by itself.
    async fn purge_expired(&self, _: usize) -> Result<usize, StoreError> {
        Ok(0)
    }
}

impl<C> fmt::Debug for RedisStore<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("prefix", &self.prefix)
            .field("timeout", &self.timeout)
            .field("replicas", &self.replicas)
            .finish_non_exhaustive()
    }
}
