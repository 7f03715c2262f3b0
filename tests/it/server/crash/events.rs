//! The inbox in the crash matrix: the consumer is killed at every step, and the event is delivered
//! again.
//!
//! In one transaction an event has exactly one effect. In the other stores it is never lost. There
//! it has two effects only if the consumer dies between effect and mark. An inbox with
//! `OnUnknown::Reject` refuses the event in that case.

use steadfast::server::{Delivery, Fingerprint, Inbox, InboxError, OnUnknown, TransactionHandle};

use super::*;

type Told<E> = Result<Delivery<()>, InboxError<E>>;

fn inbox<S: Store>(store: S, point: &str) -> Inbox<Deadly<S>> {
    Inbox::new(Deadly { inner: store, point: point.to_owned() }).lease(LEASE)
}

/// Delivers an event whose effect is a line in a file.
async fn deliver<S: Store>(inbox: &Inbox<Deadly<S>>, log: &Path, point: &str) -> Told<std::convert::Infallible> {
    let handler = |_: TransactionHandle<S::Session>| async {
        append(log);
        if point == "after_effect" {
            die();
        }
        Ok(())
    };
    inbox.process("ledger", "evt_1", Fingerprint::of("payload"), handler).await
}

/// Delivers until the result is final.
async fn until_settled<E>(deliver: impl AsyncFn() -> Told<E>) -> Told<E> {
    let told = async {
        loop {
            match deliver().await {
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
    let redeliver = async |inbox: &Inbox<Deadly<S>>| until_settled(async || deliver(inbox, log, "").await).await;
    let unknown = !["before_claim", "after_end"].contains(&point);
    if unknown {
        let refused = redeliver(&inbox.clone().on_unknown(OnUnknown::Reject)).await;
        assert!(matches!(refused, Err(InboxError::OutcomeUnknown)), "{point}: {refused:?}");
        assert_eq!(effects(log), before, "{point}");
    }
    let told = redeliver(&inbox).await.unwrap();
    let marked = point == "after_end";
    assert_eq!(told, if marked { Delivery::AlreadyHandled } else { Delivery::Handled(()) }, "{point}");
    assert_eq!(effects(log), if marked { 1 } else { before + 1 }, "{point}: never lost");
    assert_eq!(redeliver(&inbox).await.unwrap(), Delivery::AlreadyHandled, "{point}");
}
mod embedded {
    use super::*;

    #[tokio::test]
    async fn child() {
        scene::child(async |place, log, point| {
            println!("{:?}", deliver(&inbox(scene::redb(place), point), log, point).await);
        })
        .await;
    }

    #[tokio::test]
    async fn crash_at_any_step_never_loses_event() {
        at_every_point(
            "server::crash::events::embedded::child",
            async || Scene::file(),
            async |scene, point| {
                check_apart(scene::redb(scene.place()), &scene.log(), point).await;
            },
        )
        .await;
    }
}
mod remote {
    use super::*;

    #[tokio::test]
    async fn child() {
        scene::child(async |place, log, point| {
            println!("{:?}", deliver(&inbox(scene::redis(place).await, point), log, point).await);
        })
        .await;
    }

    #[tokio::test]
    async fn crash_at_any_step_never_loses_event() {
        at_every_point(
            "server::crash::events::remote::child",
            async || Scene::prefix(),
            async |scene, point| {
                check_apart(scene::redis(scene.place()).await, &scene.log(), point).await;
            },
        )
        .await;
    }
}
mod database {
    use super::*;

    #[tokio::test]
    async fn child() {
        scene::child(async |place, log, point| {
            println!("{:?}", deliver(&inbox(scene::postgres(place).await.1, point), log, point).await);
        })
        .await;
    }

    #[tokio::test]
    async fn crash_at_any_step_never_loses_event() {
        at_every_point("server::crash::events::database::child", scene::schema, async |scene, point| {
            check_apart(scene::postgres(scene.place()).await.1, &scene.log(), point).await;
        })
        .await;
    }
}
mod transaction {
    use steadfast_postgres::{PostgresSession, TransactionalPostgresStore};

    use super::super::super::postgres::{count, run};
    use super::*;

    /// Delivers an event whose effect is a row in the lent transaction.
    async fn write(inbox: &Inbox<Deadly<TransactionalPostgresStore>>, point: &str) -> Told<sqlx::Error> {
        let handler = |lent: TransactionHandle<PostgresSession>| async move {
            let mut session = lent.lock().unwrap();
            sqlx::query("INSERT INTO effects DEFAULT VALUES").execute(&mut **session).await?;
            if point == "after_effect" {
                die();
            }
            Ok(())
        };
        inbox.process("ledger", "evt_1", Fingerprint::of("payload"), handler).await
    }

    async fn scene_with_effects() -> Scene {
        let scene = scene::schema().await;
        run("CREATE TABLE effects (id bigserial)", &scene::postgres(scene.place()).await.0).await;
        scene
    }

    #[tokio::test]
    async fn child() {
        scene::child(async |place, _, point| {
            let store = scene::postgres(place).await.1.transactional();
            println!("{:?}", write(&inbox(store, point), point).await);
        })
        .await;
    }

    #[tokio::test]
    async fn crash_at_any_step_gives_event_one_effect() {
        at_every_point("server::crash::events::transaction::child", scene_with_effects, async |scene, point| {
            let (pool, store) = scene::postgres(scene.place()).await;
            let inbox = inbox(store.transactional(), "");
            // The database may not have noticed yet that the process is gone.
            let told = until_settled(async || write(&inbox, "").await).await.unwrap();
            let marked = point == "after_end";
            assert_eq!(told, if marked { Delivery::AlreadyHandled } else { Delivery::Handled(()) }, "{point}");
            assert_eq!(write(&inbox, "").await.unwrap(), Delivery::AlreadyHandled, "{point}");
            assert_eq!(count("SELECT count(*) FROM effects", &pool).await, 1, "{point}");
        })
        .await;
    }
}
