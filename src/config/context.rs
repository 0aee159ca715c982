//! What `[context]` means: the settings of the application's sessions that say who makes a change.

use super::Context;
use super::file::Reader;
use super::raw::RawContext;
use crate::fault::Result;

const KEY: &str = "context.settings";
/// The trigger reads each of them with every statement.
const SETTINGS_MAX: usize = 16;
const NAME_BYTES_MAX: usize = 63;

impl Reader<'_> {
    pub(super) fn context(&self, raw: &RawContext) -> Result<Option<Context>> {
        let Some(list) = &raw.settings else {
            return Ok(None);
        };
        let mut settings: Vec<String> = Vec::with_capacity(list.len());
        for name in list.iter().map(|text| text.0.trim()) {
            self.valid(
                KEY,
                name,
                is_setting(name).then_some(()),
                "not the name of a setting of an application",
                "name settings with a dot, for example \"app.user\", or \"role\"",
            )?;
            if settings
                .iter()
                .any(|known| known.eq_ignore_ascii_case(name))
            {
                return Err(self.refuse(
                    KEY,
                    format_args!("names {name} a second time"),
                    "list each setting once",
                ));
            }
            settings.push(name.to_owned());
        }
        if settings.len() > SETTINGS_MAX {
            return Err(self.refuse(
                KEY,
                format_args!("names more than {SETTINGS_MAX} settings"),
                "name those that say who makes a change",
            ));
        }
        Ok(Some(Context { settings }))
    }
}

/// Whether this is a setting that an application can have made up, which every role may then read, or the role that it has
/// taken. The server's own are not: reading some of them fails without a privilege.
fn is_setting(name: &str) -> bool {
    let is_part = |part: &str| {
        let begins = part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        begins && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    match name.split_once('.') {
        None => name == "role",
        Some((space, _)) => {
            let is_ours = space.eq_ignore_ascii_case("waltrail");
            !is_ours && name.len() <= NAME_BYTES_MAX && name.split('.').all(is_part)
        }
    }
}
