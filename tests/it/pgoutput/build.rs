//! The other direction, for tests: messages as the walsender would write them.
//!
//! It shares no code with the reading side, so that a mistake there is not repeated here.

use waltrail::pgoutput::{DecodeError, Message, OldKind, ReplicaIdentity, Tuple, Value};

/// A message that owns what it says.
#[derive(Clone, Debug, PartialEq)]
pub enum Sent {
    Begin(u64, i64, u32),
    Commit(u64, u64, i64),
    Origin(u64, String),
    Relation {
        oid: u32,
        schema: String,
        name: String,
        identity: u8,
        columns: Vec<SentColumn>,
    },
    Type(u32, String, String),
    Insert(u32, Vec<Datum>),
    Update(u32, Option<(u8, Vec<Datum>)>, Vec<Datum>),
    Delete(u32, u8, Vec<Datum>),
    Truncate(u8, Vec<u32>),
    Logical(u8, u64, Vec<u8>, Vec<u8>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct SentColumn {
    pub flags: u8,
    pub name: String,
    pub type_oid: u32,
    pub type_modifier: i32,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Datum {
    Null,
    Unchanged,
    Text(Vec<u8>),
    Binary(Vec<u8>),
}

impl Sent {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Begin(commit_lsn, time, xid) => {
                out.push(b'B');
                out.extend(commit_lsn.to_be_bytes());
                out.extend(time.to_be_bytes());
                out.extend(xid.to_be_bytes());
            }
            Self::Commit(commit_lsn, end_lsn, time) => {
                out.extend(b"C\0");
                out.extend(commit_lsn.to_be_bytes());
                out.extend(end_lsn.to_be_bytes());
                out.extend(time.to_be_bytes());
            }
            Self::Origin(commit_lsn, name) => {
                out.push(b'O');
                out.extend(commit_lsn.to_be_bytes());
                put_name(&mut out, name);
            }
            Self::Relation {
                oid,
                schema,
                name,
                identity,
                columns,
            } => {
                out.push(b'R');
                out.extend(oid.to_be_bytes());
                put_name(&mut out, schema);
                put_name(&mut out, name);
                out.push(*identity);
                put_count(&mut out, columns.len());
                for column in columns {
                    out.push(column.flags);
                    put_name(&mut out, &column.name);
                    out.extend(column.type_oid.to_be_bytes());
                    out.extend(column.type_modifier.to_be_bytes());
                }
            }
            Self::Type(oid, schema, name) => {
                out.push(b'Y');
                out.extend(oid.to_be_bytes());
                put_name(&mut out, schema);
                put_name(&mut out, name);
            }
            Self::Insert(relation, new) => {
                out.push(b'I');
                out.extend(relation.to_be_bytes());
                put_tuple(&mut out, b'N', new);
            }
            Self::Update(relation, old, new) => {
                out.push(b'U');
                out.extend(relation.to_be_bytes());
                if let Some((marker, old)) = old {
                    put_tuple(&mut out, *marker, old);
                }
                put_tuple(&mut out, b'N', new);
            }
            Self::Delete(relation, marker, old) => {
                out.push(b'D');
                out.extend(relation.to_be_bytes());
                put_tuple(&mut out, *marker, old);
            }
            Self::Truncate(flags, relations) => {
                out.push(b'T');
                out.extend(i32::try_from(relations.len()).unwrap().to_be_bytes());
                out.push(*flags);
                for oid in relations {
                    out.extend(oid.to_be_bytes());
                }
            }
            Self::Logical(flags, lsn, prefix, content) => {
                out.extend([b'M', *flags]);
                out.extend(lsn.to_be_bytes());
                out.extend(prefix);
                out.push(0);
                put_sized(&mut out, content);
            }
        }
        out
    }

    /// What a message that was read says, all of it.
    pub fn received(message: &Message<'_>) -> Result<Self, DecodeError> {
        Ok(match message {
            Message::Begin(begin) => {
                Self::Begin(begin.commit_lsn.as_u64(), begin.commit_time.0, begin.xid)
            }
            Message::Commit(commit) => Self::Commit(
                commit.commit_lsn.as_u64(),
                commit.end_lsn.as_u64(),
                commit.commit_time.0,
            ),
            Message::Origin(origin) => {
                Self::Origin(origin.commit_lsn.as_u64(), origin.name.to_owned())
            }
            Message::Relation(relation) => Self::Relation {
                oid: relation.oid,
                schema: relation.schema.to_owned(),
                name: relation.name.to_owned(),
                identity: match relation.replica_identity {
                    ReplicaIdentity::Default => b'd',
                    ReplicaIdentity::Nothing => b'n',
                    ReplicaIdentity::Full => b'f',
                    ReplicaIdentity::Index => b'i',
                },
                columns: relation
                    .columns()
                    .map(|column| {
                        column.map(|column| SentColumn {
                            flags: u8::from(column.key),
                            name: column.name.to_owned(),
                            type_oid: column.type_oid,
                            type_modifier: column.type_modifier,
                        })
                    })
                    .collect::<Result<_, _>>()?,
            },
            Message::Type(named) => {
                Self::Type(named.oid, named.schema.to_owned(), named.name.to_owned())
            }
            Message::Insert(insert) => Self::Insert(insert.relation, datums(&insert.new)?),
            Message::Update(update) => Self::Update(
                update.relation,
                match &update.old {
                    Some((kind, old)) => Some((marker(*kind), datums(old)?)),
                    None => None,
                },
                datums(&update.new)?,
            ),
            Message::Delete(delete) => {
                Self::Delete(delete.relation, marker(delete.kind), datums(&delete.old)?)
            }
            Message::Truncate(truncate) => Self::Truncate(
                u8::from(truncate.cascade) | u8::from(truncate.restart_identity) << 1,
                truncate.relations().collect(),
            ),
            Message::Logical(logical) => Self::Logical(
                u8::from(logical.transactional),
                logical.lsn.as_u64(),
                logical.prefix.to_vec(),
                logical.content.to_vec(),
            ),
        })
    }
}

fn marker(kind: OldKind) -> u8 {
    match kind {
        OldKind::Key => b'K',
        OldKind::Full => b'O',
    }
}

fn datums(tuple: &Tuple<'_>) -> Result<Vec<Datum>, DecodeError> {
    let mut datums = Vec::new();
    let mut values = tuple.values();
    while let Some(value) = values.next()? {
        datums.push(match value {
            Value::Null => Datum::Null,
            Value::Unchanged => Datum::Unchanged,
            Value::Text(field) => Datum::Text(field.bytes().to_vec()),
            Value::Binary(field) => Datum::Binary(field.bytes().to_vec()),
        });
    }
    Ok(datums)
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    out.extend(name.as_bytes());
    out.push(0);
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend(i16::try_from(count).unwrap().to_be_bytes());
}

fn put_sized(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(i32::try_from(bytes.len()).unwrap().to_be_bytes());
    out.extend(bytes);
}

fn put_tuple(out: &mut Vec<u8>, marker: u8, datums: &[Datum]) {
    out.push(marker);
    put_count(out, datums.len());
    for datum in datums {
        match datum {
            Datum::Null => out.push(b'n'),
            Datum::Unchanged => out.push(b'u'),
            Datum::Text(bytes) => {
                out.push(b't');
                put_sized(out, bytes);
            }
            Datum::Binary(bytes) => {
                out.push(b'b');
                put_sized(out, bytes);
            }
        }
    }
}
