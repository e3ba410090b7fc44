//! Logs on standard error, spans to an OpenTelemetry collector when one is named.
//!
//! The W3C `traceparent` field is the application's: it passes through unchanged. The exporter
//! batches on its own and drops what a collector does not take; it never delays a request.

use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use thiserror::Error;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

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
/// The filter is `SIGNET_LOG` in the syntax of `tracing_subscriber::EnvFilter`, by default `info`.
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
            Some(tracing_opentelemetry::layer::<Layered>().with_tracer(tracer))
        }
        None => None,
    };
    // A second subscriber in one process (tests) leaves the first in place.
    let _ = tracing_subscriber::registry().with(filter).with(spans).with(log).try_init();
    Ok(telemetry)
}

type Layered = tracing_subscriber::layer::Layered<EnvFilter, Registry>;

fn provider(endpoint: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT)
        .build()?;
    let resource = Resource::builder().with_service_name("signet-proxy").build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}
