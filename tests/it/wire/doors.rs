//! The table of situations, through every way into the client's loop. An adapter may know less than
//! the plain client, and then it says so: its word is as cautious or more, and it sends no more.

use std::time::Duration;

use steadfast::http::Method;
use steadfast::policy::Class;
use steadfast::reqwest::{Request, Response};
use steadfast::{Attempt, Error, RequestTerms, ResponseExt};
use steadfast_testing::fast_retries;

use super::matrix::{Row, Says, rows, speaking, unlicensed};
use super::peer::{Fault, Peer, Protocol};
use super::tls::Identity;
use crate::support::doors::Door;

/// What the caller learns, and what has reached the server.
#[derive(Debug)]
struct Seen {
    /// The class of the first attempt. (The later ones meet the same fault.)
    class: Class,
    may_have_been_processed: bool,
    /// The response was whole and JSON, with a 2xx.
    is_usable: bool,
    received: usize,
    executed: usize,
}

/// Reads a response as a caller does that wants JSON.
async fn read(response: Response) -> (Class, bool, bool) {
    let class = response.attempts()[0].class();
    let (status, processed) = (response.status(), response.may_have_been_processed());
    let is_json = response.json::<serde_json::Value>().await.map_err(Error::from);
    let is_usable = status.is_success() && is_json.is_ok();
    (class, processed || is_json.is_err_and(|error| error.may_have_been_processed()), is_usable)
}

async fn look(door: Door, row: &Row, protocol: Protocol, identity: Option<&Identity>) -> Seen {
    let peer = Peer::start(protocol, identity, row.ending, &[row.fault]).await;
    let scheme = if identity.is_some() { "https" } else { "http" };
    let mut request =
        Request::new(Method::POST, format!("{scheme}://localhost:{}/", peer.address.port()).parse().unwrap());
    *request.body_mut() = Some(vec![b'x'; row.body].into());
    // A body is read after the attempt, so it needs a limit of its own.
    let limit = limit_for(row.fault);
    let client = unlicensed().retry(fast_retries().max_attempts(3)).attempt_timeout(limit).read_timeout(limit);
    let opened = door.open(client, |http| speaking(http, identity, protocol));
    let (class, may_have_been_processed, is_usable) = match opened.send(request, RequestTerms::new()).await {
        Ok(response) => read(response).await,
        Err(error) => {
            let first = error.attempts().first().map(Attempt::class);
            (first.unwrap_or_else(|| panic!("nothing was sent: {error:?}")), error.may_have_been_processed(), false)
        }
    };
    let (received, executed) = (peer.counts.received(), peer.counts.executed());
    Seen { class, may_have_been_processed, is_usable, received, executed }
}

/// Returns a time that passes only where the server is silent for ever.
fn limit_for(fault: Fault) -> Duration {
    let is_silent = matches!(fault, Fault::NeverRead | Fault::StallAfterRequest | Fault::StallMidBody);
    Duration::from_millis(if is_silent { 600 } else { 20_000 })
}

/// The classes that a door may give to a situation of which the table says this. The body of a
/// response is read after the operation, so what cuts it is no matter of the class.
fn allowed(says: Says, door: Door) -> &'static [Class] {
    use Class::{Ambiguous, NotProcessed, Permanent, Success};
    match says {
        Says::Done | Says::Undecodable => &[Success],
        Says::Refused => &[Permanent],
        Says::NotProcessed if door.is_opaque() => &[Ambiguous],
        Says::NotProcessed => &[NotProcessed],
        Says::NotProcessedOrAmbiguous if door.is_opaque() => &[Ambiguous],
        Says::NotProcessedOrAmbiguous => &[NotProcessed, Ambiguous],
        // A client that follows the redirect finds nobody there. A 307 is not followed with a body
        // that is watched.
        Says::Redirected if door.is_opaque() => &[Ambiguous, Success],
        Says::Redirected => &[Success],
        Says::Ambiguous => &[Ambiguous, Success],
    }
}

async fn check(row: &Row, protocol: Protocol, identity: Option<&Identity>, says: Says) {
    // At once, since some of them wait for a timeout.
    let all = futures_util::future::join_all(Door::ALL.map(|door| look(door, row, protocol, identity))).await;
    let plain = &all[0];
    for (door, seen) in Door::ALL.into_iter().zip(&all) {
        let name = format!("{} through {door:?} ({protocol:?}, TLS {}): {seen:?}", row.situation, identity.is_some());
        assert!(allowed(says, door).contains(&seen.class), "{name}: the class");
        let is_race = says == Says::NotProcessedOrAmbiguous;
        let is_less = plain.may_have_been_processed && !seen.may_have_been_processed;
        assert!(is_race || !is_less, "{name}: less cautious than {plain:?}");
        assert_eq!(seen.is_usable, says == Says::Done, "{name}: the response");
        assert!(is_race || seen.received <= plain.received, "{name}: more requests than {plain:?}");
        assert!(seen.executed <= 1, "{name}: executed twice");
        let is_told = seen.may_have_been_processed || says == Says::Refused;
        assert!(seen.executed == 0 || is_told, "{name}: executed, and the caller is told otherwise");
        if !door.is_opaque() && !is_race {
            let word = |seen: &Seen| (seen.class, seen.may_have_been_processed, seen.received, seen.executed);
            assert_eq!(word(seen), word(plain), "{name}: as exact as the plain client");
        }
    }
}

#[tokio::test]
async fn every_door_is_as_cautious_as_the_plain_client() {
    let identity = Identity::new("localhost", |_| {});
    for row in rows() {
        for tls in [None, Some(&identity)] {
            if let Some(says) = row.http1 {
                check(&row, Protocol::Http1, tls, says).await;
            }
            if let Some(says) = row.http2 {
                check(&row, Protocol::Http2, tls, says).await;
            }
        }
    }
}
