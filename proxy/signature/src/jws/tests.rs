use aws_lc_rs::signature::Ed25519KeyPair;
use serde_json::{Value, json};

use super::header::encode_chain;
use super::jwt::UnprovenClaims;
use super::*;

const ALICE: &str = "spiffe://mesh.example/app/one/alice";
const BOB: &str = "spiffe://mesh.example/app/two/bob";
const CAROL: &str = "spiffe://mesh.example/app/two/carol";
const MALLORY: &str = "spiffe://mesh.example/app/bad/mallory";
const NOW: u64 = 1_700_000_000;
const SKEW: u64 = 30;

struct Workload {
    id: &'static str,
    signer: MeshSigner,
    sealing: SealingKey,
    chain: Vec<CertificateDer<'static>>,
}

impl Workload {
    fn new(id: &'static str, seed: u8) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let pkcs8 = pair.to_pkcs8().unwrap().as_ref().to_vec();
        Self {
            id,
            signer: MeshSigner::new(&pkcs8, format!("{id}#{seed}")).unwrap(),
            sealing: SealingKey::derive(&pkcs8).unwrap(),
            // What is in it is for whoever verifies chains.
            chain: vec![CertificateDer::from(vec![seed; 300]), CertificateDer::from(vec![0; 400])],
        }
    }

    /// As a verified chain of this workload says.
    fn is(&self) -> Signer<'_> {
        Signer {
            spiffe_id: self.id,
            keyid: self.signer.keyid(),
            public_key: self.signer.public_key(),
            not_before: NOW - 1800,
            not_after: NOW + 1800,
        }
    }

    fn sign(&self, head: &Head, payload: &[u8]) -> Result<String, JwsError> {
        sign(&self.signer, &self.chain, head, payload)
    }

    fn seal(&self, head: &Head, recipients: &[&Self], payload: &[u8]) -> Result<String, JwsError> {
        let keys: Vec<_> = recipients.iter().map(|one| one.sealing.public()).collect();
        let recipients: Vec<_> =
            recipients.iter().zip(&keys).map(|(one, key)| Recipient { spiffe_id: one.id, key }).collect();
        seal(&self.signer, &self.chain, head, &recipients, payload)
    }

    fn rules(&self) -> Rules<'_> {
        Rules { own: Some(self.id), now: NOW, skew: SKEW }
    }

    fn open(&self, message: &str, sender: &Self) -> Result<Vec<u8>, JwsError> {
        let message = Unproven::parse(message)?.verify(&sender.is(), self.rules())?;
        message.open(self.id, &[&self.sealing])
    }
}

fn alice() -> Workload {
    Workload::new(ALICE, 1)
}

fn bob() -> Workload {
    Workload::new(BOB, 2)
}

fn to(audience: &[&str]) -> Head {
    Head {
        id: MessageId([7; 16]),
        created: NOW,
        expires: NOW + 600,
        audience: Audience::new(audience.iter().map(|&id| id.to_owned()).collect()).unwrap(),
        content_type: Some("text/plain".to_owned()),
    }
}

/// The message with its header changed, under the old signature.
fn with_header(message: &str, change: impl FnOnce(&mut Value)) -> String {
    let (header, rest) = message.split_once('.').unwrap();
    let mut header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap();
    change(&mut header);
    format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header.to_string()))
}

/// The same, signed again.
fn signed_again(by: &Workload, message: &str, change: impl FnOnce(&mut Value)) -> String {
    let changed = with_header(message, change);
    let (signed, _) = changed.rsplit_once('.').unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(by.signer.sign(signed.as_bytes()).unwrap()))
}

#[test]
fn what_was_signed_is_verified_with_everything_it_says() {
    let (alice, bob) = (alice(), bob());
    for payload in [&b""[..], b"hello", &[0xff; MAX_PAYLOAD]] {
        let message = alice.sign(&to(&[BOB, CAROL]), payload).unwrap();
        assert!(message.starts_with("ey"), "what keeps it apart from every other signature");
        let unproven = Unproven::parse(&message).unwrap();
        assert_eq!(unproven.chain(), alice.chain);
        let verified = unproven.verify(&alice.is(), bob.rules()).unwrap();
        assert_eq!(verified.head(), &to(&[BOB, CAROL]));
        assert_eq!((verified.sender(), verified.level()), (ALICE, Level::Protected));
        assert_eq!(verified.payload(), Ok(payload));
        assert_eq!(verified.open(BOB, &[&bob.sealing]), Err(JwsError::NotSealed));
    }
    let message = alice.sign(&to(&["any"]), b"to all").unwrap();
    assert!(Unproven::parse(&message).unwrap().verify(&alice.is(), bob.rules()).is_ok());
}

