//! Links that an API sends: `Location`, and the next page. None leads away from the origin of the
//! request unasked.

use steadfast::{Error, ErrorKind, ResponseExt};
use steadfast_testing::{Answer, FaultServer, FaultStep};

use crate::support::doubting;

fn with(status: u16, name: &str, value: impl Into<String>) -> FaultStep {
    FaultStep::answer(Answer::new(status).header(name, value))
}

#[tokio::test]
async fn pages_are_followed_to_the_last() {
    let server = FaultServer::start(|_, request| {
        let Some(request) = request else { return FaultStep::answer(500) };
        match request.target.as_str() {
            "/v1/items" => with(200, "link", "<items?page=2>; rel=\"next\", <items?page=4>; rel=last"),
            "/v1/items?page=2" => with(200, "link", "</v1/items?page=1>; rel=prev, </v1/items?page=3>; rel=next"),
            "/v1/items?page=3" => {
                let host = request.header("host").unwrap_or_default();
                with(200, "link", format!("<http://{host}/v1/items?page=4>; rel=next"))
            }
            _ => with(200, "link", "</v1/items?page=3>; rel=prev"),
        }
    })
    .await;
    let client = doubting(&server).bearer_auth("token").build().unwrap();
    let mut page = client.get("/v1/items").send().await.unwrap();
    while let Some(next) = page.link("next").unwrap() {
        page = client.get(next).send().await.unwrap();
    }
    let received = server.received();
    let targets: Vec<_> = received.iter().map(|request| request.target.as_str()).collect();
    assert_eq!(targets, ["/v1/items", "/v1/items?page=2", "/v1/items?page=3", "/v1/items?page=4"]);
    assert!(received.iter().all(|request| request.header("authorization") == Some("Bearer token")));
}

#[tokio::test]
async fn location_is_resolved_against_final_url() {
    for (location, path) in [("/exports/7", "/exports/7"), ("7", "/moved/7"), ("?id=7", "/moved/here?id=7")] {
        let moved = with(307, "location", "/moved/here");
        let server = FaultServer::play([moved, with(202, "location", location)]).await;
        let response = doubting(&server).build().unwrap().post("/exports").body("x").send().await.unwrap();
        let url = response.location().unwrap().unwrap();
        assert_eq!(url.as_str(), server.url(path), "{location}");
        assert_eq!(response.link("next").unwrap(), None);
    }
    let server = FaultServer::play([FaultStep::answer(201)]).await;
    let response = doubting(&server).build().unwrap().get("/").send().await.unwrap();
    assert_eq!((response.location().unwrap(), response.location_to_any_origin().unwrap()), (None, None));
}

#[tokio::test]
async fn link_to_other_origin_needs_a_word() {
    let abroad = FaultServer::play([FaultStep::answer(200)]).await;
    let port = abroad.address().port();
    for target in [abroad.url("/p?q=s3cret"), format!("//127.0.0.1:{port}/p"), format!("\\\\127.0.0.1:{port}\\p")] {
        let links = Answer::new(200).header("link", format!("<{target}>; rel=next")).header("location", &target);
        let server = FaultServer::play([FaultStep::execute(links)]).await;
        let client = doubting(&server).bearer_auth("token").build().unwrap();
        let response = client.get("/").send().await.unwrap();
        for (error, word) in [
            (response.link("next").unwrap_err(), "link_to_any_origin"),
            (response.location().unwrap_err(), "location_to_any_origin"),
        ] {
            assert_eq!(error.kind(), ErrorKind::Redirect, "{error}");
            let text = error.to_string();
            assert!(text.contains(word) && text.contains(&format!("127.0.0.1:{port}/p")), "{text}");
            assert!(error.may_have_been_processed() && !text.contains("s3cret"), "{text}");
        }
        let next = response.link_to_any_origin("next").unwrap().unwrap();
        assert_eq!(next.port(), Some(port));
        assert_eq!(response.location_to_any_origin().unwrap().as_ref(), Some(&next));
        client.get(next).send().await.unwrap();
    }
    assert_eq!(abroad.received().len(), 3);
    assert!(abroad.received().iter().all(|request| request.header("authorization").is_none()), "ours stay at home");
}

#[tokio::test]
async fn response_from_elsewhere_chooses_no_url_at_home() {
    let home = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let told = home.clone();
    let abroad = FaultServer::start(move |_, _| {
        let target = told.get().map_or("", |url| url.as_str());
        with(200, "link", format!("<{target}>; rel=next, </here>; rel=prev"))
    })
    .await;
    let server = FaultServer::play([with(302, "location", abroad.url("/file"))]).await;
    home.set(server.url("/delete-everything")).unwrap();
    let response = doubting(&server).build().unwrap().get("/").send().await.unwrap();
    assert_eq!(abroad.received().len(), 1, "the redirect was followed");
    for relation in ["next", "prev"] {
        let error = response.link(relation).unwrap_err();
        assert!(error.to_string().contains("comes from another origin"), "{error}");
    }
    assert_eq!(response.link_to_any_origin("prev").unwrap().unwrap().as_str(), abroad.url("/here"));
}

#[tokio::test]
async fn link_that_is_no_url_is_an_error_not_the_end() {
    for target in ["ftp://api.x/2", "https://[", "mailto:a@b"] {
        let links = Answer::new(200).header("link", format!("<{target}>; rel=next")).header("location", target);
        let server = FaultServer::play([FaultStep::answer(links)]).await;
        let response = doubting(&server).build().unwrap().get("/").send().await.unwrap();
        let errors: [Error; 4] = [
            response.link("next").unwrap_err(),
            response.link_to_any_origin("next").unwrap_err(),
            response.location().unwrap_err(),
            response.location_to_any_origin().unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::Redirect, "{target}: {error}");
        }
    }
}

#[tokio::test]
async fn links_of_plain_reqwest_response_stay_on_origin() {
    let server = FaultServer::play([with(200, "link", "<https://api.x/2>; rel=next, </3>; rel=last")]).await;
    let response = steadfast::reqwest::get(server.url("/")).await.unwrap();
    assert_eq!(response.link("last").unwrap().unwrap().as_str(), server.url("/3"));
    let error = response.link("next").unwrap_err();
    assert!(error.may_have_been_processed() && error.attempts().is_empty(), "{error}");
}
