//! Both ends of the control stream against each other, over a link that loses, repeats and reorders; and the bytes of
//! the contract.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod anchors;
mod golden;
mod mesh;
mod pair;
mod refusals;
mod stream;
