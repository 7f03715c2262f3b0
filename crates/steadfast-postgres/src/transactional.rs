//! One transaction for claim, business rows and record: what cannot be told apart cannot be lost apart.
//!
//! The claim is an advisory lock of the transaction that is lent to the handler: no row tells of it before the end, so a process
//! that dies leaves nothing behind, and its connection's end is the claim's end. A concurrent duplicate is told so at once: it tries
//! the lock and never waits for it, which would block a pooled connection for as long as the first handler runs.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use sqlx::{Connection as _, Executor as _, FromRow as _, PgConnection, Postgres, Row as _, Transaction};
use steadfast_core::clock;
use steadfast_server::{
    Claim, ClaimOutcome, ClaimRef, End, Fingerprint, FinishOutcome, RecordId, RecordState, Store, StoreError,
};
use tokio::sync::OwnedSemaphorePermit;

use super::error::{refuses_commit, unavailable};
use super::row::Row;
use super::statement::{leave, or_rolled_back};
use super::{PostgresStore, lock_of, milliseconds};

/// Records in PostgreSQL, written in the handler's own transaction. Made by [`PostgresStore::transactional`].
///
/// The handler finds the transaction in the request's extensions and writes its rows through it:
///
/// ```
/// use axum::Extension;
/// use axum::http::StatusCode;
/// use axum::response::{IntoResponse, Response};
/// use steadfast_server::{TransactionHandle, ExecutionOutcome};
/// use steadfast_postgres::PostgresSession;
///
/// async fn order(Extension(lent): Extension<TransactionHandle<PostgresSession>>) -> Response {
///     // Given back when `session` is dropped, which has to be before the answer.
///     let Some(mut session) = lent.lock() else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
///     match sqlx::query("INSERT INTO orders (item) VALUES ('tea')").execute(&mut **session).await {
///         Ok(_) => StatusCode::CREATED.into_response(),
///         // Nothing is kept, and the key is given back. The verdict says so for every error; the store
///         // knows it by itself of those that fail the transaction, such as a deadlock.
///         Err(_) => (StatusCode::SERVICE_UNAVAILABLE, Extension(ExecutionOutcome::NotExecuted)).into_response(),
///     }
/// }
/// ```
///
/// | answer | business rows | record |
/// | --- | --- | --- |
/// | 2xx, 3xx, or [`ExecutionOutcome::Executed`](steadfast_server::ExecutionOutcome::Executed) | committed | committed with them |
/// | any other | rolled back to the savepoint before the handler | committed alone: the repeat gets the same answer |
/// | 5xx after a statement that has failed the transaction, such as a deadlock | rolled back | none: the repeat runs. The caller gets the answer, with `Idempotency-Status: released` |
/// | [`ExecutionOutcome::NotExecuted`](steadfast_server::ExecutionOutcome::NotExecuted) | rolled back | none: the repeat runs |
/// | [`ExecutionOutcome::Unknown`](steadfast_server::ExecutionOutcome::Unknown), a panic, an inner error | rolled back | "unknown": the repeat runs, unless the layer is told [`OnUnknown::Reject`](steadfast_server::OnUnknown::Reject) |
/// | none: the process died, or its connection broke | rolled back by the database | none: the repeat runs |
/// | any, but the transaction cannot be ended: it had failed, the database refuses the record or is not there, the COMMIT meets a conflict (40001, 40P01), a deferred constraint (class 23) or a deferred trigger (P0001) | rolled back | none: the repeat runs. The caller gets a 503 of the type `…/rolled-back`, with `Retry-After` and `Idempotency-Status: released` |
/// | any, but the reply to the COMMIT is lost | committed, or rolled back: the key is looked up until that is known | with them, or none. The caller gets the answer, or the 503. It gets a 500 if nothing is known within [`end_wait`](steadfast_server::IdempotencyLayer::end_wait); asked again, the key tells |
///
/// The layer never runs a handler again by itself: a handler that the database has rolled back runs
/// when its caller asks again. It may mend a failed statement too, in a savepoint of its own
/// (`session.begin()`).
///
/// What the handler does outside of the database is not in the transaction: a mail that was sent
/// stays sent. The transaction is `READ COMMITTED`, whatever the sessions' default is. It holds a
/// connection of the pool for as long as the handler runs, and half of the connections can be held at
/// most: see [`max_transactions`](PostgresStore::max_transactions).
///
/// Leases do not matter here: the claim holds while the connection lives. For a machine that vanishes
/// without a word, set `tcp_keepalives_idle` in the database, and `idle_in_transaction_session_timeout`
/// for a handler that hangs.
///
/// Behind a pooler that keeps no prepared statements, the session's names are cleared before it is
/// lent (`DEALLOCATE ALL`), so the handler's own statements work as ever within the transaction.
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
    /// Given back after the transaction: fields are dropped in this order.
    _permit: OwnedSemaphorePermit,
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
    /// Whether the answer is a server error, which is no end if the database has failed the
    /// handler.
    is_error: bool,
}

