//! A store with one transaction for claim, business rows and record, so that none is lost without
//! the others.
//!
//! The claim is an advisory lock of the transaction that is lent to the handler. No row shows the
//! claim before its end. So a process that dies leaves nothing behind, and its claim ends with its
//! connection. A concurrent repeat gets its response at once: it tries the lock without waiting.
//! Waiting would block a pooled connection for as long as the first handler runs.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use sqlx::{Connection as _, Executor as _, FromRow as _, PgConnection, Postgres, Row as _, Transaction};
use steadfast_core::clock;
use steadfast_server::{
    Claim, ClaimOutcome, ClaimRef, End, Fingerprint, FinishOutcome, RecordId, RecordState, Store, StoreError,
};
use tokio::sync::OwnedSemaphorePermit;

use super::database::{leave, or_rolled_back};
use super::error::{has_no_savepoint, refuses_commit, unavailable};
use super::row::Row;
use super::{PostgresStore, lock_of, milliseconds};

/// A store that keeps its records in PostgreSQL, written in the handler's own transaction. Returned
/// by [`PostgresStore::transactional`].
///
/// Your handler takes the transaction from the request's extensions and writes its rows through it:
///
/// ```
/// use axum::Extension;
/// use axum::http::StatusCode;
/// use axum::response::{IntoResponse, Response};
/// use steadfast_server::{TransactionHandle, ExecutionOutcome};
/// use steadfast_postgres::PostgresSession;
///
/// type Transaction = Extension<TransactionHandle<PostgresSession>>;
///
/// async fn order(Extension(transaction): Transaction) -> Response {
///     // The guard must be dropped before the handler returns.
///     let Some(mut session) = transaction.lock() else {
///         return StatusCode::INTERNAL_SERVER_ERROR.into_response();
///     };
///     let insert = sqlx::query("INSERT INTO orders (item) VALUES ('tea')");
///     match insert.execute(&mut **session).await {
///         Ok(_) => StatusCode::CREATED.into_response(),
///         // Stores nothing and releases the key, for every error. Without the outcome, the store
///         // releases it only after errors that fail the transaction, such as a deadlock.
///         Err(_) => {
///             let outcome = Extension(ExecutionOutcome::NotExecuted);
///             (StatusCode::SERVICE_UNAVAILABLE, outcome).into_response()
///         }
///     }
/// }
/// ```
///
/// | response of the handler | business rows | record |
/// | --- | --- | --- |
/// | 2xx, 3xx, or [`ExecutionOutcome::Executed`](steadfast_server::ExecutionOutcome::Executed) | committed | committed with them |
/// | any other | rolled back to the savepoint before the handler | committed alone: the repeat gets the same response |
/// | 5xx after a statement that has failed the transaction, such as a deadlock | rolled back | none: the repeat runs. The caller gets the response, with `Idempotency-Status: released` |
/// | [`ExecutionOutcome::NotExecuted`](steadfast_server::ExecutionOutcome::NotExecuted) | rolled back | none: the repeat runs |
/// | [`ExecutionOutcome::Unknown`](steadfast_server::ExecutionOutcome::Unknown), a panic, an inner error | rolled back | "unknown": the repeat runs, unless you set [`OnUnknown::Reject`](steadfast_server::OnUnknown::Reject) |
/// | none: the process died, or its connection broke | rolled back by the database | none: the repeat runs |
/// | any, but the transaction cannot be ended: it had failed, the database refuses the record or is not there, the COMMIT meets a conflict (40001, 40P01), a deferred constraint (class 23) or a deferred trigger (P0001) | rolled back | none: the repeat runs. The caller gets a 503 of the type `rolled-back`, with `Retry-After` and `Idempotency-Status: released` |
/// | any, but the reply to the COMMIT is lost | committed, or rolled back: the layer looks the key up until it knows | with them, or none. The caller gets the response, or the 503. It gets a 500 if the layer learns nothing within [`end_wait`](steadfast_server::IdempotencyLayer::end_wait); a repeat then shows the outcome |
///
/// The layer never repeats a handler by itself. After a rollback by the database, the handler runs
/// again when its caller repeats the request. A handler can also recover from a failed statement,
/// in a savepoint of its own (`session.begin()`).
///
/// The transaction does not cover effects outside the database: a mail that was sent stays sent. It
/// is `READ COMMITTED`, whatever the sessions' default. It holds a connection of the pool while the
/// handler runs. At most half of the connections are held so: see
/// [`max_transactions`](PostgresStore::max_transactions).
///
/// Leases have no effect: the claim holds while its connection lives. Set `tcp_keepalives_idle` in
/// the database for machines that vanish silently, and `idle_in_transaction_session_timeout` for
/// handlers that hang.
///
/// Behind a pooler that keeps no prepared statements, the store clears the session's names before
/// lending it (`DEALLOCATE ALL`). The handler's own statements then work as usual within the
/// transaction.
#[derive(Clone)]
pub struct TransactionalPostgresStore {
    base: PostgresStore,
}

