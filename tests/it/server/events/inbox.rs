//! A queue's consumer: one effect per event, despite repeated deliveries, failures and deaths.

use std::cell::Cell;
use std::time::Duration;

use steadfast::server::{Delivery, Fingerprint, Inbox, InboxError, MemoryStore, OnUnknown, Store, TransactionHandle};

type Never = std::convert::Infallible;

fn payload(text: &str) -> Fingerprint {
    Fingerprint::of(text)
}

async fn handle<S: Store>(
    inbox: &Inbox<S>,
    event: &str,
    effects: &Cell<usize>,
) -> Result<Delivery<usize>, InboxError<Never>> {
    let handler = |_: TransactionHandle<S::Session>| async {
        effects.set(effects.get() + 1);
        Ok(effects.get())
    };
    inbox.process("billing", event, payload(event), handler).await
}

#[tokio::test]
async fn repeated_event_has_one_effect() {
    let (inbox, effects) = (Inbox::new(MemoryStore::new()), Cell::new(0));
    assert_eq!(handle(&inbox, "1", &effects).await.unwrap(), Delivery::Handled(1));
    assert_eq!(handle(&inbox, "1", &effects).await.unwrap(), Delivery::AlreadyHandled);
    // Out of order and repeated: one effect each.
    for event in ["3", "2", "1", "3"] {
        handle(&inbox, event, &effects).await.unwrap();
    }
    assert_eq!(effects.get(), 3);
    let other = inbox.process("mail", "1", payload("1"), |_| async { Ok::<_, Never>(()) }).await.unwrap();
    assert_eq!(other, Delivery::Handled(()), "another consumer has not handled it");
}

#[tokio::test]
async fn failed_event_reruns_and_other_payload_is_reported() {
    let (inbox, effects) = (Inbox::new(MemoryStore::new()), Cell::new(0));
    let failed = inbox.process("billing", "1", payload("1"), |_| async { Err::<(), _>("no") }).await;
    assert!(matches!(failed, Err(InboxError::Handler("no"))), "{failed:?}");
    assert_eq!(handle(&inbox, "1", &effects).await.unwrap(), Delivery::Handled(1));
    let other = inbox.process("billing", "1", payload("2"), |_| async { Ok::<_, Never>(()) }).await;
    assert!(matches!(other, Err(InboxError::OtherPayload)), "{other:?}");
}

#[tokio::test]
async fn concurrent_delivery_gets_in_progress_never_done() {
    let inbox = Inbox::new(MemoryStore::new());
    let second = &inbox;
    let handler = |_| async move {
        let meanwhile = second.process("billing", "1", payload("1"), |_| async { Ok::<_, Never>(()) }).await;
        assert!(matches!(meanwhile, Err(InboxError::InProgress)), "{meanwhile:?}");
        Ok::<_, Never>(())
    };
    assert_eq!(inbox.process("billing", "1", payload("1"), handler).await.unwrap(), Delivery::Handled(()));
}

#[tokio::test]
async fn handler_beyond_lease_keeps_event() {
    let lease = Duration::from_millis(30);
    let inbox = Inbox::new(MemoryStore::new()).lease(lease);
    let (second, ended) = (&inbox, std::time::Duration::from_millis(150));
    let handler = |_| async move {
        // The lease's own clock is the subject.
        let deadline = tokio::time::timeout(ended, std::future::pending::<()>()).await;
        assert!(deadline.is_err());
        let meanwhile = second.process("billing", "1", payload("1"), |_| async { Ok::<_, Never>(()) }).await;
        assert!(matches!(meanwhile, Err(InboxError::InProgress)), "{meanwhile:?}");
        Ok::<_, Never>(())
    };
    assert_eq!(inbox.process("billing", "1", payload("1"), handler).await.unwrap(), Delivery::Handled(()));
}

#[tokio::test]
async fn event_of_dropped_consumer_reruns_or_is_rejected() {
    for lapsed in [OnUnknown::Rerun, OnUnknown::Reject] {
        let inbox = Inbox::new(MemoryStore::new()).lease(Duration::from_millis(30)).on_unknown(lapsed);
        let hangs = inbox.process("billing", "1", payload("1"), |_| std::future::pending::<Result<(), Never>>());
        assert!(tokio::time::timeout(Duration::from_millis(5), hangs).await.is_err());
        let told = async {
            loop {
                let again = inbox.process("billing", "1", payload("1"), |_| async { Ok::<_, Never>(()) }).await;
                if !matches!(again, Err(InboxError::InProgress)) {
                    return again;
                }
                tokio::task::yield_now().await;
            }
        };
        let told = tokio::time::timeout(Duration::from_secs(10), told).await.unwrap();
        match lapsed {
            OnUnknown::Rerun => assert_eq!(told.unwrap(), Delivery::Handled(())),
            _ => assert!(matches!(told, Err(InboxError::OutcomeUnknown)), "{told:?}"),
        }
    }
}

#[tokio::test]
async fn handler_that_keeps_session_leaves_event_unhandled() {
    let inbox = Inbox::new(MemoryStore::new());
    let mut kept = None;
    let handler = |lent: TransactionHandle<()>| {
        kept = lent.lock();
        async { Ok::<_, Never>(()) }
    };
    let told = inbox.process("billing", "1", payload("1"), handler).await;
    assert!(matches!(told, Err(InboxError::NotMarked(_))), "{told:?}");
}
mod postgres {
    use sqlx::PgPool;
    use steadfast_postgres::{PostgresSession, PostgresStore, TransactionalPostgresStore};

    use super::*;
    use crate::server::postgres::{count, pool, run};

    async fn inbox() -> (PgPool, Inbox<TransactionalPostgresStore>) {
        let (_, pool) = pool().await;
        let store = PostgresStore::new(pool.clone());
        store.create_table().await.unwrap();
        run("CREATE TABLE effects (event text PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)", &pool).await;
        (pool, Inbox::new(store.transactional()))
    }

    async fn write(lent: TransactionHandle<PostgresSession>, times: usize) -> Result<(), sqlx::Error> {
        let mut session = lent.lock().unwrap();
        for _ in 0..times {
            sqlx::query("INSERT INTO effects VALUES ('1')").execute(&mut **session).await?;
        }
        Ok(())
    }

    async fn effects(pool: &PgPool) -> i64 {
        count("SELECT count(*) FROM effects", pool).await
    }

    #[tokio::test]
    async fn mark_and_effect_commit_together() {
        let (pool, inbox) = inbox().await;
        let deliver = |times| inbox.process("billing", "1", payload("1"), move |lent| write(lent, times));
        // Only the commit detects the duplicate row.
        let failed = deliver(2).await;
        assert!(matches!(failed, Err(InboxError::NotMarked(_))), "{failed:?}");
        assert_eq!(effects(&pool).await, 0);
        let failing = |lent: TransactionHandle<PostgresSession>| async move {
            write(lent, 1).await?;
            Err::<(), sqlx::Error>(sqlx::Error::RowNotFound)
        };
        assert!(matches!(inbox.process("billing", "1", payload("1"), failing).await, Err(InboxError::Handler(_))));
        assert_eq!(effects(&pool).await, 0, "what a failed handler wrote is rolled back");
        assert_eq!(deliver(1).await.unwrap(), Delivery::Handled(()));
        assert_eq!(deliver(1).await.unwrap(), Delivery::AlreadyHandled);
        assert_eq!(effects(&pool).await, 1);
    }
}
