//! Whatever arrives, it is refused with a name and nothing panics.

use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

use super::{Request, signed_request};
use crate::input::parse_signatures;
use crate::profile::head::Input;
use crate::profile::strip;

/// Pieces from which hostile signature fields are put together.
const PIECES: [&str; 24] = [
    "mesh",
    "sig1",
    "=",
    "(",
    ")",
    "\"",
    "\"@method\"",
    "\"content-type\"",
    ";req",
    ";bs",
    ";sf",
    ";key=\"a\"",
    ";tr",
    ";created=1790000000",
    ";expires=1790000060",
    ";nonce=\"KbIg1JzWoe2DlhcvRvzkIQ.1\"",
    ";alg=\"ed25519\"",
    ";tag=\"mesh-req-v1\"",
    ":AAAA:",
    ",",
    " ",
    "\\",
    "?1",
    "\t",
];

fn pieces() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(PIECES.to_vec()), 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn arbitrary_signature_fields_are_refused(input in pieces(), signature in pieces()) {
        let mut request = Request::new(&[]);
        request.headers.insert("signature-input", HeaderValue::try_from(&input).unwrap());
        request.headers.insert("signature", HeaderValue::try_from(&signature).unwrap());
        prop_assert!(request.verify().is_err());
        let _ = parse_signatures(&request.headers);
        strip(&mut request.headers);
    }

    #[test]
    fn arbitrary_bytes_in_signature_fields_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(value) = HeaderValue::from_bytes(&bytes) {
            let mut headers = HeaderMap::new();
            headers.insert("signature-input", value.clone());
            headers.insert("signature", value);
            let _ = parse_signatures(&headers);
            let request = Request { headers, ..signed_request() };
            prop_assert!(request.verify().is_err());
        }
    }

    #[test]
    fn one_changed_byte_of_the_input_is_refused(position in 0_usize..330, byte in 0x20_u8..0x7f) {
        let request = signed_request();
        let mut bytes = request.headers["signature-input"].as_bytes().to_vec();
        let position = position % bytes.len();
        // Neither the label, nor a change into itself, is covered by the signature.
        prop_assume!(position > 3 && bytes[position] != byte);
        bytes[position] = byte;
        let mut changed = request;
        changed.headers.insert("signature-input", HeaderValue::from_bytes(&bytes).unwrap());
        prop_assert!(changed.verify().is_err());
    }

    #[test]
    fn what_the_profile_reads_is_read_the_same_by_the_structured_field_parser(text in pieces()) {
        let text = format!("{text};created=1;expires=2;nonce=\"n\";keyid=\"k\";tag=\"t\"");
        if let Some(input) = Input::parse(&text) {
            let list = crate::input::parse_inner_list(&text).unwrap();
            prop_assert_eq!(list.items.len(), input.covered.len());
            let again = sfv::FieldType::serialize(&vec![sfv::ListEntry::InnerList(list)]).unwrap();
            prop_assert_eq!(again, text);
        }
    }
}
