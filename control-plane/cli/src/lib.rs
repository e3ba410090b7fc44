//! The operator's tool: `signet`.
//!
//! [`cli`] is the command line, one file per command below `command`. `message` signs and verifies HTTP messages
//! for people who debug interoperability; it needs no control plane. [`demo`] holds the plain programs that the
//! demonstration protects. What stands beside a Docker engine: `api_proxy` makes containers with a sidecar, `attestor`
//! gives them an identity (`host_attestor` gives one to processes of a host), `group` has the sidecar follow its app, `watcher` and `keeper` come afterwards.

mod api_proxy;
mod attestor;
mod chain;
mod check;
mod chunked;
pub mod cli;
mod client;
mod command;
pub mod demo;
mod docker;
mod files;
mod group;
mod host_attestor;
mod keeper;
pub mod lab;
mod manifests;
mod message;
pub mod output;
mod unified;
mod watcher;
