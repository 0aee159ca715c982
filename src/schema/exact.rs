//! Whether a history column keeps every value of a source column exactly, whichever way it is written.
//!
//! What is not listed here is not exact: the target's assignment cast may round, cut, pad or add a zone, and
//! says nothing. Pure.

/// A type as both servers name it: domains are taken for their base types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Type {
    /// The qualified name of the base type, of an array that of its elements; `pg_catalog.numeric`.
    pub name: String,
    /// The type modifier (`atttypmod`), a domain's where the column has none; -1 where there is none.
    pub modifier: i32,
    pub array: bool,
    /// It is an enum or a composite, or made of one: `ALTER TYPE` changes what recorded values of it say.
    pub alterable: bool,
    /// The base type as SQL writes it, with its modifier.
    pub sql: String,
    /// Names a binary form: two columns with the same one take each other's binary values, whatever the
    /// servers. None for a type that is sent as text.
    pub wire: Option<String>,
}

impl Type {
    /// A type without a modifier, by its qualified name.
    pub fn named(name: &str, wire: Option<String>) -> Self {
        Self {
            name: name.to_owned(),
            modifier: -1,
            array: false,
            alterable: false,
            sql: name.strip_prefix(BUILT_IN).unwrap_or(name).to_owned(),
            wire,
        }
    }

    /// A type that the source does not have any more. Its values come as text.
    pub fn dropped() -> Self {
        Self::named("a dropped type", None)
    }

    /// `text`, the type that keeps what a server writes of any value.
    pub fn text() -> Self {
        Self::named("pg_catalog.text", Some("text".to_owned()))
    }

    /// Whether a value is a number that is written as the name of an object, which can be renamed or dropped before the name is
    /// read again: it would be refused, or become another object.
    pub fn is_name_of_object(&self) -> bool {
        let name = self.built_in().unwrap_or_default();
        name == "aclitem" || name.starts_with("reg")
    }

    /// The type of a history column that is made for values of this type: only text keeps the name of an object, the label of
    /// an enum that may be renamed, and a field that may be dropped.
    pub fn home(self) -> Self {
        match self.is_name_of_object() || self.alterable {
            true => Self::text(),
            false => self,
        }
    }

    /// The name of a built-in type without its schema.
    fn built_in(&self) -> Option<&str> {
        self.name.strip_prefix(BUILT_IN)
    }

    /// Text of any length, kept as it comes.
    fn is_unlimited_text(&self) -> bool {
        match self.built_in() {
            Some("text") => true,
            Some("varchar") => self.modifier < 0,
            _ => false,
        }
    }

    /// Whether a column of this type keeps every value of a column of type `source`.
    pub fn keeps(&self, source: &Self) -> bool {
        if !self.array && self.is_unlimited_text() {
            return true;
        }
        self.array == source.array && !self.is_name_of_object() && self.keeps_elements_of(source)
    }

    fn keeps_elements_of(&self, source: &Self) -> bool {
        let (of, to) = (source.modifier, self.modifier);
        if self.name == source.name {
            return of == to || keeps_modifier(self.built_in().unwrap_or_default(), of, to);
        }
        if self.is_unlimited_text() {
            return true;
        }
        let pair = source.built_in().zip(self.built_in());
        match pair.unwrap_or_default() {
            ("int2", "int4" | "int8") | ("int4" | "oid", "int8") | ("cidr", "inet") => true,
            ("int2" | "int4" | "int8", "numeric") => to < 0,
            ("bit", "varbit") => to < 0 || of >= 0 && to >= of,
            _ => false,
        }
    }
}

const BUILT_IN: &str = "pg_catalog.";

/// Whether a column with modifier `to` keeps the values of one with another modifier, `of`, of the same built-in type.
fn keeps_modifier(name: &str, of: i32, to: i32) -> bool {
    match name {
        // Their length is that of every value.
        "bpchar" | "bit" => false,
        "varchar" | "varbit" => to < 0 || of >= 0 && to >= of,
        "numeric" => to < 0 || of >= 0 && keeps_digits(numeric(of), numeric(to)),
        "time" | "timetz" | "timestamp" | "timestamptz" => precision(to) >= precision(of),
        "interval" => {
            let ((fields_of, of), (fields_to, to)) = (interval(of), interval(to));
            (fields_to == ALL_FIELDS || fields_to == fields_of) && precision(to) >= precision(of)
        }
        _ => to < 0,
    }
}

/// Precision and scale (`numeric_typmod_precision`, `numeric_typmod_scale`). A scale may be negative since 15.
fn numeric(modifier: i32) -> (i32, i32) {
    let modifier = modifier - VARHDRSZ;
    (
        (modifier >> 16) & 0xffff,
        ((modifier & 0x7ff) ^ 1024) - 1024,
    )
}

/// The server stores the modifiers of lengths with this added.
const VARHDRSZ: i32 = 4;

fn keeps_digits((precision, scale): (i32, i32), (to_precision, to_scale): (i32, i32)) -> bool {
    to_scale >= scale && to_precision - to_scale >= precision - scale
}

/// The digits of a second's fraction.
fn precision(modifier: i32) -> i32 {
    match modifier {
        ..0 | 0xffff => 6,
        digits => digits,
    }
}

const ALL_FIELDS: i32 = 0x7fff;

/// The fields and the precision (`INTERVAL_RANGE`, `INTERVAL_PRECISION`).
fn interval(modifier: i32) -> (i32, i32) {
    match modifier {
        ..0 => (ALL_FIELDS, -1),
        modifier => ((modifier >> 16) & ALL_FIELDS, modifier & 0xffff),
    }
}
