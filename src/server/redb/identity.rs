//! How the records of a file are identified.

use redb::{Database, Error, ReadableDatabase, ReadableTableMetadata, TableDefinition, TableError};

use super::tables::RECORDS;
use crate::server::identity::{IDENTITY_VERSION, verify_identity};

const META: TableDefinition<'_, &str, u32> = TableDefinition::new("steadfast_meta");
const VERSION: &str = "identity_version";

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Writes the version into a file without records, and refuses a file whose records have another
/// one.
pub(super) fn verify(database: &Database) -> Result<(), Failed> {
    let found = read(database)?;
    if found.is_none() && is_empty(database)? {
        return Ok(write(database)?);
    }
    Ok(verify_identity(found)?)
}

fn read(database: &Database) -> Result<Option<u32>, Error> {
    match database.begin_read()?.open_table(META) {
        Ok(meta) => Ok(meta.get(VERSION)?.map(|version| version.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_empty(database: &Database) -> Result<bool, Error> {
    match database.begin_read()?.open_table(RECORDS) {
        Ok(records) => Ok(records.is_empty()?),
        Err(TableError::TableDoesNotExist(_)) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn write(database: &Database) -> Result<(), Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(META)?.insert(VERSION, IDENTITY_VERSION)?;
    Ok(transaction.commit()?)
}
