//! What the proxy tells about itself: metrics, logs and spans. Names stand here and nowhere else.

pub mod metrics;
pub mod trace;
