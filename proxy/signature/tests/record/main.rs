//! The signed record layer, driven through its public interface only.
#![allow(clippy::unwrap_used, reason = "the helpers of a test fail by panicking, as its assertions do")]

mod body;
mod golden;
mod limits;
mod negotiation;
mod opening;
mod properties;
mod stream;
mod support;
