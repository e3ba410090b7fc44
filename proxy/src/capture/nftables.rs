//! One nf_tables table of family `inet`: built, replaced in one transaction, read back, removed.
//!
//! The table is owned whole: [`apply`] deletes what is there under its name and puts the new content in its place,
//! atomically, so it may be repeated at will and packets never meet half a table. [`read`] decodes what is in
//! force into the same type, so "as installed" is `==`.
//! Sets of places ([`super::sets`]) belong to their table and are replaced with it, in the same transaction.
//!
//! Removing the last address-translating rule of a network namespace breaks connections it has translated.

use std::fmt;

use nix::errno::Errno;

use super::expression::{Expression, Verdict};
use super::netlink::{
    ACK, APPEND, Answer, Attributes, CREATE, Connection, NetlinkError, Request, attributes,
};
use super::sets::{self, Set};

const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const FAMILY_UNSPECIFIED: u8 = 0;
const FAMILY_INET: u8 = 1;
const GENERIC_HEADER: usize = 4;

const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USER_DATA: u16 = 7;
const LIST_ELEMENT: u16 = 1;
const USER_DATA_COMMENT: u8 = 0;
/// The kernel keeps 256 bytes of user data; `nft` shows comments of up to 128.
const PURPOSE_BYTES: usize = 120;
/// A table that is replaced between its lists is read again this often.
const READ_TRIES: usize = 16;

/// Order of chains on one hook: where the kernel translates destinations.
pub const DESTINATION_PRIORITY: i32 = -100;
/// Order of chains on one hook: where packets are filtered.
pub const FILTER_PRIORITY: i32 = 0;
/// Order of chains on one hook: where the kernel translates sources.
pub const SOURCE_PRIORITY: i32 = 100;

/// A whole table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// The table's name.
    pub table: String,
    /// Table flags; 1 would put the table out of force.
    pub flags: u32,
    /// Its chains, in the order of creation.
    pub chains: Vec<Chain>,
    /// Its sets, in the order of creation.
    pub sets: Vec<Set>,
}

/// A chain with its rules, attached to a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// What its rules may do.
    pub kind: Kind,
    /// Where packets meet it.
    pub hook: Hook,
    /// Its place among the chains on that hook.
    pub priority: i32,
    /// Whether packets that no rule decides are dropped.
    pub drops: bool,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// What a chain's rules may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Let pass and drop.
    Filter,
    /// Translate addresses; only the first packet of a connection comes here.
    Nat,
    /// A chain found in the kernel of a kind, or on a hook, that is never built here.
    Unknown,
}

/// Where packets meet a chain; the numbers are the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Everything that arrives, before routing.
    Prerouting = 0,
    /// What is for this machine.
    Input = 1,
    /// What passes through.
    Forward = 2,
    /// What this machine sends.
    Output = 3,
    /// Everything that leaves, after routing.
    Postrouting = 4,
}

/// A rule: expressions from left to right, and why it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// In words; kept in the kernel as the rule's comment, at most 120 bytes.
    pub purpose: String,
    /// What it matches and does.
    pub expressions: Vec<Expression>,
}

impl Ruleset {
    /// A table that is in force and has no chains.
    pub fn new(table: &str) -> Self {
        Self { table: table.into(), flags: 0, chains: Vec::new(), sets: Vec::new() }
    }
}

impl Chain {
    /// A chain without rules that lets packets pass.
    pub fn new(name: &str, kind: Kind, hook: Hook, priority: i32) -> Self {
        Self { name: name.into(), kind, hook, priority, drops: false, rules: Vec::new() }
    }

    /// Adds a rule that ends in a verdict.
    pub fn decide(&mut self, purpose: &str, mut matches: Vec<Expression>, verdict: Verdict) {
        matches.push(Expression::Verdict(verdict));
        self.rules.push(Rule::new(purpose, matches));
    }

    /// Adds a rule that ends in an action of its own, such as a redirect.
    pub fn act(&mut self, purpose: &str, matches: Vec<Expression>, action: Vec<Expression>) {
        self.rules.push(Rule::new(purpose, [matches, action].concat()));
    }
}

impl Rule {
    fn new(purpose: &str, expressions: Vec<Expression>) -> Self {
        let mut purpose = purpose.to_owned();
        while purpose.len() > PURPOSE_BYTES {
            purpose.pop();
        }
        Self { purpose, expressions }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\":", self.purpose)?;
        self.expressions.iter().try_for_each(|expression| write!(f, " {expression}"))
    }
}

/// Puts the table in force in place of whatever is there under its name. Atomic: all of it or nothing.
///
/// # Errors
/// [`NetlinkError::Refused`] names the message and the kernel's reason; nothing has changed then.
pub fn apply(ruleset: &Ruleset) -> Result<(), NetlinkError> {
    Connection::netfilter()?.transact(&replacement(ruleset))
}

