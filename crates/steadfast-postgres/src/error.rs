//! The meaning of the database's errors for the store.
//!
//! Codes: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.

use steadfast_server::{StoreError, StoreLimit};

const DISK: StoreLimit = StoreLimit::new("the disk of the database", "give it more room");

/// Returns whether the transaction was rolled back because of another one. It may be begun again.
pub(super) fn is_conflict(error: &sqlx::Error) -> bool {
    is_serialization_failure(error) || has_code(error, &["40P01"]) // deadlock_detected
}

/// Returns whether the database has refused a COMMIT, so that the transaction is certainly rolled
/// back. The cause is a conflict, a deferred constraint (class 23), or an exception of a deferred
/// trigger (P0001). Other errors may come from a pooler, or from a session that ended after its
/// commit (57P01 while it waits for a replica).
pub(super) fn refuses_commit(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    is_conflict(error) || code.is_some_and(|code| code.starts_with("23") || code == "P0001")
}

/// serialization_failure: the isolation is stricter than READ COMMITTED.
pub(super) fn is_serialization_failure(error: &sqlx::Error) -> bool {
    has_code(error, &["40001"])
}

/// invalid_sql_statement_name, duplicate_prepared_statement: the statement was prepared in another
/// session. Nothing was executed.
pub(super) fn lost_statement(error: &sqlx::Error) -> bool {
    has_code(error, &["26000", "42P05"])
}

/// read_only_sql_transaction: the server is a standby, or a primary that has become one.
pub(super) fn is_read_only(error: &sqlx::Error) -> bool {
    has_code(error, &["25006"])
}

/// admin_shutdown: the session was ended. A new session may be on another server.
pub(super) fn has_ended(error: &sqlx::Error) -> bool {
    has_code(error, &["57P01"])
}

/// insufficient_privilege: the role may not create a table, or does not own it. PostgreSQL asks this
/// before it looks whether the table exists.
pub(super) fn is_denied(error: &sqlx::Error) -> bool {
    has_code(error, &["42501"])
}

/// no_active_sql_transaction, invalid_savepoint_specification: the handler's SQL has ended the
/// transaction, and the savepoint with it. What it has committed stays.
pub(super) fn has_no_savepoint(error: &sqlx::Error) -> bool {
    has_code(error, &["25P01", "3B001"])
}

/// undefined_table.
#[cfg(feature = "outbox")]
pub(super) fn lacks_table(error: &sqlx::Error) -> bool {
    has_code(error, &["42P01"])
}

/// Returns whether a statement may have been executed all the same: the connection is gone, or its
/// session was ended (class 57P), or the database says so (40003, class 08).
#[cfg(feature = "outbox")]
pub(super) fn is_lost(error: &sqlx::Error) -> bool {
    match error.as_database_error().map(sqlx::error::DatabaseError::code) {
        Some(code) => code.is_some_and(|code| code.starts_with("57P") || code.starts_with("08") || code == "40003"),
        None => !matches!(error, sqlx::Error::Encode(_) | sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. }),
    }
}

/// disk_full.
pub(super) fn is_full(error: &sqlx::Error) -> bool {
    has_code(error, &["53100"])
}

fn has_code(error: &sqlx::Error, codes: &[&str]) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| codes.contains(&&*code))
}

pub(super) fn unavailable(error: sqlx::Error) -> StoreError {
    if is_full(&error) { StoreError::Full(DISK) } else { StoreError::Unavailable(error.into()) }
}
