//! The place of a store's records and effects, for the process that dies and for its successor.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{CHILD, POINTS, dies};

pub(super) struct Scene {
    folder: TempDir,
    /// Opens the store again: a file, a prefix or a schema.
    place: String,
}

impl Scene {
    pub(super) fn file() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("keys.redb").display().to_string();
        Self { folder, place }
    }
    pub(super) fn prefix() -> Self {
        let token = steadfast::server::ClaimToken::new().unwrap();
        Self { folder: tempfile::tempdir().unwrap(), place: format!("{:?}:", token.as_bytes()) }
    }
    pub(super) fn schema(schema: String) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), place: schema }
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Returns the file that counts the effects.
    pub(super) fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Lets the test of this name die at `point`.
    pub(super) fn dies(&self, name: &str, point: &str) {
        dies(name, &format!("{}#{}#{point}", self.place, self.log().display())).unwrap();
    }
}

/// Runs `act` with place, log and point if this process is the one that is to die.
pub(super) async fn child(act: impl AsyncFn(&str, &Path, &str)) {
    let Ok(arguments) = std::env::var(CHILD) else { return };
    let parts: Vec<&str> = arguments.split('#').collect();
    let [place, log, point] = parts[..] else { panic!("{arguments}") };
    act(place, Path::new(log), point).await;
}

/// Dies at every point of the operation, each time in a new place, and checks the remains with
/// `look`.
pub(super) async fn at_every_point(child: &str, scene: impl AsyncFn() -> Scene, look: impl AsyncFn(&Scene, &str)) {
    for point in POINTS {
        let scene = scene().await;
        scene.dies(child, point);
        look(&scene, point).await;
    }
}
pub(super) fn redb(place: &str) -> steadfast_redb::RedbStore {
    steadfast_redb::RedbStore::open(place).unwrap()
}
pub(super) async fn redis(place: &str) -> steadfast_redis::RedisStore {
    let url = super::super::redis_server::shared();
    steadfast_redis::RedisStore::connect(&url).await.unwrap().prefix(place)
}
pub(super) async fn postgres(place: &str) -> (sqlx::PgPool, steadfast_postgres::PostgresStore) {
    let pool = super::super::postgres::pool_in(place);
    let store = steadfast_postgres::PostgresStore::new(pool.clone());
    store.create_table().await.unwrap();
    (pool, store)
}
pub(super) async fn schema() -> Scene {
    Scene::schema(super::super::postgres::pool().await.0)
}
