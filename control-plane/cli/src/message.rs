//! `signet message`: RFC 9421 signatures on raw HTTP/1.1 messages, for people who debug interoperability.
//!
//! The same code as in the proxies ([`signet_signature`]) makes and checks the signatures; what is added here is
//! reading messages and keys from files. Nothing is kept and nothing is sent.

mod jws;
mod key;
mod parse;
mod sign;
mod verify;

pub(crate) use jws::{JwsOutcome, verify_jws};
pub(crate) use key::{signing_key, verifying_key};
pub(crate) use parse::{MESSAGE_MAX, Message, Scheme};
pub(crate) use sign::{SignOptions, sign};
pub(crate) use verify::{Demand, Outcome, Trust, verify};

use signet_signature::Component;
use signet_signature::component::ComponentError;

/// A component as it is written on the command line: as in `Signature-Input`, or with the quotes of the name left
/// out (`content-type`, `@path;req`, `@query-param;name="id"`).
pub(crate) fn component(text: &str) -> Result<Component, ComponentError> {
    if text.starts_with('"') {
        return Component::parse(text);
    }
    let (name, parameters) = text.split_at(text.find(';').unwrap_or(text.len()));
    Component::parse(&format!("\"{}\"{parameters}", name.to_ascii_lowercase()))
}

/// Whether two identifiers name the same component: the order of parameters does not count.
fn same(one: &Component, other: &Component) -> bool {
    one.name() == other.name()
        && one.parameters().len() == other.parameters().len()
        && one.parameters().iter().all(|parameter| other.parameters().contains(parameter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_of_a_component_name_may_be_left_out() {
        for (short, long) in [
            ("@method", "\"@method\""),
            ("Content-Type", "\"content-type\""),
            ("@path;req", "\"@path\";req"),
            ("@query-param;name=\"id\"", "\"@query-param\";name=\"id\""),
            ("\"x\";sf", "\"x\";sf"),
        ] {
            assert_eq!(component(short).unwrap().to_string(), long);
        }
        for wrong in ["", "a b", "@nothing", "\"x", "x;unknown"] {
            assert!(component(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn parameter_order_does_not_count() {
        let [one, other] = ["x;req;sf", "x;sf;req"].map(|text| component(text).unwrap());
        assert!(same(&one, &other));
        assert!(!same(&one, &component("x;req").unwrap()));
    }
}
