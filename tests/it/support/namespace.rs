//! A machine that vanishes: a network namespace of its own, whose only link can be cut. A proxy cannot do that, since the
//! kernel goes on acknowledging for it.

use std::process::{Command, Stdio};

/// A namespace with one link to this machine; both vanish with it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    /// This machine's address on the link.
    address: String,
    /// The part of an address that the two share.
    network: String,
}

impl Namespace {
    /// None, said in a line of output, where this account may not make one.
    pub fn new() -> Option<Self> {
        let id = std::process::id();
        let name = format!("waltrail{id}");
        let (ours, theirs) = (format!("wt{id}"), format!("wu{id}"));
        let (high, low) = (id / 60 % 250, id % 60 * 4);
        let namespace = Self {
            address: format!("10.231.{high}.{}", low + 1),
            network: format!("10.231.{high}.{low}/30"),
            name: name.clone(),
        };
        let address = format!("{}/30", namespace.address);
        let other = format!("10.231.{high}.{}/30", low + 2);
        let steps: [&[&str]; 7] = [
            &["netns", "add", &name],
            &[
                "link", "add", &ours, "type", "veth", "peer", "name", &theirs,
            ],
            &["link", "set", &theirs, "netns", &name],
            &["address", "add", &address, "dev", &ours],
            &["link", "set", &ours, "up"],
            &["-n", &name, "address", "add", &other, "dev", &theirs],
            &["-n", &name, "link", "set", &theirs, "up"],
        ];
        if !steps.iter().all(|step| ip(step)) {
            println!("not tried: only root can make a network namespace, with `ip`");
            return None;
        }
        Some(namespace)
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn network(&self) -> &str {
        &self.network
    }

    /// What runs a program there.
    pub fn runs(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.name]
    }

    /// Nothing passes any more, and nothing says so.
    pub fn cut(&self) {
        self.set("down");
    }

    pub fn join(&self) {
        self.set("up");
    }

    fn set(&self, state: &str) {
        let theirs = self.name.replace("waltrail", "wu");
        assert!(ip(&["-n", &self.name, "link", "set", &theirs, state]));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&["netns", "delete", &self.name]);
    }
}

fn ip(args: &[&str]) -> bool {
    let status = Command::new("ip").args(args).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
