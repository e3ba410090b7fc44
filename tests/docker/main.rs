//! A real Docker engine: a Compose project that is injected ([`story`]), and containers that its API starts later
//! ([`later`]) start, talk, survive and leave nothing in clear. With docker-compose 1.29.
//!
//! Needs root, `dockerd`, `docker`, `docker-compose`, and the images' archives in the folder that `SIGNET_IMAGES` names
//! (`manifests/images/build --out`). The engine runs in a network namespace of the test's own, with its own data.

#![allow(clippy::unwrap_used, reason = "all of it is test")]

mod api;
mod engine;
mod later;
mod podman;
mod project;
mod story;
mod taps;
