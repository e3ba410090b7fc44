//! Reads a received `Signature-Input` member of the profile, in the one spelling the profile has.
//!
//! Written by hand because it runs for every message; whatever deviates from the canonical form that
//! structured fields define is refused, so that the received bytes are the serialised ones.

use super::MAX_COVERED;
use super::cover::Covered;
use crate::component::is_lower_case_token;

/// A received member of `Signature-Input`.
#[derive(Debug)]
pub(crate) struct Input<'a> {
    /// The covered components in their order.
    pub(crate) covered: Vec<Covered<'a>>,
    pub(crate) params: InputParams<'a>,
}

/// The parameters of a received member.
#[derive(Debug)]
pub(crate) struct InputParams<'a> {
    pub(crate) created: u64,
    pub(crate) expires: u64,
    pub(crate) nonce: &'a str,
    pub(crate) alg: Option<&'a str>,
    pub(crate) keyid: &'a str,
    pub(crate) tag: &'a str,
}

impl<'a> Input<'a> {
    /// Parses a whole member value; `None` when anything about it is not as the profile writes it.
    pub(crate) fn parse(value: &'a str) -> Option<Self> {
        let mut cursor = Cursor { rest: value };
        let covered = components(&mut cursor)?;
        Some(Self { covered, params: InputParams::parse(cursor.rest)? })
    }

    pub(crate) fn covers(&self, wanted: &Covered<'_>) -> bool {
        self.covered.iter().any(|covered| covered == wanted)
    }
}

impl<'a> InputParams<'a> {
    /// Parses what follows the list of components.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let mut cursor = Cursor { rest: text };
        let (mut created, mut expires) = (None, None);
        let (mut nonce, mut alg, mut keyid, mut tag) = (None, None, None, None);
        while !cursor.rest.is_empty() {
            let repeated = match cursor.parameter()? {
                ("created", Value::Integer(value)) => created.replace(value).is_some(),
                ("expires", Value::Integer(value)) => expires.replace(value).is_some(),
                ("nonce", Value::Text(text)) => nonce.replace(text).is_some(),
                ("alg", Value::Text(text)) => alg.replace(text).is_some(),
                ("keyid", Value::Text(text)) => keyid.replace(text).is_some(),
                ("tag", Value::Text(text)) => tag.replace(text).is_some(),
                _ => return None,
            };
            if repeated {
                return None;
            }
        }
        Some(Self { created: created?, expires: expires?, nonce: nonce?, alg, keyid: keyid?, tag: tag? })
    }
}

/// The tag of a member, if it is the last parameter, where the profile writes it. Whoever uses it still has to
/// parse the member: this only says which one is worth it.
pub(crate) fn tag_at_end(value: &str) -> Option<&str> {
    let (before, tag) = value.strip_suffix('"')?.rsplit_once('"')?;
    before.strip_suffix(";tag=")?;
    tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-').then_some(tag)
}

fn components<'a>(cursor: &mut Cursor<'a>) -> Option<Vec<Covered<'a>>> {
    let mut covered = Vec::with_capacity(16);
    cursor.eat("(")?;
    while cursor.eat(")").is_none() {
        if !covered.is_empty() {
            cursor.eat(" ")?;
        }
        let component = component(cursor)?;
        if covered.len() == MAX_COVERED || covered.contains(&component) {
            return None;
        }
        covered.push(component);
    }
    Some(covered)
}

fn component<'a>(cursor: &mut Cursor<'a>) -> Option<Covered<'a>> {
    let name = cursor.text()?;
    let mut component = Covered::plain(name);
    // Two spellings of one component would defeat the check for duplicates, so there is one order.
    component.bs = cursor.eat(";bs").is_some();
    component.req = cursor.eat(";req").is_some();
    component.tr = cursor.eat(";tr").is_some();
    let understood = match name.strip_prefix('@') {
        Some("authority" | "method" | "path" | "query" | "request-target" | "status") => {
            !component.bs && !component.tr
        }
        Some(_) => false,
        None => is_lower_case_token(name) && !matches!(name, "signature" | "signature-input"),
    };
    understood.then_some(component)
}

enum Value<'a> {
    Integer(u64),
    Text(&'a str),
}

struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    fn eat(&mut self, expected: &str) -> Option<()> {
        self.rest = self.rest.strip_prefix(expected)?;
        Some(())
    }

    fn parameter(&mut self) -> Option<(&'a str, Value<'a>)> {
        self.eat(";")?;
        let (name, rest) = self.rest.split_once('=')?;
        self.rest = rest;
        let value = if self.rest.starts_with('"') {
            Value::Text(self.text()?)
        } else {
            Value::Integer(self.integer()?)
        };
        Some((name, value))
    }

    /// A quoted string. Escapes are refused: nothing the profile puts into a string needs one.
    fn text(&mut self) -> Option<&'a str> {
        self.eat("\"")?;
        let (text, rest) = self.rest.split_at_checked(memchr::memchr(b'"', self.rest.as_bytes())?)?;
        self.rest = rest.strip_prefix('"')?;
        // Every byte is looked at, so that the processor can take many at a time.
        let odd = |byte: u8| !matches!(byte, b' '..=b'~') | (byte == b'\\');
        (!text.bytes().fold(false, |found, byte| found | odd(byte))).then_some(text)
    }

    /// A whole number without leading zeros, of at most the 15 digits of a structured integer.
    fn integer(&mut self) -> Option<u64> {
        let length = self.rest.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, rest) = self.rest.split_at_checked(length)?;
        if digits.len() > 15 || (digits.starts_with('0') && digits != "0") {
            return None;
        }
        self.rest = rest;
        digits.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMS: &str = ";created=1;expires=61;nonce=\"n\";alg=\"ed25519\";keyid=\"k\";tag=\"t\"";

    #[test]
    fn the_canonical_form_is_read() {
        let text = format!("(\"@status\" \"set-cookie\";bs \"@path\";req){PARAMS}");
        let input = Input::parse(&text).unwrap();
        let params = &input.params;
        assert_eq!((params.created, params.expires, params.nonce, params.tag), (1, 61, "n", "t"));
        assert!(input.covers(&Covered { bs: true, ..Covered::plain("set-cookie") }));
        assert!(!input.covers(&Covered::plain("set-cookie")));
    }

    #[test]
    fn a_tag_is_seen_only_where_the_profile_writes_it() {
        assert_eq!(tag_at_end("();nonce=\"n\";tag=\"mesh-req-v1\""), Some("mesh-req-v1"));
        for value in [
            "",
            "\"",
            "()",
            "();tag=\"t\";nonce=\"n\"",
            "();tag=t",
            "();nonce=\";tag=\\\"t\"",
            "();tag=\"a b\"",
        ] {
            assert_eq!(tag_at_end(value), None, "{value}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for list in [
            "",
            "(",
            ")",
            "()x",
            "( \"a\")",
            "(\"a\" )",
            "(\"a\"  \"b\")",
            "(\"a\"\t\"b\")",
            "(\"a\"\"b\")",
            "(a)",
            "(\"A\")",
            "(\"a\" \"a\")",
            "(\"\")",
            "(\"@nosuch\")",
            "(\"@signature-params\")",
            "(\"@query-param\")",
            "(\"@query-param\";name=\"a\")",
            "(\"@path\";bs)",
            "(\"@path\";tr)",
            "(\"a\";sf)",
            "(\"a\";key=\"b\")",
            "(\"a\";req;bs)",
            "(\"a\";req;req)",
            "(\"a\";req=?1)",
            "(\"signature\")",
            "(\"signature-input\";req)",
            "(\"a\\\"\")",
            "(\"a\n\")",
            "(\"a b\")",
            "(\"@method \")",
        ] {
            assert!(Input::parse(&format!("{list}{PARAMS}")).is_none(), "{list}");
        }
        for params in [
            "",
            ";created=1",
            ";created=01;expires=61;nonce=\"n\";keyid=\"k\";tag=\"t\"",
            ";created=-1;expires=61;nonce=\"n\";keyid=\"k\";tag=\"t\"",
            ";created=1.0;expires=61;nonce=\"n\";keyid=\"k\";tag=\"t\"",
            ";created=1234567890123456;expires=61;nonce=\"n\";keyid=\"k\";tag=\"t\"",
            ";created=\"1\";expires=61;nonce=\"n\";keyid=\"k\";tag=\"t\"",
            ";created=;expires=61;nonce=\"n\";keyid=\"k\";tag=\"t\"",
            ";created=1;expires=61;nonce=n;keyid=\"k\";tag=\"t\"",
            ";created=1;created=2;expires=61;nonce=\"n\";keyid=\"k\";tag=\"t\"",
            "; created=1;expires=61;nonce=\"n\";keyid=\"k\";tag=\"t\"",
            ";created=1;expires=61;nonce=\"n\";keyid=\"k\";tag=\"t\";aud=\"x\"",
            ";created=1;expires=61;nonce=\"n\";keyid=\"k\";tag=\"t\";",
            ";created=1;expires=61;nonce=\"n\";keyid=\"k\";tag=\"t\" ",
        ] {
            assert!(Input::parse(&format!("(\"a\"){params}")).is_none(), "{params}");
        }
    }
}