#[test]
fn what_was_sealed_opens_for_each_recipient_and_for_nobody_else() {
    let (alice, bob) = (alice(), bob());
    let carol = Workload::new(CAROL, 3);
    for payload in [&b""[..], b"secret", &[0xff; MAX_PAYLOAD]] {
        let message = alice.seal(&to(&[BOB, CAROL]), &[&bob, &carol], payload).unwrap();
        let unproven = Unproven::parse(&message).unwrap();
        let verified = unproven.verify(&alice.is(), bob.rules()).unwrap();
        assert_eq!((verified.level(), verified.payload()), (Level::Private, Err(JwsError::Sealed)));
        assert_eq!(bob.open(&message, &alice), Ok(payload.to_vec()));
        assert_eq!(carol.open(&message, &alice), Ok(payload.to_vec()));
    }
    let message = alice.seal(&to(&[BOB]), &[&bob], b"secret").unwrap();
    assert!(!message.contains(&*URL_SAFE_NO_PAD.encode("secret")));
    assert_eq!(carol.open(&message, &alice), Err(JwsError::Audience));
    // Another instance of the recipient, whose key was not in the directory.
    let other = Workload::new(BOB, 9);
    assert_eq!(other.open(&message, &alice), Err(JwsError::Seal(SealError::NotForUs)));
}

#[test]
fn no_other_algorithm_is_taken_even_under_a_good_signature() {
    let (alice, bob) = (alice(), bob());
    let message = alice.sign(&to(&[BOB]), b"x").unwrap();
    for algorithm in ["none", "None", "HS256", "RS256", "ES256", "Ed25519", ""] {
        let other = signed_again(&alice, &message, |header| header["alg"] = algorithm.into());
        assert_eq!(Unproven::parse(&other).unwrap_err(), JwsError::Algorithm, "{algorithm}");
        // Without any signature.
        let bare = format!("{}.", other.rsplit_once('.').unwrap().0);
        assert!(Unproven::parse(&bare).is_err(), "{algorithm}");
    }
    // The public key as the secret of a code: a key of ours has one algorithm.
    let (signed, _) = message.rsplit_once('.').unwrap();
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA512, alice.signer.public_key());
    let code = aws_lc_rs::hmac::sign(&key, signed.as_bytes());
    let confused = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(code));
    let refused = Unproven::parse(&confused).unwrap().verify(&alice.is(), bob.rules());
    assert_eq!(refused.unwrap_err(), JwsError::BadSignature);
}

#[test]
fn header_has_exactly_its_members_and_each_once() {
    let alice = alice();
    let message = alice.seal(&to(&[BOB]), &[&bob()], b"x").unwrap();
    let parsed = |change: fn(&mut Value)| Unproven::parse(&signed_again(&alice, &message, change)).err();
    assert_eq!(parsed(|_| {}), None);
    for (change, expected) in [
        ((|h| h["typ"] = "JWT".into()) as fn(&mut Value), JwsError::Type),
        (|h| h["typ"] = "mesh-msg-v2+jws".into(), JwsError::Type),
        (|h| h["crit"] = json!([]), JwsError::Critical),
        (|h| h["crit"] = json!(["mesh", "b64"]), JwsError::Critical),
        (|h| h["crit"] = json!(["mesh", "mesh"]), JwsError::Critical),
        (|h| h["b64"] = false.into(), JwsError::Malformed),
        (|h| h["jwk"] = json!({}), JwsError::Malformed),
        (|h| h["jku"] = "https://mallory.example".into(), JwsError::Malformed),
        (|h| h["kid"] = "1".into(), JwsError::Malformed),
        (|h| h["zip"] = "DEF".into(), JwsError::Malformed),
        (|h| h["mesh"]["more"] = 1.into(), JwsError::Malformed),
        (|h| h["mesh"]["audience"] = json!([]), JwsError::Malformed),
        (|h| h["mesh"]["audience"] = json!(["any"]), JwsError::Malformed),
        (|h| h["mesh"]["audience"] = json!([BOB, BOB]), JwsError::Malformed),
        (|h| h["mesh"]["audience"] = json!([BOB, "any"]), JwsError::Malformed),
        (|h| h["mesh"]["audience"] = BOB.into(), JwsError::Malformed),
        (|h| h["mesh"]["level"] = "protected".into(), JwsError::Malformed),
        (|h| h["mesh"]["level"] = "public".into(), JwsError::Malformed),
        (|h| h["mesh"]["id"] = "short".into(), JwsError::Malformed),
        (|h| h["mesh"]["created"] = json!(-1), JwsError::Malformed),
        (|h| h["mesh"]["created"] = json!(1.5), JwsError::Malformed),
        (|h| h["mesh"]["commit"] = "AAAA".into(), JwsError::Malformed),
        (|h| h["x5c"] = json!([]), JwsError::Malformed),
        (|h| h["x5c"] = json!(["AA==", "AA==", "AA==", "AA==", "AA=="]), JwsError::Malformed),
        (|h| h["x5c"] = json!(["-_-_"]), JwsError::Malformed),
        (|h| h["cty"] = "text/plain\u{7f}".into(), JwsError::Malformed),
        (|h| *h = json!([]), JwsError::Malformed),
    ] {
        assert_eq!(parsed(change), Some(expected));
    }
    for member in ["alg", "typ", "crit", "x5c", "mesh"] {
        let without = signed_again(&alice, &message, |h| drop(h.as_object_mut().unwrap().remove(member)));
        assert_eq!(Unproven::parse(&without).unwrap_err(), JwsError::Malformed, "{member}");
    }
    let (header, rest) = message.split_once('.').unwrap();
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap();
    for (once, twice) in [
        ("\"alg\":", "\"alg\":\"none\",\"alg\":"),
        ("\"level\":", "\"level\":\"private\",\"level\":"),
        ("\"mesh\":", "\"mesh\":{},\"mesh\":"),
    ] {
        let doubled = URL_SAFE_NO_PAD.encode(text.replacen(once, twice, 1));
        let refused = Unproven::parse(&format!("{doubled}.{rest}")).map(|_| ());
        assert_eq!(refused, Err(JwsError::Malformed), "{once} twice");
    }
}

