//! Is what is in force what was installed? Two tables compared, the difference told in words.

use super::nftables::{Chain, Ruleset};

/// Differences beyond this many say nothing more: the table is not ours.
const MAX_DIFFERENCES: usize = 16;

/// What differs, empty when nothing does.
pub(super) fn differences(expected: &Ruleset, found: Option<&Ruleset>) -> Vec<String> {
    let Some(found) = found else { return vec![format!("table {} is missing", expected.table)] };
    if expected == found {
        return Vec::new();
    }
    let mut list = Vec::new();
    if expected.flags != found.flags {
        list.push(format!("table {} has flags {:#x}, not {:#x}", found.table, found.flags, expected.flags));
    }
    for chain in &expected.chains {
        match found.chains.iter().find(|found| found.name == chain.name) {
            None => list.push(format!("chain {} is missing", chain.name)),
            Some(found) => compare_chains(chain, found, &mut list),
        }
    }
    for chain in &found.chains {
        if !expected.chains.iter().any(|expected| expected.name == chain.name) {
            list.push(format!("chain {} was not installed by us", chain.name));
        }
    }
    for set in &expected.sets {
        match found.sets.iter().find(|found| found.name == set.name) {
            None => list.push(format!("set {} is missing", set.name)),
            Some(found) if found == set => {}
            Some(found) => {
                let lacking = set.places.difference(&found.places).count();
                let added = found.places.difference(&set.places).count();
                list.push(format!("set {} lacks {lacking} places and has {added} others", set.name));
            }
        }
    }
    for set in &found.sets {
        if !expected.sets.iter().any(|expected| expected.name == set.name) {
            list.push(format!("set {} was not installed by us", set.name));
        }
    }
    if list.is_empty() {
        list.push("the chains or sets stand in another order".into());
    }
    list.truncate(MAX_DIFFERENCES);
    list
}

fn compare_chains(expected: &Chain, found: &Chain, list: &mut Vec<String>) {
    let name = &expected.name;
    let attached = |chain: &Chain| {
        let policy = if chain.drops { "drop" } else { "accept" };
        format!("{:?} on {:?}, priority {}, policy {policy}", chain.kind, chain.hook, chain.priority)
    };
    if attached(expected) != attached(found) {
        list.push(format!("chain {name} is {}, not {}", attached(found), attached(expected)));
    }
    for place in 0..expected.rules.len().max(found.rules.len()) {
        let difference = match (expected.rules.get(place), found.rules.get(place)) {
            (Some(expected), Some(found)) if expected == found => continue,
            (Some(expected), Some(found)) => format!("is {found}, not {expected}"),
            (Some(expected), None) => format!("is missing: {expected}"),
            (None, Some(found)) => format!("was not installed by us: {found}"),
            (None, None) => continue,
        };
        list.push(format!("chain {name}, rule {}, {difference}", place + 1));
        // What follows is shifted; naming it too would hide the cause.
        break;
    }
}

#[cfg(test)]
mod tests {
    use super::super::expression::{Verdict, tcp};
    use super::super::rules::{Other, Rules};
    use super::super::sets::Set;
    use super::*;

    fn changed(change: impl FnOnce(&mut Ruleset)) -> Vec<String> {
        let expected = Rules::default().table().unwrap();
        let mut found = expected.clone();
        change(&mut found);
        differences(&expected, Some(&found))
    }

    #[test]
    fn every_change_is_told() {
        let none: [String; 0] = [];
        assert_eq!(changed(|_| ()), none);
        assert_eq!(differences(&Rules::default().table().unwrap(), None), ["table signet is missing"]);
        assert_eq!(changed(|table| table.flags = 1), ["table signet has flags 0x1, not 0x0"]);
        assert_eq!(changed(|table| drop(table.chains.pop())), ["chain prerouting is missing"]);
        assert_eq!(
            changed(|table| table.chains[0].decide("mine", tcp(), Verdict::Accept)),
            [r#"chain output, rule 5, was not installed by us: "mine": meta l4proto == 0x06 accept"#]
        );
        assert_eq!(
            changed(|table| table.chains[1].drops = true),
            ["chain prerouting is Nat on Prerouting, priority -100, policy drop, \
              not Nat on Prerouting, priority -100, policy accept"]
        );
        let removed = changed(|table| drop(table.chains[0].rules.remove(0)));
        assert!(
            removed[0].starts_with(r#"chain output, rule 1, is "the proxy's own": meta mark"#),
            "{removed:?}"
        );
        assert_eq!(changed(|table| table.chains.swap(0, 1)), ["the chains or sets stand in another order"]);
    }

    #[test]
    fn sets_are_compared_place_by_place() {
        let place = |text: &str| text.parse().unwrap();
        let set = |places: &[&str]| Set::of("mesh4", false, &places.iter().map(|text| place(text)).collect());
        let table = |sets: Vec<Set>| Ruleset { sets, ..Rules::default().table().unwrap() };
        let expected = table(vec![set(&["10.0.0.1:80", "10.0.0.2:80"])]);
        let told = |sets| differences(&expected, Some(&table(sets)));
        assert_eq!(told(expected.sets.clone()), [""; 0]);
        assert_eq!(told(vec![]), ["set mesh4 is missing"]);
        assert_eq!(
            told(vec![set(&["10.0.0.1:80", "10.0.0.3:80"])]),
            ["set mesh4 lacks 1 places and has 1 others"]
        );
        let stranger = Set { name: "mine".into(), ..set(&[]) };
        assert_eq!(told(vec![expected.sets[0].clone(), stranger]), ["set mine was not installed by us"]);
    }

    #[test]
    fn chain_of_a_stranger_is_told() {
        let refuse = Rules { other: Other::Refuse { egress: Vec::new() }, ..Rules::default() };
        let expected = Rules::default().table().unwrap();
        let found = refuse.table().unwrap();
        assert_eq!(differences(&expected, Some(&found)), ["chain other was not installed by us"]);
    }
}
