//! A connection that ends while a session logs in.

use super::network::{End, Network, Trap};
use crate::support::daemon::Daemon;
use crate::support::{BOUND, server};

/// A refusal of the password would end the daemon.
#[tokio::test]
async fn a_login_that_is_cut_inside_a_message_is_no_refused_password() {
    let (cluster, _client) = server().await;
    let network = Network::start(cluster.port());
    let config = format!(
        "[source]\ndsn = 'host=127.0.0.1 port={} user=postgres dbname=postgres'\n\
         [[table]]\nsource = 'public.employees'\n",
        network.port()
    );
    // All that a server says at a login without a password, and a little more.
    for left in (1..450).step_by(9) {
        let before = network.sprung();
        network.lay(Some(Trap::Bytes {
            to_server: false,
            left,
            end: End::Fin,
        }));
        let mut status = Daemon::spawn_with(&config, &["status"], &[]);
        let (ended, output) = status.wait(BOUND).await;
        assert_eq!(network.sprung(), before + 1, "{output}");
        assert_eq!(ended.code(), Some(2), "after {left} bytes: {output}");
        assert!(!output.contains("password"), "after {left} bytes: {output}");
    }
}
