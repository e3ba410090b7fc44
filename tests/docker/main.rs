//! A Compose project under a real Docker engine, with docker-compose 1.29: what is injected starts, talks, survives and
//! leaves nothing in clear.
//!
//! Needs root, `dockerd`, `docker`, `docker-compose`, and the images' archives in the folder that `SIGNET_IMAGES` names
//! (`manifests/images/build --out`). The engine runs in a network namespace of the test's own, with its own data.

#![allow(clippy::unwrap_used, reason = "all of it is test")]

mod engine;
mod podman;
mod project;
mod story;
