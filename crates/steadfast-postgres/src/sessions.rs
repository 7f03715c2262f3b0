//! Detects two properties of the sessions behind a pool that the store's statements depend on.
//!
//! The pool's settings do not show them:
//!
//! * The sessions' default isolation may be stricter than `READ COMMITTED`. The database then
//!   refuses statements that do not conflict.
//! * A pooler may give each transaction another session (pgbouncer's transaction mode). A prepared
//!   statement is then missing in the next transaction. Or its name belongs to another client's
//!   statement, which would be executed instead.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool, Postgres, Row as _};
use steadfast_core::clock;
use tokio::sync::OnceCell;

use super::database::random;
use super::error::{is_conflict, is_serialization_failure, lost_statement};

/// How long the check waits for a connection, and for a transaction that may itself be waiting.
const PATIENCE: Duration = Duration::from_secs(1);
/// Names the isolation, because a SERIALIZABLE, deferrable transaction may wait here for others.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY";
const UNNAMED: &str = "the store's statements are sent without a name, which takes three more round trips a call; \
     pgbouncer 1.21 and later keep prepared statements in transaction mode if max_prepared_statements is set";

/// The detected properties of the sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    checked: OnceCell<()>,
    /// The default isolation is not `READ COMMITTED`.
    strict: AtomicBool,
    /// A prepared statement does not outlive its transaction.
    loses_statements: AtomicBool,
}

impl Sessions {
    /// Checks the sessions before the first statement. Later calls cost nothing.
    pub(super) async fn check(self: &Arc<Self>, pool: &PgPool) -> Result<(), sqlx::Error> {
        if self.checked.initialized() {
            return Ok(());
        }
        // On a separate task. A timeout that drops this call then neither leaves a BEGIN half done
        // (see `Database::begin`) nor makes the next call start all over.
        let (sessions, pool) = (self.clone(), pool.clone());
        let check = async move {
            sessions.checked.get_or_try_init(|| sessions.find_out(&pool)).await?;
            Ok(())
        };
        tokio::spawn(check).await.map_err(|gone| sqlx::Error::Io(std::io::Error::other(gone)))?
    }

    async fn find_out(&self, pool: &PgPool) -> Result<(), sqlx::Error> {
        let mut one = pool.acquire().await?;
        let level: String = one.fetch_one("SHOW transaction_isolation").await?.try_get(0)?;
        self.strict.store(level != "read committed", Ordering::Relaxed);
        let loses = match second(pool).await {
            Some(mut other) => loses_statements(&mut one, &mut other).await?,
            None => match PgConnection::connect_with(&pool.connect_options()).await {
                Ok(mut other) => loses_statements(&mut one, &mut other).await?,
                Err(error) => {
                    // Without a second connection nothing can be compared; a statement without a
                    // name always works.
                    self.set_loses_statements(&format!("no second connection to compare with: {error}"));
                    false
                }
            },
        };
        if loses {
            self.set_loses_statements("a pooler gives each transaction another session, and keeps no statements");
        }
        Ok(())
    }

    /// Returns whether a statement needs an explicit transaction, which names its isolation and
    /// stays in one session.
    pub(super) fn need_transaction(&self) -> bool {
        self.strict.load(Ordering::Relaxed) || self.lose_statements()
    }

    /// Returns whether prepared statements must have no name.
    pub(super) fn lose_statements(&self) -> bool {
        self.loses_statements.load(Ordering::Relaxed)
    }

    /// Updates the properties from the error of a statement. Returns whether the statement was not
    /// executed for a reason that has passed.
    pub(super) fn learn(&self, error: &sqlx::Error) -> bool {
        if is_serialization_failure(error) {
            self.strict.store(true, Ordering::Relaxed);
        }
        if lost_statement(error) {
            self.set_loses_statements("a prepared statement is not in its session");
        }
        is_conflict(error) || lost_statement(error)
    }

    fn set_loses_statements(&self, reason: &str) {
        if !self.loses_statements.swap(true, Ordering::Relaxed) {
            tracing::warn!(target: "steadfast", reason, "{UNNAMED}");
        }
    }
}

/// Takes a second connection from the pool, if it has one.
async fn second(pool: &PgPool) -> Option<PoolConnection<Postgres>> {
    if pool.options().get_max_connections() < 2 {
        return None;
    }
    clock::until(clock::now().checked_add(PATIENCE), pool.acquire()).await.ok()?.ok()
}

/// Returns whether a statement that `one` prepares is missing in its next transaction, or is
/// another client's.
async fn loses_statements(one: &mut PgConnection, other: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let first = session_of(one).await?;
    let mut held = other.begin_with(BEGIN).await?;
    let taken = session_of(&mut held).await?;
    // A pooler with a single session has none left for this connection.
    let Ok(second) = clock::until(clock::now().checked_add(PATIENCE), session_of(one)).await else { return Ok(true) };
    held.rollback().await?;
    // Two more, since a pooler that hands out sessions in turns may have returned to the first one.
    let sessions = [second?, session_of(one).await?, session_of(one).await?];
    if taken != first && sessions.into_iter().all(|session| session == first) {
        return Ok(false);
    }
    let probe = Probe::new()?;
    let Ok(first) = probe.session(one).await else { return Ok(true) };
    let held = other.begin_with(BEGIN).await?;
    let kept = matches!(probe.session(one).await, Ok(second) if second != first);
    held.rollback().await?;
    Ok(!kept)
}

async fn session_of(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    connection.fetch_one("SELECT pg_backend_pid()").await?.try_get(0)
}

/// A named prepared statement that no other client can have.
struct Probe {
    tag: String,
}

impl Probe {
    fn new() -> Result<Self, sqlx::Error> {
        Ok(Self { tag: random()?.iter().map(|byte| format!("{byte:02x}")).collect() })
    }

    /// Returns the session in which the statement was executed, or an error if another statement
    /// ran.
    ///
    /// Has nine parameters and is read-only. So another client's statement under the same name is
    /// refused or changes nothing.
    async fn session(&self, connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
        let values = "ARRAY[$2, $3, $4, $5, $6, $7, $8, $9]::int4[]";
        let sql = format!("SELECT pg_backend_pid(), '{}' WHERE $1 = ALL ({values})", self.tag);
        let mut transaction = connection.begin_with(BEGIN).await?;
        let probe = (0..9).fold(sqlx::query_as(AssertSqlSafe(sql)), |probe, _| probe.bind(1_i32));
        let (session, tag): (i32, String) = probe.fetch_one(&mut *transaction).await?;
        transaction.rollback().await?;
        if tag == self.tag { Ok(session) } else { Err(sqlx::Error::RowNotFound) }
    }
}
