//! Idempotency records in Redis: the store for [`steadfast-server`](steadfast_server) when several
//! processes serve one API.
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
//! Each step is one Lua script on one key, which Redis runs alone and by its own clock, so two
//! processes cannot both claim a key. What is lost when Redis or its machine dies depends on how
//! Redis is set up: [`RedisStore`] has the table. Record a payment in the database that holds it
//! (`steadfast-postgres`).
//!
//! [The guide](https://docs.rs/steadfast/latest/steadfast/guide/server/) compares the stores.

// This file has the rules of the `Store` contract, `script` reads the scripts' answers, `link` is the
// way to Redis, `check` tells whether the server forgets. The tests against real servers are in the
// workspace's `tests/it/server/redis*.rs`.

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

/// Records in Redis, one hash a key, for any number of processes. A token that was released or
/// cancelled is kept beside it, as a tombstone, for ten minutes.
///
/// ```no_run
/// use std::time::Duration;
/// use steadfast_server::{IdempotencyLayer, Scope, StoreError};
/// use steadfast_redis::RedisStore;
///
/// # async fn example() -> Result<(), StoreError> {
/// let store = RedisStore::connect("redis://127.0.0.1").await?.prefix("shop:").replicas(1, Duration::from_millis(100));
/// let layer = IdempotencyLayer::new(store, Scope::single_caller());
/// # Ok(())
/// # }
/// ```
///
/// | setting | default |
/// | --- | --- |
/// | [`prefix`](Self::prefix) | `steadfast:` |
/// | [`timeout`](Self::timeout) | 1 s for each call |
/// | [`replicas`](Self::replicas) | none: a claim is won when the primary has it |
///
/// # What it promises
///
/// As long as Redis keeps what it was given: of any number of claims of one key, from any number of processes, one is won; and what
/// was stored is answered for its retention. What Redis keeps depends on how it is set up. This is the weakest of the durable stores
/// where machines are lost; a payment is better recorded in the database that holds it.
///
/// | what happens | what is lost |
/// | --- | --- |
/// | a process that uses the store dies | nothing. Its claims lapse, and are [unknown](RecordState::Unknown) |
/// | Redis is killed, `appendfsync always` | nothing that was acknowledged |
/// | Redis is killed, `appendfsync everysec` (Redis's default with `appendonly yes`) | nothing that the system has; while a sync is slow, Redis holds writes back, for 2 s at most |
/// | its machine is lost, `appendfsync always` | nothing that was acknowledged, if its disk keeps its word |
/// | its machine is lost, `appendfsync everysec` | about the last second; 2 s while a sync is slow |
/// | either, without an append-only file | all since the last snapshot |
/// | failover to a replica | what the replica had not received: replication is asynchronous, and no acknowledgement waits for it |
/// | failover, with [`replicas`](Self::replicas) | less: no claim is won that a replica has not received. It may still be lost, where one that has not is promoted, or where all that have are lost |
/// | memory is short, `noeviction` | nothing: claims are refused, see below |
/// | memory is short, any other policy | any record |
///
/// Where a claim is lost, its operation may run twice. Where an end is lost and its claim is not, the operation is unknown.
/// [`connect`](RedisStore::connect) warns of the settings that it can see.
///
/// Sources: [persistence](https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/),
/// [replication](https://redis.io/docs/latest/operate/oss_and_stack/management/replication/),
/// [eviction](https://redis.io/docs/latest/develop/reference/eviction/),
/// [`WAIT`](https://redis.io/docs/latest/commands/wait/),
/// [Cluster](https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/).
///
/// # Time
///
/// Redis's clock is the only one; what the clocks of the processes say does not matter. A key expires with its record, so there is
/// nothing to sweep. Leases and retentions follow a jump of the clock of Redis's machine, and at a failover the difference between
/// the clocks of the two.
///
/// # When Redis is full
///
/// A claim is [`StoreError::Full`] once `maxmemory` is reached (policy `noeviction`), and whoever holds one is served: renewals take
/// no room, and ends are let through although they do (a script that has begun to write is not stopped in the middle:
/// [`scriptVerifyOOM`](https://github.com/redis/redis/blob/7.0/src/script.c)). So what has run is recorded, and `maxmemory` is overrun
/// by at most the answers of the operations that are under way; leave the machine that much room. A server that refuses the end all
/// the same has the claim lapse. Nothing is reserved at the claim, and there is no bound on the number of records: they may be on many
/// nodes, and nobody counts them.
///
/// # When Redis is gone
///
/// A call that is not answered in time is [`StoreError::Unavailable`]. One whose connection broke is made once more, over a new
/// connection, since all of them can be repeated.
///
/// So is one that meets a server which is not the primary, or not now: `READONLY`, `MASTERDOWN`,
/// `LOADING`, `NOREPLICAS`, `UNBLOCKED`. A primary that was demoted keeps its clients' connections
/// (Sentinel alone closes them), so the store leaves it, and asks by the same name again, at most ten
/// times a second. A name that leads to the new primary is followed at the first call; until it does,
/// calls are [`StoreError::Unavailable`]. A login that was refused is tried again in the same way.
///
/// [`from_connection`](RedisStore::from_connection) a connection of yours the store cannot do that. Calls are unavailable
/// for as long as that connection leads to the old primary. A Cluster's connection finds the new
/// one by itself; a [`ConnectionManager`] does not before it is closed.
///
/// # What it needs to be allowed
///
/// `~steadfast:* +evalsha +script|load +hmget +hset +hdel +pttl +pexpire +del +exists +set`;
/// `+info` for the check, `+wait` for replicas.
///
/// # TLS, Cluster, Sentinel
///
/// `rediss://` needs one of the `redis` crate's TLS features (`tokio-rustls-comp`), turned on by a dependency of your own.
/// [`from_connection`](RedisStore::from_connection) takes any connection of that crate, so a Cluster's
/// (feature `cluster-async`) too: the keys of a script are on one node. A prefix with a `{…}` would
/// put all records on one.
///
/// It wants Redis 5 or later, or a server that speaks like it. Tested with Redis 7.
///
/// # The scripts
///
/// Each is opened by this:
///
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
#[doc = "```\nLook:\n```lua"]
#[doc = include_str!("scripts/look.lua")]
#[doc = "```\nIdentity, which has a key of its own and is not opened so:\n```lua"]
#[doc = include_str!("scripts/identity.lua")]
#[doc = "```"]
pub struct RedisStore<C = ConnectionManager> {
    link: Link<C>,
    /// `WAIT` holds up its connection, so claims that wait for replicas have their own.
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
    /// Connects to the server at this URL (`redis://[user:password@]host[:port][/database]`), and [checks](Self::check) it. Warnings
    /// are logged, and kept in [`warnings`](Self::warnings).
    ///
    /// A connection that breaks is made anew when it is needed next. An attempt to connect takes 1 s at most.
    ///
    /// # Errors
    ///
    /// It is no URL of Redis's, or the server cannot be reached.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        let client = link::client(url).map_err(script::store_error)?;
        // Time is limited around each call. A reconnection that fails is told at once, and tried again by the next call.
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(None)
            .set_number_of_retries(0);
        let connect = ConnectionManager::new_with_config(client.clone(), config.clone());
        let connection = within(CONNECT, connect).await?;
        // It connects when it is used first: `claims` with the first claim that waits for replicas,
        // if ever.
        let open = move || ConnectionManager::new_lazy_with_config(client.clone(), config.clone());
        let claims = Link::over(open().map_err(script::store_error)?).opened_by(open.clone());
        let mut store =
            Self { link: Link::over(connection.clone()).opened_by(open), claims, ..Self::from_connection(connection) };
        store.warnings = store.check().await;
        Ok(store)
    }

    /// Lets a claim be won only when so many replicas have received it (`WAIT`), within `timeout` (whole milliseconds, at least one).
    /// Default: none.
    ///
    /// Fewer, and the claim is [`StoreError::Unavailable`]. It is made all the same: a repeat under
    /// the same token waits for the replicas anew, and a claim that is given up is to be
    /// [cancelled](End::Cancelled), as the layer does. This narrows what a failover can lose, and
    /// does not close it: see [What it promises](Self#what-it-promises). The end of an operation
    /// waits for no replica.
    ///
    /// Claims then have a connection of their own, on which each waits for the one before it: about
    /// as many a second as there are round trips to a replica in a second. A store that was made
    /// [`over`](RedisStore::from_connection) a connection has that one only; while replicas are
    /// away, its other calls wait as well.
    #[must_use]
    pub fn replicas(mut self, number: usize, timeout: Duration) -> Self {
        self.replicas = (number > 0).then_some(Replicas { number, timeout });
        self
    }
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> RedisStore<C> {
    /// A store over a connection that is there: a Cluster's, a Sentinel's, one with settings of its own. Its clones should share it,
    /// and it should reconnect by itself. The store never replaces it: see "When Redis is gone".
    ///
    /// It is not checked: [`check`](Self::check) does that.
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

    /// What the names of all keys begin with; a record's identity in hexadecimal follows, in braces, or `identity`.
    /// Default: `steadfast:`.
    ///
    /// Stores with one prefix share their records.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        // Records under another prefix may be another build's.
        self.identity = Identity::default();
        self
    }

    /// How long a call may take, reconnecting included. Default: 1 s. What [`replicas`](RedisStore::replicas) may take comes on top.
    /// The layer asks twice before it answers that the store is unavailable.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// What [`connect`](RedisStore::connect) found.
    #[must_use]
    pub fn warnings(&self) -> &[RedisWarning] {
        &self.warnings
    }

    /// Asks the server, or all primaries of a Cluster, whether it may forget records; logs and returns why.
    ///
    /// A server that does not answer is a warning, too.
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

    /// The name of a record. In braces, so that a Cluster keeps its tombstones on the same node.
    fn key(&self, id: &RecordId) -> String {
        let mut key = String::with_capacity(self.prefix.len() + 2 + 64);
        key.push_str(&self.prefix);
        key.push('{');
        push_hex(&mut key, id.as_bytes());
        key.push('}');
        key
    }

    /// The name of a token's tombstone.
    fn tombstone(&self, claim: ClaimRef) -> String {
        let mut key = self.key(&claim.id);
        key.push(':');
        push_hex(&mut key, claim.token.as_bytes());
        key
    }

    /// One script, within the time of one call.
    async fn call<T: FromRedisValue>(&self, invocation: &ScriptInvocation<'_>) -> Result<T, StoreError> {
        let call = |mut connection: C| async move { invocation.invoke_async(&mut connection).await };
        within(self.timeout, self.link.call(call)).await
    }

    /// A script that answers 1 if the claim was the caller's.
    async fn fenced(&self, invocation: &ScriptInvocation<'_>) -> Result<FinishOutcome, StoreError> {
        let held: bool = self.call(invocation).await?;
        Ok(if held { FinishOutcome::Stored } else { FinishOutcome::Fenced })
    }

    /// A claim that replicas have received.
    async fn claim_received(
        &self,
        replicas: Replicas,
        invocation: &ScriptInvocation<'_>,
    ) -> Result<Answer, StoreError> {
        let waits = milliseconds(replicas.timeout).max(1);
        // In one pipeline, since WAIT asks for the writes of its own connection: after a reconnection there are none to wait for.
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
            let error = format!("{received} of {number} replicas have received the claim in {waits} ms");
            return Err(StoreError::Unavailable(error.into()));
        }
        Ok(answer)
    }
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // A string grows: writing to it cannot fail.
        let _infallible = write!(text, "{byte:02x}");
    }
}

/// Milliseconds that Redis takes for an expiry: it refuses what leads past the end of its time. With none it forgets at
/// once, as the contract has it; what is shorter than a millisecond takes one.
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

    /// Redis expires its keys by itself: there is nothing to remove, and this returns 0 without asking.
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
