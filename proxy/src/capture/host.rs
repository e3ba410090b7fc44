//! Capture in a network that others use too, such as the host's: what comes for some TCP ports, and what leaves for
//! places of the mesh. Nothing else is touched, and each guard has a table of its own, so that guards go side by side.
//!
//! - TCP that arrives for a guarded port of this machine is redirected to the guard. What is forwarded is not this
//!   machine's and passes.
//! - TCP that leaves for a place of the mesh's directory is redirected to the guard, for the users it speaks for. The
//!   directory is a set in the table and is replaced with it, in one transaction: there is no moment without.
//! - Everything else passes: other ports, other destinations, UDP, loopback, what was open before.
//!
//! The rules stay when the guard dies: guarded ports and places of the mesh then refuse. Only nf_tables can do this;
//! there is no way by iptables.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::CaptureError;
use super::expression::{
    Expression, Verdict, came_by, destination_in, destination_port, for_this_machine, leaves_by, marked,
    redirect_to, sent_by_user, tcp_opening,
};
use super::nftables::{self, Chain, DESTINATION_PRIORITY, Hook, Kind, Ruleset};
use super::rules::{LOOPBACK, MARK, OUTPUT, PREROUTING, TABLE};
use super::sets::Set;
use super::verify::differences;

/// What the names of guards' tables begin with.
const TABLE_PREFIX: &str = "signet-guard-";
/// Ports of one guard: a service has a handful, and each is a rule of the one transaction.
pub const GUARDED_MAX: usize = 64;
/// Users of one guard: each is two rules.
pub const USERS_MAX: usize = 16;
/// Places of the mesh in the kernel: they must fit the one transaction, which is one datagram of a socket's send buffer
/// (208 KiB by default, 32 bytes a place).
pub const DESTINATIONS_MAX: usize = 4_096;
/// The canary's mark: these bits and the outbound port, so that no two guards take each other's.
const CANARY_MARK: u32 = 0x5168 << 16;

const IPV4_PLACES: &str = "mesh4";
const IPV6_PLACES: &str = "mesh6";

/// What to capture in a network that others use too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRules {
    /// Names the guard and its table.
    pub name: String,
    /// Where outbound connections are sent.
    pub outbound_port: u16,
    /// Where inbound connections are sent.
    pub inbound_port: u16,
    /// The guarded ports.
    pub ports: BTreeSet<u16>,
    /// Whose outbound connections are captured.
    pub speakers: Speakers,
    /// The places of the mesh.
    pub destinations: BTreeSet<SocketAddr>,
}

/// Whose connections to the mesh a guard carries, under its own identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Speakers {
    /// Of every program in this network: the kernel cannot tell one from another.
    Everybody,
    /// Of none.
    Nobody,
    /// Of programs that run as these users.
    Users(BTreeSet<u32>),
}

impl HostRules {
    /// The mark of connections that must come out at this guard, wherever they go.
    pub fn canary_mark(&self) -> u32 {
        CANARY_MARK | u32::from(self.outbound_port)
    }

    /// The table that captures.
    ///
    /// # Errors
    /// [`CaptureError::TooManyPlaces`].
    fn table(&self) -> Result<Ruleset, CaptureError> {
        let found = self.destinations.len();
        if found > DESTINATIONS_MAX {
            return Err(CaptureError::TooManyPlaces { found });
        }
        let sets = [(IPV4_PLACES, false), (IPV6_PLACES, true)];
        Ok(Ruleset {
            sets: sets.map(|(name, ipv6)| Set::of(name, ipv6, &self.destinations)).into(),
            chains: vec![self.output(), self.prerouting()],
            ..Ruleset::new(&table_of(&self.name))
        })
    }

    fn output(&self) -> Chain {
        // Who speaks for some users goes before who speaks for everybody else.
        let early = i32::from(matches!(self.speakers, Speakers::Users(_)));
        let mut chain = Chain::new(OUTPUT, Kind::Nat, Hook::Output, DESTINATION_PRIORITY - early);
        chain.decide("loopback and this machine", leaves_by(LOOPBACK), Verdict::Return);
        chain.decide("sockets of guards", marked(MARK), Verdict::Return);
        let canary = [marked(self.canary_mark()), tcp_opening()].concat();
        chain.act("the canary", canary, redirect_to(self.outbound_port));
        for (purpose, matches) in self.outbound() {
            chain.act(&purpose, matches, redirect_to(self.outbound_port));
        }
        chain
    }

