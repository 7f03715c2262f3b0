//! The inbox in the crash matrix: the consumer is killed at every step, and the event is delivered again.
//!
//! In one transaction an event has exactly one effect. Elsewhere it is never lost, and has two effects only where the consumer dies
//! between effect and mark; or it is refused there, if the inbox was told to.

use steadfast::server::{Delivery, Fingerprint, Inbox, InboxError, Lapsed, Lent};

use super::*;

type Told<E> = Result<Delivery<()>, InboxError<E>>;

fn inbox<S: Store>(store: S, point: &str) -> Inbox<Deadly<S>> {
    Inbox::new(Deadly { inner: store, point: point.to_owned() }).lease(LEASE)
}

/// A delivery whose effect is a line in a file.
async fn deliver<S: Store>(inbox: &Inbox<Deadly<S>>, log: &Path, point: &str) -> Told<std::convert::Infallible> {
    let handler = |_: Lent<S::Session>| async {
        append(log);
        if point == "after_effect" {
            die();
        }
        Ok(())
    };
    inbox.process("ledger", "evt_1", Fingerprint::of("payload"), handler).await
}

/// Until it is told something that will not change.
async fn redeliver<S: Store>(inbox: &Inbox<Deadly<S>>, log: &Path) -> Told<std::convert::Infallible> {
    let told = async {
        loop {
            match deliver(inbox, log, "").await {
                Err(InboxError::InProgress) => tokio::task::yield_now().await,
                told => return told,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), told).await.expect("the event is stuck")
}

async fn check_apart<S: Store>(store: S, log: &Path, point: &str) {
    let before = effects(log);
    let inbox = inbox(store, "");
    let unknown = !["before_claim", "after_end"].contains(&point);
    if unknown {
        let refused = redeliver(&inbox.clone().lapsed(Lapsed::Refuse), log).await;
        assert!(matches!(refused, Err(InboxError::OutcomeUnknown)), "{point}: {refused:?}");
        assert_eq!(effects(log), before, "{point}");
    }
    let told = redeliver(&inbox, log).await.unwrap();
    let marked = point == "after_end";
    assert_eq!(told, if marked { Delivery::AlreadyHandled } else { Delivery::Handled(()) }, "{point}");
    assert_eq!(effects(log), if marked { 1 } else { before + 1 }, "{point}: never lost");
    assert_eq!(redeliver(&inbox, log).await.unwrap(), Delivery::AlreadyHandled, "{point}");
}

#[cfg(feature = "redb")]
mod embedded {
    use steadfast::server::RedbStore;

    use super::*;

    #[tokio::test]
    async fn child() {
        let Ok(arguments) = std::env::var(CHILD) else { return };
        let (folder, point) = arguments.split_once('#').unwrap();
        let folder = Path::new(folder);
        let store = RedbStore::open(folder.join("keys.redb")).unwrap();
        println!("{:?}", deliver(&inbox(store, point), &folder.join("log"), point).await);
    }

    #[tokio::test]
    async fn an_event_is_never_lost() {
        for point in POINTS {
            let folder = tempfile::tempdir().unwrap();
            dies("server::crash::events::embedded::child", &format!("{}#{point}", folder.path().display())).unwrap();
            let store = RedbStore::open(folder.path().join("keys.redb")).unwrap();
            check_apart(store, &folder.path().join("log"), point).await;
        }
    }
}

#[cfg(feature = "redis")]
mod remote {
    use steadfast::server::RedisStore;

    use super::super::super::redis_server::shared;
    use super::*;

    #[tokio::test]
    async fn child() {
        let Ok(arguments) = std::env::var(CHILD) else { return };
        let mut arguments = arguments.split('#');
        let mut next = || arguments.next().unwrap().to_owned();
        let (prefix, log, point) = (next(), next(), next());
        let store = RedisStore::connect(&shared()).await.unwrap().prefix(prefix);
        println!("{:?}", deliver(&inbox(store, &point), Path::new(&log), &point).await);
    }

    #[tokio::test]
    async fn an_event_is_never_lost() {
        for point in POINTS {
            let folder = tempfile::tempdir().unwrap();
            let (prefix, log) = (format!("{:?}:", ClaimToken::new().unwrap().as_bytes()), folder.path().join("log"));
            let arguments = format!("{prefix}#{}#{point}", log.display());
            dies("server::crash::events::remote::child", &arguments).unwrap();
            check_apart(RedisStore::connect(&shared()).await.unwrap().prefix(prefix), &log, point).await;
        }
    }
}

#[cfg(feature = "postgres")]
mod database {
    use steadfast::server::{PostgresSession, PostgresStore, TransactionalPostgresStore};

    use super::super::super::postgres::{count, pool, pool_in, run};
    use super::*;

    #[tokio::test]
    async fn child() {
        let Ok(arguments) = std::env::var(CHILD) else { return };
        let mut arguments = arguments.split('#');
        let mut next = || arguments.next().unwrap().to_owned();
        let (mode, schema, log, point) = (next(), next(), next(), next());
        let store = PostgresStore::new(pool_in(&schema));
        if mode == "apart" {
            println!("{:?}", deliver(&inbox(store, &point), Path::new(&log), &point).await);
        } else {
            println!("{:?}", write(&inbox(store.transactional(), &point), &point).await);
        }
    }

    #[tokio::test]
    async fn an_event_is_never_lost() {
        for point in POINTS {
            let folder = tempfile::tempdir().unwrap();
            let log = folder.path().join("log");
            let (schema, pool) = pool().await;
            let store = PostgresStore::new(pool);
            store.create_table().await.unwrap();
            let arguments = format!("apart#{schema}#{}#{point}", log.display());
            dies("server::crash::events::database::child", &arguments).unwrap();
            check_apart(store, &log, point).await;
        }
    }

    /// A delivery whose effect is a row in the transaction that was lent.
    async fn write(inbox: &Inbox<Deadly<TransactionalPostgresStore>>, point: &str) -> Told<sqlx::Error> {
        let handler = |lent: Lent<PostgresSession>| async move {
            let mut session = lent.borrow().unwrap();
            sqlx::query("INSERT INTO effects DEFAULT VALUES").execute(&mut **session).await?;
            if point == "after_effect" {
                die();
            }
            Ok(())
        };
        inbox.process("ledger", "evt_1", Fingerprint::of("payload"), handler).await
    }

    #[tokio::test]
    async fn an_event_in_one_transaction_has_exactly_one_effect() {
        for point in POINTS {
            let (schema, pool) = pool().await;
            let store = PostgresStore::new(pool.clone());
            store.create_table().await.unwrap();
            run("CREATE TABLE effects (id bigserial)", &pool).await;
            dies("server::crash::events::database::child", &format!("one#{schema}##{point}")).unwrap();
            let inbox = inbox(store.transactional(), "");
            let told = async {
                loop {
                    match write(&inbox, "").await {
                        // The database has not noticed yet that the process is gone.
                        Err(InboxError::InProgress) => tokio::task::yield_now().await,
                        told => return told.unwrap(),
                    }
                }
            };
            let told = tokio::time::timeout(Duration::from_secs(20), told).await.expect("the event is stuck");
            let marked = point == "after_end";
            assert_eq!(told, if marked { Delivery::AlreadyHandled } else { Delivery::Handled(()) }, "{point}");
            assert_eq!(write(&inbox, "").await.unwrap(), Delivery::AlreadyHandled, "{point}");
            assert_eq!(count("SELECT count(*) FROM effects", &pool).await, 1, "{point}");
        }
    }
}
