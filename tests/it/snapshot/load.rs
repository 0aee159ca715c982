//! Clients that change the very rows that are being copied.

use std::time::Duration;

use fastrand::Rng;

use crate::support::load::{Load, Plan};
use crate::support::scene::Scene;

pub fn churn(scene: &Scene, seed: u64) -> Load {
    Plan::new(scene.server.dsn_tcp("postgres"), seed)
        .pause(Duration::from_millis(3))
        .statements(statement)
        .start()
}

fn statement(rng: &mut Rng) -> String {
    let table = ["bare", "parted", "wide", "employees"][rng.usize(..4)];
    let id = rng.u32(1..20_000);
    if table == "employees" {
        return match rng.u8(..4) {
            0 => format!("INSERT INTO employees (name, salary) VALUES ('new', {id})"),
            1 => format!("DELETE FROM employees WHERE id = {id}"),
            2 => format!("UPDATE employees SET id = nextval('employees_id_seq') WHERE id = {id}"),
            _ => format!(
                "UPDATE employees SET salary = {}.5 WHERE id = {id}",
                rng.u16(..)
            ),
        };
    }
    match rng.u8(..4) {
        // Given out by the database, so that no two clients make the same.
        0 => format!("INSERT INTO {table} VALUES (nextval('fresh')::int, 'canary', 'p')"),
        1 => format!("DELETE FROM {table} WHERE id = {id}"),
        _ => format!(
            "UPDATE {table} SET v = 'canary{}' WHERE id = {id}",
            rng.u16(..)
        ),
    }
}