/// The transaction of an operation, lent to its handler. Dereferences to a [`PgConnection`].
///
/// The layer commits it or rolls it back. There is no method for either, and your SQL must not
/// contain `COMMIT`, `ROLLBACK` or `END`. The store notices one at the end of the operation: the
/// response becomes a 500, and no record is written. **But a `COMMIT` has kept your rows, and a
/// repeat runs the handler again.** To undo a part, use a savepoint (`session.begin()`).
///
/// ```
/// use steadfast_postgres::{PostgresSession, sqlx};
/// use steadfast_server::TransactionHandle;
///
/// async fn add_order(transaction: &TransactionHandle<PostgresSession>) -> sqlx::Result<bool> {
///     let Some(mut session) = transaction.lock() else { return Ok(false) };
///     let insert = sqlx::query("INSERT INTO orders (item) VALUES ('tea')");
///     let added = insert.execute(&mut **session).await?;
///     Ok(added.rows_affected() == 1)
/// }
/// ```
pub struct PostgresSession {
    transaction: Transaction<'static, Postgres>,
    fingerprint: Fingerprint,
    retention: Duration,
    /// Dropped after the transaction: fields are dropped in this order.
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
    /// Whether to keep the handler's rows.
    keep_effects: bool,
    /// Whether the response is a server error, which is no end if the handler's transaction has
    /// failed.
    is_error: bool,
}

impl TransactionalPostgresStore {
    pub(super) fn new(base: PostgresStore) -> Self {
        Self { base }
    }

    /// Returns a permit to lend a transaction. If all are lent, returns the state of the key
    /// instead.
    async fn permit(
        &self,
        claim: &Claim<'_>,
        deadline: Option<Instant>,
    ) -> Result<Result<OwnedSemaphorePermit, RecordState>, StoreError> {
        let lendable = self.base.transactions.clone();
        if let Ok(permit) = lendable.clone().try_acquire_owned() {
            return Ok(Ok(permit));
        }
        // A repeat learns the state at once: that needs a connection but no transaction.
        if let Some(known) = self.base.get(claim.id).await?
            && !may_take_over(claim, &known)
        {
            return Ok(Err(known));
        }
        match clock::until(deadline, lendable.acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Ok(permit)),
            _ => Err(StoreError::Busy(self.base.transactions_limit())),
        }
    }

    /// Returns a transaction that holds the key, or the row that prevents it.
    async fn hold(&self, claim: &Claim<'_>) -> Result<Result<Transaction<'static, Postgres>, Row>, sqlx::Error> {
        let mut transaction = self.base.database.begin().await?;
        let held = self.try_to_lend(claim, &mut transaction).await;
        let (transaction, in_the_way) = or_rolled_back(transaction, held).await?;
        let Some(row) = in_the_way else { return Ok(Ok(transaction)) };
        transaction.rollback().await?;
        Ok(Err(row))
    }

    /// Holds the key and prepares the transaction for a handler. Returns the row that prevents it,
    /// if any.
    async fn try_to_lend(&self, claim: &Claim<'_>, connection: &mut PgConnection) -> Result<Option<Row>, sqlx::Error> {
        let mut row = self.try_hold(claim, connection).await?;
        if row.is_free() {
            row = self.try_hold(claim, connection).await?;
        }
        if !row.is_free() {
            return Ok(Some(row));
        }
        // The setting lasts as long as this transaction: `end_transaction.sql` asks for it.
        let prepare = "SHOW transaction_read_only; SET LOCAL steadfast.held = 'on'; SAVEPOINT steadfast";
        let read_only = connection.fetch_one(prepare).await?;
        if read_only.try_get::<String, _>(0)? == "on" {
            leave(connection).await?;
            // The database refuses this with its own error, before a handler runs for nothing.
            connection.execute("SELECT FROM steadfast_records LIMIT 0 FOR UPDATE").await?;
        }
        if self.base.database.sessions.lose_statements() {
            // The names by which sqlx knows the handler's statements belong to another session, or
            // to another client's statements in this one.
            connection.execute("DEALLOCATE ALL").await?;
            connection.clear_cached_statements().await?;
        }
        Ok(None)
    }

    async fn try_hold(&self, claim: &Claim<'_>, connection: &mut PgConnection) -> Result<Row, sqlx::Error> {
        let hold = self.base.database.query(include_str!("sql/hold.sql"));
        let row = hold
            .bind(claim.id.as_bytes())
            .bind(lock_of(claim.id))
            .bind(claim.fingerprint.as_bytes())
            .bind(claim.take_over)
            .fetch_one(connection)
            .await?;
        Row::from_row(&row)
    }

    /// Writes the end and closes the transaction.
    async fn end(&self, claim: ClaimRef, session: PostgresSession, end: EndRow) -> Result<FinishOutcome, StoreError> {
        let deadline = self.base.database.deadline();
        let PostgresSession { mut transaction, fingerprint, .. } = session;
        let write = async {
            if end.is_error {
                // Fails if a statement of the handler has failed: only the database knows.
                if let Err(error) = transaction.execute("SELECT 1").await {
                    return if undo(&mut transaction).await? { Err(error) } else { Ok(false) };
                }
            }
            if !end.keep_effects && !undo(&mut transaction).await? {
                return Ok(false);
            }
            self.write_end(claim, fingerprint, &end, &mut transaction).await
        };
        let written = self.base.database.within(deadline, write).await;
        self.close(deadline, transaction, written).await
    }

    /// Commits the end, or rolls it back if `written` is `false`: the claim is no longer the
    /// caller's.
    ///
    /// Nothing is durable before the COMMIT. So any earlier failure, including no reply, is
    /// certainly a rollback.
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
        // Before the caller learns of it, since the lock would block a repeat. If this fails, the
        // database rolls back when the connection returns to the pool, or breaks.
        let _later = self.base.database.within(deadline, transaction.rollback()).await;
        ended
    }

    async fn commit(
        &self,
        deadline: Option<Instant>,
        transaction: Transaction<'static, Postgres>,
    ) -> Result<FinishOutcome, StoreError> {
        match self.base.database.within(deadline, transaction.commit()).await {
            Ok(()) => Ok(FinishOutcome::Stored),
            Err(error) if refuses_commit(&error) => Err(rolled_back(error)),
            // The lost reply may have confirmed the commit.
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
        let write = self.base.database.query(include_str!("sql/end_transaction.sql"));
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
        let deadline = self.base.database.deadline();
        let PostgresSession { mut transaction, fingerprint, .. } = session;
        let release = async {
            if !undo(&mut transaction).await? {
                return Ok(false);
            }
            let release = self.base.database.query(include_str!("sql/release_transaction.sql"));
            release.bind(id.as_bytes()).bind(fingerprint.as_bytes()).execute(&mut *transaction).await?;
            Ok(true)
        };
        let released = self.base.database.within(deadline, release).await;
        self.close(deadline, transaction, released).await
    }
}

