//! The parts of the store that do not depend on what it stores, for other crates of this project. Not
//! part of the stable API.

pub use crate::backend::LockedFile;
pub use crate::failure::{Failed, Failure};
pub use crate::open::{checked, open_file};
pub use crate::open_database::OpenDatabase;
pub use crate::shared::SharedDatabase;
pub use crate::tables::begin;
pub use crate::writer::{Layout, Writer};
