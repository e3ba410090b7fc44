//! Logs on standard error, spans to an OpenTelemetry collector when one is named.
//!
//! The W3C `traceparent` field is the application's: it passes through unchanged. The exporter
//! batches on its own and drops what a collector does not take; it never delays a request.

use std::time::Duration;

use http::{HeaderMap, HeaderName, Method};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use thiserror::Error;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::ring::Direction;

/// How long one batch of spans may take to be delivered before it is dropped.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);

/// Telemetry could not be set up.
#[derive(Debug, Error)]
pub enum TelemetryError {
    /// The collector's address cannot be used.
    #[error("OTLP endpoint cannot be used: {0}")]
    Endpoint(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Keeps the exporter alive; dropping it flushes what is left.
#[derive(Debug, Default)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = &self.provider {
            // A collector that is away at the end has nothing to tell us.
            let _ = provider.shutdown();
        }
    }
}

/// Sets up logging, and tracing where `endpoint` names a collector (OTLP over gRPC). To be called
/// within a Tokio runtime when it does.
///
/// The log's filter is `SIGNET_LOG` in the syntax of `tracing_subscriber::EnvFilter`, by default
/// `info`. Spans are made only for a collector.
///
/// # Errors
/// When the endpoint is no URL.
pub fn init(json: bool, endpoint: Option<&str>) -> Result<Telemetry, TelemetryError> {
    let filter = EnvFilter::try_from_env("SIGNET_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let format = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let log = if json { format.json().boxed() } else { format.with_ansi(false).boxed() };
    let mut telemetry = Telemetry::default();
    let spans = match endpoint {
        Some(endpoint) => {
            let provider = provider(endpoint)?;
            let tracer = provider.tracer("signet-proxy");
            telemetry.provider = Some(provider);
            let only_spans = Targets::new().with_target(SPANS, LevelFilter::DEBUG);
            Some(tracing_opentelemetry::layer().with_tracer(tracer).with_filter(only_spans))
        }
        None => None,
    };
    // A second subscriber in one process (tests) leaves the first in place.
    let _ = tracing_subscriber::registry().with(spans).with(log.with_filter(filter)).try_init();
    Ok(telemetry)
}

/// The target of spans: disabled, and so nearly free, unless a collector is named.
const SPANS: &str = "signet::span";

/// The span of one request, a child of the application's own trace when it sent a `traceparent`.
pub(crate) fn request_span(direction: Direction, method: &Method, headers: &HeaderMap) -> Span {
    let kind = match direction {
        Direction::Inbound => "server",
        Direction::Outbound => "client",
    };
    let span = tracing::debug_span!(target: SPANS, "request", otel.kind = kind, http.request.method = method.as_str());
    if !span.is_disabled() && headers.contains_key("traceparent") {
        let parent = TraceContextPropagator::new().extract(&Fields(headers));
        // A span that is not recorded has no parent to set.
        let _ = span.set_parent(parent);
    }
    span
}

/// Header fields as a propagator reads them.
struct Fields<'a>(&'a HeaderMap);

impl Extractor for Fields<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

fn provider(endpoint: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()?;
    let resource = Resource::builder().with_service_name("signet-proxy").build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}