    /// What is captured of that which leaves: purposes and matches.
    fn outbound(&self) -> Vec<(String, Vec<Expression>)> {
        let speakers: Vec<(String, Vec<Expression>)> = match &self.speakers {
            Speakers::Everybody => vec![("everybody".to_owned(), Vec::new())],
            Speakers::Nobody => Vec::new(),
            Speakers::Users(users) => {
                users.iter().map(|user| (format!("user {user}"), sent_by_user(*user))).collect()
            }
        };
        let rule = |(who, by): &(String, Vec<Expression>)| {
            [(IPV4_PLACES, false), (IPV6_PLACES, true)].map(|(set, ipv6)| {
                let matches = [by.clone(), tcp_opening(), destination_in(ipv6, set)].concat();
                (format!("{who} to the mesh"), matches)
            })
        };
        speakers.iter().flat_map(rule).collect()
    }

    fn prerouting(&self) -> Chain {
        let mut chain = Chain::new(PREROUTING, Kind::Nat, Hook::Prerouting, DESTINATION_PRIORITY);
        chain.decide("loopback", came_by(LOOPBACK), Verdict::Return);
        for (purpose, matches) in self.inbound() {
            chain.act(&purpose, matches, redirect_to(self.inbound_port));
        }
        chain
    }

    /// What is captured of that which arrives: purposes and matches.
    fn inbound(&self) -> Vec<(String, Vec<Expression>)> {
        let rule = |port: &u16| {
            let matches = [tcp_opening(), destination_port(*port), for_this_machine()].concat();
            (format!("port {port}"), matches)
        };
        self.ports.iter().map(rule).collect()
    }

    /// What another table takes of that which this guard wants.
    fn taken_by(&self, other: &Ruleset) -> Option<String> {
        let theirs: Vec<&[Expression]> = other
            .chains
            .iter()
            .flat_map(|chain| &chain.rules)
            .map(|rule| rule.expressions.as_slice())
            .collect();
        let wanted = self.inbound().into_iter().chain(self.outbound());
        let taken = |matches: &[Expression]| theirs.iter().any(|rule| rule.starts_with(matches));
        wanted.into_iter().find(|(_, matches)| taken(matches)).map(|(purpose, _)| purpose)
    }
}

fn table_of(guard: &str) -> String {
    format!("{TABLE_PREFIX}{guard}")
}

/// Puts a guard's rules in force for the first time in its life. Its own earlier ones are replaced.
///
/// # Errors
/// [`CaptureError::Taken`] when another guard, or a sidecar, captures the same already; nothing has changed then. As
/// [`super::install`].
pub fn claim(rules: &HostRules) -> Result<(), CaptureError> {
    refuse_conflicts(rules)?;
    install(rules)?;
    // Another one may have started at the same moment: then at least one of the two sees the other here.
    refuse_conflicts(rules).inspect_err(|_| {
        // What failed first is what to tell.
        let _ = remove(&rules.name);
    })
}

/// Puts the rules in force, in place of this guard's earlier ones. Idempotent and atomic.
///
/// # Errors
/// As [`super::install`]; nothing has changed then.
pub fn install(rules: &HostRules) -> Result<(), CaptureError> {
    Ok(nftables::apply(&rules.table()?)?)
}

/// Checks that what is in force is what [`install`] puts there, to the byte, the set of places included.
///
/// # Errors
/// [`CaptureError::Differs`] tells the differences in words.
pub fn verify(rules: &HostRules) -> Result<(), CaptureError> {
    let expected = rules.table()?;
    let found = nftables::read(&expected.table)?;
    let differences = differences(&expected, found.as_ref());
    if differences.is_empty() { Ok(()) } else { Err(CaptureError::Differs { differences }) }
}

/// The places of the mesh in the rules that an earlier process of this guard left behind; none without such.
///
/// # Errors
/// As [`super::verify()`].
pub fn left_behind(guard: &str) -> Result<BTreeSet<SocketAddr>, CaptureError> {
    let found = nftables::read(&table_of(guard))?;
    Ok(found.into_iter().flat_map(|table| table.sets).flat_map(|set| set.places).collect())
}

