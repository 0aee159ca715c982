//! Objects that were there before waltrail: whose are they?

use super::{SOON, config};
use crate::support::daemon::Daemon;
use crate::support::scene::streaming;
use crate::support::{each, server, value, wait_for_value};

#[tokio::test]
async fn what_a_stranger_has_put_where_waltrail_writes_is_refused() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE ROLE mallory; CREATE ROLE app; CREATE ROLE follower LOGIN REPLICATION; GRANT app TO follower",
            "CREATE TABLE employees (id int PRIMARY KEY, name text); ALTER TABLE employees OWNER TO app",
            "GRANT CREATE ON DATABASE postgres TO follower; GRANT CREATE ON SCHEMA public TO follower",
            "CREATE SCHEMA waltrail; CREATE TABLE waltrail.checkpoint (slot text); GRANT ALL ON SCHEMA waltrail TO follower",
            "CREATE TABLE employees_cdc (id int, name text); GRANT ALL ON employees_cdc TO follower",
        ],
    )
    .await;
    let superuser = config(&cluster);
    let follower = superuser.replace("user=postgres", "user=follower");
    for (made, remedy) in [
        ("SCHEMA waltrail", "DROP SCHEMA waltrail CASCADE"),
        ("TABLE waltrail.checkpoint", "DROP SCHEMA waltrail CASCADE"),
        (
            "TABLE public.employees_cdc",
            "ALTER TABLE public.employees_cdc OWNER TO CURRENT_USER",
        ),
    ] {
        each(&client, &[&format!("ALTER {made} OWNER TO mallory")]).await;
        // The control schema is the follower's by the time of the last one.
        let both = [&follower, &superuser];
        let configs = if made.ends_with("_cdc") {
            &both[..1]
        } else {
            &both
        };
        for config in configs {
            for command in [vec!["setup"], vec!["setup", "--dry-run"], vec!["run"]] {
                let mut refused = Daemon::spawn_with(config, &command, &[]);
                let (status, output) = refused.wait(SOON).await;
                assert_eq!(status.code(), Some(78), "{made} {command:?}: {output}");
                assert!(output.contains("belongs to role mallory"), "{output}");
                assert!(output.contains(remedy), "{output}");
            }
        }
        // The remedy, and who owns the table may own the history.
        let remedy = match made {
            "SCHEMA waltrail" => "ALTER SCHEMA waltrail OWNER TO postgres",
            "TABLE waltrail.checkpoint" => remedy,
            _ => "ALTER TABLE public.employees_cdc OWNER TO app",
        };
        each(&client, &[remedy]).await;
    }
    let mut daemon = Daemon::spawn(&follower);
    streaming(&mut daemon).await;
    daemon.sigterm();
    daemon.wait(SOON).await;
    assert_eq!(
        value::<i64>(&client, "SELECT count(*) FROM waltrail.checkpoint").await,
        1
    );
}

#[tokio::test]
async fn a_stranger_s_history_does_not_keep_the_other_tables_of_a_pattern_from_being_followed() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE ROLE mallory; CREATE SCHEMA s; CREATE TABLE s.a (id int PRIMARY KEY); CREATE TABLE s.b (id int PRIMARY KEY)",
            "CREATE TABLE s.b_cdc (id int); ALTER TABLE s.b_cdc OWNER TO mallory",
        ],
    )
    .await;
    let config = config(&cluster).replace("public.employees", "s.*");
    let config = format!("{config}[snapshot]\nmode = \"never\"\n").replace(
        "[[table]]\nsource = 's.*'\n",
        "[[table]]\nsource = 's.*'\nexcept = ['s.b_cdc']\n",
    );
    let mut daemon = Daemon::spawn(&config);
    streaming(&mut daemon).await;
    each(
        &client,
        &["INSERT INTO s.b VALUES (1); INSERT INTO s.a VALUES (1)"],
    )
    .await;
    wait_for_value(&client, "SELECT count(*) FROM s.a_cdc", 1i64, SOON).await;
    daemon.sigterm();
    let (_, output) = daemon.wait(SOON).await;
    assert!(
        output.contains("this table is not followed") && output.contains("belongs to role mallory"),
        "{output}"
    );
    assert_eq!(
        value::<i64>(&client, "SELECT count(*) FROM s.b_cdc").await,
        0
    );
}
