//! One operation through two services, as a trace and as metrics.
//!
//! ```text
//! cargo run --example observability
//! cargo run --example observability -- --otlp http://localhost:4318
//! ```
//!
//! A customer with an expired token orders at a shop, and the shop charges a card at a bank. The
//! bank is slow, moves, and fails, so the shop needs three attempts, a redirect and a second request
//! beside a late one. The program prints the spans of all this as a tree, and the metrics, from exporters in memory. With
//! `--otlp` it also sends them to a collector.

mod services;
mod telemetry;
mod tree;

use std::error::Error;

use clap::Parser;
use opentelemetry::trace::SpanKind;
use steadfast_otel::ClientMetrics;

use crate::services::{Customer, Services};
use crate::telemetry::Telemetry;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(Parser)]
struct Arguments {
    /// Also send everything to this OTLP collector, such as `http://localhost:4318`.
    #[arg(long, value_name = "URL")]
    otlp: Option<String>,
    /// End with one line of counts, and fail if a count is wrong.
    #[arg(long)]
    self_test: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let telemetry = Telemetry::start(arguments.otlp.as_deref())?;
    let metrics = ClientMetrics::new(&telemetry.meter());
    let services = Services::start(&metrics).await?;
    steadfast_otel::export_idempotency(&telemetry.meter(), &services.layer, Vec::new());
    let customer = Customer::new(&services, &metrics)?;

    let receipt = customer.order().await?;
    services.stop().await;
    let spans = telemetry.spans()?;
    println!("{receipt}\n\n{}\n{}", tree::of(&spans), telemetry.metrics()?);
    telemetry.stop()?;

    let sends = services.sends();
    let traced = spans.iter().filter(|span| span.span_kind == SpanKind::Client).count();
    let (refreshes, twice) = (customer.refreshes(), services.twice());
    if arguments.self_test {
        println!("sends={sends} spans={traced} refreshes={refreshes} twice={twice}");
        if sends != traced || refreshes != 1 || twice != 0 {
            return Err("a count is wrong".into());
        }
    }
    Ok(())
}