impl Store for TransactionalPostgresStore {
    type Session = PostgresSession;

    const TRANSACTIONAL: bool = true;

    async fn claim(&self, claim: &Claim<'_>) -> Result<ClaimOutcome<PostgresSession>, StoreError> {
        self.base.verify_once().await?;
        let deadline = self.base.database.deadline();
        let permit = match self.permit(claim, deadline).await? {
            Ok(permit) => permit,
            Err(known) => return Ok(ClaimOutcome::Existing(known)),
        };
        let held = self.base.database.within(deadline, self.base.database.repeated(|| self.hold(claim))).await;
        match held.map_err(unavailable)? {
            Ok(transaction) => {
                let &Claim { fingerprint, retention, .. } = claim;
                Ok(ClaimOutcome::Acquired(PostgresSession { transaction, fingerprint, retention, _permit: permit }))
            }
            Err(row) => {
                let known = row.state()?;
                // The record that was in the way is gone; the next repeat will find that.
                Ok(ClaimOutcome::Existing(known.unwrap_or_else(|| RecordState::in_progress(None, Duration::ZERO))))
            }
        }
    }

    /// Returns `true`: the claim holds while its transaction is open, whatever its lease.
    async fn renew(&self, _: ClaimRef, _: Duration) -> Result<bool, StoreError> {
        Ok(true)
    }

    async fn finish(
        &self,
        claim: ClaimRef,
        session: Option<PostgresSession>,
        end: &End,
    ) -> Result<FinishOutcome, StoreError> {
        // Dropping the transaction rolls it back and leaves no trace, as if the process had died.
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
            // Only the transaction, which ends here, shows the claim.
            End::Cancelled => {
                drop(session);
                return Ok(FinishOutcome::Stored);
            }
        };
        let is_done = end.record.is_some();
        let ended = self.end(claim, session, end).await?;
        if is_done {
            // Now that the connection is free. Earlier, with an open transaction, the sweep would
            // wait for a second one.
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

/// Returns whether a repeat may take over an unknown operation, and so needs a transaction.
fn may_take_over(claim: &Claim<'_>, known: &RecordState) -> bool {
    claim.take_over && matches!(known, RecordState::Unknown { fingerprint, .. } if *fingerprint == claim.fingerprint)
}

/// Undoes the handler's statements. Also correct after a failed one: the database would refuse any
/// other statement. Returns `false` if the handler's SQL has ended the transaction: then this is no
/// rollback, because a `COMMIT` has kept its rows.
async fn undo(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    match connection.execute("ROLLBACK TO SAVEPOINT steadfast").await {
        Err(error) if has_no_savepoint(&error) => Ok(false),
        undone => undone.map(|_| true),
    }
}

fn rolled_back(error: sqlx::Error) -> StoreError {
    StoreError::RolledBack(error.into())
}
