//! A role that may use the tables and may not create them, as in a database with migrations.

use super::*;

/// A schema, and a role that may do nothing there but read and write its tables.
pub(crate) struct Roles {
    pub(crate) owner: PgPool,
    pub(crate) role: PgPool,
    schema: String,
}

impl Roles {
    pub(crate) async fn stage() -> Self {
        let (schema, owner) = pool().await;
        let options = options().username(&format!("role_{schema}"));
        let staged = Self { role: pool_by(options, &schema), owner, schema };
        staged.tell("CREATE ROLE role_$ LOGIN").await;
        staged.tell("GRANT USAGE ON SCHEMA $ TO role_$").await;
        staged
    }

    /// Runs this as the owner, with the schema's name for each `$`.
    pub(crate) async fn tell(&self, sql: &str) {
        let sql = sql.replace('$', &self.schema);
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&self.owner).await.unwrap();
    }

    async fn grant(&self) {
        self.tell("GRANT SELECT, INSERT, UPDATE, DELETE ON steadfast_records TO role_$").await;
        self.tell("GRANT SELECT ON steadfast_identity TO role_$").await;
    }
}

fn unavailable<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Unavailable(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn role_that_may_not_create_uses_tables() {
    let roles = Roles::stage().await;
    PostgresStore::new(roles.owner.clone()).create_table().await.unwrap();
    roles.grant().await;
    let store = PostgresStore::new(roles.role.clone());
    store.create_table().await.unwrap();
    let executions = Executions::default();
    let served =
        Arc::new(Served::start(orders(&executions), IdempotencyLayer::new(store, Scope::single_caller())).await);
    assert_eq!(post_all(&served, 0..3, 1).await, all("201 stored", 3));
    assert_eq!(post_all(&served, 0..3, 1).await, all("201 replayed", 3));
    assert_eq!(executions.count(), 3);
}

#[tokio::test]
async fn role_that_may_not_own_index_uses_tables() {
    let roles = Roles::stage().await;
    PostgresStore::new(roles.owner.clone()).create_table().await.unwrap();
    roles.grant().await;
    roles.tell("GRANT CREATE ON SCHEMA $ TO role_$").await;
    PostgresStore::new(roles.role.clone()).create_table().await.unwrap();
}

#[tokio::test]
async fn missing_table_or_column_is_no_success() {
    let roles = Roles::stage().await;
    let store = PostgresStore::new(roles.role.clone());
    assert!(unavailable(store.create_table().await).contains("permission denied"));
    PostgresStore::new(roles.owner.clone()).create_table().await.unwrap();
    roles.grant().await;
    roles.tell("ALTER TABLE steadfast_records DROP COLUMN tombstones").await;
    assert!(unavailable(store.create_table().await).contains("permission denied"));
}
