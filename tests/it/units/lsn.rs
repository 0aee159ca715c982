//! Unit tests of `lsn`.

use proptest::prelude::*;
use waltrail::lsn::*;

proptest! {
    #[test]
    fn text_and_number_are_the_same_position(raw: u64) {
        let lsn = Lsn::from_u64(raw);
        prop_assert_eq!(lsn.to_string().parse::<Lsn>(), Ok(lsn));
    }
}

#[test]
fn anything_but_two_hexadecimal_halves_is_refused() {
    for text in [
        "",
        "/",
        "1",
        "1/",
        "/1",
        "1/2/3",
        "+1/2",
        "g/1",
        "123456789/0",
        " 1/2",
    ] {
        assert_eq!(text.parse::<Lsn>(), Err(ParseLsnError), "{text:?}");
    }
}

#[test]
fn distance_never_wraps() {
    let (a, b) = (Lsn::from_u64(10), Lsn::from_u64(25));
    assert_eq!((b.bytes_since(a), a.bytes_since(b)), (15, 0));
}