#[test]
fn no_character_can_be_changed_left_out_or_added() {
    let (alice, bob) = (alice(), bob());
    let message = alice.seal(&to(&[BOB]), &[&bob], b"x").unwrap();
    let refused = |text: &str| bob.open(text, &alice).is_err();
    for at in 0..message.len() {
        let mut changed = message.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        assert!(refused(&String::from_utf8(changed).unwrap()), "character {at}");
        assert!(refused(&message[..at]), "cut at {at}");
    }
    for added in ["A", ".", "=", "\n", " ", ".AAAA"] {
        assert!(refused(&format!("{message}{added}")), "{added:?}");
        assert!(refused(&format!("{added}{message}")), "{added:?}");
    }
    assert_eq!(bob.open(&message, &alice), Ok(b"x".to_vec()));
}

#[test]
fn chain_or_key_of_another_does_not_verify() {
    let (alice, bob, mallory) = (alice(), bob(), Workload::new(MALLORY, 6));
    let message = alice.sign(&to(&[BOB]), b"x").unwrap();
    let by = |text: &str, signer: &Workload| {
        Unproven::parse(text).unwrap().verify(&signer.is(), bob.rules()).map(|_| ())
    };
    assert_eq!(by(&message, &alice), Ok(()));
    assert_eq!(by(&message, &mallory), Err(JwsError::BadSignature));
    // The chain stands in what is signed.
    let chain = encode_chain(&mallory.chain);
    let swapped = with_header(&message, |header| header["x5c"] = json!(chain));
    assert_eq!(by(&swapped, &alice), Err(JwsError::BadSignature));
    assert_eq!(by(&swapped, &mallory), Err(JwsError::BadSignature));
    // A point of small order verifies anything: it is no key.
    let mut weak = [0; 32];
    weak[0] = 1;
    let weak = Signer { public_key: &weak, ..alice.is() };
    let refused = Unproven::parse(&message).unwrap().verify(&weak, bob.rules());
    assert_eq!(refused.unwrap_err(), JwsError::BadSignature);
}

#[test]
fn thief_of_a_sealed_message_cannot_send_it_as_its_own() {
    let (alice, bob, mallory) = (alice(), bob(), Workload::new(MALLORY, 6));
    let message = alice.seal(&to(&[BOB]), &[&bob], b"secret").unwrap();
    let chain = encode_chain(&mallory.chain);
    let stolen = signed_again(&mallory, &message, |header| header["x5c"] = json!(chain));
    assert_eq!(bob.open(&stolen, &mallory), Err(JwsError::Seal(SealError::Broken)));
}

