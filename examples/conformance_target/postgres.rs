//! What only a database can do: a business row in the transaction that holds claim and record.

use std::collections::HashMap;
use std::str::FromStr;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::response::Response;
use axum::routing::post;
use http::{HeaderMap, StatusCode};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use steadfast::server::{Lent, PostgresSession, PostgresStore};

use crate::Result;
use crate::control::{Failpoint, die};
use crate::handlers::{Handlers, answer, created};

/// The database of one case: a schema of its own.
#[derive(Clone)]
pub(crate) struct Database {
    pool: PgPool,
    failpoint: Option<Failpoint>,
}

impl Database {
    pub(crate) async fn open(url: &str, namespace: &str, failpoint: Option<Failpoint>) -> Result<Self> {
        let named = !namespace.is_empty() && namespace.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !named {
            return Err(format!("STORE_NS={namespace} is no name for a schema").into());
        }
        let options = PgConnectOptions::from_str(url)?.options([("search_path", namespace)]);
        let pool = PgPoolOptions::new()
            .max_connections(20)
            .acquire_timeout(Duration::from_secs(2))
            .connect_with(options)
            .await?;
        let tables = format!(
            "SELECT pg_advisory_xact_lock(hashtext('conformance')); CREATE SCHEMA IF NOT EXISTS {namespace}; \
             CREATE TABLE IF NOT EXISTS business (tag text NOT NULL, event_id text, n bigserial)"
        );
        let mut transaction = pool.begin().await?;
        sqlx::raw_sql(AssertSqlSafe(tables)).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(Self { pool, failpoint })
    }

    pub(crate) async fn store(&self) -> Result<PostgresStore> {
        let store = PostgresStore::new(self.pool.clone()).timeout(Duration::from_secs(3));
        store.create_table().await?;
        Ok(store)
    }

    /// The rows that handlers have written under this tag.
    pub(crate) async fn rows(&self, tag: &str) -> Result<i64> {
        let rows = sqlx::query_scalar("SELECT count(*) FROM business WHERE tag = $1").bind(tag);
        Ok(rows.fetch_one(&self.pool).await?)
    }

    /// `/tx/orders`, to be put behind a layer over the transactional store.
    pub(crate) fn routes(&self, handlers: Handlers) -> Router {
        Router::new().route("/tx/orders", post(order)).with_state((self.clone(), handlers))
    }
}

async fn order(
    State((database, handlers)): State<(Database, Handlers)>,
    axum::Extension(lent): axum::Extension<Lent<PostgresSession>>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    _body: Bytes,
) -> Response {
    let id = handlers.run(&headers, &query).await;
    let tag = headers.get("x-test-tag").and_then(|tag| tag.to_str().ok()).unwrap_or("untagged");
    let Some(mut session) = lent.borrow() else { return answer(StatusCode::INTERNAL_SERVER_ERROR, &id, "{}") };
    let insert = sqlx::query("INSERT INTO business (tag) VALUES ($1)").bind(tag).execute(&mut **session).await;
    if let Err(error) = insert {
        eprintln!("the row could not be written: {error}");
        return answer(StatusCode::INTERNAL_SERVER_ERROR, &id, "{}");
    }
    if database.failpoint == Some(Failpoint::AfterBusinessWrite) {
        die().await;
    }
    created(&id)
}