/// Removes a guard's rules; no error when there are none. What is redirected breaks, new connections go **in clear**.
///
/// # Errors
/// As [`super::remove`].
pub fn remove(guard: &str) -> Result<(), CaptureError> {
    Ok(nftables::delete(&table_of(guard))?)
}

fn refuse_conflicts(rules: &HostRules) -> Result<(), CaptureError> {
    let own = table_of(&rules.name);
    for name in nftables::tables()? {
        if name == TABLE {
            let fix = "signet-proxy capture remove".to_owned();
            return Err(CaptureError::Taken { what: "everything".to_owned(), table: name, fix });
        }
        let Some(guard) = name.strip_prefix(TABLE_PREFIX).filter(|_| name != own) else { continue };
        // A table that goes meanwhile takes nothing any more.
        let Some(table) = nftables::read(&name)? else { continue };
        if let Some(what) = rules.taken_by(&table) {
            let fix = format!("signet-proxy capture remove --guard {guard}");
            return Err(CaptureError::Taken { what, table: name, fix });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> HostRules {
        HostRules {
            name: "web".into(),
            outbound_port: 15101,
            inbound_port: 15106,
            ports: [8080, 9090].into(),
            speakers: Speakers::Everybody,
            destinations: ["10.0.0.1:80".parse().unwrap(), "[fd00::1]:80".parse().unwrap()].into(),
        }
    }

    fn purposes(chain: &Chain) -> Vec<&str> {
        chain.rules.iter().map(|rule| rule.purpose.as_str()).collect()
    }

    #[test]
    fn every_redirect_names_a_port_a_place_or_the_canary() {
        let table = rules().table().unwrap();
        let output = ["loopback and this machine", "sockets of guards", "the canary"];
        let output = [&output[..], &["everybody to the mesh"; 2]].concat();
        assert_eq!(purposes(&table.chains[0]), output);
        assert_eq!(purposes(&table.chains[1]), ["loopback", "port 8080", "port 9090"]);
        for rule in table.chains.iter().flat_map(|chain| &chain.rules) {
            let redirects = rule.expressions.contains(&Expression::Redirect);
            let narrow = rule.expressions.iter().any(|step| {
                matches!(step, Expression::AddressType | Expression::Lookup { .. })
                    || *step == Expression::Meta(super::super::expression::Meta::Mark)
            });
            assert!(!redirects || narrow, "{rule}");
        }
        assert_eq!(table.sets.iter().map(|set| set.places.len()).collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn users_go_before_everybody_and_nobody_is_not_captured() {
        let users = HostRules { speakers: Speakers::Users([1000, 1001].into()), ..rules() }.table().unwrap();
        assert!(users.chains[0].priority < rules().table().unwrap().chains[0].priority);
        assert_eq!(users.chains[0].rules.len(), 3 + 4);
        let nobody = HostRules { speakers: Speakers::Nobody, ..rules() }.table().unwrap();
        assert_eq!(nobody.chains[0].rules.len(), 3);
    }

    #[test]
    fn guards_that_want_the_same_see_it_and_others_do_not() {
        let own = rules();
        let taken = |other: HostRules| own.taken_by(&other.table().unwrap());
        let apart = HostRules {
            name: "db".into(),
            outbound_port: 15201,
            inbound_port: 15206,
            ports: [5432].into(),
            speakers: Speakers::Users([999].into()),
            ..rules()
        };
        assert_eq!(taken(apart.clone()), None);
        assert_eq!(taken(HostRules { ports: [9090].into(), ..apart.clone() }).as_deref(), Some("port 9090"));
        let both = HostRules { speakers: Speakers::Everybody, ..apart };
        assert_eq!(taken(both).as_deref(), Some("everybody to the mesh"));
    }

    #[test]
    fn too_many_places_are_refused() {
        let places = (1..=DESTINATIONS_MAX as u16 + 1).map(|port| SocketAddr::from(([10, 0, 0, 1], port)));
        let rules = HostRules { destinations: places.collect(), ..rules() };
        assert!(matches!(rules.table(), Err(CaptureError::TooManyPlaces { found: 4_097 })));
    }
}
