//! The statements of an outbox: rows are read, and written in place of what was read.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use steadfast_outbox::rules::NewEntry;
use steadfast_outbox::{Entry, Now, OperationId, OutboxStoreError, Submitted, Terms, Usage, codec};
use uuid::Uuid;

use super::draft::{Draft, Row, Writes};
use crate::RACES;
use crate::database::{Database, Query, commit, limit, random};
use crate::error::{is_full, is_lost, lacks_table};

const READ: &str = include_str!("../sql/outbox_read.sql");
const WRITE: &str = include_str!("../sql/outbox_write.sql");

/// The table of an outbox. Clones share its connections.
#[derive(Clone)]
pub(super) struct Table {
    pub(super) database: Database,
}

impl Table {
    /// Reads the operations of these identifiers and names.
    pub(super) async fn read(
        &self,
        deadline: Option<Instant>,
        ids: Vec<Uuid>,
        names: Vec<String>,
    ) -> Result<Draft, sqlx::Error> {
        let read = self.database.rows(sqlx::query(READ).bind(ids).bind(names));
        draft(&self.database.within(deadline, read).await?)
    }

    /// Writes rows down. Returns those that had not changed since they were read.
    pub(super) async fn write(
        &self,
        deadline: Option<Instant>,
        version: Uuid,
        writes: Writes,
    ) -> Result<HashSet<OperationId>, sqlx::Error> {
        let write = self.database.rows(bound(sqlx::query(WRITE), version, writes));
        ids(&self.database.within(deadline, write).await?)
    }

    /// Writes an operation down in the caller's transaction.
    pub(super) async fn submit_in(
        &self,
        connection: &mut PgConnection,
        new: NewEntry,
    ) -> Result<Submitted, OutboxStoreError> {
        let submit = async {
            for _ in 0..RACES {
                let names: Vec<String> = new.name.iter().cloned().collect();
                let read = self.database.query(READ).bind(vec![*new.id.as_uuid()]).bind(names);
                let mut draft = draft(&read.fetch_all(&mut *connection).await?)?;
                let submitted = draft.submit(&new, None);
                let writes = draft.writes().map_err(encode)?;
                if writes.ids.is_empty() {
                    return Ok(submitted);
                }
                let write = bound(self.database.query(WRITE), new_version()?, writes);
                if !write.fetch_all(&mut *connection).await?.is_empty() {
                    return Ok(submitted);
                }
            }
            Err(sqlx::Error::Protocol("lost too many races for the name".to_owned()))
        };
        self.database.within(self.database.deadline(), submit).await.map_err(unavailable)?
    }

