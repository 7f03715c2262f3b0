//! A consumer of the group: it handles new messages, and those that a dead consumer left behind.

use std::time::Duration;

use redis::AsyncCommands as _;
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamAutoClaimOptions, StreamAutoClaimReply, StreamId, StreamReadOptions, StreamReadReply};
use sqlx::{PgConnection, PgPool};
use steadfast_postgres::{PostgresSession, PostgresStore};
use steadfast_server::{Delivery, Fingerprint, Inbox, InboxError, TransactionHandle};

use crate::{Place, Result};

/// Age at which a message without acknowledgement may be taken over. Longer than an event takes.
const ABANDONED: Duration = Duration::from_millis(300);
const BATCH: usize = 8;

/// Consumes until it is killed.
pub(crate) async fn run(place: &Place, with_inbox: bool) -> Result<()> {
    let pool = place.pool()?;
    let inbox = with_inbox.then(|| Inbox::new(PostgresStore::new(pool.clone()).transactional()));
    let mut redis = place.redis().await?;
    let name = std::process::id().to_string();
    loop {
        for message in next(&mut redis, place, &name).await? {
            let (Some(id), Some(payload)) = (message.get::<String>("id"), message.get::<String>("payload")) else {
                return Err("a message without id or payload".into());
            };
            let handled = match &inbox {
                Some(inbox) => inbox
                    .process("ledger", &id, Fingerprint::of(&payload), |lent| effect_in(lent, &id))
                    .await
                    .map(|_: Delivery<()>| ()),
                None => effect_alone(&pool, &id).await.map_err(InboxError::Handler),
            };
            match handled {
                // The acknowledgement comes after the handler: if the consumer dies in between, the
                // message is delivered again.
                Ok(()) => {
                    let _number: usize = redis.xack(&place.run, &place.run, &[&message.id]).await?;
                }
                // The message stays pending and is delivered again.
                Err(InboxError::InProgress) => {}
                Err(error) => eprintln!("{id}: {error}"),
            }
        }
    }
}

/// Returns the next messages. Messages left behind come first, because they are older.
async fn next(redis: &mut MultiplexedConnection, place: &Place, name: &str) -> Result<Vec<StreamId>> {
    let idle = usize::try_from(ABANDONED.as_millis())?;
    let options = StreamAutoClaimOptions::default().count(BATCH);
    let left: StreamAutoClaimReply =
        redis.xautoclaim_options(&place.run, &place.run, name, idle, "0-0", options).await?;
    if !left.claimed.is_empty() {
        return Ok(left.claimed);
    }
    let options = StreamReadOptions::default().group(&place.run, name).count(BATCH).block(50);
    let new: Option<StreamReadReply> = redis.xread_options(&[&place.run], &[">"], &options).await?;
    Ok(new.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids).collect())
}

/// Writes the effect into the transaction that holds the record.
async fn effect_in(lent: TransactionHandle<PostgresSession>, event: &str) -> std::result::Result<(), sqlx::Error> {
    let mut session = lent.lock().ok_or(sqlx::Error::PoolClosed)?;
    effect(&mut session, event).await
}

/// Writes only the effect. If the consumer dies before the acknowledgement, the effect happens
/// twice.
async fn effect_alone(pool: &PgPool, event: &str) -> std::result::Result<(), sqlx::Error> {
    let mut connection = pool.acquire().await?;
    effect(&mut connection, event).await
}

async fn effect(connection: &mut PgConnection, event: &str) -> std::result::Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO effects VALUES ($1)").bind(event).execute(connection).await?;
    // Stands for further work of the handler: time in which the consumer can be killed.
    pause(Duration::from_millis(3)).await;
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "a consumer that takes its time is what is shown")]
pub(crate) async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}
