//! Reads an event stream and notes when each event came.

use std::time::Instant;

use super::To;
use super::http1::{Connection, Request};
use super::transcript::{Exchange, Timing, millis};

/// What to read.
#[derive(Debug, Clone, clap::Args)]
pub struct Events {
    #[command(flatten)]
    to: To,
    /// Events to ask for
    #[arg(long, default_value_t = 10, value_name = "N")]
    events: u32,
    /// Milliseconds between them
    #[arg(long, default_value_t = 100, value_name = "MS")]
    every: u32,
}

pub(super) async fn calls(events: &Events) -> Vec<Exchange> {
    let request = Request::new("GET", &format!("/events?n={}&every={}", events.events, events.every))
        .header("Accept", "text/event-stream");
    let exchange = Exchange::new(format!("{} {}", request.method, request.target));
    let (start, mut first, mut arrivals) = (Instant::now(), None, Vec::new());
    let result = Connection::new(&events.to)
        .call(&request, |received| {
            let now = Instant::now();
            first.get_or_insert(now);
            let ended = received.windows(2).filter(|pair| pair == b"\n\n").count();
            arrivals.resize(ended.max(arrivals.len()), millis(start, now));
        })
        .await;
    let mut exchange = match result {
        Ok(answer) => answer.recorded(exchange),
        Err(error) => exchange.failed(&error),
    };
    exchange.timing = Timing { events_ms: arrivals, ..Timing::since(start, first) };
    vec![exchange]
}