impl TransactionalPostgresStore {
    pub(super) fn new(base: PostgresStore) -> Self {
        Self { base }
    }

    /// The right to lend a transaction; or what is known of the key, if all that may be lent are.
    async fn permit(
        &self,
        claim: &Claim<'_>,
        deadline: Option<Instant>,
    ) -> Result<Result<OwnedSemaphorePermit, RecordState>, StoreError> {
        let lendable = self.base.transactions.clone();
        if let Ok(permit) = lendable.clone().try_acquire_owned() {
            return Ok(Ok(permit));
        }
        // A repeat is told at once what is known: it needs a connection for that, and no
        // transaction.
        if let Some(known) = self.base.get(claim.id).await?
            && !may_take_over(claim, &known)
        {
            return Ok(Err(known));
        }
        match clock::until(deadline, lendable.acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Ok(permit)),
            _ => Err(StoreError::Busy),
        }
    }

    /// A transaction that holds the key, or what stands in its way.
    async fn hold(&self, claim: &Claim<'_>) -> Result<Result<Transaction<'static, Postgres>, Row>, sqlx::Error> {
        let mut transaction = self.base.begin().await?;
        let held = self.try_to_lend(claim, &mut transaction).await;
        let (transaction, in_the_way) = or_rolled_back(transaction, held).await?;
        let Some(row) = in_the_way else { return Ok(Ok(transaction)) };
        transaction.rollback().await?;
        Ok(Err(row))
    }

    /// Holds the key and makes the transaction ready for a handler; or returns what stands in the
    /// way.
    async fn try_to_lend(&self, claim: &Claim<'_>, connection: &mut PgConnection) -> Result<Option<Row>, sqlx::Error> {
        let mut row = self.try_hold(claim, connection).await?;
        if row.is_free() {
            row = self.try_hold(claim, connection).await?;
        }
        if !row.is_free() {
            return Ok(Some(row));
        }
        let read_only = connection.fetch_one("SHOW transaction_read_only; SAVEPOINT steadfast").await?;
        if read_only.try_get::<String, _>(0)? == "on" {
            leave(connection).await?;
            // The database refuses this in its own words, before a handler runs in vain.
            connection.execute("SELECT FROM steadfast_records LIMIT 0 FOR UPDATE").await?;
        }
        if self.base.sessions.lose_statements() {
            // The names by which sqlx knows the handler's statements are from another session, or
            // taken by another client in this one.
            connection.execute("DEALLOCATE ALL").await?;
            connection.clear_cached_statements().await?;
        }
        Ok(None)
    }

    async fn try_hold(&self, claim: &Claim<'_>, connection: &mut PgConnection) -> Result<Row, sqlx::Error> {
        let hold = self.base.query(include_str!("sql/hold.sql"));
        let row = hold
            .bind(claim.id.as_bytes())
            .bind(lock_of(claim.id))
            .bind(claim.fingerprint.as_bytes())
            .bind(claim.take_over)
            .fetch_one(connection)
            .await?;
        Row::from_row(&row)
    }

    /// Writes the end, and closes the transaction.
    async fn end(&self, claim: ClaimRef, session: PostgresSession, end: EndRow) -> Result<FinishOutcome, StoreError> {
        let deadline = self.base.deadline();
        let PostgresSession { mut transaction, fingerprint, .. } = session;
        let write = async {
            if end.is_error {
                // Refused if a statement of the handler's has failed: the database alone knows.
                transaction.execute("SELECT 1").await?;
            }
            if !end.keep_effects {
                // Also right where a statement of the handler's has failed, after which no other
                // one would be taken.
                transaction.execute("ROLLBACK TO SAVEPOINT steadfast").await?;
            }
            self.write_end(claim, fingerprint, &end, &mut transaction).await
        };
        let written = self.base.within(deadline, write).await;
        self.close(deadline, transaction, written).await
    }

    /// Commits what was written, or rolls it back: `false`, if the claim is no longer the caller's.
    ///
    /// Nothing is kept before the COMMIT, so what fails up to there is rolled back for certain, be
    /// it that the database does not answer.
    async fn close(
        &self,
        deadline: Option<Instant>,
        transaction: Transaction<'static, Postgres>,
        written: Result<bool, sqlx::Error>,
    ) -> Result<FinishOutcome, StoreError> {
        let ended = match written {
            Ok(true) => return self.commit(deadline, transaction).await,
            Ok(false) => Ok(FinishOutcome::Fenced),
            Err(error) => Err(rolled_back(error)),
        };
        // Before anybody is told: the lock would be in the way of a repeat. If this fails, the
        // database rolls back when the connection comes back to the pool, or breaks.
        let _later = self.base.within(deadline, transaction.rollback()).await;
        ended
    }

    async fn commit(
        &self,
        deadline: Option<Instant>,
        transaction: Transaction<'static, Postgres>,
    ) -> Result<FinishOutcome, StoreError> {
        match self.base.within(deadline, transaction.commit()).await {
            Ok(()) => Ok(FinishOutcome::Stored),
            Err(error) if refuses_commit(&error) => Err(rolled_back(error)),
            // The reply that was lost may have been that it is committed.
            Err(error) => Err(unavailable(error)),
        }
    }

    async fn write_end(
        &self,
        claim: ClaimRef,
        fingerprint: Fingerprint,
        end: &EndRow,
        connection: &mut PgConnection,
    ) -> Result<bool, sqlx::Error> {
        let write = self.base.query(include_str!("sql/end_transaction.sql"));
        let ended = write
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

    async fn release(&self, id: RecordId, session: PostgresSession) -> Result<FinishOutcome, StoreError> {
        let deadline = self.base.deadline();
        let PostgresSession { mut transaction, fingerprint, .. } = session;
        let release = async {
            transaction.execute("ROLLBACK TO SAVEPOINT steadfast").await?;
            let release = self.base.query(include_str!("sql/release_transaction.sql"));
            release.bind(id.as_bytes()).bind(fingerprint.as_bytes()).execute(&mut *transaction).await?;
            Ok(true)
        };
        let released = self.base.within(deadline, release).await;
        self.close(deadline, transaction, released).await
    }
}

impl Store for TransactionalPostgresStore {
    type Session = PostgresSession;

    const TRANSACTIONAL: bool = true;

    async fn claim(&self, claim: &Claim<'_>) -> Result<ClaimOutcome<PostgresSession>, StoreError> {
        self.base.verify_once().await?;
        let deadline = self.base.deadline();
        let permit = match self.permit(claim, deadline).await? {
            Ok(permit) => permit,
            Err(known) => return Ok(ClaimOutcome::Existing(known)),
        };
        let held = self.base.within(deadline, self.base.repeated(|| self.hold(claim))).await;
        match held.map_err(unavailable)? {
            Ok(transaction) => {
                let &Claim { fingerprint, retention, .. } = claim;
                Ok(ClaimOutcome::Acquired(PostgresSession { transaction, fingerprint, retention, _permit: permit }))
            }
            Err(row) => {
                let known = row.state()?;
                // A record that was in the way and is gone now: whoever comes again finds out.
                Ok(ClaimOutcome::Existing(known.unwrap_or_else(|| RecordState::in_progress(None, Duration::ZERO))))
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
    ) -> Result<FinishOutcome, StoreError> {
        // Whoever still holds the transaction rolls it back by letting go, and nothing tells of it:
        // as if the process had died.
        let lost = if matches!(end, End::Cancelled) { FinishOutcome::Stored } else { FinishOutcome::Fenced };
        let Some(session) = session else { return Ok(lost) };
        let end = match end {
            End::Completed(completion) => EndRow {
                state: "done",
                record: Some(completion.record.encode()),
                retention: completion.retention,
                keep_effects: completion.keep_effects,
                is_error: !completion.keep_effects && completion.record.status().is_server_error(),
            },
            End::Unknown => {
                let retention = session.retention;
                EndRow { state: "unknown", record: None, retention, keep_effects: false, is_error: false }
            }
            End::Released => return self.release(claim.id, session).await,
            // Nothing tells of a claim but its transaction, which ends here.
            End::Cancelled => {
                drop(session);
                return Ok(FinishOutcome::Stored);
            }
        };
        let is_done = end.record.is_some();
        let ended = self.end(claim, session, end).await?;
        if is_done {
            // Now that the connection is free: a sweep beside an open transaction would wait for another one.
            self.base.sweep_sometimes().await;
        }
        Ok(ended)
    }

    async fn get(&self, id: &RecordId) -> Result<Option<RecordState>, StoreError> {
        self.base.get(id).await
    }

    async fn purge_expired(&self, most: usize) -> Result<usize, StoreError> {
        self.base.purge_expired(most).await
    }
}

/// A repeat of what nobody knows runs: it has to wait for a transaction.
fn may_take_over(claim: &Claim<'_>, known: &RecordState) -> bool {
    claim.take_over && matches!(known, RecordState::Unknown { fingerprint, .. } if *fingerprint == claim.fingerprint)
}

fn rolled_back(error: sqlx::Error) -> StoreError {
    StoreError::RolledBack(error.into())
}