#[test]
fn sealed_message_is_bound_to_everything_it_says() {
    let (alice, bob) = (alice(), bob());
    let message = alice.seal(&to(&[BOB, CAROL]), &[&bob, &Workload::new(CAROL, 3)], b"secret").unwrap();
    let other_id = MessageId([8; 16]).to_string();
    // Even the sender's own signature cannot give a sealed payload another meaning.
    let changes: [(&str, Value); 4] = [
        ("id", json!(other_id)),
        ("created", json!(NOW - 1)),
        ("expires", json!(NOW + 601)),
        ("audience", json!([BOB])),
    ];
    for (member, value) in changes {
        let other = signed_again(&alice, &message, |header| header["mesh"][member] = value);
        assert_eq!(bob.open(&other, &alice), Err(JwsError::Seal(SealError::Broken)), "{member}");
    }
    for content_type in [json!("text/html"), Value::Null] {
        let other = signed_again(&alice, &message, |header| header["cty"] = content_type.clone());
        assert_eq!(bob.open(&other, &alice), Err(JwsError::Seal(SealError::Broken)), "{content_type}");
    }
    let other = signed_again(&alice, &message, |header| {
        header["mesh"]["commit"] = URL_SAFE_NO_PAD.encode([0; 32]).into();
    });
    assert_eq!(bob.open(&other, &alice), Err(JwsError::Seal(SealError::Broken)), "commitment");
}

#[test]
fn recipient_that_was_removed_does_not_open_and_none_is_added_unsigned() {
    let (alice, bob) = (alice(), bob());
    let both = alice.seal(&to(&[BOB, CAROL]), &[&bob, &Workload::new(CAROL, 3)], b"secret").unwrap();
    let without_bob = |header: &mut Value| {
        let envelope = URL_SAFE_NO_PAD.decode(header["mesh"]["seal"].as_str().unwrap()).unwrap();
        let rest = [&[1, 1], &envelope[2 + 88..]].concat();
        header["mesh"]["seal"] = URL_SAFE_NO_PAD.encode(rest).into();
    };
    assert_eq!(bob.open(&with_header(&both, without_bob), &alice), Err(JwsError::BadSignature));
    let by_sender = signed_again(&alice, &both, without_bob);
    assert_eq!(bob.open(&by_sender, &alice), Err(JwsError::Seal(SealError::NotForUs)));
}

#[test]
fn times_are_judged_with_the_skew_and_by_the_certificate() {
    let (alice, bob) = (alice(), bob());
    let verified = |created: u64, expires: u64, now: u64| {
        let message = alice.sign(&Head { created, expires, ..to(&[BOB]) }, b"x")?;
        let rules = Rules { now, ..bob.rules() };
        Unproven::parse(&message)?.verify(&alice.is(), rules).map(|_| ())
    };
    assert_eq!(verified(NOW, NOW + 600, NOW), Ok(()));
    assert_eq!(verified(NOW + SKEW, NOW + 600, NOW), Ok(()));
    assert_eq!(verified(NOW + SKEW + 1, NOW + 600, NOW), Err(JwsError::Clock));
    assert_eq!(verified(NOW, NOW + 600, NOW + 629), Ok(()));
    assert_eq!(verified(NOW, NOW + 600, NOW + 630), Err(JwsError::Expired));
    assert_eq!(verified(NOW, NOW + 1800, NOW), Ok(()));
    assert_eq!(verified(NOW, NOW + 1801, NOW), Err(JwsError::Certificate));
    assert_eq!(verified(NOW - 1831, NOW + 600, NOW), Err(JwsError::Certificate));
    for (created, expires) in [(NOW, NOW), (NOW, NOW - 1), (NOW, NOW + MAX_LIFETIME + 1), (0, u64::MAX)] {
        assert_eq!(verified(created, expires, NOW), Err(JwsError::Lifetime), "{created} {expires}");
    }
}

#[test]
fn message_is_for_its_audience_and_an_auditor_is_not_asked() {
    let (alice, bob) = (alice(), bob());
    let message = alice.sign(&to(&[CAROL]), b"x").unwrap();
    let verified = |own| {
        let rules = Rules { own, ..bob.rules() };
        Unproven::parse(&message).unwrap().verify(&alice.is(), rules).map(|_| ())
    };
    assert_eq!(verified(Some(BOB)), Err(JwsError::Audience));
    assert_eq!(verified(Some(CAROL)), Ok(()));
    assert_eq!(verified(None), Ok(()));
}

