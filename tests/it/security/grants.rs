//! `setup --grant-to`: what is granted, and what is said where it cannot be.

use super::{SOON, config};
use crate::support::daemon::{Daemon, ending};
use crate::support::{each, server, texts, value};

async fn said(config: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Daemon::spawn_with(config, arguments, &[]);
    let (status, output) = command.wait(SOON).await;
    (status.code(), output)
}

#[tokio::test]
async fn what_cannot_be_granted_is_told_with_what_to_type() {
    let (cluster, client) = server().await;
    each(
        &client,
        &[
            "CREATE ROLE app; CREATE ROLE \"Setup\" LOGIN REPLICATION; GRANT app TO \"Setup\"",
            "GRANT CREATE ON DATABASE postgres TO \"Setup\"; GRANT CREATE ON SCHEMA public TO \"Setup\"",
            "CREATE TABLE employees (id int PRIMARY KEY, name text); ALTER TABLE employees OWNER TO app",
            "CREATE TABLE employees_cdc (cdc_id serial, change_type text, id int, name text)",
            "GRANT SELECT, INSERT ON employees_cdc TO \"Setup\"; GRANT USAGE ON SEQUENCE employees_cdc_cdc_id_seq TO \"Setup\"",
        ],
    )
    .await;
    let config = config(&cluster).replace("user=postgres", "user=Setup");
    let (code, output) = said(&config, &["setup", "--grant-to", "Odd role"]).await;
    assert_eq!(code, Some(78), "{output}");
    let (_, remedy) = ending(&output);
    assert!(
        remedy.contains("CREATE ROLE \"Odd role\" LOGIN"),
        "{output}"
    );
    each(&client, &["CREATE ROLE \"Odd role\" LOGIN REPLICATION"]).await;

    // The history belongs to a superuser, who has not let it be granted.
    let (code, output) = said(&config, &["setup", "--grant-to", "Odd role"]).await;
    assert_eq!(code, Some(77), "{output}");
    let (_, told) = ending(&output);
    let (_, remedy) = told.split_once("let the owner run: ").unwrap();
    assert_eq!(
        remedy,
        "GRANT SELECT, INSERT ON TABLE public.employees_cdc TO \"Odd role\"; \
        GRANT USAGE ON SEQUENCE public.employees_cdc_cdc_id_seq TO \"Odd role\""
    );
    each(&client, &[remedy]).await;
    let (code, output) = said(&config, &["setup", "--grant-to", "Odd role"]).await;
    assert_eq!(code, Some(0), "{output}");
    let granted = "SELECT has_table_privilege('Odd role', 'employees', 'SELECT')";
    assert!(value::<bool>(&client, granted).await);
    let (_, output) = said(&config, &["setup", "--grant-to", "Odd role", "--dry-run"]).await;
    assert_eq!(output, "-- nothing is missing\n");
}

#[tokio::test]
async fn a_role_whose_rows_are_not_to_be_recorded_need_not_read_the_table() {
    let (cluster, client) = server().await;
    each(
        &client,
        &["CREATE ROLE follower LOGIN REPLICATION; CREATE TABLE employees (id int PRIMARY KEY)"],
    )
    .await;
    let config = format!("{}[snapshot]\nmode = \"never\"\n", config(&cluster));
    let (code, output) = said(&config, &["setup", "--grant-to", "follower"]).await;
    assert_eq!(code, Some(0), "{output}");
    let granted = "SELECT c.relname::text FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
        AND has_table_privilege('follower', c.oid, 'SELECT')";
    assert_eq!(
        texts(&client, granted).await,
        [Some("employees_cdc".to_owned())]
    );
}
