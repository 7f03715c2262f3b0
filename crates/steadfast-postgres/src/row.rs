//! Converts the database's row about a key into the state of the key.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row as _};
use steadfast_server::{Fingerprint, Record, RecordError, RecordState, StoreError};

/// A row of `claim.sql`, `hold.sql` or `look.sql`.
pub(super) struct Row {
    pub(super) won: bool,
    /// The caller's token was released or cancelled.
    pub(super) cancelled: bool,
    /// No open transaction of a handler holds the key.
    free: bool,
    /// This and the following fields are NULL if there is no row.
    state: Option<String>,
    fingerprint: Option<Vec<u8>>,
    record: Option<Vec<u8>>,
    lease_left_ms: Option<i64>,
}

// By hand: the derive macro would bring sqlx's macros with their parsers for every database.
impl FromRow<'_, PgRow> for Row {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            won: row.try_get("won")?,
            cancelled: row.try_get("cancelled")?,
            free: row.try_get("free")?,
            state: row.try_get("state")?,
            fingerprint: row.try_get("fingerprint")?,
            record: row.try_get("record")?,
            lease_left_ms: row.try_get("lease_left_ms")?,
        })
    }
}

impl Row {
    /// Returns whether a handler may run.
    pub(super) fn is_free(&self) -> bool {
        self.free && self.state.is_none()
    }

    /// Returns the state of the key; `None` if there is no record.
    pub(super) fn state(self) -> Result<Option<RecordState>, StoreError> {
        let damaged = StoreError::Unreadable(RecordError::Damaged);
        let (Some(state), Some(fingerprint)) = (self.state, self.fingerprint) else {
            return Ok((!self.free).then(|| RecordState::in_progress(None, Duration::ZERO)));
        };
        let Ok(fingerprint) = <[u8; 32]>::try_from(fingerprint) else { return Err(damaged) };
        let fingerprint = Fingerprint::from_bytes(fingerprint);
        let left = u64::try_from(self.lease_left_ms.unwrap_or(0)).unwrap_or(0);
        Ok(Some(match (state.as_str(), self.record) {
            // A running handler has taken the key over.
            ("running" | "unknown", _) if !self.free => RecordState::in_progress(fingerprint, Duration::ZERO),
            ("running", _) if left > 0 => RecordState::in_progress(fingerprint, Duration::from_millis(left)),
            ("running" | "unknown", _) => RecordState::unknown(fingerprint),
            ("done", Some(record)) => {
                RecordState::completed(fingerprint, Record::decode(&record).map_err(StoreError::Unreadable)?)
            }
            _ => return Err(damaged),
        }))
    }
}