#[test]
fn audiences_that_mean_nothing_are_refused() {
    let new = |ids: &[&str]| Audience::new(ids.iter().map(|&id| id.to_owned()).collect());
    let many: Vec<String> = (0..=MAX_AUDIENCE).map(|n| format!("spiffe://a/{n}")).collect();
    let long = format!("spiffe://{}", "a".repeat(MAX_SPIFFE_ID));
    for bad in [&[][..], &["bob"], &[BOB, BOB], &["any", BOB], &["any", "any"], &["spiffe://a b"], &[&*long]]
    {
        assert_eq!(new(bad), Err(JwsError::Recipients), "{bad:?}");
    }
    assert_eq!(Audience::new(many), Err(JwsError::Recipients));
}

#[test]
fn private_message_needs_a_key_for_everybody_it_is_for_and_no_other() {
    let (alice, bob, carol) = (alice(), bob(), Workload::new(CAROL, 3));
    for (head, recipients) in [
        (to(&["any"]), &[&bob][..]),
        (to(&[BOB, CAROL]), &[&bob]),
        (to(&[BOB]), &[&bob, &carol]),
        (to(&[BOB]), &[]),
        (to(&[BOB]), &[&bob; MAX_AUDIENCE + 1]),
    ] {
        assert_eq!(alice.seal(&head, recipients, b"x"), Err(JwsError::Recipients));
    }
}

#[test]
fn sizes_have_bounds_on_both_ends() {
    let (alice, bob) = (alice(), bob());
    let large = vec![0; MAX_PAYLOAD + 1];
    assert_eq!(alice.sign(&to(&[BOB]), &large), Err(JwsError::TooLarge));
    assert_eq!(alice.seal(&to(&[BOB]), &[&bob], &large), Err(JwsError::TooLarge));
    let header = Header::new(&alice.chain, &to(&[BOB]), None).to_json().unwrap();
    let message = compact::sign(&alice.signer, &header, &large).unwrap();
    assert_eq!(Unproven::parse(&message).unwrap_err(), JwsError::TooLarge);
    assert_eq!(Unproven::parse(&"A".repeat(MAX_MESSAGE + 1)).unwrap_err(), JwsError::TooLarge);
    let long = format!("{}.AA.AA", "A".repeat(encoded(MAX_HEADER) + 1));
    assert_eq!(Unproven::parse(&long).unwrap_err(), JwsError::TooLarge);
    let ids: Vec<String> = (0..30).map(|n| format!("spiffe://a/{n}/{}", "a".repeat(2000))).collect();
    let head = Head { audience: Audience::new(ids).unwrap(), ..to(&[BOB]) };
    assert_eq!(alice.sign(&head, b"x"), Err(JwsError::TooLarge));
}

#[test]
fn assertion_of_an_identity_is_verified_and_is_no_message() {
    let (alice, bob) = (alice(), bob());
    let audience = to(&[BOB]).audience;
    let token = jwt::sign(&alice.signer, &alice.chain, &audience, NOW, NOW + 600).unwrap();
    let verified = |token: &str, by: &Workload, rules: Rules<'_>| {
        UnprovenClaims::parse(token).and_then(|claims| claims.verify(&by.is(), rules))
    };
    let claims = verified(&token, &alice, bob.rules()).unwrap();
    assert_eq!((&*claims.iss, claims.exp, claims.iat), (ALICE, NOW + 600, NOW));
    let (carol, mallory) = (Workload::new(CAROL, 3), Workload::new(MALLORY, 6));
    assert_eq!(verified(&token, &alice, carol.rules()), Err(JwsError::Audience));
    let later = Rules { now: NOW + 630, ..bob.rules() };
    assert_eq!(verified(&token, &alice, later), Err(JwsError::Expired));
    assert_eq!(verified(&token, &mallory, bob.rules()), Err(JwsError::BadSignature));
    // In somebody else's name.
    let resigned = signed_again(&mallory, &token, |_| {});
    assert_eq!(verified(&resigned, &mallory, bob.rules()), Err(JwsError::Certificate));
    assert_eq!(Unproven::parse(&token).unwrap_err(), JwsError::Malformed);
    let message = alice.sign(&to(&[BOB]), b"x").unwrap();
    assert_eq!(UnprovenClaims::parse(&message).unwrap_err(), JwsError::Malformed);
    let everybody = jwt::sign(&alice.signer, &alice.chain, &Audience::Any, NOW, NOW + 600);
    assert_eq!(everybody, Err(JwsError::Recipients));
    for algorithm in ["none", "HS256", "RS256"] {
        let other = signed_again(&alice, &token, |header| header["alg"] = algorithm.into());
        assert_eq!(UnprovenClaims::parse(&other).unwrap_err(), JwsError::Algorithm);
    }
}
