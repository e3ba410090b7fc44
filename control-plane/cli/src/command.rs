//! One file per command.

pub(crate) mod app;
pub(crate) mod apply;
pub(crate) mod area;
pub(crate) mod attest;
pub(crate) mod check;
pub(crate) mod coverage;
pub(crate) mod delete;
pub(crate) mod demo;
pub(crate) mod docker;
pub(crate) mod explain;
pub(crate) mod get;
pub(crate) mod inject;
pub(crate) mod message;
pub(crate) mod policy;
pub(crate) mod revoke;
pub(crate) mod rollback;
pub(crate) mod rotate;
pub(crate) mod token;
pub(crate) mod uninject;
pub(crate) mod validate;