/// Removes the table; no error when there is none.
///
/// # Errors
/// As [`apply`].
pub fn delete(table: &str) -> Result<(), NetlinkError> {
    let mut batch = vec![begin()];
    batch.extend(fresh_start(table));
    finish(&mut batch);
    Connection::netfilter()?.transact(&batch)
}

/// Reads the table in force; `None` when there is none.
///
/// # Errors
/// Reading needs the same capability as writing.
pub fn read(table: &str) -> Result<Option<Ruleset>, NetlinkError> {
    let mut connection = Connection::netfilter()?;
    for _ in 0..READ_TRIES {
        match read_once(&mut connection, table) {
            Err(NetlinkError::Interrupted) => {}
            finished => return finished,
        }
    }
    Err(NetlinkError::Interrupted)
}

/// The chains of every family and table that are attached to a hook, each with its table's name and without its rules.
///
/// # Errors
/// As [`read`].
pub fn base_chains() -> Result<Vec<(String, Chain)>, NetlinkError> {
    let body = generic_header(FAMILY_UNSPECIFIED, 0).to_vec();
    let request = Request { kind: SUBSYSTEM << 8 | GET_CHAIN, flags: 0, body, purpose: "list chains".into() };
    let mut found = Vec::new();
    for answer in Connection::netfilter()?.dump(&request)? {
        let fields = Fields::of(&answer)?;
        if fields.bytes(CHAIN_HOOK).is_some() {
            let table = fields.text(CHAIN_TABLE).ok_or(NetlinkError::Malformed)?.to_owned();
            found.push((table, decode_chain(&fields)?));
        }
    }
    Ok(found)
}

/// The names of all tables of the family.
///
/// # Errors
/// As [`read`].
pub fn tables() -> Result<Vec<String>, NetlinkError> {
    let answers = Connection::netfilter()?.dump(&question(GET_TABLE, Attributes::new(), "list tables"))?;
    let name = |answer| Ok(Fields::of(answer)?.text(TABLE_NAME).map(str::to_owned));
    answers.iter().filter_map(|answer| name(answer).transpose()).collect()
}

fn read_once(connection: &mut Connection, table: &str) -> Result<Option<Ruleset>, NetlinkError> {
    let tables = connection.dump(&question(GET_TABLE, Attributes::new(), "list tables"))?;
    let chains = connection.dump(&question(GET_CHAIN, Attributes::new(), "list chains"))?;
    let of_table = Attributes::new().text(RULE_TABLE, table);
    let rules = connection.dump(&question(GET_RULE, of_table, "list rules"))?;
    let Some(mut ruleset) = decode(table, &tables, &chains, &rules)? else { return Ok(None) };
    // A table that is replaced, or goes, between the lists: read again.
    let raced = |error: NetlinkError| match error.errno() {
        Some(Errno::ENOENT) => NetlinkError::Interrupted,
        _ => error,
    };
    let named = Attributes::new().text(sets::TABLE, table);
    for answer in connection.dump(&question(sets::GET, named, "list sets")).map_err(raced)? {
        let mut set = sets::decode(&Fields::of(&answer)?)?;
        let question = question(sets::GET_ELEMENTS, sets::named(table, &set.name), "list a set's elements");
        for answer in connection.dump(&question).map_err(raced)? {
            sets::decode_elements(&Fields::of(&answer)?, &mut set)?;
        }
        ruleset.sets.push(set);
    }
    Ok(Some(ruleset))
}

fn replacement(ruleset: &Ruleset) -> Vec<Request> {
    let table = &ruleset.table;
    let mut batch = vec![begin()];
    batch.extend(fresh_start(table));
    let flagged = named_table(table).network_u32(TABLE_FLAGS, ruleset.flags);
    batch.push(message(NEW_TABLE, CREATE, flagged, &format!("add table {table}")));
    for (set, id) in ruleset.sets.iter().zip(1..) {
        batch.push(message(
            sets::NEW,
            CREATE,
            sets::encode(table, set, id),
            &format!("add set {}", set.name),
        ));
        let purpose = format!("fill set {}", set.name);
        let filled = sets::encode_elements(table, set);
        batch.extend(filled.map(|elements| message(sets::NEW_ELEMENTS, CREATE, elements, &purpose)));
    }
    batch.extend(ruleset.chains.iter().map(|chain| new_chain(table, chain)));
    for chain in &ruleset.chains {
        batch.extend(chain.rules.iter().map(|rule| new_rule(table, &chain.name, rule)));
    }
    finish(&mut batch);
    batch
}

/// Creating first makes the deletion valid whether or not the table was there.
fn fresh_start(table: &str) -> [Request; 2] {
    [
        message(NEW_TABLE, CREATE, named_table(table), &format!("have table {table}")),
        message(DELETE_TABLE, 0, named_table(table), &format!("delete table {table}")),
    ]
}

