//! The part that needs a database: a business row in the transaction of claim and record.

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
use steadfast_postgres::{PostgresSession, PostgresStore};
use steadfast_server::TransactionHandle;

use crate::Result;
use crate::control::{Failpoint, die};
use crate::handlers::{Handlers, answer, created, event, fails, tag};

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

    /// Returns the rows that handlers wrote under this tag, each with its event if it has one.
    pub(crate) async fn rows(&self, tag: &str) -> Result<Vec<Option<String>>> {
        let rows = sqlx::query_scalar("SELECT event_id FROM business WHERE tag = $1 ORDER BY n").bind(tag);
        Ok(rows.fetch_all(&self.pool).await?)
    }

    /// Returns `/tx/orders`. Put it behind a layer over the transactional store.
    pub(crate) fn orders(&self, handlers: Handlers) -> Router {
        Router::new().route("/tx/orders", post(order)).with_state((self.clone(), handlers))
    }

    /// Returns `/webhook`. Put it behind a layer of events over the transactional store.
    pub(crate) fn webhooks(&self, handlers: Handlers) -> Router {
        let state = (self.clone(), handlers);
        Router::new().route("/webhook", post(webhook)).route("/webhook/{consumer}", post(webhook)).with_state(state)
    }

    /// Writes one row in the layer's transaction.
    async fn write(
        &self,
        lent: &TransactionHandle<PostgresSession>,
        headers: &HeaderMap,
        event: Option<&str>,
    ) -> Result<()> {
        let mut session = lent.lock().ok_or("somebody else has the transaction")?;
        sqlx::query("INSERT INTO business (tag, event_id) VALUES ($1, $2)")
            .bind(tag(headers))
            .bind(event)
            .execute(&mut **session)
            .await?;
        if self.failpoint == Some(Failpoint::AfterBusinessWrite) {
            die().await;
        }
        Ok(())
    }
}

type Arguments = (
    State<(Database, Handlers)>,
    axum::Extension<TransactionHandle<PostgresSession>>,
    Query<HashMap<String, String>>,
    HeaderMap,
);

async fn order((State((database, handlers)), lent, Query(query), headers): Arguments, _body: Bytes) -> Response {
    let id = handlers.run(&headers, &query).await;
    match database.write(&lent, &headers, None).await {
        Ok(()) => created(&id),
        Err(error) => failed(&id, error.as_ref()),
    }
}

async fn webhook((State((database, handlers)), lent, Query(query), headers): Arguments, _body: Bytes) -> Response {
    let id = handlers.run(&headers, &query).await;
    if fails(&headers) {
        return answer(StatusCode::INTERNAL_SERVER_ERROR, &id, "{}");
    }
    match database.write(&lent, &headers, Some(event(&headers))).await {
        Ok(()) => answer(StatusCode::OK, &id, "{}"),
        Err(error) => failed(&id, error.as_ref()),
    }
}

fn failed(id: &str, error: &dyn std::error::Error) -> Response {
    eprintln!("cannot write the row: {error}");
    answer(StatusCode::INTERNAL_SERVER_ERROR, id, "{}")
}
