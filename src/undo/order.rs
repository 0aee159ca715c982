//! An order of tables that foreign keys accept. Pure.

use super::table::ForeignKey;

/// Tables in an order in which a table comes after those that it refers to, as far as there is one.
pub(super) struct Order {
    /// Positions in what was given.
    pub parents_first: Vec<usize>,
    /// The foreign keys that no order accepts: they are part of a circle.
    pub circular: Vec<ForeignKey>,
}

/// `oids`: the tables; `keys`: foreign keys, those of other tables among them.
pub(super) fn order(oids: &[u32], keys: &[ForeignKey]) -> Order {
    let position = |oid: u32| oids.iter().position(|known| *known == oid);
    let edges: Vec<(usize, usize, &ForeignKey)> = keys
        .iter()
        .filter(|key| key.child != key.parent)
        .filter_map(|key| Some((position(key.child)?, position(key.parent)?, key)))
        .collect();
    let mut left: Vec<usize> = (0..oids.len()).collect();
    let (mut parents_first, mut circular) = (Vec::with_capacity(oids.len()), Vec::new());
    while !left.is_empty() {
        let open = |table: usize| {
            let parents = edges.iter().filter(move |(child, ..)| *child == table);
            parents.filter(|(_, parent, _)| left.contains(parent))
        };
        let free = left.iter().position(|table| open(*table).next().is_none());
        // In a circle, the one that waits for the fewest.
        let next = free.or_else(|| {
            let waits = left.iter().enumerate();
            let fewest = waits.min_by_key(|(_, table)| open(**table).count());
            fewest.map(|(at, _)| at)
        });
        let Some(next) = next else { break };
        circular.extend(open(left[next]).map(|(.., key)| (*key).clone()));
        parents_first.push(left.remove(next));
    }
    Order {
        parents_first,
        circular,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(child: u32, parent: u32) -> ForeignKey {
        ForeignKey {
            name: format!("{child}_{parent}"),
            child,
            parent,
            ..ForeignKey::default()
        }
    }

    #[test]
    fn what_is_referred_to_comes_first() {
        let found = order(
            &[1, 2, 3],
            &[key(1, 2), key(2, 3), key(2, 2), key(9, 1), key(3, 9)],
        );
        assert_eq!(found.parents_first, [2, 1, 0]);
        assert_eq!(found.circular, []);
    }

    #[test]
    fn a_circle_has_an_order_and_is_named() {
        let found = order(&[1, 2, 3], &[key(1, 2), key(2, 1), key(2, 3)]);
        assert_eq!(found.parents_first, [2, 0, 1]);
        assert_eq!(found.circular, [key(1, 2)]);
    }
}
