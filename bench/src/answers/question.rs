//! What is asked, and who answers.

use super::peers::Peer;

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The functions beside the history that waltrail makes.
    Made,
    /// The same, written by hand.
    MadeByHand,
    /// The functions beside the history of the README.
    Plain,
    /// The same, written by hand.
    PlainByHand,
    /// Another tool.
    Peer(Peer),
}

impl Asked {
    pub(super) const OURS: [Self; 4] =
        [Self::Made, Self::MadeByHand, Self::Plain, Self::PlainByHand];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Made => "waltrail's history",
            Self::MadeByHand => "waltrail's history by hand",
            Self::Plain => "the README's history",
            Self::PlainByHand => "the README's history by hand",
            Self::Peer(peer) => peer.name(),
        }
    }

    pub(super) fn table(self) -> &'static str {
        match self {
            Self::Made | Self::MadeByHand => "staff",
            Self::Plain | Self::PlainByHand => "employees",
            Self::Peer(peer) => peer.table(),
        }
    }

    /// The same history, by hand.
    pub(super) fn by_hand(self) -> Option<Self> {
        match self {
            Self::Made => Some(Self::MadeByHand),
            Self::Plain => Some(Self::PlainByHand),
            _ => None,
        }
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    KeyAtTime(Moment),
    KeyAtPosition(Moment),
    Versions,
    Changes,
    WholeAtTime(Moment),
    WholeAtPosition(Moment),
    AllVersions,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    Middle,
    End,
}

impl Question {
    pub(super) const ALL: [Self; 11] = [
        Self::KeyAtTime(Moment::Middle),
        Self::KeyAtTime(Moment::End),
        Self::KeyAtPosition(Moment::Middle),
        Self::KeyAtPosition(Moment::End),
        Self::Versions,
        Self::Changes,
        Self::WholeAtTime(Moment::Middle),
        Self::WholeAtTime(Moment::End),
        Self::WholeAtPosition(Moment::Middle),
        Self::WholeAtPosition(Moment::End),
        Self::AllVersions,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::KeyAtTime(Moment::Middle) => "one key, in the middle",
            Self::KeyAtTime(Moment::End) => "one key, at the end",
            Self::KeyAtPosition(Moment::Middle) => "one key, position in the middle",
            Self::KeyAtPosition(Moment::End) => "one key, position at the end",
            Self::Versions => "versions of a row",
            Self::Changes => "net changes, 1,000 of them",
            Self::WholeAtTime(Moment::Middle) => "whole table, in the middle",
            Self::WholeAtTime(Moment::End) => "whole table, at the end",
            Self::WholeAtPosition(Moment::Middle) => "whole table, position in the middle",
            Self::WholeAtPosition(Moment::End) => "whole table, position at the end",
            Self::AllVersions => "all versions, counted",
        }
    }

    pub(super) fn is_of_a_key(self) -> bool {
        matches!(
            self,
            Self::KeyAtTime(_) | Self::KeyAtPosition(_) | Self::Versions
        )
    }

    pub(super) fn is_whole(self) -> bool {
        matches!(self, Self::WholeAtTime(_) | Self::WholeAtPosition(_))
    }

    pub(super) fn moment(self) -> Option<Moment> {
        match self {
            Self::KeyAtTime(moment)
            | Self::KeyAtPosition(moment)
            | Self::WholeAtTime(moment)
            | Self::WholeAtPosition(moment) => Some(moment),
            Self::Versions | Self::Changes | Self::AllVersions => None,
        }
    }

    pub(super) fn is_by_position(self) -> bool {
        matches!(self, Self::KeyAtPosition(_) | Self::WholeAtPosition(_))
    }

    /// The same by a time, which all can be asked.
    pub(super) fn by_time(self) -> Self {
        match self {
            Self::KeyAtPosition(moment) => Self::KeyAtTime(moment),
            Self::WholeAtPosition(moment) => Self::WholeAtTime(moment),
            other => other,
        }
    }
}
