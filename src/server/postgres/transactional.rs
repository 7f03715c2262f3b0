//! One transaction for claim, business rows and record: what cannot be told apart cannot be lost apart.
//!
//! The claim is an advisory lock of the transaction that is lent to the handler: no row tells of it before the end, so a process
//! that dies leaves nothing behind, and its connection's end is the claim's end. A concurrent duplicate is told so at once: it tries
//! the lock and never waits for it, which would block a pooled connection for as long as the first handler runs.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use sqlx::{PgConnection, Postgres, Transaction};

use super::row::Row;
use super::{PostgresStore, lock_of, milliseconds, stored};
use crate::server::store::{Claim, ClaimRef, Claimed, Completed, End, Fingerprint, RecordId, State, Store, StoreError};

/// Records in PostgreSQL, written in the handler's own transaction. Made by [`PostgresStore::transactional`].
///
/// The handler finds the transaction in the request's extensions and writes its rows through it:
///
/// ```
/// use axum::Extension;
/// use axum::http::StatusCode;
/// use axum::response::{IntoResponse, Response};
/// use steadfast::server::{Lent, PostgresSession, Verdict};
///
/// async fn order(Extension(lent): Extension<Lent<PostgresSession>>) -> Response {
///     // Given back when `session` is dropped, which has to be before the answer.
///     let Some(mut session) = lent.borrow() else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
///     match sqlx::query("INSERT INTO orders (item) VALUES ('tea')").execute(&mut **session).await {
///         Ok(_) => StatusCode::CREATED.into_response(),
///         // A deadlock, a lost connection: nothing is kept, and the key is given back. Without the verdict this answer would be
///         // the operation's end, and every repeat would get it.
///         Err(_) => (StatusCode::SERVICE_UNAVAILABLE, Extension(Verdict::NotExecuted)).into_response(),
///     }
/// }
/// ```
///
/// | answer | business rows | record |
/// | --- | --- | --- |
/// | 2xx, 3xx, or [`Verdict::Executed`](crate::server::Verdict::Executed) | committed | committed with them |
/// | any other | rolled back to the savepoint before the handler | committed alone: the repeat gets the same answer |
/// | [`Verdict::NotExecuted`](crate::server::Verdict::NotExecuted) | rolled back | none: the repeat runs |
/// | [`Verdict::Unknown`](crate::server::Verdict::Unknown), a panic, an inner error | rolled back | "unknown": the repeat runs, unless the layer is told [`Lapsed::Refuse`](crate::server::Lapsed::Refuse) |
/// | none: the process died, or its connection broke | rolled back by the database | none: the repeat runs |
/// | a commit that fails, or whose reply is lost | rolled back; or committed | none; or with them. The caller gets a 500, since the answer may not be true; asked again, the key tells |
///
/// What the handler does outside of the database is not in the transaction: a mail that was sent stays sent. The transaction is
/// `READ COMMITTED`, and holds a connection of the pool for as long as the handler runs. Leases do not matter here: the claim holds
/// while the connection lives. For a machine that vanishes without a word, set `tcp_keepalives_idle` in the database, and
/// `idle_in_transaction_session_timeout` for a handler that hangs.
#[derive(Clone)]
pub struct TransactionalPostgresStore {
    base: PostgresStore,
}

/// The transaction that holds an operation, lent to its handler. It is a [`PgConnection`]; committing and rolling back are the
/// layer's.
pub struct PostgresSession {
    transaction: Transaction<'static, Postgres>,
    fingerprint: Fingerprint,
    retention: Duration,
}

impl Deref for PostgresSession {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.transaction
    }
}

impl DerefMut for PostgresSession {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }
}

impl fmt::Debug for PostgresSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSession").finish_non_exhaustive()
    }
}

impl fmt::Debug for TransactionalPostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionalPostgresStore").field("base", &self.base).finish()
    }
}

/// The end of an operation, as `end_transaction.sql` writes it.
struct EndRow {
    state: &'static str,
    record: Option<Vec<u8>>,
    retention: Duration,
    /// Whether the handler's rows stay.
    keep_effects: bool,
}

impl TransactionalPostgresStore {
    pub(super) fn new(base: PostgresStore) -> Self {
        Self { base }
    }

    /// A transaction that holds the key, or what stands in its way.
    async fn hold(&self, claim: &Claim<'_>) -> Result<Result<PostgresSession, Row>, sqlx::Error> {
        let mut transaction = self.base.begin().await?;
        let mut row = Self::try_hold(claim, &mut transaction).await?;
        if row.is_free() {
            row = Self::try_hold(claim, &mut transaction).await?;
        }
        if !row.is_free() {
            transaction.rollback().await?;
            return Ok(Err(row));
        }
        sqlx::query("SAVEPOINT steadfast").execute(&mut *transaction).await?;
        Ok(Ok(PostgresSession { transaction, fingerprint: claim.fingerprint, retention: claim.retention }))
    }