fn named_table(table: &str) -> Attributes {
    Attributes::new().text(TABLE_NAME, table)
}

fn new_chain(table: &str, chain: &Chain) -> Request {
    let hook = Attributes::new()
        .network_u32(HOOK_NUMBER, chain.hook as u32)
        .network_u32(HOOK_PRIORITY, chain.priority.cast_unsigned());
    let body = Attributes::new()
        .text(CHAIN_TABLE, table)
        .text(CHAIN_NAME, &chain.name)
        .nest(CHAIN_HOOK, hook)
        .network_u32(CHAIN_POLICY, u32::from(!chain.drops))
        .text(CHAIN_TYPE, chain.kind.name());
    message(NEW_CHAIN, CREATE, body, &format!("add chain {}", chain.name))
}

fn new_rule(table: &str, chain: &str, rule: &Rule) -> Request {
    let add = |list: Attributes, expression: &Expression| list.nest(LIST_ELEMENT, expression.encode());
    let expressions = rule.expressions.iter().fold(Attributes::new(), add);
    let body = Attributes::new()
        .text(RULE_TABLE, table)
        .text(RULE_CHAIN, chain)
        .nest(RULE_EXPRESSIONS, expressions)
        .bytes(RULE_USER_DATA, &comment(&rule.purpose));
    message(NEW_RULE, CREATE | APPEND, body, &format!("add rule to {chain}: {}", rule.purpose))
}

/// User data as `nft` writes it, so that it shows the purpose too: type, length, text, zero.
fn comment(purpose: &str) -> Vec<u8> {
    let length = u8::try_from(purpose.len() + 1).unwrap_or(u8::MAX);
    [&[USER_DATA_COMMENT, length], purpose.as_bytes(), &[0]].concat()
}

fn message(kind: u16, flags: u16, attributes: Attributes, purpose: &str) -> Request {
    let body = [generic_header(FAMILY_INET, 0).to_vec(), attributes.into_bytes()].concat();
    Request { kind: SUBSYSTEM << 8 | kind, flags, body, purpose: purpose.into() }
}

fn question(kind: u16, attributes: Attributes, purpose: &str) -> Request {
    message(kind, 0, attributes, purpose)
}

fn begin() -> Request {
    let body = generic_header(FAMILY_UNSPECIFIED, SUBSYSTEM).to_vec();
    Request { kind: BATCH_BEGIN, flags: 0, body, purpose: "begin the transaction".into() }
}

/// Only the last change asks for an answer: refusals are sent unasked and before it, so its answer means that the
/// whole batch is in force, and a long table cannot overflow the queue of answers.
fn finish(batch: &mut Vec<Request>) {
    if let Some(last) = batch.last_mut() {
        last.flags |= ACK;
    }
    let body = generic_header(FAMILY_UNSPECIFIED, SUBSYSTEM).to_vec();
    batch.push(Request { kind: BATCH_END, flags: 0, body, purpose: "commit the transaction".into() });
}

fn generic_header(family: u8, resource: u16) -> [u8; GENERIC_HEADER] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Unknown => "unknown",
        }
    }
}

fn decode(
    table: &str,
    tables: &[Answer],
    chains: &[Answer],
    rules: &[Answer],
) -> Result<Option<Ruleset>, NetlinkError> {
    let mut found = None;
    for answer in tables {
        let fields = Fields::of(answer)?;
        if fields.text(TABLE_NAME) == Some(table) {
            found = Some(Ruleset { flags: fields.number(TABLE_FLAGS).unwrap_or(0), ..Ruleset::new(table) });
        }
    }
    let Some(mut ruleset) = found else { return Ok(None) };
    for answer in chains {
        let fields = Fields::of(answer)?;
        if fields.text(CHAIN_TABLE) == Some(table) {
            ruleset.chains.push(decode_chain(&fields)?);
        }
    }
    for answer in rules {
        let fields = Fields::of(answer)?;
        let name = fields.text(RULE_CHAIN).ok_or(NetlinkError::Malformed)?;
        let chain = ruleset.chains.iter_mut().find(|chain| chain.name == name);
        // A chain made between the two lists: read again.
        chain.ok_or(NetlinkError::Interrupted)?.rules.push(decode_rule(&fields)?);
    }
    Ok(Some(ruleset))
}

