//! An open database. redb panics on some damaged files, so every call to redb goes through this
//! file, and a panic becomes an error.

use std::sync::Arc;

use redb::Database;

use super::backend::Gate;
use super::failure::{Failed, Failure, catch_panic};

/// An open database. Dropping it does not panic.
#[allow(missing_debug_implementations, reason = "not public: see `engine`")]
pub struct OpenDatabase {
    /// `Some` until the drop.
    database: Option<Database>,
    /// `None` for a database that the program opened.
    gate: Option<Arc<Gate>>,
}

impl OpenDatabase {
    pub(super) fn new(database: Database, gate: Option<Arc<Gate>>) -> Self {
        Self { database: Some(database), gate }
    }

    /// Calls the database.
    ///
    /// # Errors
    ///
    /// The work or the database has failed.
    pub fn call<T>(&self, work: impl FnOnce(&Database) -> Result<T, Failed>) -> Result<T, Failed> {
        let Some(database) = &self.database else { return Err(Failure::Closed.into()) };
        catch_panic(|| work(database)).unwrap_or_else(|panic| Err(panic.into()))
    }

    pub(super) fn call_mut<T>(&mut self, work: impl FnOnce(&mut Database) -> T) -> Result<T, Failure> {
        let database = self.database.as_mut().ok_or(Failure::Closed)?;
        catch_panic(|| work(database))
    }

    /// Closes the database, and stops redb from writing while it closes.
    pub(super) fn give_up(self) {
        if let Some(gate) = &self.gate {
            gate.shut();
        }
    }
}

impl Drop for OpenDatabase {
    fn drop(&mut self) {
        let database = self.database.take();
        // The panic hook has reported a panic, and the next opening checks the file.
        let _panic = catch_panic(move || drop(database));
    }
}
