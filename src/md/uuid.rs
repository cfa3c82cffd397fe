//! UUIDs the way mdadm writes them: 16 bytes as stored, in four groups of eight hex digits.

/// The UUID as mdadm prints it: `6f1c0a11:22334455:66778899:aabbccdd`, the bytes in the order stored.
pub fn format_uuid(uuid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(35);
    for (index, byte) in uuid.iter().enumerate() {
        if index > 0 && index % 4 == 0 {
            text.push(':');
        }
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(nibble), 16).expect("a nibble is a hex digit"));
        }
    }
    text
}

/// The UUID that a person typed: 32 hex digits in either case, with colons, dashes, dots or spaces anywhere between
/// bytes, as mdadm takes them. `None` if it is anything else.
pub fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let mut uuid = [0; 16];
    let mut digits = 0;
    for letter in text.trim().chars() {
        if matches!(letter, ':' | '-' | '.' | ' ') && digits % 2 == 0 {
            continue;
        }
        let nibble = u8::try_from(letter.to_digit(16)?).expect("a hex digit is below 16");
        let byte: &mut u8 = uuid.get_mut(digits / 2)?;
        *byte = *byte << 4 | nibble;
        digits += 1;
    }
    (digits == 32).then_some(uuid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn forms_that_people_type() {
        let uuid = parse_uuid("bb5fe608:97745a36:d9544de3:2ba5ebf5").unwrap();
        assert_eq!(uuid[0], 0xbb);
        assert_eq!(uuid[15], 0xf5);
        assert_eq!(parse_uuid("BB5FE608-9774-5A36-D954-4DE32BA5EBF5"), Some(uuid));
        assert_eq!(parse_uuid(" bb5fe60897745a36d9544de32ba5ebf5\n"), Some(uuid));
        for bad in
            ["", "bb5fe608", "zb5fe608:97745a36:d9544de3:2ba5ebf5", "bb5fe608:97745a36:d9544de3:2ba5ebf500"]
        {
            assert_eq!(parse_uuid(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(uuid: [u8; 16]) {
            prop_assert_eq!(parse_uuid(&format_uuid(&uuid)), Some(uuid));
        }

        #[test]
        fn any_text_is_answered(text: String) {
            let answer = parse_uuid(&text);
            prop_assert!(answer.is_none() || text.len() >= 32);
        }
    }
}