fn decode_chain(fields: &Fields<'_>) -> Result<Chain, NetlinkError> {
    let name = fields.text(CHAIN_NAME).ok_or(NetlinkError::Malformed)?;
    let hook = Fields(attributes(fields.bytes(CHAIN_HOOK).unwrap_or_default())?);
    let hooks = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];
    let known_hook = hooks.into_iter().find(|known| hook.number(HOOK_NUMBER) == Some(*known as u32));
    let kind = match fields.text(CHAIN_TYPE) {
        Some("filter") if known_hook.is_some() => Kind::Filter,
        Some("nat") if known_hook.is_some() => Kind::Nat,
        _ => Kind::Unknown,
    };
    let priority = hook.number(HOOK_PRIORITY).unwrap_or(0).cast_signed();
    let drops = fields.number(CHAIN_POLICY) == Some(0);
    Ok(Chain { drops, ..Chain::new(name, kind, known_hook.unwrap_or(Hook::Output), priority) })
}

fn decode_rule(fields: &Fields<'_>) -> Result<Rule, NetlinkError> {
    let elements = attributes(fields.bytes(RULE_EXPRESSIONS).unwrap_or_default())?;
    let expressions =
        elements.into_iter().map(|(_, element)| Expression::decode(element)).collect::<Result<_, _>>()?;
    let purpose = match fields.bytes(RULE_USER_DATA) {
        Some([USER_DATA_COMMENT, _, text @ .., 0]) => String::from_utf8_lossy(text).into_owned(),
        _ => String::new(),
    };
    Ok(Rule { purpose, expressions })
}

/// A message's attributes, by kind.
pub(super) struct Fields<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Fields<'a> {
    fn of(answer: &'a Answer) -> Result<Self, NetlinkError> {
        let body = answer.body.get(GENERIC_HEADER..).ok_or(NetlinkError::Malformed)?;
        Ok(Self(attributes(body)?))
    }

    pub(super) fn bytes(&self, kind: u16) -> Option<&'a [u8]> {
        self.0.iter().find(|(found, _)| *found == kind).map(|(_, value)| *value)
    }

    pub(super) fn text(&self, kind: u16) -> Option<&'a str> {
        std::str::from_utf8(self.bytes(kind)?).ok().map(|text| text.trim_end_matches('\0'))
    }

    pub(super) fn number(&self, kind: u16) -> Option<u32> {
        self.bytes(kind)?.try_into().ok().map(u32::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::expression::{redirect_to, tcp};
    use super::*;

    fn example() -> Ruleset {
        let mut chain = Chain::new("output", Kind::Nat, Hook::Output, DESTINATION_PRIORITY);
        chain.act("all TCP", tcp(), redirect_to(15001));
        Ruleset { chains: vec![chain], ..Ruleset::new("signet") }
    }

    #[test]
    fn table_is_replaced_in_one_batch() {
        let batch = replacement(&example());
        let purposes: Vec<_> = batch.iter().map(|request| request.purpose.as_str()).collect();
        let expected = [
            "begin the transaction",
            "have table signet",
            "delete table signet",
            "add table signet",
            "add chain output",
            "add rule to output: all TCP",
            "commit the transaction",
        ];
        assert_eq!(purposes, expected);
        assert_eq!(batch.iter().position(|request| request.flags & ACK != 0), Some(5));
        assert_eq!(batch[0].body, [0, 0, 0, 10], "the subsystem is named in network order");
    }

    #[test]
    fn chain_has_the_bytes_the_kernel_documents() {
        let number =
            |kind: u16, value: [u8; 4]| [&8u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &value].concat();
        let text = |kind: u16, length: u16, padded: &[u8]| {
            [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), padded].concat()
        };
        let expected = [
            vec![FAMILY_INET, 0, 0, 0],
            text(1, 11, b"signet\0\0"),
            text(3, 11, b"output\0\0"),
            [20u16.to_ne_bytes(), 0x8004u16.to_ne_bytes()].concat(),
            number(1, [0, 0, 0, 3]),
            number(2, [0xff, 0xff, 0xff, 0x9c]),
            number(5, [0, 0, 0, 1]),
            text(7, 8, b"nat\0"),
        ]
        .concat();
        assert_eq!(new_chain("signet", &example().chains[0]).body, expected);
    }

    #[test]
    fn what_was_encoded_decodes_to_the_same_table() {
        let ruleset = example();
        let answer = |request: &Request| Answer { kind: request.kind, body: request.body.clone() };
        let chain = &ruleset.chains[0];
        let tables = [answer(&message(NEW_TABLE, 0, named_table("signet"), ""))];
        let chains = [answer(&new_chain("signet", chain))];
        let rules = [answer(&new_rule("signet", "output", &chain.rules[0]))];
        assert_eq!(decode("signet", &tables, &chains, &rules).unwrap(), Some(ruleset));
        assert_eq!(decode("other", &tables, &chains, &rules).unwrap(), None);
    }

    #[test]
    fn long_purpose_is_cut_between_characters() {
        assert!(Rule::new(&"é".repeat(100), Vec::new()).purpose.len() <= PURPOSE_BYTES);
    }
}