    /// Claims operations that are due.
    pub(super) async fn claim_due(
        &self,
        terms: Terms,
        most: usize,
        except: &[String],
    ) -> Result<Vec<Entry>, OutboxStoreError> {
        const DUE: &str = include_str!("../sql/outbox_due.sql");
        let version = new_version().map_err(unavailable)?;
        let tried = Mutex::new(Vec::new());
        let claim = || async {
            let due = self.database.query(DUE).bind(except.to_vec()).bind(limit(most));
            let change = |draft: &mut Draft| {
                let claimed = draft.claim_due(terms, most);
                tried.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&claimed);
                claimed
            };
            self.change_locked(due, version, change).await
        };
        match self.database.within(self.database.deadline(), self.database.repeated(claim)).await {
            // Without a look they would wait for the end of leases that nobody has.
            Err(error) if is_lost(&error) => {
                let tried = tried.into_inner().unwrap_or_else(PoisonError::into_inner);
                if tried.is_empty() { Err(unavailable(error)) } else { self.claimed(version, tried).await }
            }
            claimed => claimed.map_err(unavailable),
        }
    }

    /// Returns those entries that a claim of unknown outcome has written.
    async fn claimed(&self, version: Uuid, tried: Vec<Entry>) -> Result<Vec<Entry>, OutboxStoreError> {
        let ids = tried.iter().map(|entry| *entry.id.as_uuid()).collect();
        let draft = self.read(self.database.deadline(), ids, Vec::new()).await.map_err(unavailable)?;
        Ok(tried.into_iter().filter(|entry| draft.version(entry.id) == Some(version)).collect())
    }

    /// Removes what operations do not need any more. Returns how many it has changed.
    pub(super) async fn sweep(&self, most: usize) -> Result<usize, OutboxStoreError> {
        const SWEEP: &str = include_str!("../sql/outbox_sweep.sql");
        let version = new_version().map_err(unavailable)?;
        let sweep = || async {
            let ready = self.database.query(SWEEP).bind(limit(most));
            self.change_locked(ready, version, |draft| draft.sweep(most)).await
        };
        self.database.within(self.database.deadline(), self.database.repeated(sweep)).await.map_err(unavailable)
    }

    /// Locks rows, changes them, and commits, in one transaction.
    async fn change_locked<T>(
        &self,
        lock: Query<'_>,
        version: Uuid,
        change: impl FnOnce(&mut Draft) -> T,
    ) -> Result<T, sqlx::Error> {
        let mut transaction = self.database.begin().await?;
        let changed = async {
            let mut draft = draft(&lock.fetch_all(&mut *transaction).await?)?;
            let changed = change(&mut draft);
            self.write_locked(&mut transaction, version, &draft).await?;
            Ok(changed)
        };
        let changed = changed.await;
        commit(transaction, changed).await
    }

    async fn write_locked(
        &self,
        connection: &mut PgConnection,
        version: Uuid,
        draft: &Draft,
    ) -> Result<(), sqlx::Error> {
        let mut unreadable = Vec::new();
        for (id, error) in draft.unreadable() {
            tracing::error!(target: "steadfast", operation = %id, %error, "an operation cannot be read and is left alone");
            unreadable.push(*id.as_uuid());
        }
        if !unreadable.is_empty() {
            let leave = self.database.query(include_str!("../sql/outbox_leave.sql")).bind(unreadable);
            leave.execute(&mut *connection).await?;
        }
        let mut writes = draft.writes().map_err(encode)?;
        let removed = std::mem::take(&mut writes.removed);
        if !removed.is_empty() {
            let delete = self.database.query(include_str!("../sql/outbox_delete.sql")).bind(removed);
            delete.execute(&mut *connection).await?;
        }
        if !writes.ids.is_empty() {
            bound(self.database.query(WRITE), version, writes).fetch_all(&mut *connection).await?;
        }
        Ok(())
    }

    pub(super) async fn next_due(&self, except: Vec<String>) -> Result<Option<Duration>, OutboxStoreError> {
        let next = sqlx::query(include_str!("../sql/outbox_next_due.sql")).bind(except);
        let next = self.database.within(self.database.deadline(), self.database.optional_row(next)).await;
        let left = next.map_err(unavailable)?.map(|row| row.try_get::<i64, _>(0)).transpose();
        Ok(left.map_err(unavailable)?.map(|left| Duration::from_millis(left.unsigned_abs())))
    }

    pub(super) async fn list(&self, after: Option<OperationId>, most: usize) -> Result<Vec<Entry>, OutboxStoreError> {
        let list = sqlx::query(include_str!("../sql/outbox_list.sql"));
        let list = list.bind(after.map(|after| *after.as_uuid())).bind(limit(most));
        let rows =
            self.database.within(self.database.deadline(), self.database.rows(list)).await.map_err(unavailable)?;
        rows.iter().map(|row| Ok(to_row(row).map_err(unavailable)?.entry?)).collect()
    }

    pub(super) async fn usage(&self) -> Result<Usage, OutboxStoreError> {
        let count = self.database.row(sqlx::query(include_str!("../sql/outbox_usage.sql")));
        let row = self.database.within(self.database.deadline(), count).await.map_err(unavailable)?;
        let number = |column| row.try_get::<i64, _>(column).map_err(unavailable);
        Ok(Usage::new(number(0)?.unsigned_abs(), number(1)?.unsigned_abs()))
    }
}

fn bound(query: Query<'_>, version: Uuid, writes: Writes) -> Query<'_> {
    let Writes { ids, before, names, origins, states, due, sweep, entries, removed: _ } = writes;
    let query = query.bind(version).bind(ids).bind(before).bind(names).bind(origins).bind(states);
    query.bind(due).bind(sweep).bind(entries)
}

/// Reads rows that begin with the time. A row without an operation has the time alone.
fn draft(rows: &[PgRow]) -> Result<Draft, sqlx::Error> {
    let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let now = Now::certain(first.try_get::<i64, _>("now_ms")?.unsigned_abs());
    let is_there = |row: &&PgRow| row.try_get::<Option<Uuid>, _>("id").is_ok_and(|id| id.is_some());
    Ok(Draft::new(now, rows.iter().filter(is_there).map(to_row).collect::<Result<_, _>>()?))
}

fn to_row(row: &PgRow) -> Result<Row, sqlx::Error> {
    let id = OperationId::from(row.try_get::<Uuid, _>("id")?);
    let entry = codec::decode(id, row.try_get("entry")?);
    Ok(Row { id, version: row.try_get("version")?, name: row.try_get("name")?, entry })
}

fn ids(rows: &[PgRow]) -> Result<HashSet<OperationId>, sqlx::Error> {
    rows.iter().map(|row| Ok(row.try_get::<Uuid, _>(0)?.into())).collect()
}

/// Returns a version that no other write has.
pub(super) fn new_version() -> Result<Uuid, sqlx::Error> {
    Ok(Uuid::from_bytes(random()?))
}

pub(super) fn encode(error: codec::CodecError) -> sqlx::Error {
    sqlx::Error::Encode(error.into())
}

/// Converts an error of the database. One error can be told to several callers.
pub(super) fn unavailable(error: impl Into<Arc<sqlx::Error>>) -> OutboxStoreError {
    let error = error.into();
    if is_full(&error) {
        return OutboxStoreError::full("the disk of the database has no room");
    }
    if lacks_table(&error) {
        let advice = format!("{error}; create the table with PostgresOutbox::create_table");
        return OutboxStoreError::Unavailable(advice.into());
    }
    OutboxStoreError::Unavailable(Box::new(error))
}