    async fn try_hold(claim: &Claim<'_>, connection: &mut PgConnection) -> Result<Row, sqlx::Error> {
        sqlx::query_as(include_str!("sql/hold.sql"))
            .bind(claim.id.as_bytes())
            .bind(lock_of(claim.id))
            .bind(claim.fingerprint.as_bytes())
            .bind(claim.take_over)
            .fetch_one(connection)
            .await
    }

    async fn end(&self, claim: ClaimRef, session: PostgresSession, end: EndRow) -> Result<Completed, sqlx::Error> {
        let PostgresSession { mut transaction, fingerprint, .. } = session;
        if !end.keep_effects {
            // Also right where a statement of the handler's has failed, after which no other one would be taken.
            sqlx::query("ROLLBACK TO SAVEPOINT steadfast").execute(&mut *transaction).await?;
        }
        let ended = Self::write_end(claim, fingerprint, &end, &mut transaction).await?;
        if ended {
            transaction.commit().await?;
        } else {
            transaction.rollback().await?;
        }
        Ok(stored(ended))
    }

    async fn write_end(
        claim: ClaimRef,
        fingerprint: Fingerprint,
        end: &EndRow,
        connection: &mut PgConnection,
    ) -> Result<bool, sqlx::Error> {
        let ended = sqlx::query(include_str!("sql/end_transaction.sql"))
            .bind(claim.id.as_bytes())
            .bind(claim.token.as_bytes())
            .bind(fingerprint.as_bytes())
            .bind(end.state)
            .bind(&end.record)
            .bind(milliseconds(end.retention))
            .execute(connection)
            .await?;
        Ok(ended.rows_affected() == 1)
    }

    async fn release(&self, id: RecordId, session: PostgresSession) -> Result<Completed, sqlx::Error> {
        let PostgresSession { mut transaction, fingerprint, .. } = session;
        sqlx::query("ROLLBACK TO SAVEPOINT steadfast").execute(&mut *transaction).await?;
        let release = sqlx::query(include_str!("sql/release_transaction.sql"));
        release.bind(id.as_bytes()).bind(fingerprint.as_bytes()).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(Completed::Stored)
    }
}

impl Store for TransactionalPostgresStore {
    type Session = PostgresSession;

    const HOLDS_EFFECTS: bool = true;

    async fn claim(&self, claim: &Claim<'_>) -> Result<Claimed<PostgresSession>, StoreError> {
        self.base.verify_once().await?;
        match self.base.bounded(self.hold(claim)).await? {
            Ok(session) => Ok(Claimed::Won(session)),
            Err(row) => {
                let known = row.state()?;
                // A record that was in the way and is gone now: whoever comes again finds out.
                Ok(Claimed::Known(known.unwrap_or_else(|| State::running(None, Duration::ZERO))))
            }
        }
    }

    /// The claim holds while its transaction is open, whatever its lease.
    async fn renew(&self, _: ClaimRef, _: Duration) -> Result<bool, StoreError> {
        Ok(true)
    }

    async fn finish(
        &self,
        claim: ClaimRef,
        session: Option<PostgresSession>,
        end: &End,
    ) -> Result<Completed, StoreError> {
        // Whoever still holds the transaction rolls it back by letting go, and nothing tells of it: as if the process had died.
        let lost = if matches!(end, End::Cancelled) { Completed::Stored } else { Completed::Lost };
        let Some(session) = session else { return Ok(lost) };
        let end = match end {
            End::Completed(completion) => EndRow {
                state: "done",
                record: Some(completion.record.encode()),
                retention: completion.retention,
                keep_effects: completion.keep_effects,
            },
            End::Unknown => {
                EndRow { state: "unknown", record: None, retention: session.retention, keep_effects: false }
            }
            End::Released => return self.base.bounded(self.release(claim.id, session)).await,
            // Nothing tells of a claim but its transaction, which ends here.
            End::Cancelled => {
                drop(session);
                return Ok(Completed::Stored);
            }
        };
        let is_done = end.record.is_some();
        let ended = self.base.bounded(self.end(claim, session, end)).await?;
        if is_done {
            // Now that the connection is free: a sweep beside an open transaction would wait for another one.
            self.base.sweep_sometimes().await;
        }
        Ok(ended)
    }

    async fn look(&self, id: &RecordId) -> Result<Option<State>, StoreError> {
        self.base.look(id).await
    }

    async fn sweep(&self, most: usize) -> Result<usize, StoreError> {
        self.base.sweep(most).await
    }
}
