//! Which of several hosts is the right one: libpq's `target_session_attrs` (manual, section 34.1.2).

use crate::wire::Traits;

/// What a connection string asks of its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attributes {
    Only(Wanted),
    /// A standby, or else any server.
    PreferStandby,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
}

impl Attributes {
    /// libpq's words for them.
    pub(super) const WORDS: [(&str, Self); 6] = [
        ("any", Self::Only(Wanted::Any)),
        ("read-write", Self::Only(Wanted::ReadWrite)),
        ("read-only", Self::Only(Wanted::ReadOnly)),
        ("primary", Self::Only(Wanted::Primary)),
        ("standby", Self::Only(Wanted::Standby)),
        ("prefer-standby", Self::PreferStandby),
    ];

    /// What is looked for on all hosts, one after the other.
    pub(super) fn passes(&self) -> &[Wanted] {
        match self {
            Self::Only(wanted) => std::slice::from_ref(wanted),
            Self::PreferStandby => &[Wanted::Standby, Wanted::Any],
        }
    }
}

impl Wanted {
    /// Whether a server fits that has said this of itself; else what it is.
    pub(super) fn check(self, traits: Traits) -> Result<(), &'static str> {
        let standby = traits.in_hot_standby;
        let read_only = match (standby, traits.read_only) {
            (Some(true), _) | (_, Some(true)) => Some(true),
            (Some(false), Some(false)) => Some(false),
            _ => None,
        };
        let (found, wanted, what) = match self {
            Self::Any => return Ok(()),
            Self::ReadWrite => (read_only, false, "is read-only"),
            Self::ReadOnly => (read_only, true, "is not read-only"),
            Self::Primary => (standby, false, "is a standby"),
            Self::Standby => (standby, true, "is not a standby"),
        };
        match found {
            Some(found) if found == wanted => Ok(()),
            Some(_) => Err(what),
            None => Err("does not say whether it is a standby (a pooler in between?)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attribute_takes_the_servers_that_libpq_takes() {
        let of = |value| {
            let found = Attributes::WORDS
                .into_iter()
                .find(|(word, _)| *word == value);
            found.unwrap().1
        };
        let traits = |standby, read_only| Traits {
            in_hot_standby: Some(standby),
            read_only: Some(read_only),
        };
        let servers = [
            traits(false, false),
            traits(false, true),
            traits(true, false),
            traits(true, true),
        ];
        for (value, fit) in [
            ("any", [true, true, true, true]),
            ("read-write", [true, false, false, false]),
            ("read-only", [false, true, true, true]),
            ("primary", [true, true, false, false]),
            ("standby", [false, false, true, true]),
        ] {
            let attributes = of(value);
            let [wanted] = attributes.passes() else {
                panic!("{value}");
            };
            let found = servers.map(|server| wanted.check(server).is_ok());
            assert_eq!(found, fit, "{value}");
        }
        let both = of("prefer-standby");
        assert_eq!(both.passes(), [Wanted::Standby, Wanted::Any]);
        assert!(Wanted::Primary.check(Traits::default()).is_err());
    }
}
